// How a launch merges what its blocks have found (kernels/merge.cuh), from shapes alone.
#pragma once

#include "cuda/kernels/merge.h"
#include "cuda/ops/common.h"

namespace effnet::cuda {

// Blocks beside each other that share out the channels, where there is more than one tile: each has two counters at
// least.
inline constexpr int64_t kMostMergeColumns = kMergeCounters / 2;

// Tiles of `values` values by channel, of statistics 3 where they have rests, in an op's scratch with what the merge
// keeps there; 0: the tiles are a tensor. The blocks that leave them are `columns` beside each other, kMostMergeColumns
// at most where there are several tiles.
class MergeTiles {
 public:
  MergeTiles() = default;
  MergeTiles(int64_t tiles, int64_t columns, int64_t channels, int64_t values = 2);

  size_t bytes() const { return parts_at() + static_cast<size_t>(groups_ * 2 * channels_) * sizeof(double); }
  int64_t groups() const { return groups_; }

  // Of `scratch`, where bytes() are free.
  float* tiles(std::byte* scratch) const { return reinterpret_cast<float*>(scratch); }
  float* rests(std::byte* scratch) const { return values_ > 2 ? tiles(scratch) + tiles_ * 2 * channels_ : nullptr; }
  MergeTree tree(const Addresses& at, std::byte* scratch) const;

 private:
  size_t parts_at() const { return align256(static_cast<size_t>(tiles_ * values_ * channels_) * sizeof(float)); }

  int64_t tiles_ = 0, channels_ = 0, values_ = 2, group_tiles_ = 1, groups_ = 0;
};

}  // namespace effnet::cuda
