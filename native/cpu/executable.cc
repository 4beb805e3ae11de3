#include "cpu/executable.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <utility>

#include "cpu/cpu_info.h"
#include "cpu/kernels/dispatch.h"
#include "cpu/probe.h"
#include "plan/op_ports.h"
#include "plan/op_traits.h"

namespace effnet::cpu {
namespace {

#include "plan/factory_of.inc"

// What CPUs have no code for.
const char* for_gpus_only(const plan::Op& op) {
  if (op.allows_tf32()) return "TF32";
  if (op.has_half_gradient()) return "a 16-bit gradient of weights";
  for (const auto* list : {&op.inputs, &op.outputs})
    for (const plan::Tensor* t : *list)
      if (t && t->dtype == plan::DType::f16) return "FP16";
  return nullptr;
}

constexpr uint64_t align64(uint64_t bytes) { return (bytes + 63) / 64 * 64; }

// `images`: how often an op of a region runs.
// How many images of a region get a thread for themselves: rounds of one image a thread. What is left goes image after
// image, each op on all threads, unless that would keep them less busy than another round.
int whole_images(int64_t images, int threads) {
  const int64_t rest = images % threads;
  return static_cast<int>(4 * rest > 3 * threads ? images : images - rest);
}

Status failure_of(const plan::Op& op, int status) {
  return error(Code::internal, "op %.*s: oneDNN failed (status %d)", static_cast<int>(op.name.size()), op.name.data(),
               status);
}

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

// A thread that takes images through the region: where their results lie, and how they fared.
struct Executable::Lane {
  std::byte* arenas[plan::kArenaCount];
  ExecContext ctx;
  std::atomic<int> failure{0};
  const plan::Op* failed = nullptr;
  std::vector<double> seconds;  // of each op
};

StatusOr<std::shared_ptr<Executable>> Executable::bind(std::shared_ptr<ThreadPool> pool,
                                                       std::shared_ptr<HostMemory> memory,
                                                       std::span<const std::byte> plan) {
  if (const char* reason = unsupported_cpu_reason()) return error(Code::backend_missing, "%s", reason);
  auto loaded = plan::Plan::load(plan);
  if (!loaded.ok()) return loaded.status();
  auto executable = std::make_shared<Executable>(std::move(pool));
  executable->memory_ = std::move(memory);
  executable->plan_ = loaded.value();
  EFF_RETURN_IF_ERROR(executable->bind_ops());
  return executable;
}

Status Executable::check_arenas() const {
  using plan::Arena;
  for (int i = 0; i < plan::kArenaCount; ++i) {
    const auto arena = static_cast<Arena>(i);
    if (arena == Arena::prepared || arena == Arena::input || arena == Arena::output || arena == Arena::image) continue;
    const uint64_t needed = arena == Arena::activations ? activation_bytes() : plan_->arena_bytes(arena);
    if (needed > memory_->bytes(arena))
      return error(Code::plan_invalid, "plan: needs %llu bytes of arena %d, the memory has %llu",
                   static_cast<unsigned long long>(needed), i, static_cast<unsigned long long>(memory_->bytes(arena)));
  }
  return ok_status();
}

// The images of a region lie behind the activations.
uint64_t Executable::activation_bytes() const {
  if (lanes_ == 0) return plan_->arena_bytes(plan::Arena::activations);
  return align64(plan_->arena_bytes(plan::Arena::activations)) +
         static_cast<uint64_t>(lanes_) * align64(plan_->arena_bytes(plan::Arena::image));
}

std::byte* Executable::lane_arena(int lane) const {
  return memory_->arena(plan::Arena::activations) + align64(plan_->arena_bytes(plan::Arena::activations)) +
         static_cast<uint64_t>(lane) * align64(plan_->arena_bytes(plan::Arena::image));
}

Status Executable::bind_ops() {
  using plan::Arena;
  const plan::Region& region = plan_->region();
  if (plan_->ops().size() > static_cast<size_t>(ThreadPool::kMaxShards) || region.images > ThreadPool::kMaxShards)
    return error(Code::plan_invalid, "plan: %zu ops, %lld images of a region are too many", plan_->ops().size(),
                 static_cast<long long>(region.images));
  if (region.count > 0) {
    whole_images_ = whole_images(region.images, pool_->threads());
    lanes_ = whole_images_ > 0 ? pool_->threads() : 1;
  }
  EFF_RETURN_IF_ERROR(check_arenas());
  size_t shared = 0;
  bound_.reserve(plan_->ops().size());
  for (const plan::Op& op : plan_->ops()) {
    if (pool_->stopping()) return error(Code::aborted, "closed while a plan was being bound");
    if (const char* format = for_gpus_only(op))
      return error(Code::plan_invalid, "op %s: %s is for GPUs", std::string(op.name).c_str(), format);
    auto kernel = factory_of(op.id)(op);
    if (!kernel.ok())
      return Status(kernel.status().code(),
                    "op " + std::string(op.name) + " (" + plan::op_name(op.id) + "): " + kernel.status().message());
    for (int phase = 0; phase < kernel.value()->phases(); ++phase)
      if (const int shards = kernel.value()->shards(phase); shards < 0 || shards > ThreadPool::kMaxShards)
        return error(Code::plan_invalid, "op %.*s: too large", static_cast<int>(op.name.size()), op.name.data());
    worker_scratch_bytes_ = std::max(worker_scratch_bytes_, kernel.value()->worker_scratch_bytes());
    shared = std::max(shared, kernel.value()->shared_scratch_bytes());
    if (region.has(bound_.size()))
      lane_scratch_bytes_ = std::max<size_t>(lane_scratch_bytes_, align64(kernel.value()->shared_scratch_bytes()));
    updates_weights_ |= !op.updates.empty();
    bound_.push_back({&op, std::move(kernel.value())});
  }
  worker_scratch_bytes_ = align64(worker_scratch_bytes_);
  last_turns_.resize(static_cast<size_t>(pool_->threads()));
  shared = std::max(shared, lane_scratch_bytes_ * static_cast<size_t>(lanes_));
  const auto allocate = [](Block& block, uint64_t bytes, Block::Kind kind) -> Status {
    auto allocated = Block::allocate(bytes, kind);
    if (!allocated.ok()) return allocated.status();
    block = std::move(allocated.value());
    return ok_status();
  };
  EFF_RETURN_IF_ERROR(allocate(prepared_, plan_->arena_bytes(Arena::prepared), Block::Kind::arena));
  EFF_RETURN_IF_ERROR(allocate(output_, plan_->arena_bytes(Arena::output), Block::Kind::arena));
  EFF_RETURN_IF_ERROR(allocate(shared_scratch_, shared, Block::Kind::kernel));
  return allocate(worker_scratch_, worker_scratch_bytes_ * static_cast<size_t>(pool_->threads()), Block::Kind::kernel);
}

void Executable::run(Bound& bound, const ExecContext& base) {
  const auto start = Clock::now();
  for (int phase = 0; phase < bound.kernel->phases(); ++phase) {
    const uint64_t turn = ++turns_;
    pool_->parallel(bound.kernel->shards(phase), [&](int shard, int worker) {
      ExecContext ctx = base;
      ctx.worker = worker;
      ctx.first_shard = std::exchange(last_turns_[static_cast<size_t>(worker)].number, turn) != turn;
      ctx.worker_scratch = worker_scratch_.data() + static_cast<size_t>(worker) * worker_scratch_bytes_;
      bound.kernel->run(phase, shard, ctx);
    });
  }
  if (profiling.load(std::memory_order_relaxed)) bound.seconds += seconds_since(start);
}

Status Executable::run_checked(Bound& bound, const ExecContext& base) {
  if (pool_->stopping()) return error(Code::aborted, "closed while a step was running");
  run(bound, base);
  if (const int status = base.failure->load()) return failure_of(*bound.op, status);
  return ok_status();
}

// Both ways give an image the same bits: the kernels see one image, and their shards do not know the threads.
Status Executable::run_region(const ExecContext& base) {
  const plan::Region& region = plan_->region();
  const bool profile = profiling.load(std::memory_order_relaxed);
  std::vector<Lane> lanes(static_cast<size_t>(lanes_));
  for (int i = 0; i < lanes_; ++i) {
    Lane& lane = lanes[static_cast<size_t>(i)];
    std::copy(base.arenas, base.arenas + plan::kArenaCount, lane.arenas);
    lane.arenas[static_cast<int>(plan::Arena::image)] = lane_arena(i);
    lane.seconds.resize(region.count);
    lane.ctx = base;
    lane.ctx.arenas = lane.arenas;
    lane.ctx.failure = &lane.failure;
    lane.ctx.worker = i;
    lane.ctx.worker_scratch = worker_scratch_.data() + static_cast<size_t>(i) * worker_scratch_bytes_;
    lane.ctx.shared_scratch = shared_scratch_.data() + static_cast<size_t>(i) * lane_scratch_bytes_;
  }
  pool_->parallel(whole_images_, [&](int image, int worker) {
    Lane& lane = lanes[static_cast<size_t>(worker)];
    lane.ctx.image = static_cast<uint64_t>(image);
    for (size_t i = 0; i < region.count && !lane.failed && !pool_->stopping(); ++i) {
      const Bound& bound = bound_[region.first + i];
      const auto start = profile ? Clock::now() : Clock::time_point();
      for (int phase = 0; phase < bound.kernel->phases(); ++phase)
        for (int shard = 0; shard < bound.kernel->shards(phase); ++shard) {
          lane.ctx.first_shard = shard == 0;
          bound.kernel->run(phase, shard, lane.ctx);
        }
      if (profile) lane.seconds[i] += seconds_since(start);
      if (lane.failure) lane.failed = bound.op;
    }
  });
  if (pool_->stopping()) return error(Code::aborted, "closed while a step was running");
  for (const Lane& lane : lanes) {
    if (lane.failed) return failure_of(*lane.failed, lane.failure);
    for (size_t i = 0; i < region.count; ++i) bound_[region.first + i].seconds += lane.seconds[i] / lanes_;
  }
  ExecContext& ctx = lanes[0].ctx;
  for (int64_t image = whole_images_; image < region.images; ++image) {
    ctx.image = static_cast<uint64_t>(image);
    for (size_t i = 0; i < region.count; ++i) EFF_RETURN_IF_ERROR(run_checked(bound_[region.first + i], ctx));
  }
  return ok_status();
}

void Executable::prepare(const ExecContext& base) {
  for (Bound& bound : bound_)
    if (bound.op->is_prepare()) run(bound, base);
  pool_->parallel(static_cast<int>(bound_.size()), [&](int i, int worker) {
    ExecContext ctx = base;
    ctx.worker = worker;
    ctx.worker_scratch = worker_scratch_.data() + static_cast<size_t>(worker) * worker_scratch_bytes_;
    bound_[static_cast<size_t>(i)].kernel->prepare(ctx);
  });
}

void Executable::gather_arenas(const std::byte* input, std::byte** arenas) const {
  for (int i = 0; i < plan::kArenaCount; ++i) arenas[i] = memory_->arena(static_cast<plan::Arena>(i));
  arenas[static_cast<int>(plan::Arena::prepared)] = prepared_.data();
  arenas[static_cast<int>(plan::Arena::input)] = const_cast<std::byte*>(input);
  arenas[static_cast<int>(plan::Arena::output)] = output_.data();
  arenas[static_cast<int>(plan::Arena::image)] = lanes_ > 0 ? lane_arena(0) : nullptr;
}

// Whether the scalar that an op has just made lets the step go on: the loss before the backward part, the norm of the
// gradients before the update. Ordinary steps pay for nothing but reading two numbers.
static bool may_go_on(const plan::Op& op, const ExecContext& ctx) {
  const plan::Tensor* scalar = op.id == plan::OpId::softmax_cross_entropy ? op.out(op::softmax_cross_entropy::out_loss)
                               : op.id == plan::OpId::grad_norm           ? op.out(op::grad_norm::out_norm)
                                                                          : nullptr;
  return !scalar || std::isfinite(*ctx.ptr<const float>(scalar));
}

Status Executable::accumulate(const StepScalars& scalars) {
  const uint64_t bytes = plan_->arena_bytes(plan::Arena::grads);
  if (!gradient_sums_.data()) {
    auto sums = Block::allocate(bytes, Block::Kind::arena);
    if (!sums.ok()) return sums.status();
    gradient_sums_ = std::move(sums.value());
  }
  auto* grads = reinterpret_cast<float*>(memory_->arena(plan::Arena::grads));
  auto* sums = reinterpret_cast<float*>(gradient_sums_.data());
  const bool first = scalars.part == 0, last = scalars.part + 1 == scalars.parts;
  const float share = static_cast<float>(1 / scalars.parts);
  constexpr uint64_t kShard = 1 << 16;
  const uint64_t count = bytes / sizeof(float);
  pool_->parallel(static_cast<int>((count + kShard - 1) / kShard), [&](int shard, int) {
    const uint64_t begin = static_cast<uint64_t>(shard) * kShard, end = std::min(count, begin + kShard);
    float* into = last ? grads : sums;
    for (uint64_t i = begin; i < end; ++i) into[i] = (first ? 0.0f : sums[i]) + grads[i] * share;
  });
  return ok_status();
}

Status Executable::step(const std::byte* input, const StepScalars& scalars, std::byte* output) {
  memory_->wait_unpinned();
  EFF_RETURN_IF_ERROR(check_arenas());  // an arena whose growth failed may be gone
  std::byte* arenas[plan::kArenaCount];
  gather_arenas(input, arenas);
  std::atomic<int> failure{0};
  std::atomic<bool> unsound{false};
  bool updating = false, summed = scalars.parts <= 1;
  const ExecContext base{arenas, &scalars, nullptr, shared_scratch_.data(), 0, &failure, &unsound};

  // A training step changes the weights that its kernels packed.
  const uint64_t version = memory_->weights_version.load();
  if (weights_changed.exchange(false) || version != prepared_version_ || updates_weights_) prepare(base);
  if (failure) {
    weights_changed = true;
    return error(Code::internal, "oneDNN failed (status %d) while weights were packed", failure.load());
  }
  prepared_version_ = version;
  if (updates_weights_) ++memory_->weights_version;
  const plan::Region& region = plan_->region();
  for (size_t i = 0; i < bound_.size(); ++i) {
    const plan::Op& op = *bound_[i].op;
    if (op.is_prepare() || (region.has(i) && i != region.first)) continue;
    if (!summed && plan::is_of_update(op.id)) {
      summed = true;
      EFF_RETURN_IF_ERROR(accumulate(scalars));
      if (scalars.part + 1 < scalars.parts) break;
    }
    // All groups of parameters are updated before it is said that one is not finite; no average takes what is not.
    if (unsound && op.id == plan::OpId::ema_update) break;
    if (!updating && plan::updates_parameters(op.id)) {
      updating = true;
      unsound = !statistics_sound(arenas);
      if (unsound) break;
    }
    EFF_RETURN_IF_ERROR(region.has(i) ? run_region(base) : run_checked(bound_[i], base));
    if (updates_weights_ && !may_go_on(op, base)) break;
  }
  if (unsound) return error(Code::nan, "the update made weights that are not finite");
  if (profiling.load(std::memory_order_relaxed)) ++profiled_steps_;
  if (output_.bytes()) std::memcpy(output, output_.data(), output_.bytes());
  return ok_status();
}

std::vector<OpReport> Executable::report() const {
  std::vector<OpReport> rows;
  rows.reserve(bound_.size());
  for (const Bound& bound : bound_) {
    const int64_t images = plan_->region().has(rows.size()) ? plan_->region().images : 1;
    rows.push_back({std::string(bound.op->name), plan::op_name(bound.op->id), bound.kernel->name(), bound.op->flags,
                    bound.kernel->flops() * static_cast<double>(images), plan::operand_bytes(*bound.op, images),
                    profiled_steps_ ? 1e3 * bound.seconds / profiled_steps_ : 0});
  }
  return rows;
}

uint64_t Executable::owned_bytes() const {
  uint64_t bytes =
      gradient_sums_.bytes() + prepared_.bytes() + output_.bytes() + shared_scratch_.bytes() + worker_scratch_.bytes();
  for (const Bound& bound : bound_) bytes += bound.kernel->persistent_bytes();
  return bytes;
}

const std::byte* Executable::data(const plan::Tensor& tensor) const {
  switch (tensor.arena) {
    case plan::Arena::prepared:
      return prepared_.data() + tensor.offset;
    case plan::Arena::output:
      return output_.data() + tensor.offset;
    case plan::Arena::input:
      return nullptr;
    case plan::Arena::image:  // what the first thread's last image left there
      return lane_arena(0) + tensor.offset;
    default:
      return memory_->arena(tensor.arena) + tensor.offset;
  }
}

Status Executable::read(const plan::Tensor& tensor, std::span<std::byte> into) const {
  const std::byte* from = data(tensor);
  if (!from) return error(Code::invalid_argument, "a tensor of the input is there during a step only");
  std::memcpy(into.data(), from, std::min<size_t>(into.size(), tensor.bytes));
  return ok_status();
}

namespace {

class CpuBackend final : public Backend {
 public:
  std::string name() const override { return cpu_info().model; }
  StatusOr<uint64_t> available_bytes() const override { return cpu_info().memory_bytes; }
  uint64_t total_bytes() const override { return cpu_info().memory_bytes; }
  StatusOr<Peaks> measure_peaks(ThreadPool& pool) override { return cpu::measure_peaks(pool); }
  StatusOr<std::shared_ptr<Memory>> create_memory(const uint64_t (&arena_bytes)[plan::kArenaCount],
                                                  uint64_t limit) override {
    auto memory = HostMemory::create(arena_bytes, limit);
    if (!memory.ok()) return memory.status();
    return std::shared_ptr<Memory>(std::move(memory.value()));
  }
  StatusOr<std::shared_ptr<effnet::Executable>> bind(std::shared_ptr<ThreadPool> pool, std::shared_ptr<Memory> memory,
                                                     std::span<const std::byte> plan, const Tuning&) override {
    auto bound = Executable::bind(std::move(pool), std::static_pointer_cast<HostMemory>(std::move(memory)), plan);
    if (!bound.ok()) return bound.status();
    return std::shared_ptr<effnet::Executable>(std::move(bound.value()));
  }
};

}  // namespace

Backend& backend() {
  static CpuBackend cpu;
  return cpu;
}

}  // namespace effnet::cpu
