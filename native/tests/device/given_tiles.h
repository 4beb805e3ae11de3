// Arguments of given_tiles.cu: kernels whose blocks leave the tiles that they are given, and merge them.
#pragma once

#include "cuda/kernels/merge.h"

namespace effnet::test {

inline constexpr uint32_t kGivenThreads = 64;

// Block (x, y) leaves tile y of channels x * width.. as it is in `tiles`, with its rest.
struct GivenStatsArgs {
  const float *tiles, *rests;
  int64_t width;
  cuda::StatsMergeArgs merge;
};
struct GivenSumsArgs {
  const float* tiles;
  int64_t width;
  cuda::SumsMergeArgs merge;
};

}  // namespace effnet::test
