// Merging what blocks have found, by tile and channel, into values of a channel: two sums over the tiles, in double and
// in an order that follows from the number of tiles and of threads. A kernel's last block (comes_last) calls merge_*
// with all its threads, for the channels that its blocks share; or the merge is a launch of its own.
#pragma once

#include "cuda/device/device.h"
#include "cuda/kernels/batch_norm.h"

namespace effnet::cuda {

struct Sums2 {
  double x = 0, y = 0;
  EFF_DEVICE void operator+=(const Sums2& other) {
    x += other.x;
    y += other.y;
  }
};

// How the threads of a block, at least 32, share the channels [first, last) of a table: `columns` at a time.
struct Columns {
  uint32_t columns, lanes, lane, column;
};
EFF_DEVICE Columns columns_of(int64_t channels) {
  const uint32_t threads = block_threads();
  const uint32_t wide = channels < threads ? (static_cast<uint32_t>(channels) + 31) / 32 * 32 : threads;
  const uint32_t columns = wide < threads ? wide : threads, lane = thread_id() / columns;
  return {columns, threads / columns, lane, thread_id() - lane * columns};
}

// The sum of term(row, channel) over rows [first, last), right in the threads of lane 0. `scratch`:
// merge_shared(threads) bytes.
template <class Term>
EFF_DEVICE Sums2 sum_rows(Sums2* scratch, const Columns& at, int64_t first, int64_t last, int64_t channel,
                          int64_t channels, Term term) {
  Sums2 sums;
  if (channel < channels && at.lane < at.lanes) {
    EFF_UNROLL_BY(4)
    for (int64_t row = first + at.lane; row < last; row += at.lanes) sums += term(row, channel);
  }
  EFF_SYNC_BLOCK();  // what was there before may still be read
  scratch[thread_id()] = sums;
  EFF_SYNC_BLOCK();
  if (at.lane > 0) return sums;
  for (uint32_t l = 1; l < at.lanes; ++l) sums += scratch[l * at.columns + at.column];
  return sums;
}

// ---- statistics --------------------------------------------------------------------------------------------------

EFF_DEVICE double rows_of_tile(const BnMergeArgs& a, int64_t tile) {
  if (a.tile_counts) return load_shared_by_blocks(a.tile_counts + tile);
  const int64_t left = a.rows - tile * a.tile_rows;
  return static_cast<double>(left < a.tile_rows ? left : a.tile_rows);
}

// Mean and squared deviations of a tile as sums of deviations from the first tile's mean, which lies near that of all:
// such sums add up without a division and lose nothing in double.
struct StatsTerm {
  const BnMergeArgs& a;
  double shift;
  EFF_DEVICE Sums2 operator()(int64_t tile, int64_t c) const {
    const float* at = a.tiles + tile * 2 * a.c + c;
    const double count = rows_of_tile(a, tile), rest = a.rests ? load_shared_by_blocks(a.rests + tile * a.c + c) : 0.0f;
    const double d = load_shared_by_blocks(at) - shift + rest;
    return {count * d, fma(count * d, d, static_cast<double>(load_shared_by_blocks(at + a.c)))};
  }
};

EFF_DEVICE void store_stats(const BnMergeArgs& a, int64_t c, double shift, const Sums2& sums) {
  const double mean = shift + sums.x * a.inv_rows, m2 = sums.y - sums.x * sums.x * a.inv_rows;
  const double var = (m2 < 0 ? 0 : m2) * a.inv_rows, unbiased = var * a.bessel;
  a.mean[c] = static_cast<float>(mean);
  a.inv_std[c] = static_cast<float>(1.0 / sqrt_of(var + a.eps));
  const float running_mean = static_cast<float>((1 - a.momentum) * a.running_mean[c] + a.momentum * mean);
  const float running_var = static_cast<float>((1 - a.momentum) * a.running_var[c] + a.momentum * unbiased);
  a.running_mean[c] = running_mean;
  a.running_var[c] = running_var;
  if (is_finite(running_mean) && is_finite(running_var)) return;
  store_relaxed(&a.state->skip, 1u);
  store_relaxed(&a.state->unsound, 1u);
}

EFF_DEVICE double shift_of_stats(const BnMergeArgs& a, int64_t c) {
  return c < a.c ? load_shared_by_blocks(a.tiles + c) : 0.0f;
}

// Channels [first, last), by a whole block.
EFF_DEVICE void merge_stats(Sums2* scratch, const BnMergeArgs& a, int64_t first, int64_t last) {
  const Columns at = columns_of(last - first);
  for (int64_t begin = first; begin < last; begin += at.columns) {
    const int64_t c = begin + at.column;
    const double shift = shift_of_stats(a, c < last ? c : a.c);
    const Sums2 sums = sum_rows(scratch, at, 0, a.tile_count, c, last, StatsTerm{a, shift});
    if (at.lane == 0 && c < last) store_stats(a, c, shift, sums);
  }
}

// ---- sums of the backward part -----------------------------------------------------------------------------------

struct BnSumsTerm {
  const BnSumsMergeArgs& a;
  EFF_DEVICE Sums2 operator()(int64_t tile, int64_t c) const {
    const float* at = a.tiles + tile * 2 * a.c + c;
    return {load_shared_by_blocks(at), load_shared_by_blocks(at + a.c)};
  }
};

EFF_DEVICE void store_bn_sums(const BnSumsMergeArgs& a, int64_t c, const Sums2& sums) {
  a.diff_scale[c] = static_cast<float>(sums.x * static_cast<double>(a.inv_std[c]));
  a.diff_shift[c] = static_cast<float>(sums.y);
}

EFF_DEVICE void merge_bn_sums(Sums2* scratch, const BnSumsMergeArgs& a, int64_t first, int64_t last) {
  const Columns at = columns_of(last - first);
  for (int64_t begin = first; begin < last; begin += at.columns) {
    const int64_t c = begin + at.column;
    const Sums2 sums = sum_rows(scratch, at, 0, a.tile_count, c, last, BnSumsTerm{a});
    if (at.lane == 0 && c < last) store_bn_sums(a, c, sums);
  }
}

// ---- as a launch of its own --------------------------------------------------------------------------------------

// Block (x, y) adds up part y of the tiles for channels x * 32..; the last one of a column adds up the parts.
template <class Term, class Store>
EFF_DEVICE void merge_by_parts(const MergeParts& p, int64_t tile_count, int64_t channels, StepState* state, Term term,
                               Store store) {
  Shared shared;
  Sums2* scratch = shared.take<Sums2>(kBnThreads);
  uint32_t* flag = shared.take<uint32_t>(1);
  const Columns at = columns_of(32);
  const int64_t c = static_cast<int64_t>(block_x()) * 32 + at.column, part = block_y();
  const int64_t first = part * p.part_tiles, end = first + p.part_tiles, last = end < tile_count ? end : tile_count;
  Sums2 sums = sum_rows(scratch, at, first, last, c, channels, term);
  if (p.parts_count > 1) {
    double* parts = p.parts;
    if (at.lane == 0 && c < channels) {
      parts[part * 2 * channels + c] = sums.x;
      parts[(part * 2 + 1) * channels + c] = sums.y;
    }
    if (!comes_last(&state->block_counters[block_x()], static_cast<uint32_t>(p.parts_count), flag)) return;
    sums = sum_rows(scratch, at, 0, p.parts_count, c, channels, [=](int64_t row, int64_t channel) {
      const double* at = parts + row * 2 * channels + channel;
      return Sums2{load_shared_by_blocks(at), load_shared_by_blocks(at + channels)};
    });
  }
  if (at.lane == 0 && c < channels) store(c, sums);
}

}  // namespace effnet::cuda
