// Whole plans on the CUDA backend under the fake driver (native/cuda/fake): the plans of the fuzzing corpus, from
// single ops to training steps of a small model, with made-up arenas.
//
// What the runtime promises and where it is held to it (R: cuda_runtime_test.cc, F: cuda_faults_test.cc, else in
// test/):
//   one graph, no allocation in a step       R AStepIsOneGraphAndAllocatesNothing; engine/cuda_memory
//   inputs ahead, on a stream of their own   R InputsThatAreStagedAheadGiveTheSameBits, AMissingWaitShows
//   nothing is written while it is copied    R AHostBlockOrAnInputThatIsWrittenTooEarlyShows
//   the device block is in checkpoints       engine/cuda: "scales the loss of fp16-mixed"
//   unscale, norm, clip, update              R TheLossScaleComesOffBeforeTheUpdate
//   a skipped step changes nothing           R ASkippedStepChangesNothingButTheScale
//   Adam counts good steps                   R AdamCountsTheStepsThatWereMade
//   accumulate and update                    R GradientsOfSeveralBatchesAreAveraged; engine/accumulate
//   folds and copies follow the weights      R NothingIsCapturedAgainToEvaluateTheAverage; engine/cuda: "evaluates"
//   plans share weights and activations      engine/cuda_memory: "is shared"
//   a replay equals an eager step            R AProfiledStepGivesTheSameBits; F ASynchronousRunNamesTheOpAtFault
//   so does any legal order                  R EveryLegalOrderGivesTheSameBits
//   out of memory in numbers                 F MemoryThatIsNotThereIsSaidInNumbers; engine/cuda_memory
//   a fault ends cleanly and is rerun        F ADeviceFaultEndsInAnError; cli/gpu_fault
//   memory limit, device choice              F ALimitHoldsForArenasAndExecutablesTogether; engine/cuda_memory
//   ranges, profiles                         engine/cuda_nvtx; cli/profile
//   closing, threads, signals, process ends  engine/lifecycle; engine/cuda: "ends a run"
//   above 2^31 elements; 5 classes           cuda_large_test.cc; engine/cuda
#pragma once

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "cpu/executable.h"
#include "cuda/executable.h"
#include "fuzz/plan_editor.h"
#include "tests/kernel_rig.h"

namespace effnet::test {

using plan::Arena;
using plan::DType;

struct Named {
  std::string name;
  fuzz::Bytes bytes;
  std::span<const std::byte> span() const { return std::as_bytes(std::span(bytes)); }
};

inline std::vector<Named> corpus() {
  const auto folder = std::filesystem::path(__FILE__).parent_path() / "../fuzz/corpus/plan";
  std::vector<Named> plans;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream file(entry.path(), std::ios::binary);
    Named plan{entry.path().filename(), {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()}};
    fuzz::set_op_table_hash(plan.bytes);
    plans.push_back(std::move(plan));
  }
  std::sort(plans.begin(), plans.end(), [](const Named& a, const Named& b) { return a.name < b.name; });
  return plans;
}

inline Named corpus_plan(const std::string& name) {
  for (Named& plan : corpus())
    if (plan.name == name) return plan;
  ADD_FAILURE() << "the corpus has no " << name;
  return {};
}

// A variable of the environment, for as long as it lives.
class Setting {
 public:
  Setting(const char* name, const std::string& value) : name_(name) { setenv(name, value.c_str(), 1); }
  ~Setting() { unsetenv(name_); }

 private:
  const char* name_;
};

inline std::shared_ptr<cuda::Device> device() {
  static const std::shared_ptr<cuda::Device> one = [] {
    setenv("EFFNET_LIB_DIR", FAKE_CUDA_FOLDER, 0);
    auto opened = cuda::Device::open(0);
    EXPECT_TRUE(opened.ok()) << opened.status().message();
    return opened.ok() ? opened.value() : nullptr;
  }();
  return one;
}

template <class F>
F* of_fake(const char* name) {
  void* library = dlopen(FAKE_CUDA_FOLDER "/libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  return reinterpret_cast<F*>(dlsym(library, name));
}
inline int live_objects() { return of_fake<int()>("fake_cuda_live")(); }
inline int calls(const char* name) { return of_fake<int(const char*)>("fake_cuda_calls")(name); }
inline uint64_t device_bytes() { return of_fake<size_t()>("fake_cuda_bytes")(); }
inline void reset_fake() { of_fake<void()>("fake_cuda_reset")(); }

// Values in [1/8, 1): good as variances too. Labels below 3, some missing.
inline void fill(const plan::Tensor& t, std::byte* arena, uint32_t seed) {
  std::byte* data = arena + t.offset;
  for (int64_t i = 0; i < t.elements(); ++i) {
    uint32_t word = (static_cast<uint32_t>(i) + seed * 7919u) * 2654435761u;
    word ^= word >> 15;
    word *= 2246822519u;
    word ^= word >> 13;
    const float value = 0.125f + static_cast<float>(word >> 8) / static_cast<float>(1 << 24) * 0.875f;
    const int32_t label = static_cast<int32_t>(word % 4) - 1;
    switch (t.dtype) {
      case DType::f32:
        std::memcpy(data + 4 * i, &value, 4);
        break;
      case DType::i32:
        std::memcpy(data + 4 * i, &label, 4);
        break;
      case DType::u8:
        data[i] = static_cast<std::byte>(word >> 8);
        break;
      default: {
        const uint16_t half = to_bits16(t.dtype, value);
        std::memcpy(data + 2 * i, &half, 2);
      }
    }
  }
}

inline float value_at(const plan::Tensor& t, const std::byte* arena, int64_t i) {
  const std::byte* data = arena + t.offset;
  switch (t.dtype) {
    case DType::i32: {
      int32_t integer;
      std::memcpy(&integer, data + 4 * i, 4);
      return static_cast<float>(integer);
    }
    case DType::u8:
      return static_cast<float>(data[i]);
    case DType::f32: {
      float value;
      std::memcpy(&value, data + 4 * i, 4);
      return value;
    }
    default: {
      uint16_t bits;
      std::memcpy(&bits, data + 2 * i, 2);
      return from_bits16(t.dtype, bits);
    }
  }
}

// The arenas that both backends start from.
struct Start {
  std::vector<std::byte> arenas[plan::kArenaCount];
  StepScalars scalars;

  explicit Start(const plan::Plan& plan) {
    for (int a = 0; a < plan::kArenaCount; ++a) arenas[a].resize(plan.arena_bytes(static_cast<Arena>(a)));
    uint32_t seed = 1;
    for (const plan::Tensor& t : plan.tensors()) {
      fill(t, arenas[static_cast<int>(t.arena)].data(), seed++);
      if (t.arena != Arena::weights) continue;
      for (const Arena mirror : {Arena::grads, Arena::moment0, Arena::moment1, Arena::ema})
        if (arenas[static_cast<int>(mirror)].size() >= t.offset + t.bytes)
          fill(t, arenas[static_cast<int>(mirror)].data(), seed++);
    }
    scalars.lr = 0.01;
    scalars.step = 3;
    scalars.seed = 7;
    scalars.weight_decay = 1e-4;
    scalars.momentum = 0.9;
    scalars.alpha = 0.9;
    scalars.eps = 1e-3;
    scalars.clip_norm = 1;
    scalars.ema_decay = 0.99;
  }
};

using Arenas = std::vector<std::vector<std::byte>>;

// All arenas after a step; the input's is empty.
inline StatusOr<Arenas> on_cpu(const Named& named, const Start& start) {
  const auto pool = std::make_shared<ThreadPool>(1);
  uint64_t sizes[plan::kArenaCount] = {};
  for (int a = 0; a <= static_cast<int>(Arena::activations); ++a) sizes[a] = start.arenas[a].size();
  auto memory = HostMemory::create(sizes);
  if (!memory.ok()) return memory.status();
  auto bound = cpu::Executable::bind(pool, memory.value(), named.span());
  if (!bound.ok()) return bound.status();
  for (int a = 0; a <= static_cast<int>(Arena::activations); ++a)
    if (sizes[a]) std::memcpy(memory.value()->arena(static_cast<Arena>(a)), start.arenas[a].data(), sizes[a]);
  Arenas after(plan::kArenaCount);
  after[static_cast<int>(Arena::output)].resize(start.arenas[static_cast<int>(Arena::output)].size());
  EFF_RETURN_IF_ERROR(bound.value()->step(start.arenas[static_cast<int>(Arena::input)].data(), start.scalars,
                                          after[static_cast<int>(Arena::output)].data()));
  for (int a = 0; a <= static_cast<int>(Arena::activations); ++a) {
    const std::byte* data = memory.value()->arena(static_cast<Arena>(a));
    after[static_cast<size_t>(a)].assign(data, data + sizes[a]);
  }
  return after;
}

inline StatusOr<Arenas> on_cuda(const Named& named, const Start& start, int steps = 1) {
  auto memory = cuda::DeviceMemory::create(device());
  if (!memory.ok()) return memory.status();
  for (int a = 0; a <= static_cast<int>(Arena::activations); ++a) {
    EFF_RETURN_IF_ERROR(memory.value()->ensure(static_cast<Arena>(a), start.arenas[a].size()));
    EFF_RETURN_IF_ERROR(memory.value()->write(static_cast<Arena>(a), 0, start.arenas[a]));
  }
  auto bound = cuda::Executable::bind(std::make_shared<ThreadPool>(1), memory.value(), named.span());
  if (!bound.ok()) return bound.status();
  Arenas after(plan::kArenaCount);
  after[static_cast<int>(Arena::output)].resize(start.arenas[static_cast<int>(Arena::output)].size());
  for (int step = 0; step < steps; ++step)
    EFF_RETURN_IF_ERROR(bound.value()->step(start.arenas[static_cast<int>(Arena::input)].data(), start.scalars,
                                            after[static_cast<int>(Arena::output)].data()));
  for (int a = 0; a <= static_cast<int>(Arena::activations); ++a) {
    after[static_cast<size_t>(a)].resize(start.arenas[a].size());
    EFF_RETURN_IF_ERROR(memory.value()->read(static_cast<Arena>(a), 0, after[static_cast<size_t>(a)]));
  }
  return after;
}

// Tensors of these arenas; of a short plan its activations too, which nothing has overwritten.
inline bool is_compared(const plan::Plan& plan, const plan::Tensor& t) {
  switch (t.arena) {
    case Arena::weights:
    case Arena::grads:
    case Arena::output:
      return true;
    case Arena::activations:
      return plan.ops().size() <= 4;
    default:
      return false;
  }
}

// |a - b| <= tolerance * (largest |b| of the tensor). `want` is of a plan of the same tensors, in other types.
inline void expect_alike(const plan::Plan& plan, const Arenas& got, const plan::Plan& want_plan, const Arenas& want,
                         double tolerance) {
  for (size_t at = 0; at < plan.tensors().size(); ++at) {
    const plan::Tensor &t = plan.tensors()[at], &of_want = want_plan.tensors()[at];
    if (!is_compared(plan, t)) continue;
    const auto arena = static_cast<size_t>(t.arena);
    double scale = 0, worst = 0;
    for (int64_t i = 0; i < t.elements(); ++i) {
      const double w = value_at(of_want, want[arena].data(), i), g = value_at(t, got[arena].data(), i);
      if (std::isnan(w) && std::isnan(g)) continue;
      scale = std::max(scale, std::abs(w));
      worst = std::max(worst, difference(g, w));
    }
    EXPECT_LE(worst, tolerance * std::max(scale, 1e-3)) << "tensor " << t.name << " of " << t.elements();
  }
}

inline void expect_alike(const plan::Plan& plan, const Arenas& got, const Arenas& want, double tolerance) {
  expect_alike(plan, got, plan, want, tolerance);
}

class CudaRuntime : public testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(device(), nullptr); }
};

inline std::shared_ptr<cuda::DeviceMemory> memory_with(const Start& start) {
  auto memory = cuda::DeviceMemory::create(device()).value();
  for (int a = 0; a <= static_cast<int>(Arena::activations); ++a) {
    EXPECT_TRUE(memory->ensure(static_cast<Arena>(a), start.arenas[a].size()).ok());
    EXPECT_TRUE(memory->write(static_cast<Arena>(a), 0, start.arenas[a]).ok());
  }
  return memory;
}

inline std::shared_ptr<cuda::Executable> bound_to(const std::shared_ptr<cuda::DeviceMemory>& memory,
                                                  const Named& named) {
  return cuda::Executable::bind(std::make_shared<ThreadPool>(1), memory, named.span()).value();
}

inline std::vector<std::byte> weights_of(const cuda::DeviceMemory& memory) {
  std::vector<std::byte> bytes(memory.bytes(Arena::weights));
  EXPECT_TRUE(memory.read(Arena::weights, 0, bytes).ok());
  return bytes;
}

}  // namespace effnet::test
