// What grids are sized for.
#pragma once

#include <cstdint>

namespace effnet::cuda {

// Multiprocessors of an H100 or H200; other GPUs have about as many. A constant, so that grids, and with them the order
// of sums, are the same on all.
inline constexpr int64_t kProcessors = 132;

}  // namespace effnet::cuda
