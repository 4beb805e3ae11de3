// Merging what blocks have found, by tile and channel, into values of a channel: two sums over the tiles, in double and
// in the order of a MergeTree. A kernel calls merge_tiles with all threads of a block that has left its tile.
#pragma once

#include "cuda/device/device.h"
#include "cuda/kernels/merge.h"

namespace effnet::cuda {

struct Two {
  double x = 0, y = 0;
  EFF_DEVICE void operator+=(const Two& other) {
    x += other.x;
    y += other.y;
  }
};
// Two values by channel, x in front of y, of a table that other blocks wrote.
template <class T>
EFF_DEVICE Two load_two(const T* table, int64_t row, int64_t c, int64_t channels) {
  const T* at = table + row * 2 * channels + c;
  return {load_shared_by_blocks(at), load_shared_by_blocks(at + channels)};
}

// ---- what is merged: `tile` is a tile's values, `term` what they add, `total` a value of tiles again from sums ------

// Mean and squared deviations, as sums of deviations from a mean that lies near all others, `origin`: such sums add up
// without a division and lose nothing in double.
template <bool kRests>
struct StatsMerge {
  const StatsMergeArgs& a;

  // Rows of tiles [first, last).
  EFF_DEVICE double count(int32_t first, int32_t last) const {
    return static_cast<double>(rows_before(last) - rows_before(first));
  }
  EFF_DEVICE Two tile(int32_t tile, int64_t c) const {
    Two two = load_two(a.tiles, tile, c, a.c);
    if constexpr (kRests) two.x += load_shared_by_blocks(a.rests + tile * a.c + c);
    return two;
  }
  EFF_DEVICE double origin(const Two& first) const { return first.x; }
  EFF_DEVICE Two term(const Two& two, double count, double origin) const {
    const double d = two.x - origin;
    return {count * d, fma(count * d, d, two.y)};
  }
  EFF_DEVICE Two total(const Two& sums, double count, double origin) const {
    const double mean = sums.x / count, squares = sums.y - sums.x * mean;
    return {origin + mean, squares < 0 ? 0 : squares};
  }
  EFF_DEVICE void store(int64_t c, const Two& total) const {
    const double mean = total.x, var = total.y * a.inv_rows, unbiased = var * a.bessel;
    a.mean[c] = static_cast<float>(mean);
    a.inv_std[c] = static_cast<float>(1.0 / sqrt_of(var + a.eps));
    const float running_mean = static_cast<float>((1 - a.momentum) * a.running_mean[c] + a.momentum * mean);
    const float running_var = static_cast<float>((1 - a.momentum) * a.running_var[c] + a.momentum * unbiased);
    a.running_mean[c] = running_mean;
    a.running_var[c] = running_var;
    if (is_finite(running_mean) && is_finite(running_var)) return;
    store_relaxed(&a.tree.state->skip, 1u);
    store_relaxed(&a.tree.state->unsound, 1u);
  }

 private:
  EFF_DEVICE int64_t rows_before(int32_t tile) const {
    if (a.tile_starts) return a.tile_starts[tile];
    const int64_t rows = tile * a.tile_rows;
    return rows < a.rows ? rows : a.rows;
  }
};

// Of terms that are added as they are; `Values` says what a tile's are and where the totals go.
template <class Values>
struct PlainMerge : Values {
  EFF_DEVICE explicit PlainMerge(const Values& values) : Values(values) {}
  EFF_DEVICE double count(int32_t, int32_t) const { return 0; }
  EFF_DEVICE double origin(const Two&) const { return 0; }
  EFF_DEVICE Two term(const Two& two, double, double) const { return two; }
  EFF_DEVICE Two total(const Two& sums, double, double) const { return sums; }
};
struct BnSums {
  const SumsMergeArgs& a;
  EFF_DEVICE Two tile(int32_t tile, int64_t c) const { return load_two(a.tiles, tile, c, a.c); }
  EFF_DEVICE void store(int64_t c, const Two& total) const {
    a.diff_scale[c] = static_cast<float>(total.x * static_cast<double>(a.inv_std[c]));
    a.diff_shift[c] = static_cast<float>(total.y);
  }
};
using SumsMerge = PlainMerge<BnSums>;

// What a merge needs of shared memory in this block.
EFF_DEVICE size_t merge_bytes() { return block_threads() * kMergeShared; }

// ---- how ---------------------------------------------------------------------------------------------------------

// How the threads of a block, at least 32, share some channels: `columns` at a time.
struct Columns {
  uint32_t columns, lanes, lane, column;
};
EFF_DEVICE Columns columns_of(int64_t channels) {
  const uint32_t threads = block_threads();
  const uint32_t wide = channels < threads ? (static_cast<uint32_t>(channels) + 31) / 32 * 32 : threads;
  const uint32_t columns = wide < threads ? wide : threads, lane = thread_id() / columns;
  return {columns, threads / columns, lane, thread_id() - lane * columns};
}

EFF_DEVICE int32_t end_of_group(const MergeTree& t, int32_t group) {
  const int32_t end = (group + 1) * t.group_tiles;
  return end < t.tiles ? end : t.tiles;
}

// By group, and behind them that of the groups.
EFF_DEVICE uint32_t* counters_of(const MergeTree& t, uint32_t column) {
  return t.state->merge_counters + column * (static_cast<uint32_t>(t.groups) + 1);
}

// What one level adds up: tiles [first, last), or the groups.
template <class Merge>
struct TilesOfGroup {
  const Merge& merge;
  int32_t first, last;
  EFF_DEVICE Two values(int32_t tile, int64_t c) const { return merge.tile(tile, c); }
  EFF_DEVICE double count(int32_t tile) const { return merge.count(tile, tile + 1); }
  EFF_DEVICE double all() const { return merge.count(first, last); }
};
template <class Merge>
struct Groups {
  const Merge& merge;
  const MergeTree& tree;
  int64_t channels;
  int32_t first, last;
  EFF_DEVICE Two values(int32_t group, int64_t c) const { return load_two(tree.parts, group, c, channels); }
  EFF_DEVICE double count(int32_t group) const {
    return merge.count(group * tree.group_tiles, end_of_group(tree, group));
  }
  EFF_DEVICE double all() const { return merge.count(0, tree.tiles); }
};

// give(channel, total) for channels [first, last), by a whole block.
template <class Merge, class Rows, class Give>
EFF_DEVICE void add_up_rows(Two* scratch, const Merge& merge, const Rows& rows, int64_t first, int64_t last,
                            Give give) {
  const Columns at = columns_of(last - first);
  for (int64_t begin = first; begin < last; begin += at.columns) {
    const int64_t c = begin + at.column;
    Two sums;
    double origin = 0;
    if (c < last && at.lane < at.lanes) {
      origin = merge.origin(rows.values(rows.first, c));
      EFF_UNROLL_BY(4)
      for (int32_t row = rows.first + static_cast<int32_t>(at.lane); row < rows.last;
           row += static_cast<int32_t>(at.lanes))
        sums += merge.term(rows.values(row, c), rows.count(row), origin);
    }
    EFF_SYNC_BLOCK();  // what was there before may still be read
    scratch[thread_id()] = sums;
    EFF_SYNC_BLOCK();
    if (at.lane > 0 || c >= last) continue;
    for (uint32_t lane = 1; lane < at.lanes; ++lane) sums += scratch[lane * at.columns + at.column];
    give(c, merge.total(sums, rows.all(), origin));
  }
}

// Channels [first, last) of `channels`, of a group whose tiles are all there; with the groups, if this is the last one
// of column `column`. `shared`: merge_bytes().
template <class Merge>
EFF_DEVICE void merge_group(void* shared, const MergeTree& t, const Merge& merge, uint32_t column, int32_t group,
                            int64_t first, int64_t last, int64_t channels) {
  Two* scratch = static_cast<Two*>(shared);
  const TilesOfGroup<Merge> tiles{merge, group * t.group_tiles, end_of_group(t, group)};
  add_up_rows(scratch, merge, tiles, first, last, [&](int64_t c, const Two& total) {
    if (t.groups == 1) return merge.store(c, total);
    double* part = t.parts + static_cast<int64_t>(group) * 2 * channels + c;
    part[0] = total.x;
    part[channels] = total.y;
  });
  if (t.groups == 1) return;
  const auto groups = static_cast<uint32_t>(t.groups);
  if (!comes_last(counters_of(t, column) + groups, groups, static_cast<uint32_t*>(shared))) return;
  add_up_rows(scratch, merge, Groups<Merge>{merge, t, channels, 0, t.groups}, first, last,
              [&](int64_t c, const Two& total) { merge.store(c, total); });
}

// The same, of a block of column `column` that has left tile `tile` of these channels: those that are not the last of
// their group are done.
template <class Merge>
EFF_DEVICE void merge_tiles(void* shared, const MergeTree& t, const Merge& merge, uint32_t column, uint32_t tile,
                            int64_t first, int64_t last, int64_t channels) {
  const auto group = static_cast<int32_t>(tile / static_cast<uint32_t>(t.group_tiles));
  const auto blocks = static_cast<uint32_t>(end_of_group(t, group) - group * t.group_tiles);
  if (blocks == 1)
    EFF_SYNC_BLOCK();
  else if (!comes_last(counters_of(t, column) + group, blocks, static_cast<uint32_t*>(shared)))
    return;
  merge_group(shared, t, merge, column, group, first, last, channels);
}

}  // namespace effnet::cuda
