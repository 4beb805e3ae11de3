// Laboratory of the per-channel, flat and small-matrix kernels: time, bandwidth and share of copy bandwidth on the
// shapes of EfficientNet-B0, one thread. Times are the thread's CPU time, the least of several runs.
//
//   lab_bn [batch]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "cpu/kernel.h"
#include "lab/lab.h"
#include "plan/op_ports.h"

namespace effnet::lab {
namespace {

using plan::Arena;
using plan::DType;
using plan::Tensor;

// One op with its memory. Every tensor has its own place in one block that stands for all arenas.
class Bench {
 public:
  explicit Bench(std::vector<double> attrs) {
    op_.name = "lab";
    op_.flags = 0;
    op_.id = plan::OpId{};
    op_.attrs = std::move(attrs);
  }
  Bench& in(DType dtype, std::vector<int64_t> dims) {
    return op_.inputs.push_back(tensor(Arena::activations, dtype, dims)), *this;
  }
  Bench& absent() { return op_.inputs.push_back(nullptr), *this; }
  Bench& out(DType dtype, std::vector<int64_t> dims) {
    return op_.outputs.push_back(tensor(Arena::activations, dtype, dims)), *this;
  }
  Bench& absent_out() { return op_.outputs.push_back(nullptr), *this; }
  Bench& update(std::vector<int64_t> dims) {
    return op_.updates.push_back(tensor(Arena::weights, DType::f32, dims)), *this;
  }

  void run(cpu::KernelFactory factory, const std::string& label) {
    auto made = factory(op_);
    if (!made.ok()) {
      std::printf("%s: %s\n", label.c_str(), made.status().message().c_str());
      return;
    }
    cpu::Kernel& kernel = *made.value();
    std::vector<std::byte> memory(size_ + 64), worker(kernel.worker_scratch_bytes() + 64),
        shared(kernel.shared_scratch_bytes() + 64);
    fill(memory);
    std::byte* arenas[plan::kArenaCount];
    for (auto& arena : arenas) arena = align(memory);
    StepScalars scalars;
    scalars.alpha = scalars.momentum = 0.9;
    scalars.eps = 1e-3;
    scalars.lr = 1e-6;
    const cpu::ExecContext ctx{arenas, &scalars, align(worker), align(shared), 0};
    const double seconds = best_seconds([&] {
      for (int phase = 0; phase < kernel.phases(); ++phase) {
        for (int shard = 0; shard < kernel.shards(phase); ++shard) kernel.run(phase, shard, ctx);
      }
    });
    const double bytes = static_cast<double>(bytes_), gflops = kernel.flops() / seconds * 1e-9;
    std::printf("%-34s %-28s %9.1f us %7.3f ns/el %7.1f GB/s", kernel.name(), label.c_str(), seconds * 1e6,
                seconds * 1e9 / static_cast<double>(elements_), bytes / seconds * 1e-9);
    std::printf(gflops > 0 ? " %6.1f GF/s\n" : "\n", gflops);
  }

 private:
  static std::byte* align(std::vector<std::byte>& v) {
    return reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(v.data()) + 63) / 64 * 64);
  }
  const Tensor* tensor(Arena arena, DType dtype, const std::vector<int64_t>& dims) {
    Tensor t{};
    t.name = "t";
    t.dtype = dtype;
    t.arena = arena;
    t.rank = static_cast<int>(dims.size());
    for (int i = 0; i < 4; ++i) t.dims[i] = i < t.rank ? dims[static_cast<size_t>(i)] : 1;
    t.bytes = static_cast<uint64_t>(t.elements()) * plan::dtype_bytes(dtype);
    t.offset = size_;
    size_ += (t.bytes + 127) / 64 * 64;
    bytes_ += t.bytes;
    elements_ = std::max(elements_, t.elements());
    tensors_.push_back(t);
    return &tensors_.back();
  }
  // Small positive numbers that are valid in either type.
  void fill(std::vector<std::byte>& memory) {
    for (const Tensor& t : tensors_) {
      std::byte* p = align(memory) + t.offset;
      uint32_t state = 1;
      for (uint64_t i = 0; i < t.bytes / plan::dtype_bytes(t.dtype); ++i) {
        state = state * 1664525u + 1013904223u;
        const float value = static_cast<float>(state >> 8) / 16777216.0f + 0.1f;
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        const uint16_t half = static_cast<uint16_t>(bits >> 16);
        if (t.dtype == DType::f32) std::memcpy(p + 4 * i, &value, 4);
        if (t.dtype == DType::bf16) std::memcpy(p + 2 * i, &half, 2);
      }
    }
  }

  plan::Op op_;
  std::deque<Tensor> tensors_;
  size_t size_ = 0, bytes_ = 0;
  int64_t elements_ = 0;
};

void copy_bandwidth(size_t mib) {
  std::vector<char> a(mib << 20, 1), b(mib << 20, 2);
  const double seconds = best_seconds([&] { std::memcpy(a.data(), b.data(), a.size()); });
  std::printf("memcpy %zu MiB: %.1f GB/s (read + write)\n", mib, 2 * static_cast<double>(a.size()) / seconds * 1e-9);
}

void per_channel(int64_t n, int64_t hw, int64_t c, DType dtype) {
  const std::vector<int64_t> dims = {n, hw, hw, c}, nc = {n, c}, vector = {c};
  const std::string label =
      std::to_string(n) + "x" + std::to_string(hw) + "x" + std::to_string(hw) + "x" + std::to_string(c);
  constexpr DType f = DType::f32;
  Bench({1e-3, 0.1})
      .in(dtype, dims)
      .out(f, vector)
      .out(f, vector)
      .update(vector)
      .update(vector)
      .run(cpu::make_bn_stats, label);
  const auto with_bn = [&](Bench b) { return b.in(f, vector).in(f, vector).in(f, vector).in(f, vector); };
  with_bn(Bench({1, 0, 0, 1}).in(dtype, dims))
      .absent()
      .absent()
      .out(dtype, dims)
      .run(cpu::make_bn_act, label + " silu");
  with_bn(Bench({1, 0, 0, 1}).in(dtype, dims))
      .in(f, nc)
      .absent()
      .out(dtype, dims)
      .run(cpu::make_bn_act, label + " silu gate");
  with_bn(Bench({0, 0.1, 3, 1}).in(dtype, dims))
      .absent()
      .in(dtype, dims)
      .out(dtype, dims)
      .run(cpu::make_bn_act, label + " drop res");
  with_bn(Bench({1, 1}).in(dtype, dims)).out(f, nc).run(cpu::make_bn_act_pool, label);
  with_bn(Bench({1, 0, 0}).in(dtype, dims).in(dtype, dims))
      .absent()
      .absent()
      .out(f, vector)
      .out(f, vector)
      .run(cpu::make_bn_act_bwd_reduce, label);
  with_bn(Bench({1, 0, 0}).in(dtype, dims).in(dtype, dims))
      .in(f, nc)
      .in(f, nc)
      .out(f, vector)
      .out(f, vector)
      .run(cpu::make_bn_act_bwd_reduce, label + " gate pool");
  with_bn(Bench({1, 0, 0, 1}).in(dtype, dims).in(dtype, dims))
      .in(f, vector)
      .in(f, vector)
      .absent()
      .absent()
      .out(dtype, dims)
      .run(cpu::make_bn_act_bwd_apply, label);
  with_bn(Bench({1, 0, 0, 1}).in(dtype, dims).in(dtype, dims))
      .in(f, vector)
      .in(f, vector)
      .in(f, nc)
      .in(f, nc)
      .out(dtype, dims)
      .run(cpu::make_bn_act_bwd_apply, label + " gate pool");
  with_bn(Bench({1}).in(dtype, dims).in(dtype, dims)).out(f, nc).run(cpu::make_bn_act_bwd_gate, label);
  const std::vector<int64_t> sums = {n, 4, c};
  with_bn(Bench({1, 0, 0}).in(dtype, dims).in(dtype, dims))
      .in(f, nc)
      .out(f, nc)
      .out(f, sums)
      .absent_out()
      .run(cpu::make_bn_act_bwd_sums, label);
  with_bn(Bench({1, 0, 0}).in(dtype, dims).in(dtype, dims))
      .in(f, nc)
      .out(f, nc)
      .out(f, sums)
      .out(dtype, dims)
      .run(cpu::make_bn_act_bwd_sums, label + " again");
}

void matrices(int64_t n) {
  constexpr DType f = DType::f32;
  const int64_t k = 1280, o = 1000;
  Bench({}).in(f, {n, k}).in(f, {o, k}).in(f, {o}).out(f, {n, o}).run(cpu::make_linear, "1280x1000");
  Bench({}).in(f, {n, o}).in(f, {o, k}).out(f, {n, k}).run(cpu::make_linear_bwd_data, "1280x1000");
  Bench({}).in(f, {n, k}).in(f, {n, o}).out(f, {o, k}).out(f, {o}).run(cpu::make_linear_bwd_weights, "1280x1000");
  for (const int64_t c : {32, 240, 1152}) {
    const int64_t r = c == 1152 ? 48 : c == 240 ? 10 : 8;
    Bench({1}).in(f, {n, c}).in(f, {r, c}).in(f, {r}).in(f, {c, r}).in(f, {c}).out(f, {n, c}).out(f, {n, r}).run(
        cpu::make_se_gate, std::to_string(c) + "->" + std::to_string(r));
    Bench({1})
        .in(f, {n, c})
        .in(f, {n, c})
        .in(f, {n, r})
        .in(f, {n, c})
        .in(f, {r, c})
        .in(f, {c, r})
        .out(f, {n, c})
        .out(f, {r, c})
        .out(f, {r})
        .out(f, {c, r})
        .out(f, {c})
        .run(cpu::make_se_gate_bwd, std::to_string(c) + "->" + std::to_string(r));
  }
}

void flat(int64_t n) {
  const std::vector<int64_t> dims = {n, 56, 56, 24};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Bench({1}).in(dtype, dims).out(dtype, dims).run(cpu::make_activation, "silu");
    Bench({1}).in(dtype, dims).in(dtype, dims).out(dtype, dims).run(cpu::make_activation_bwd, "silu");
    Bench({}).in(dtype, dims).in(dtype, dims).out(dtype, dims).run(cpu::make_add, "");
    Bench({120, 120, 120, 60, 60, 60})
        .in(DType::u8, {n, 224, 224, 3})
        .out(dtype, {n, 224, 224, 3})
        .run(cpu::make_input_normalize, "");
  }
  Bench({0.2, 1}).in(DType::f32, {n, 1280}).out(DType::f32, {n, 1280}).run(cpu::make_dropout, "");
}

// In-cache: one tile again and again shows the arithmetic alone.
void in_cache() {
  for (const DType dtype : {DType::f32, DType::bf16}) per_channel(1, 7, 240, dtype);
}

}  // namespace
}  // namespace effnet::lab

int main(int argc, char** argv) {
  using namespace effnet::lab;
  const int64_t n = argc > 1 ? std::atoll(argv[1]) : 8;
  copy_bandwidth(256);
  copy_bandwidth(4);
  in_cache();
  for (const auto dtype : {effnet::plan::DType::f32, effnet::plan::DType::bf16}) {
    per_channel(n, 112, 32, dtype);
    per_channel(n, 56, 24, dtype);
    per_channel(n, 28, 240, dtype);
    per_channel(n, 7, 1152, dtype);
  }
  matrices(32);
  flat(n);
}
