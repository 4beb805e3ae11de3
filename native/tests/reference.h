// References in double precision for kernel tests, written from the definitions.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/philox.h"
#include "plan/format.h"
#include "tests/kernel_rig.h"

namespace effnet::test {

inline double act_value(plan::Act act, double x) {
  switch (act) {
    case plan::Act::silu:
      return x / (1 + std::exp(-x));
    case plan::Act::relu:
      return x > 0 ? x : 0;
    case plan::Act::relu6:
      return x < 0 ? 0 : x > 6 ? 6 : x;
    case plan::Act::sigmoid:
      return 1 / (1 + std::exp(-x));
    default:
      return x;
  }
}

inline double act_slope(plan::Act act, double x) {
  const double s = 1 / (1 + std::exp(-x));
  switch (act) {
    case plan::Act::silu:
      return s * (1 + x * (1 - s));
    case plan::Act::relu:
      return x > 0 ? 1 : 0;
    case plan::Act::relu6:
      return x > 0 && x < 6 ? 1 : 0;
    case plan::Act::sigmoid:
      return s * (1 - s);
    default:
      return 1;
  }
}

// What CUDA kernels with 16-bit results may be off by before they round, in an activation and in its slope: they make
// the sigmoid s of one tanh (cuda/kernels/activation.cuh), which a GPU has to 2^-11 of its value and the emulation
// exactly or, with EMULATED_TANH=gpu, that far off. So s is off by e = 2^-12 |tanh(x/2)|, x s by |x| e, and the slope
// s + x s (1 - s) by |1 - x tanh(x/2)| e: rigorous, but for terms in e^2 and FP32's own rounding (1e-6). The result's
// rounding is of a value that is off already: 1 % more.
//
// How far that moves results at most, the tanh off to either side, 4000 values of x in each range; the bounds above are
// met to their last digit, so none of them is wider than it must be:
//   x            sigmoid   SiLU      of SiLU's value   SiLU's slope
//   -12 .. -8    2.4e-4    2.9e-3    40                2.7e-3
//    -8 .. -4    2.4e-4    2.0e-3    0.73              1.7e-3
//    -4 .. -1    2.4e-4    9.4e-4    1.3e-2            6.7e-4
//    -1 ..  1    1.1e-4    1.1e-4    4.2e-4            6.5e-5
//     1 ..  4    2.4e-4    9.4e-4    2.4e-4            6.7e-4
//     4 .. 12    2.4e-4    2.9e-3    2.4e-4            2.7e-3
inline double tanh_error(double x) { return 1.01 * 0x1p-12 * std::abs(std::tanh(x / 2)) + 1e-7; }
inline double act_value_slack(plan::DType dtype, plan::Act act, double x) {
  if (backend::kIsCpu || dtype == plan::DType::f32) return 0;
  if (act == plan::Act::silu) return std::abs(x) * tanh_error(x);
  return act == plan::Act::sigmoid ? tanh_error(x) : 0;
}
inline double act_slope_slack(plan::DType dtype, plan::Act act, double x) {
  if (backend::kIsCpu || dtype == plan::DType::f32) return 0;
  if (act == plan::Act::silu) return std::abs(1 - x * std::tanh(x / 2)) * tanh_error(x) + 1e-6;
  return act == plan::Act::sigmoid ? tanh_error(x) : 0;
}

inline constexpr plan::Act kActs[] = {plan::Act::identity, plan::Act::silu, plan::Act::relu, plan::Act::relu6,
                                      plan::Act::sigmoid};

struct Shape {
  int64_t n, h, w, c;
  int64_t rows() const { return n * h * w; }
  size_t size() const { return static_cast<size_t>(rows() * c); }
};

// Tails, packing of small channel counts, single pixels, and more than one shard.
inline constexpr Shape kShapes[] = {{1, 1, 1, 1},  {3, 1, 1, 17},  {1, 7, 7, 3},    {3, 7, 7, 8},    {2, 5, 3, 24},
                                    {3, 7, 7, 96}, {1, 9, 8, 130}, {3, 40, 41, 24}, {2, 19, 23, 144}};

// What stochastic depth multiplies an image by, and dropout an element: 0, or what keeps the mean.
inline double survival(double rate, uint64_t seed, uint64_t step, uint32_t stream, uint64_t element) {
  if (rate == 0) return 1;
  const bool dropped = philox_u32(seed, step, stream, element) < static_cast<uint32_t>(rate * 4294967296.0);
  return dropped ? 0 : 1 / (1 - rate);
}

}  // namespace effnet::test
