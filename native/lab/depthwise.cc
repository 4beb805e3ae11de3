// Depthwise convolutions on one thread: CPU time, GF/s and GB/s (source and destination once each) of every pass and
// type for the distinct depthwise layers of B0 at 224 px.
//
//   lab_depthwise [batch = 8] [substring of a kernel name]          EFFNET_MAX_ISA=avx2 for the other target
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "cpu/kernel.h"
#include "cpu/kernels/bf16.h"
#include "plan/op_ports.h"

namespace {

using namespace effnet;

struct Layer {
  int64_t size, channels, kernel, stride;
};
constexpr Layer kLayers[] = {{112, 32, 3, 1}, {112, 96, 3, 2}, {56, 144, 3, 1}, {56, 144, 5, 2},
                             {28, 240, 5, 1}, {28, 240, 3, 2}, {14, 480, 3, 1}, {14, 480, 5, 1},
                             {14, 672, 5, 1}, {14, 672, 5, 2}, {7, 1152, 5, 1}, {7, 1152, 3, 1}};

// Of this thread alone: others may use the core.
double cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

std::byte* allocate(size_t bytes) { return static_cast<std::byte*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)); }

struct Bench {
  std::vector<std::unique_ptr<plan::Tensor>> tensors;
  size_t used = 0;
  plan::Op op{};

  const plan::Tensor* tensor(plan::DType dtype, std::vector<int64_t> dims) {
    auto t = std::make_unique<plan::Tensor>();
    t->name = "t";
    t->dtype = dtype;
    t->arena = plan::Arena::activations;
    t->rank = static_cast<int>(dims.size());
    for (size_t i = 0; i < 4; ++i) t->dims[i] = i < dims.size() ? dims[i] : 1;
    t->bytes = static_cast<uint64_t>(t->elements()) * (dtype == plan::DType::bf16 ? 2 : 4);
    t->offset = used;
    used += (t->bytes + 63) / 64 * 64 + 64;
    tensors.push_back(std::move(t));
    return tensors.back().get();
  }

  // Seconds of one pass over all shards: the best of many.
  void time(cpu::KernelFactory factory, const char* filter, const Layer& layer, double bytes) {
    op.name = "lab";
    auto made = factory(op);
    if (!made.ok()) {
      std::printf("%s\n", made.status().message().c_str());
      return;
    }
    cpu::Kernel& kernel = *made.value();
    if (filter && !std::strstr(kernel.name(), filter)) return;
    std::byte* memory = allocate(used);
    for (const auto& t : tensors) {
      for (int64_t i = 0; i < t->elements(); ++i) {
        const float v = static_cast<float>((i * 7919 + 17) % 1024) / 512 - 1;
        if (t->dtype == plan::DType::bf16) {
          reinterpret_cast<BFloat16*>(memory + t->offset)[i] = to_bf16(v);
        } else {
          reinterpret_cast<float*>(memory + t->offset)[i] = v;
        }
      }
    }
    std::byte* scratch = allocate(kernel.worker_scratch_bytes() + 64);
    std::byte* shared = allocate(kernel.shared_scratch_bytes() + 64);
    std::byte* arenas[plan::kArenaCount];
    std::fill(arenas, arenas + plan::kArenaCount, memory);
    const StepScalars scalars;
    const cpu::ExecContext context{arenas, &scalars, scratch, shared, 0};
    double best = 1e9, spent = 0;
    int shards = 0;
    for (int i = 0; i < 5 || spent < 0.15; ++i) {
      const double start = cpu_seconds();
      shards = 0;
      for (int phase = 0; phase < kernel.phases(); ++phase) {
        for (int s = 0; s < kernel.shards(phase); ++s) kernel.run(phase, s, context);
        shards += kernel.shards(phase);
      }
      const double seconds = cpu_seconds() - start;
      best = std::min(best, seconds);
      spent += seconds;
    }
    std::printf("%4ld px %5ld ch  %-42s %8.3f ms %7.1f GF/s %6.1f GB/s %5d shards %7.1f us/shard\n",
                static_cast<long>(layer.size), static_cast<long>(layer.channels), kernel.name(), best * 1e3,
                kernel.flops() / best * 1e-9, bytes / best * 1e-9, shards, best * 1e6 / shards);
    std::free(memory);
    std::free(scratch);
    std::free(shared);
  }
};

void layer_passes(const Layer& layer, int64_t batch, plan::DType dtype, const char* filter) {
  const int64_t out = (layer.size + layer.stride - 1) / layer.stride;
  const int64_t pads = std::max<int64_t>(0, (out - 1) * layer.stride + layer.kernel - layer.size);
  const double begin = static_cast<double>(pads / 2), end = static_cast<double>(pads - pads / 2);
  const std::vector<double> attrs = {static_cast<double>(layer.stride), begin, begin, end, end};
  const auto run = [&](cpu::KernelFactory factory, auto fill) {
    Bench bench;
    const auto* src = bench.tensor(dtype, {batch, layer.size, layer.size, layer.channels});
    const auto* dst = bench.tensor(dtype, {batch, out, out, layer.channels});
    const auto* weights = bench.tensor(plan::DType::f32, {layer.kernel, layer.kernel, layer.channels});
    bench.op.attrs = attrs;
    fill(bench, src, dst, weights);
    bench.time(factory, filter, layer, static_cast<double>(src->bytes + dst->bytes));
  };
  run(cpu::make_depthwise_conv2d, [](Bench& b, auto* src, auto* dst, auto* weights) {
    b.op.inputs = {src, weights};
    b.op.outputs = {dst};
  });
  // Without and with BN + SiLU in front.
  const auto norm = [&](Bench& b, bool present) {
    const std::vector<int64_t> c = {layer.channels};
    for (int i = 0; i < 4; ++i) b.op.inputs.push_back(present ? b.tensor(plan::DType::f32, c) : nullptr);
    b.op.attrs.push_back(static_cast<double>(present ? plan::Act::silu : plan::Act::identity));
  };
  for (const bool present : {false, true}) {
    run(cpu::make_depthwise_conv2d_stats, [&](Bench& b, auto* src, auto* dst, auto* weights) {
      const std::vector<int64_t> c = {layer.channels};
      b.op.inputs = {src, weights};
      b.op.outputs = {dst, b.tensor(plan::DType::f32, c), b.tensor(plan::DType::f32, c)};
      b.op.updates = {b.tensor(plan::DType::f32, c), b.tensor(plan::DType::f32, c)};
      for (const double v : {1e-3, 0.1}) b.op.attrs.push_back(v);
      norm(b, present);
    });
  }
  run(cpu::make_depthwise_conv2d_bias_act, [&](Bench& b, auto* src, auto* dst, auto* weights) {
    b.op.inputs = {src, weights, b.tensor(plan::DType::f32, {layer.channels})};
    b.op.outputs = {dst, b.tensor(plan::DType::f32, {batch, layer.channels})};
    b.op.attrs.push_back(static_cast<double>(plan::Act::silu));
  });
  run(cpu::make_depthwise_conv2d_bwd_data, [](Bench& b, auto* src, auto* dst, auto* weights) {
    b.op.inputs = {dst, weights};
    b.op.outputs = {src};
  });
  run(cpu::make_depthwise_conv2d_bwd_weights, [](Bench& b, auto* src, auto* dst, auto* weights) {
    b.op.inputs = {src, dst};
    b.op.outputs = {weights};
  });
  for (const bool present : {false, true}) {
    run(cpu::make_depthwise_conv2d_bwd, [&](Bench& b, auto* src, auto* dst, auto* weights) {
      b.op.inputs = {src, dst, weights};
      b.op.outputs = {b.tensor(dtype, {batch, layer.size, layer.size, layer.channels}),
                      b.tensor(plan::DType::f32, {layer.kernel, layer.kernel, layer.channels})};
      for (int i = 0; i < 2; ++i) {
        b.op.outputs.push_back(present ? b.tensor(plan::DType::f32, {layer.channels}) : nullptr);
      }
      norm(b, present);
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t batch = argc > 1 ? std::atol(argv[1]) : 8;
  for (const auto dtype : {plan::DType::f32, plan::DType::bf16}) {
    for (const Layer& layer : kLayers) layer_passes(layer, batch, dtype, argc > 2 ? argv[2] : nullptr);
  }
  return 0;
}
