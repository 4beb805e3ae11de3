// References in double precision for kernel tests, written from the definitions.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/philox.h"
#include "plan/format.h"

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
