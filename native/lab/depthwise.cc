// Depthwise convolutions on one thread: time, rates and share of the measured floor of every pass and type, for the
// distinct depthwise layers of B0 at 224 px, or for one layer.
//
//   lab_depthwise [batch = 8] [substring of a kernel name]          EFFNET_MAX_ISA=avx2 for the other target
//   lab_depthwise batch substring size channels kernel stride       one layer, SAME padding
#include <cstdlib>

#include "lab/lab.h"

namespace {

using namespace effnet;
using lab::Bench;
using plan::DType;

struct Layer {
  int64_t size, channels, kernel, stride;
};
constexpr Layer kLayers[] = {{112, 32, 3, 1}, {112, 96, 3, 2}, {56, 144, 3, 1}, {56, 144, 5, 2},
                             {28, 240, 5, 1}, {28, 240, 3, 2}, {14, 480, 3, 1}, {14, 480, 5, 1},
                             {14, 672, 5, 1}, {14, 672, 5, 2}, {7, 1152, 5, 1}, {7, 1152, 3, 1}};

void layer_passes(const Layer& l, int64_t batch, DType dtype, const char* filter) {
  const int64_t out = (l.size + l.stride - 1) / l.stride;
  const int64_t pads = std::max<int64_t>(0, (out - 1) * l.stride + l.kernel - l.size);
  const double begin = static_cast<double>(pads / 2), end = static_cast<double>(pads - pads / 2);
  const std::vector<double> attrs = {static_cast<double>(l.stride), begin, begin, end, end};
  const auto attrs_and = [&](std::initializer_list<double> more) {
    std::vector<double> all = attrs;
    all.insert(all.end(), more);
    return all;
  };
  const std::vector<int64_t> src = {batch, l.size, l.size, l.channels}, dst = {batch, out, out, l.channels};
  const std::vector<int64_t> weights = {l.kernel, l.kernel, l.channels}, channels = {l.channels};
  constexpr DType f = DType::f32;
  char label[64];
  std::snprintf(label, sizeof label, "%lldx%lld s%lld %lld @%lld", static_cast<long long>(l.kernel),
                static_cast<long long>(l.kernel), static_cast<long long>(l.stride), static_cast<long long>(l.channels),
                static_cast<long long>(l.size));
  const auto run = [&](Bench& bench, cpu::KernelFactory factory) { bench.run(factory, label, filter, false); };

  run(Bench(attrs).in(dtype, src).in(f, weights).out(dtype, dst), cpu::make_depthwise_conv2d);
  constexpr auto silu = static_cast<double>(plan::Act::silu), identity = static_cast<double>(plan::Act::identity);
  run(Bench(attrs_and({silu}))
          .in(dtype, src)
          .in(f, weights)
          .in(f, channels)
          .out(dtype, dst)
          .out(f, {batch, l.channels}),
      cpu::make_depthwise_conv2d_bias_act);
  run(Bench(attrs).in(dtype, dst).in(f, weights).out(dtype, src), cpu::make_depthwise_conv2d_bwd_data);
  run(Bench(attrs).in(dtype, src).in(dtype, dst).out(f, weights), cpu::make_depthwise_conv2d_bwd_weights);
  // Without and with BN + SiLU in front.
  for (const bool norm : {false, true}) {
    const auto with_norm = [&](Bench& bench) -> Bench& {
      for (int i = 0; i < 4; ++i) norm ? bench.in(f, channels) : bench.absent();
      return bench;
    };
    const double act = norm ? silu : identity;
    run(with_norm(Bench(attrs_and({1e-3, 0.1, act})).in(dtype, src).in(f, weights))
            .out(dtype, dst)
            .out(f, channels)
            .out(f, channels)
            .update(f, channels)
            .update(f, channels),
        cpu::make_depthwise_conv2d_stats);
    Bench bwd(attrs_and({act, identity}));
    with_norm(bwd.in(dtype, src).in(dtype, dst).in(f, weights)).absent(9).out(dtype, src).out(f, weights);
    for (int i = 0; i < 2; ++i) norm ? bwd.out(f, channels) : bwd.absent_out();
    run(bwd, cpu::make_depthwise_conv2d_bwd);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t batch = argc > 1 ? std::atol(argv[1]) : 8;
  const char* filter = argc > 2 ? argv[2] : nullptr;
  if (argc > 3 && argc != 7) {
    std::fprintf(stderr, "usage: lab_depthwise [batch [kernel name [size channels kernel stride]]]\n");
    return 2;
  }
  lab::peaks();
  for (const auto dtype : {DType::f32, DType::bf16}) {
    if (argc == 7) {
      layer_passes({std::atol(argv[3]), std::atol(argv[4]), std::atol(argv[5]), std::atol(argv[6])}, batch, dtype,
                   filter);
    } else {
      for (const Layer& layer : kLayers) layer_passes(layer, batch, dtype, filter);
    }
  }
  return 0;
}
