// A rig for kernel tests: builds one op with its tensors, runs its kernel and looks at the results. Every run() is made
// in several orders of its parts (backend::Runner) on scratch filled with garbage: the bits of all arenas must agree,
// and nothing outside outputs and updates may change. Values are doubles on the test's side.
//
// The same tests run against each backend: `backend` is the CPU's kernels, with EFFNET_TEST_CUDA the CUDA kernels on
// the emulation, with EFFNET_TEST_GPU the same on a GPU (or on a driver without one).
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "plan/op_ports.h"
#include "plan/plan.h"
#include "tests/aligned.h"
#include "tests/half.h"
#if defined(EFFNET_TEST_GPU)
#include "tests/gpu_runner.h"
#elif defined(EFFNET_TEST_CUDA)
#include "tests/cuda_runner.h"
#else
#include "tests/cpu_runner.h"
#endif

namespace effnet::test {

// Under ThreadSanitizer the emulation is a hundred times slower: the largest shapes of a test are left out.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif

// How often a test program runs a kernel with the same operands present (Rig::covered); EFFNET_RUNS_OF_A_FORM says
// otherwise.
inline int runs_of_a_form() {
  static const int runs = [] {
    if (const char* given = std::getenv("EFFNET_RUNS_OF_A_FORM")) return std::max(1, std::atoi(given));
    return kThreadSanitizer && !backend::kIsCpu ? 1 : std::numeric_limits<int>::max();
  }();
  return runs;
}

using plan::Arena;
using plan::Tensor;
using Values = std::vector<double>;

// |a - b|; infinite where one of them is NaN, so that no maximum loses it.
inline double difference(double a, double b) {
  const double apart = std::abs(a - b);
  return std::isnan(apart) ? std::numeric_limits<double>::infinity() : apart;
}

inline size_t bytes_of(DType dtype) {
  switch (dtype) {
    case DType::u8:
      return 1;
    case DType::bf16:
    case DType::f16:
      return 2;
    default:
      return 4;
  }
}

class Rig {
 public:
  explicit Rig(backend::KernelFactory factory, std::vector<double> attrs = {}) : runner_(factory) {
    op_.id = plan::OpId{};
    op_.flags = 0;
    op_.name = "op";
    op_.attrs = std::move(attrs);
  }

  // A tensor in an arena. Between tensors lies a gap that no kernel may touch.
  Tensor* tensor(Arena arena, DType dtype, std::vector<int64_t> dims, const Values& values = {}) {
    Tensor t{};
    t.name = "t";
    t.dtype = dtype;
    t.arena = arena;
    t.rank = static_cast<int>(dims.size());
    for (int i = 0; i < 4; ++i) t.dims[i] = i < t.rank ? dims[static_cast<size_t>(i)] : 1;
    t.bytes = static_cast<uint64_t>(t.elements()) * bytes_of(dtype);
    auto& memory = arenas_[static_cast<int>(arena)];
    t.offset = memory.size();
    memory.resize((memory.size() + t.bytes + 63) / 64 * 64 + 64, 0x7b);
    tensors_.push_back(t);
    if (!values.empty()) set(&tensors_.back(), values);
    return &tensors_.back();
  }
  // Places a tensor where another arena has one: gradients, moments and ema lie at the parameter's offset.
  Tensor* twin(const Tensor* of, Arena arena, const Values& values) {
    auto& memory = arenas_[static_cast<int>(arena)];
    const size_t need = arenas_[static_cast<int>(of->arena)].size();
    if (memory.size() < need) memory.resize(need, 0x7b);
    Tensor t = *of;
    t.arena = arena;
    tensors_.push_back(t);
    set(&tensors_.back(), values);
    return &tensors_.back();
  }

  Tensor* in(DType dtype, std::vector<int64_t> dims, const Values& values) {
    Tensor* t =
        tensor(dtype == DType::u8 || dtype == DType::i32 ? Arena::input : Arena::activations, dtype, dims, values);
    op_.inputs.push_back(t);
    return t;
  }
  Tensor* out(DType dtype, std::vector<int64_t> dims) {
    Tensor* t = tensor(Arena::activations, dtype, dims);
    op_.outputs.push_back(t);
    return t;
  }
  void add_in(const Tensor* t) { op_.inputs.push_back(t); }
  void add_out(const Tensor* t) { op_.outputs.push_back(t); }
  void absent_inputs(size_t count) { op_.inputs.insert(op_.inputs.end(), count, nullptr); }
  void absent_outputs(size_t count) { op_.outputs.insert(op_.outputs.end(), count, nullptr); }
  void add_update(const Tensor* t) { op_.updates.push_back(t); }

  void set(const Tensor* t, const Values& values) {
    ASSERT_EQ(static_cast<int64_t>(values.size()), t->elements());
    uint8_t* p = arenas_[static_cast<int>(t->arena)].data() + t->offset;
    for (size_t i = 0; i < values.size(); ++i) {
      const float f = static_cast<float>(values[i]);
      const uint16_t half = to_bits16(t->dtype, f);
      int32_t integer;  // converted where it is one: elsewhere the value may not fit
      switch (t->dtype) {
        case DType::f32:
          std::memcpy(p + 4 * i, &f, 4);
          break;
        case DType::bf16:
        case DType::f16:
          std::memcpy(p + 2 * i, &half, 2);
          break;
        case DType::i32:
          integer = static_cast<int32_t>(values[i]);
          std::memcpy(p + 4 * i, &integer, 4);
          break;
        case DType::u8:
          p[i] = static_cast<uint8_t>(values[i]);
          break;
        default:
          FAIL() << "dtype";
      }
    }
  }
  Values get(const Tensor* t) const {
    const uint8_t* p = arenas_[static_cast<int>(t->arena)].data() + t->offset;
    Values values(static_cast<size_t>(t->elements()));
    for (size_t i = 0; i < values.size(); ++i) {
      float f;
      uint16_t half;
      int32_t integer;
      switch (t->dtype) {
        case DType::f32:
          std::memcpy(&f, p + 4 * i, 4);
          values[i] = f;
          break;
        case DType::bf16:
        case DType::f16:
          std::memcpy(&half, p + 2 * i, 2);
          values[i] = from_bits16(t->dtype, half);
          break;
        case DType::i32:
          std::memcpy(&integer, p + 4 * i, 4);
          values[i] = integer;
          break;
        default:
          values[i] = p[i];
      }
    }
    return values;
  }

  StepScalars& scalars() { return scalars_; }
  // Of the kernel, once made: what dump() shows; into how many independent parts it splits its work.
  std::string name() const { return runner_.name(); }
  int parts() const { return runner_.parts(); }
  double flops() const { return runner_.flops(); }
  plan::Op& op() { return op_; }

  Status make() { return runner_.make(op_); }

  // Whether the program has run each of these kernels with these operands often enough: where every access is slow,
  // shapes beyond that are left to the builds without a sanitizer, which compare their numbers. What cannot be made was
  // not run. To ThreadSanitizer both 16-bit types are one: a kernel's text, and with it its order of accesses, is.
  bool covered() {
    if (runs_of_a_form() == std::numeric_limits<int>::max()) return false;
    if (!runner_.made() && !make().ok()) return false;
    std::string operands;
    for (const Tensor* t : op_.inputs) operands += t ? 'i' : '-';
    for (const Tensor* t : op_.outputs) operands += t ? 'o' : '-';
    static std::map<std::string, int> runs;
    bool enough = true;
    for (std::string form : runner_.forms()) {
      for (size_t at; kThreadSanitizer && (at = form.find("_f16")) != std::string::npos;) form.replace(at, 4, "_bf16");
      if (runs[form + operands]++ < runs_of_a_form()) enough = false;
    }
    return enough;
  }

  // Leaves the result of one run in the arenas.
  void run() {
    if (!runner_.made()) {
      const Status status = make();
      ASSERT_TRUE(status.ok()) << status.message();
    }
    const auto before = snapshot();
    execute(0);
    const auto after = snapshot();
    check_untouched(before, after);
    for (int order = 1; order < backend::Runner::kOrders; ++order) {
      restore(before);
      execute(order);
      const auto again = snapshot();
      for (int a = 0; a < plan::kArenaCount; ++a) {
        ASSERT_TRUE(again[static_cast<size_t>(a)] == after[static_cast<size_t>(a)])
            << runner_.name() << ": other bits in arena " << a << " with " << backend::Runner::order_name(order);
      }
    }
  }

  // One pass in order; for the laboratory.
  void run_once() { execute(0); }

 private:
  using Snapshot = std::vector<std::vector<uint8_t>>;

  Snapshot snapshot() const { return Snapshot(arenas_, arenas_ + plan::kArenaCount); }
  void restore(const Snapshot& s) {
    for (int a = 0; a < plan::kArenaCount; ++a)
      std::copy(s[static_cast<size_t>(a)].begin(), s[static_cast<size_t>(a)].end(), arenas_[a].begin());
  }

  void check_untouched(const Snapshot& before, const Snapshot& after) {
    std::vector<std::vector<bool>> writable;
    for (const auto& memory : before) writable.emplace_back(memory.size(), false);
    const auto allow = [&](const Tensor* t, Arena arena) {
      if (!t) return;
      auto& flags = writable[static_cast<size_t>(arena)];
      const size_t end = std::min<size_t>(flags.size(), t->offset + t->bytes);
      for (size_t i = t->offset; i < end; ++i) flags[i] = true;
    };
    for (const Tensor* t : op_.outputs) allow(t, t ? t->arena : Arena::output);
    for (const Tensor* t : op_.updates) {
      allow(t, t->arena);
      allow(t, Arena::moment0);
      allow(t, Arena::moment1);
      allow(t, Arena::ema);
    }
    if (op_.outputs.empty() && op_.updates.empty()) {
      for (const Tensor* t : op_.inputs) allow(t, Arena::ema);
    }
    for (size_t a = 0; a < before.size(); ++a) {
      for (size_t i = 0; i < before[a].size(); ++i) {
        ASSERT_TRUE(writable[a][i] || before[a][i] == after[a][i])
            << runner_.name() << ": wrote arena " << a << " at " << i;
      }
    }
  }

  void execute(int order) {
    std::deque<Aligned> arena_memory;
    for (const auto& arena : arenas_) arena_memory.emplace_back(arena.size());
    std::byte* pointers[plan::kArenaCount];
    size_t sizes[plan::kArenaCount];
    for (int a = 0; a < plan::kArenaCount; ++a) {
      pointers[a] = arena_memory[static_cast<size_t>(a)].data();
      sizes[a] = arenas_[a].size();
      if (!arenas_[a].empty()) std::memcpy(pointers[a], arenas_[a].data(), arenas_[a].size());
    }
    for (const Arena arena : {Arena::activations, Arena::input}) guard_gaps(pointers, arena, true);
    runner_.execute(order, pointers, sizes, scalars_);
    for (const Arena arena : {Arena::activations, Arena::input}) guard_gaps(pointers, arena, false);
    for (int a = 0; a < plan::kArenaCount; ++a) {
      if (!arenas_[a].empty()) std::memcpy(arenas_[a].data(), pointers[a], arenas_[a].size());
    }
  }

  // For AddressSanitizer the bytes between two tensors are nobody's. Kernels of the CPU read whole vectors and may.
  void guard_gaps([[maybe_unused]] std::byte* const* pointers, [[maybe_unused]] Arena arena, [[maybe_unused]] bool on) {
#if defined(__SANITIZE_ADDRESS__) && defined(EFFNET_TEST_CUDA) && !defined(EFFNET_TEST_GPU)
    const auto guard = on ? cuda::emulation::poison : cuda::emulation::unpoison;
    std::byte* base = pointers[static_cast<int>(arena)];
    size_t end = 0;
    for (const Tensor& t : tensors_) {
      if (t.arena != arena) continue;
      guard(base + end, t.offset - end);
      end = t.offset + t.bytes;
    }
    const size_t all = arenas_[static_cast<int>(arena)].size();
    guard(base + end, all - end);
#endif
  }

  backend::Runner runner_;
  plan::Op op_;
  StepScalars scalars_;
  std::deque<Tensor> tensors_;
  std::vector<uint8_t> arenas_[plan::kArenaCount];
};

// Relative error of activations, and absolute error of their derivatives, where results are stored as bf16
// (cpu/kernels/simd-inl.h).
inline constexpr double kBf16Activation = 5e-4;

inline Values random_values(size_t count, uint32_t seed, double mean = 0, double deviation = 1) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal(mean, deviation);
  Values values(count);
  for (double& v : values) v = normal(engine);
  return values;
}

// Rounds test inputs to the dtype in which the tensor stores them, so that the reference starts from the same numbers.
inline Values stored(DType dtype, Values values) {
  for (double& v : values) v = round_to(dtype, v);
  return values;
}

// |got - want| <= tolerance * (scale + |want|) + slack; `scale` is the size of the terms that a result is the sum of,
// `slack` what else each result may be off by, if anything.
inline void expect_near(const Values& got, const Values& want, double tolerance, double scale, const std::string& what,
                        const Values& slack = {}) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_LE(std::abs(got[i] - want[i]), tolerance * (scale + std::abs(want[i])) + (slack.empty() ? 0 : slack[i]))
        << what << " [" << i << "]: got " << got[i] << ", want " << want[i];
  }
}

}  // namespace effnet::test
