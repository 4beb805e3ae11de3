// What the kernel laboratories share: one op with its memory, the least CPU time of one thread, and the core's measured
// peaks, against which a time is put.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <deque>
#include <future>
#include <string>
#include <vector>

#include "cpu/kernel.h"
#include "cpu/probe.h"

namespace effnet::lab {

inline double cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// The least of at least 5 runs, 0.2 s in all.
template <class F>
double best_seconds(F&& f) {
  f();
  double best = 1e9, total = 0;
  for (int i = 0; i < 200 && (i < 5 || total < 0.2); ++i) {
    const double start = cpu_seconds();
    f();
    const double seconds = cpu_seconds() - start;
    best = std::min(best, seconds);
    total += seconds;
  }
  return best;
}

// Of one core; measured and printed at the first call.
inline const cpu::Peaks& peaks() {
  static const cpu::Peaks measured = [] {
    ThreadPool pool(1);
    std::promise<cpu::Peaks> answer;
    pool.submit([&] { answer.set_value(cpu::measure_peaks(pool)); });
    const cpu::Peaks p = answer.get_future().get();
    std::printf("one core: fp32 %.1f GF/s, bf16 %.1f GF/s, copy %.1f GB/s (read + write)\n", p.fp32_flops * 1e-9,
                p.bf16_flops * 1e-9, p.bytes * 1e-9);
    return p;
  }();
  return measured;
}

// One op. Every tensor has its own place in one block that stands for all arenas.
class Bench {
 public:
  explicit Bench(std::vector<double> attrs) {
    op_.name = "lab";
    op_.attrs = std::move(attrs);
  }
  Bench& in(plan::DType dtype, const std::vector<int64_t>& dims) {
    return op_.inputs.push_back(tensor(dtype, dims)), *this;
  }
  Bench& absent(size_t count = 1) { return op_.inputs.insert(op_.inputs.end(), count, nullptr), *this; }
  Bench& out(plan::DType dtype, const std::vector<int64_t>& dims) {
    return op_.outputs.push_back(tensor(dtype, dims)), *this;
  }
  Bench& absent_out(size_t count = 1) { return op_.outputs.insert(op_.outputs.end(), count, nullptr), *this; }
  Bench& update(plan::DType dtype, const std::vector<int64_t>& dims) {
    return op_.updates.push_back(tensor(dtype, dims)), *this;
  }

  // Prints time, rates and the share of the floor. `dense`: multiplies in the type of its source, so that bf16 has its
  // own peak. Kernels whose name has not `filter` in it are left out.
  void run(cpu::KernelFactory factory, const std::string& label, const char* filter, bool dense,
           const StepScalars& scalars = {}) {
    auto made = factory(op_);
    if (!made.ok()) {
      std::printf("%-30s %s\n", label.c_str(), made.status().message().c_str());
      return;
    }
    cpu::Kernel& kernel = *made.value();
    if (filter && !std::strstr(kernel.name(), filter)) return;
    std::vector<std::byte> memory(size_ + 64), worker(kernel.worker_scratch_bytes() + 64),
        shared(kernel.shared_scratch_bytes() + 64);
    fill(memory);
    std::byte* arenas[plan::kArenaCount];
    for (auto& arena : arenas) arena = align(memory);
    const cpu::ExecContext ctx{arenas, &scalars, align(worker), align(shared), 0};
    kernel.prepare(ctx);
    int shards = 0;
    const double seconds = best_seconds([&] {
      shards = 0;
      for (int phase = 0; phase < kernel.phases(); ++phase) {
        for (int shard = 0; shard < kernel.shards(phase); ++shard) kernel.run(phase, shard, ctx);
        shards += kernel.shards(phase);
      }
    });
    const bool bf16 = dense && op_.inputs.front()->dtype == plan::DType::bf16 && peaks().bf16_flops > 0;
    const double floor = std::max(kernel.flops() / (bf16 ? peaks().bf16_flops : peaks().fp32_flops),
                                  static_cast<double>(bytes_) / peaks().bytes);
    std::printf("%-30s %-44s %8.3f ms %7.1f GF/s %6.1f GB/s %5.1f %% of the floor %5d shards\n", label.c_str(),
                kernel.name(), seconds * 1e3, kernel.flops() / seconds * 1e-9,
                static_cast<double>(bytes_) / seconds * 1e-9, 100 * floor / seconds, shards);
  }

 private:
  static std::byte* align(std::vector<std::byte>& v) {
    return reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(v.data()) + 63) / 64 * 64);
  }
  const plan::Tensor* tensor(plan::DType dtype, const std::vector<int64_t>& dims) {
    plan::Tensor t{};
    t.name = "t";
    t.dtype = dtype;
    t.arena = plan::Arena::activations;
    t.rank = static_cast<int>(dims.size());
    for (size_t i = 0; i < 4; ++i) t.dims[i] = i < dims.size() ? dims[i] : 1;
    t.bytes = static_cast<uint64_t>(t.elements()) * plan::dtype_bytes(dtype);
    t.offset = size_;
    size_ += (t.bytes + 127) / 64 * 64;
    bytes_ += t.bytes;
    tensors_.push_back(t);
    return &tensors_.back();
  }
  // Small positive numbers that are valid in either type.
  void fill(std::vector<std::byte>& memory) {
    for (const plan::Tensor& t : tensors_) {
      std::byte* p = align(memory) + t.offset;
      uint32_t state = 1;
      for (uint64_t i = 0; i < t.bytes / plan::dtype_bytes(t.dtype); ++i) {
        state = state * 1664525u + 1013904223u;
        const float value = static_cast<float>(state >> 8) / 16777216.0f + 0.1f;
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        const auto half = static_cast<uint16_t>(bits >> 16);
        if (t.dtype == plan::DType::f32) std::memcpy(p + 4 * i, &value, 4);
        if (t.dtype == plan::DType::bf16) std::memcpy(p + 2 * i, &half, 2);
      }
    }
  }

  plan::Op op_{};
  std::deque<plan::Tensor> tensors_;
  size_t size_ = 0, bytes_ = 0;
};

}  // namespace effnet::lab
