// The per-channel, flat and small-matrix kernels on one thread: time, rates and share of the measured floor on shapes
// of B0 at 224 px.
//
//   lab_bn [batch = 8] [substring of a kernel name]
#include <cstdlib>

#include "lab/lab.h"

namespace effnet::lab {
namespace {

using plan::DType;

const char* g_filter = nullptr;

StepScalars scalars() {
  StepScalars s;
  s.alpha = s.momentum = 0.9;
  s.eps = 1e-3;
  s.lr = 1e-6;
  return s;
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
      .update(f, vector)
      .update(f, vector)
      .run(cpu::make_bn_stats, label, g_filter, false, scalars());
  const auto with_bn = [&](Bench b) { return b.in(f, vector).in(f, vector).in(f, vector).in(f, vector); };
  with_bn(Bench({1, 0, 0, 1}).in(dtype, dims))
      .absent()
      .absent()
      .out(dtype, dims)
      .run(cpu::make_bn_act, label + " silu", g_filter, false, scalars());
  with_bn(Bench({1, 0, 0, 1}).in(dtype, dims))
      .in(f, nc)
      .absent()
      .out(dtype, dims)
      .run(cpu::make_bn_act, label + " silu gate", g_filter, false, scalars());
  with_bn(Bench({0, 0.1, 3, 1}).in(dtype, dims))
      .absent()
      .in(dtype, dims)
      .out(dtype, dims)
      .run(cpu::make_bn_act, label + " drop res", g_filter, false, scalars());
  with_bn(Bench({1, 1}).in(dtype, dims)).out(f, nc).run(cpu::make_bn_act_pool, label, g_filter, false, scalars());
  with_bn(Bench({1, 0, 0}).in(dtype, dims).in(dtype, dims))
      .absent()
      .absent()
      .out(f, vector)
      .out(f, vector)
      .run(cpu::make_bn_act_bwd_reduce, label, g_filter, false, scalars());
  with_bn(Bench({1, 0, 0}).in(dtype, dims).in(dtype, dims))
      .in(f, nc)
      .in(f, nc)
      .out(f, vector)
      .out(f, vector)
      .run(cpu::make_bn_act_bwd_reduce, label + " gate pool", g_filter, false, scalars());
  with_bn(Bench({1, 0, 0, 1}).in(dtype, dims).in(dtype, dims))
      .in(f, vector)
      .in(f, vector)
      .absent()
      .absent()
      .out(dtype, dims)
      .run(cpu::make_bn_act_bwd_apply, label, g_filter, false, scalars());
  with_bn(Bench({1, 0, 0, 1}).in(dtype, dims).in(dtype, dims))
      .in(f, vector)
      .in(f, vector)
      .in(f, nc)
      .in(f, nc)
      .out(dtype, dims)
      .run(cpu::make_bn_act_bwd_apply, label + " gate pool", g_filter, false, scalars());
  with_bn(Bench({1}).in(dtype, dims).in(dtype, dims))
      .out(f, nc)
      .run(cpu::make_bn_act_bwd_gate, label, g_filter, false, scalars());
  const std::vector<int64_t> sums = {n, 4, c};
  with_bn(Bench({1, 0, 0}).in(dtype, dims).in(dtype, dims))
      .in(f, nc)
      .out(f, nc)
      .out(f, sums)
      .absent_out()
      .run(cpu::make_bn_act_bwd_sums, label, g_filter, false, scalars());
  with_bn(Bench({1, 0, 0}).in(dtype, dims).in(dtype, dims))
      .in(f, nc)
      .out(f, nc)
      .out(f, sums)
      .out(dtype, dims)
      .run(cpu::make_bn_act_bwd_sums, label + " again", g_filter, false, scalars());
}

void matrices(int64_t n) {
  constexpr DType f = DType::f32;
  const int64_t k = 1280, o = 1000;
  Bench({}).in(f, {n, k}).in(f, {o, k}).in(f, {o}).out(f, {n, o}).run(cpu::make_linear, "1280x1000", g_filter, false,
                                                                      scalars());
  Bench({}).in(f, {n, o}).in(f, {o, k}).out(f, {n, k}).run(cpu::make_linear_bwd_data, "1280x1000", g_filter, false,
                                                           scalars());
  Bench({}).in(f, {n, k}).in(f, {n, o}).out(f, {o, k}).out(f, {o}).run(cpu::make_linear_bwd_weights, "1280x1000",
                                                                       g_filter, false, scalars());
  for (const int64_t c : {32, 240, 1152}) {
    const int64_t r = c == 1152 ? 48 : c == 240 ? 10 : 8;
    Bench({1}).in(f, {n, c}).in(f, {r, c}).in(f, {r}).in(f, {c, r}).in(f, {c}).out(f, {n, c}).out(f, {n, r}).run(
        cpu::make_se_gate, std::to_string(c) + "->" + std::to_string(r), g_filter, false, scalars());
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
        .run(cpu::make_se_gate_bwd, std::to_string(c) + "->" + std::to_string(r), g_filter, false, scalars());
  }
}

void flat(int64_t n) {
  const std::vector<int64_t> dims = {n, 56, 56, 24};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Bench({1}).in(dtype, dims).out(dtype, dims).run(cpu::make_activation, "silu", g_filter, false, scalars());
    Bench({1})
        .in(dtype, dims)
        .in(dtype, dims)
        .out(dtype, dims)
        .run(cpu::make_activation_bwd, "silu", g_filter, false, scalars());
    Bench({}).in(dtype, dims).in(dtype, dims).out(dtype, dims).run(cpu::make_add, "", g_filter, false, scalars());
    Bench({120, 120, 120, 60, 60, 60})
        .in(DType::u8, {n, 224, 224, 3})
        .out(dtype, {n, 224, 224, 3})
        .run(cpu::make_input_normalize, "", g_filter, false, scalars());
  }
  Bench({0.2, 1})
      .in(DType::f32, {n, 1280})
      .out(DType::f32, {n, 1280})
      .run(cpu::make_dropout, "", g_filter, false, scalars());
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
  g_filter = argc > 2 ? argv[2] : nullptr;
  peaks();
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
