// Sizes of the packed coefficient arrays of bn_pack-inl.h, for whoever declares scratch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>

#include "cpu/kernels/lanes.h"

namespace effnet::cpu {

// From here on a tail costs at most one vector in eight.
inline constexpr int64_t kPackBelow = 128;

// Rows whose sums are kept apart in FP32 before they join their shard's.
inline constexpr int64_t kSumTileRows = 64;

// Floats of one coefficient array: whole packed rows, a multiple of the vector.
inline int64_t packed_capacity(int64_t channels) {
  if (channels < kPackBelow) return std::lcm(channels, kMaxLanes);
  return whole_max_vectors(channels);
}

}  // namespace effnet::cpu
