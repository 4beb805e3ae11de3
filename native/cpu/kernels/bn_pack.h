// Sizes of the packed coefficient arrays of bn_pack-inl.h, for whoever declares scratch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>

namespace effnet::cpu {

// From here on a tail costs at most one vector in eight.
inline constexpr int64_t kPackBelow = 128;
inline constexpr int64_t kMaxLanes = 16;

// Floats of one coefficient array: whole packed rows, a multiple of the vector.
inline int64_t packed_capacity(int64_t channels) {
  if (channels < kPackBelow) return std::lcm(channels, kMaxLanes);
  return (channels + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
}

}  // namespace effnet::cpu
