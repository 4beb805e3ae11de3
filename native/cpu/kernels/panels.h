// How columns of a matrix product are cut into panels: 2 vectors wide (the tile with the fewest loads for its products
// that still has many rows), the last 1 or 3 where the number of vectors is odd.
#pragma once

#include <algorithm>
#include <cstdint>

namespace effnet::cpu {

struct Panels {
  explicit constexpr Panels(int64_t vectors) : vectors(vectors) {}
  constexpr int64_t count() const { return std::max<int64_t>(vectors / 2, 1); }
  // Vectors of panel i; the ones before it have 2 each.
  constexpr int wide(int64_t i) const { return static_cast<int>(i + 1 < count() ? 2 : vectors - 2 * i); }
  int64_t vectors;
};

}  // namespace effnet::cpu
