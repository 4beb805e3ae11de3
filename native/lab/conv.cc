// Dense convolutions on one thread: time, GF/s, GB/s and share of the measured floor of every pass and type, for the
// distinct dense layers of B0 at 224 px and the fused ones of V2-S at 300 px, or for one layer.
//
//   lab_conv [batch = 8] [substring of a kernel name]
//   lab_conv batch substring size channels filters kernel stride          one layer, SAME padding
#include <cstdlib>

#include "lab/lab.h"

extern "C" void omp_set_num_threads(int);  // as the engine's threads: oneDNN runs on the calling thread alone

namespace {

using namespace effnet;
using plan::DType;

struct Layer {
  int64_t size, channels, filters, kernel, stride;
};
constexpr Layer kLayers[] = {{224, 3, 32, 3, 2},   {112, 32, 16, 1, 1},  {112, 16, 96, 1, 1},  {56, 96, 24, 1, 1},
                             {56, 24, 144, 1, 1},  {56, 144, 24, 1, 1},  {28, 144, 40, 1, 1},  {28, 40, 240, 1, 1},
                             {28, 240, 40, 1, 1},  {14, 240, 80, 1, 1},  {14, 80, 480, 1, 1},  {14, 480, 80, 1, 1},
                             {14, 480, 112, 1, 1}, {14, 112, 672, 1, 1}, {14, 672, 112, 1, 1}, {7, 672, 192, 1, 1},
                             {7, 192, 1152, 1, 1}, {7, 1152, 192, 1, 1}, {7, 1152, 320, 1, 1}, {7, 320, 1280, 1, 1},
                             {150, 24, 24, 3, 1},  {150, 24, 96, 3, 2},  {75, 96, 48, 1, 1},   {75, 48, 192, 3, 1},
                             {75, 192, 48, 1, 1},  {75, 48, 192, 3, 2},  {38, 64, 256, 3, 1}};

void passes(const Layer& l, int64_t batch, DType dtype, const char* filter) {
  const int64_t out = (l.size + l.stride - 1) / l.stride;
  const int64_t pads = std::max<int64_t>(0, (out - 1) * l.stride + l.kernel - l.size);
  const auto begin = static_cast<double>(pads / 2), end = static_cast<double>(pads - pads / 2);
  const std::vector<double> attrs = {static_cast<double>(l.stride), begin, begin, end, end};
  std::vector<double> with_act = attrs;
  with_act.push_back(static_cast<double>(plan::Act::silu));
  const std::vector<int64_t> src = {batch, l.size, l.size, l.channels}, dst = {batch, out, out, l.filters};
  const std::vector<int64_t> weights = {l.filters, l.kernel, l.kernel, l.channels};
  char label[64];
  std::snprintf(label, sizeof label, "%lldx%lld s%lld %lld->%lld @%lld", static_cast<long long>(l.kernel),
                static_cast<long long>(l.kernel), static_cast<long long>(l.stride), static_cast<long long>(l.channels),
                static_cast<long long>(l.filters), static_cast<long long>(l.size));
  constexpr DType f = DType::f32;
  using lab::Bench;
  Bench(attrs).in(dtype, src).in(f, weights).out(dtype, dst).run(cpu::make_conv2d, label, filter, true);
  std::vector<double> with_stats = attrs;
  with_stats.insert(with_stats.end(), {1e-3, 0.1, 0});
  if (l.kernel == 1)
    Bench(with_stats)
        .in(dtype, src)
        .in(f, weights)
        .absent(5)
        .out(dtype, dst)
        .out(f, {l.filters})
        .out(f, {l.filters})
        .update(f, {l.filters})
        .update(f, {l.filters})
        .run(cpu::make_conv2d_stats, label, filter, true);
  Bench(with_act)
      .in(dtype, src)
      .in(f, weights)
      .in(f, {l.filters})
      .absent()
      .absent()
      .out(dtype, dst)
      .run(cpu::make_conv2d_bias_act, label, filter, true);
  if (l.channels > 3)  // nobody asks for the gradient of pixels
    Bench(attrs).in(dtype, dst).in(f, weights).out(dtype, src).run(cpu::make_conv2d_bwd_data, label, filter, true);
  Bench(attrs).in(dtype, src).in(dtype, dst).out(f, weights).run(cpu::make_conv2d_bwd_weights, label, filter, true);
  if (l.kernel == 1 && l.stride == 1 && dtype == f)
    for (const plan::Act act : {plan::Act::identity, plan::Act::silu}) {
      std::vector<double> bn = attrs;
      bn.insert(bn.end(), {static_cast<double>(act), 0, 0, 1, 0, 0, 0});
      Bench both(bn), apply({static_cast<double>(act), 0, 0, 1});
      both.in(dtype, src).in(f, weights).in(dtype, dst).in(dtype, dst);
      apply.in(dtype, dst).in(dtype, dst);
      for (int i = 0; i < 6; ++i) both.in(f, {l.filters});
      for (int i = 0; i < 6; ++i) apply.in(f, {l.filters});
      both.absent(9).out(dtype, src).out(f, weights).absent_out(4).run(cpu::make_conv2d_bwd, label, filter, true);
      apply.absent().absent().out(dtype, dst).run(cpu::make_bn_act_bwd_apply, label, filter, true);
    }
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t batch = argc > 1 ? std::atol(argv[1]) : 8;
  const char* filter = argc > 2 ? argv[2] : nullptr;
  if (argc != 1 && argc != 2 && argc != 3 && argc != 8) {
    std::fprintf(stderr, "usage: lab_conv [batch [kernel name [size channels filters kernel stride]]]\n");
    return 2;
  }
  omp_set_num_threads(1);
  lab::peaks();
  for (const auto dtype : {DType::f32, DType::bf16}) {
    if (argc == 8) {
      passes({std::atol(argv[3]), std::atol(argv[4]), std::atol(argv[5]), std::atol(argv[6]), std::atol(argv[7])},
             batch, dtype, filter);
    } else {
      for (const Layer& layer : kLayers) passes(layer, batch, dtype, filter);
    }
  }
  return 0;
}
