// Plans: the verifier, then (where it accepts) the arenas, kernels and one step. Accepted plans run: what the verifier
// lets through must be safe.
#include <algorithm>
#include <cstring>
#include <map>

#include "core/caught.h"
#include "cpu/executable.h"
#include "fuzz/fuzz.h"
#include "fuzz/plan_editor.h"

#if defined(__SANITIZE_ADDRESS__)
#define EFFNET_FUZZ_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EFFNET_FUZZ_ASAN 1
#endif
#endif
#ifdef EFFNET_FUZZ_ASAN
#include <sanitizer/asan_interface.h>
#endif

extern "C" void omp_set_num_threads(int);

namespace effnet::fuzz {

uint64_t bind_one_of = 1;

namespace {

using plan::Arena;

constexpr size_t kMaxBytes = size_t{48} << 10;
constexpr uint64_t kMostBound = uint64_t{2} << 30;  // of all arenas: pages that nobody touches cost nothing
constexpr uint64_t kMostRun = uint64_t{2} << 20;
constexpr double kMostFlops = 2e7;

// Small values of either sign: as floats mostly near 1, as labels or pixels anything.
void fill(std::byte* data, uint64_t bytes, uint64_t seed) {
  Random random(seed);
  for (uint64_t at = 0; at + 4 <= bytes; at += 4) {
    const uint64_t word = random.next();
    const float value = static_cast<float>(static_cast<int>(word >> 20 & 0xff) - 128) / 64.0f;
    const auto label = static_cast<int32_t>(word >> 30 & 7) - 1;
    if (seed & 1)
      std::memcpy(data + at, &label, 4);
    else
      std::memcpy(data + at, &value, 4);
  }
}

// Guards what lies between tensors: AddressSanitizer sees every touch by our own code, and a pattern every write by
// oneDNN's.
class Gaps {
 public:
  // `data` holds the tensors of these arenas (moments lie as their parameters do). Its gaps are overwritten.
  // Not `poisoned`: memory that is copied as a whole; only writes are seen.
  void guard(const plan::Plan& plan, std::initializer_list<Arena> arenas, std::byte* data, uint64_t bytes,
             bool poisoned = true) {
    if (bytes == 0) return;
    Region region{data, std::vector<bool>(bytes, true), poisoned};
    for (const plan::Tensor& t : plan.tensors())
      if (std::find(arenas.begin(), arenas.end(), t.arena) != arenas.end() && t.offset + extent(plan, t) <= bytes)
        std::fill_n(region.gap.begin() + static_cast<ptrdiff_t>(t.offset), extent(plan, t), false);
    for (uint64_t i = 0; i < bytes; ++i)
      if (region.gap[i]) data[i] = kPattern;
    if (poisoned) poison(region, true);
    regions_.push_back(std::move(region));
  }
  void check() {
    for (const Region& region : regions_) {
      if (region.poisoned) poison(region, false);
      for (uint64_t i = 0; i < region.gap.size(); ++i)
        if (region.gap[i] && region.data[i] != kPattern) broken("a write between tensors", std::to_string(i));
    }
    regions_.clear();
  }

 private:
  static constexpr std::byte kPattern{0xa5};
  struct Region {
    std::byte* data;
    std::vector<bool> gap;
    bool poisoned;
  };

  // Of all images, for a slice.
  static uint64_t extent(const plan::Plan& plan, const plan::Tensor& t) {
    return t.image_stride ? t.bytes + t.image_stride * static_cast<uint64_t>(plan.region().images - 1) : t.bytes;
  }
  static void poison([[maybe_unused]] const Region& region, [[maybe_unused]] bool on) {
#ifdef EFFNET_FUZZ_ASAN
    for (size_t i = 0; i < region.gap.size();) {
      size_t end = i;
      while (end < region.gap.size() && region.gap[end]) ++end;
      if (on && end > i) ASAN_POISON_MEMORY_REGION(region.data + i, end - i);
      if (!on && end > i) ASAN_UNPOISON_MEMORY_REGION(region.data + i, end - i);
      for (i = end; i < region.gap.size() && !region.gap[i];) ++i;
    }
#endif
  }

  std::vector<Region> regions_;
};

Outcome run_step(cpu::Executable& executable, uint64_t seed) {
  const plan::Plan& plan = executable.plan();
  HostMemory& memory = executable.host_memory();
  for (int a = 0; a <= static_cast<int>(Arena::activations); ++a)
    fill(memory.arena(static_cast<Arena>(a)), memory.bytes(static_cast<Arena>(a)), seed & ~uint64_t{1});
  auto input = Block::allocate(plan.arena_bytes(Arena::input), Block::Kind::batch);
  auto output = Block::allocate(plan.arena_bytes(Arena::output), Block::Kind::batch);
  if (!input.ok() || !output.ok()) return {"oom", "step"};
  fill(input.value().data(), input.value().bytes(), seed);

  Gaps gaps;
  gaps.guard(plan, {Arena::input}, input.value().data(), input.value().bytes());
  for (int a = 0; a <= static_cast<int>(Arena::activations); ++a) {
    const auto arena = static_cast<Arena>(a);
    const bool mirror = arena == Arena::moment0 || arena == Arena::moment1 || arena == Arena::ema;
    gaps.guard(plan, {arena, mirror ? Arena::weights : arena}, memory.arena(arena), plan.arena_bytes(arena));
  }
  // What the executable has to itself, found by one of the tensors.
  for (const Arena arena : {Arena::prepared, Arena::output, Arena::image}) {
    const auto tensor = std::find_if(plan.tensors().begin(), plan.tensors().end(),
                                     [arena](const plan::Tensor& t) { return t.arena == arena; });
    if (tensor == plan.tensors().end()) continue;
    auto* data = const_cast<std::byte*>(executable.data(*tensor)) - tensor->offset;
    gaps.guard(plan, {arena}, data, plan.arena_bytes(arena), arena != Arena::output);
  }

  StepScalars scalars{.lr = 0.01, .step = 3, .seed = 7, .weight_decay = 1e-4, .momentum = 0.9, .alpha = 0.9};
  scalars.eps = 1e-3;
  scalars.clip_norm = seed & 4 ? 1 : 0;
  scalars.ema_decay = 0.99;
  for (int step = 0; step < (seed & 8 ? 2 : 1); ++step) {
    const Status status = caught([&] { return executable.step(input.value().data(), scalars, output.value().data()); });
    // Made-up moments have roots of negative numbers.
    if (status.code() == Code::nan) break;
    if (!status.ok()) broken("a bound plan does not run", status.message());
  }
  gaps.check();
  return {"ran", ""};
}

Outcome run(const uint8_t* data, size_t size) {
  // The hash of the op table is checked by comparing it: put right, so that a corpus outlives the table's growth.
  Bytes bytes(data, data + size);
  set_op_table_hash(bytes);
  const std::span<const std::byte> span(reinterpret_cast<const std::byte*>(bytes.data()), bytes.size());
  auto loaded = caught([&] { return plan::Plan::load(span); });
  if (!loaded.ok()) {
    if (loaded.status().code() != Code::plan_invalid) broken("code of a refused plan", loaded.status().message());
    return {"plan_invalid", without_numbers(loaded.status().message().substr(0, 60))};
  }
  const plan::Plan& plan = *loaded.value();
  uint64_t sizes[plan::kArenaCount] = {}, total = 0;
  for (int a = 0; a < plan::kArenaCount; ++a) {
    total += plan.arena_bytes(static_cast<Arena>(a));
    if (a <= static_cast<int>(Arena::activations)) sizes[a] = plan.arena_bytes(static_cast<Arena>(a));
  }
  if (total > kMostBound) return {"verified", "too large to bind"};
  if (hash_of(data, size) / 16 % bind_one_of != 0) return {"verified", std::to_string(plan.ops().size())};

  // One thread has one image of a region in work; its results lie behind the activations (cpu/executable.h).
  const auto aligned = [&plan](Arena a) {
    return (plan.arena_bytes(a) + plan::kAlignment - 1) / plan::kAlignment * plan::kAlignment;
  };
  if (plan.region().count > 0)
    sizes[static_cast<int>(Arena::activations)] = aligned(Arena::activations) + aligned(Arena::image);
  static const auto pool = std::make_shared<ThreadPool>(1);  // runs shards on the calling thread
  static const bool alone = (omp_set_num_threads(1), true);
  (void)alone;
  auto memory = HostMemory::create(sizes);
  if (!memory.ok()) return {"oom", "arenas"};
  auto bound = caught([&] { return cpu::Executable::bind(pool, memory.value(), span); });
  if (!bound.ok()) {
    const Code code = bound.status().code();
    if (code != Code::plan_invalid && code != Code::oom)
      broken("code of a plan without kernels", bound.status().message());
    return {code == Code::oom ? "oom" : "no kernel", without_numbers(bound.status().message().substr(0, 80))};
  }
  // Short plans are told apart by their kernels; of long ones, which cost a hundred times as much, few are kept.
  std::string kernels = plan.ops().size() > 4 ? "many" : "";
  double flops = 0;
  for (const OpReport& op : bound.value()->report()) {
    if (plan.ops().size() <= 4) kernels += op.kernel;
    flops += op.flops;
  }
  if (total > kMostRun || !(flops < kMostFlops)) return {"bound", kernels};
  Outcome outcome = run_step(*bound.value(), hash_of(data, size));
  outcome.where = kernels;
  return outcome;
}

}  // namespace

const Target kPlan = {"plan", kMaxBytes, run, mutate_plan};

}  // namespace effnet::fuzz
