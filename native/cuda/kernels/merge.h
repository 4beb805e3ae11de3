// Arguments of merges (merge.cuh): what the blocks of a launch have found by tile and channel becomes values of a
// channel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/kernels/step_state.h"

namespace effnet::cuda {

// In two levels, and an order that follows from the number of tiles: of the blocks that share channels, a column, the
// last one of each group of neighbours adds up its group's tiles, the last group adds up the groups. One block alone
// would read all tiles while the GPU waits for it.
struct MergeTree {
  int32_t tiles, group_tiles, groups;
  double* parts;     // [groups][2][c], not used for one group
  StepState* state;  // of its merge_counters [column][groups + 1]
};

// What a merge needs of shared memory, for each thread of a block.
inline constexpr size_t kMergeShared = 2 * sizeof(double);

// Statistics of tiles into those of all rows.
struct StatsMergeArgs {
  float* tiles;  // [tile][2][c]: mean of the stored values, sum of squared deviations from it
  float* rests;  // [tile][c]: what FP32 has no room for in the means; where kernels leave it
  int64_t rows, c;
  int64_t tile_rows;           // of each tile but the last, which has what is left; or
  const int32_t* tile_starts;  // [tiles + 1], the rows in front of each
  double inv_rows, bessel;     // 1 / rows, rows / (rows - 1)
  double eps, momentum;
  float *mean, *inv_std, *running_mean, *running_var;
  MergeTree tree;
};

// Sums of tiles into those of all rows, which the gradients of a BN's scale and shift are.
struct SumsMergeArgs {
  float* tiles;  // [tile][2][c]: g * (src - mean), g
  int64_t c;
  const float* inv_std;
  float *diff_scale, *diff_shift;
  MergeTree tree;
};

}  // namespace effnet::cuda
