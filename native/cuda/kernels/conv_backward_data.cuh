// The gradient of a convolution's source on tiles: rows are source pixels, columns input channels.
#pragma once

#include "cuda/kernels/conv_loaders.cuh"
#include "cuda/kernels/drop.cuh"
#include "cuda/kernels/merge.cuh"

namespace effnet::cuda {

// Sums over the rows that a block stores, by column, of g and of g * (x - mean), each times what `factor(row)` says: a
// lane has two columns of every kGroups-th row.
template <class T, class Shape>
class ColumnSums {
 public:
  static constexpr int kLanes = Shape::kWarpColumns / 2, kGroups = 32 / kLanes;
  static constexpr int kParts = Shape::kWarpsM * kGroups;
  static_assert(size_t{kParts} * 2 * Shape::kN * sizeof(float) <= Shape::kSlabsSize * sizeof(T));

  // `means`: of the columns of this warp.
  template <class Factor>
  EFF_DEVICE void add(const Slab<T, Shape>& g, const Slab<T, Shape>& x, const float* means, int rows, Factor factor) {
    const int lane = static_cast<int>(thread_id()) % 32, group = lane / kLanes, column = lane % kLanes * 2;
    if (group >= kGroups) return;
    EFF_UNROLL
    for (int i = 0; i < 16 / kGroups; ++i) {
      const int row = group + i * kGroups;
      if (row >= rows) break;
      float g0, g1, x0, x1;
      g.get(row, column, g0, g1);
      x.get(row, column, x0, x1);
      g0 *= factor(row);
      g1 *= factor(row);
      sums_[0] += g0;
      sums_[1] += g1;
      products_[0] = fma(g0, x0 - means[column], products_[0]);
      products_[1] = fma(g1, x1 - means[column + 1], products_[1]);
    }
  }

  // Of all rows of the block, into `tile`: [2][channels], products first. The slabs' memory is free by now.
  EFF_DEVICE void merge(float* scratch, float* tile, int first_column, int channels) {
    const int t = static_cast<int>(thread_id()), lane = t % 32, warp = t / 32, group = lane / kLanes;
    EFF_SYNC_BLOCK();
    if (group < kGroups) {
      float* part = scratch + (warp / Shape::kWarpsN * kGroups + group) * 2 * Shape::kN +
                    warp % Shape::kWarpsN * Shape::kWarpColumns + lane % kLanes * 2;
      EFF_UNROLL
      for (int i = 0; i < 2; ++i) {
        part[i] = products_[i];
        part[Shape::kN + i] = sums_[i];
      }
    }
    EFF_SYNC_BLOCK();
    if (t >= Shape::kN || first_column + t >= channels) return;
    float product = 0.0f, sum = 0.0f;
    for (int part = 0; part < kParts; ++part) {
      product += scratch[part * 2 * Shape::kN + t];
      sum += scratch[(part * 2 + 1) * Shape::kN + t];
    }
    tile[first_column + t] = product;
    tile[channels + first_column + t] = sum;
  }

 private:
  float sums_[2] = {}, products_[2] = {};
};

// What is done to diff_src before it is stored. bn: it is multiplied by the slope of act(bn(slope_of)), and a block
// leaves its sums for the BN, which are merged; end: args.end is added, and if it asks for them, so are its sums.
enum class DataEpilogue { none, bn, end };

template <class T, class Shape, class Engine, DataEpilogue kEpilogue>
EFF_DEVICE void conv_backward_data(const ConvBwdDataArgs& a) {
  constexpr bool kBn = kEpilogue == DataEpilogue::bn, kEnd = kEpilogue == DataEpilogue::end;
  Shared shared;
  T* stages = shared.take<T>(Shape::kStagesSize);
  T* slabs = shared.take<T>(Shape::kSlabsSize);
  T* slabs_of_x = kBn || kEnd ? shared.take<T>(Shape::kSlabsSize) : slabs;
  // Of the block's columns: mean, and for the slope factor and shift.
  float* norm = kBn || kEnd ? shared.take<float>((kBn ? 3 : 1) * Shape::kN) : nullptr;
  const int warp = static_cast<int>(thread_id()) / 32, channels = static_cast<int>(a.g.ic);
  const int n0 = static_cast<int>(block_x()) * Shape::kN, warp_column = warp % Shape::kWarpsN * Shape::kWarpColumns;
  const int column0 = n0 + warp_column;
  const int pixels = static_cast<int>(a.g.n * a.g.h * a.g.w);
  const int first = static_cast<int>(block_y() * a.tiles_a_block);
  const int end = first + static_cast<int>(a.tiles_a_block), last = end < a.tiles ? end : static_cast<int>(a.tiles);
  float* kept = kEnd ? shared.take<float>(kTileThreads / 2) + warp * 16 : nullptr;  // of the rows of this warp's slab
  if constexpr (kEnd) {
    const int t = static_cast<int>(thread_id()), c = n0 + t;
    if (a.end.src && t < Shape::kN && c < channels) norm[t] = a.end.mean[c];
    if (t % 32 < 16) kept[t % 32] = 1.0f;
  }
  if constexpr (kBn) {  // read behind the barriers of the first tile
    const int t = static_cast<int>(thread_id()), c = n0 + t;
    if (t < Shape::kN && c < channels) {
      norm[t] = a.slope_norm.mean[c];
      norm[Shape::kN + t] = a.slope_norm.inv_std[c] * a.slope_norm.scale[c];
      norm[2 * Shape::kN + t] = a.slope_norm.shift[c];
    }
  }

  PixelRows<Shape, T, true> rows(a.g, static_cast<const T*>(a.diff_dst), nullptr);
  WeightColumns<Shape, T> columns(a.g, static_cast<const T*>(a.weights), n0);
  const Slab<T, Shape> slab(slabs), x(slabs_of_x);
  ColumnSums<T, Shape> sums;
  const T* slope_of = static_cast<const T*>(a.slope_of);
  const T *addend = static_cast<const T*>(a.end.addend), *end_src = static_cast<const T*>(a.end.src);
  T* diff_src = static_cast<T*>(a.diff_src);
  multiply_tiles<Shape, Engine>(
      stages, first, last, static_cast<int>(a.g.oc), static_cast<int>(a.g.kh), static_cast<int>(a.g.kw), rows, columns,
      [&](int tile, const Engine& engine) {
        EFF_UNROLL
        for (int i = 0; i < Shape::kWarpRows / 16; ++i) {
          const int row0 = tile * Shape::kM + warp / Shape::kWarpsN * Shape::kWarpRows + 16 * i;
          if (row0 >= pixels) continue;
          const int64_t at = static_cast<int64_t>(row0) * channels + column0;
          if constexpr (kBn) x.load(slope_of + at, channels, pixels - row0, channels - column0);
          if constexpr (kEnd) {
            const int lane = static_cast<int>(thread_id()) % 32;
            if (a.end.drop.scalars && lane < 16)
              kept[lane] = drop_factor(a.end.drop, (row0 + lane) / static_cast<int>(a.g.h * a.g.w));
            if (addend) slab.load(addend + at, channels, pixels - row0, channels - column0);
            if (end_src) x.load(end_src + at, channels, pixels - row0, channels - column0);
          }
          engine.visit(i, [&](int row, int column, float v0, float v1) {
            if constexpr (kBn) {
              float x0, x1;
              x.get(row, column, x0, x1);
              const float *mean = norm + warp_column + column, *factor = mean + Shape::kN, *shift = factor + Shape::kN;
              v0 *= activation_slope<T>(a.act, fma(x0 - mean[0], factor[0], shift[0]));
              v1 *= activation_slope<T>(a.act, fma(x1 - mean[1], factor[1], shift[1]));
            }
            if constexpr (kEnd) {
              if (addend) {
                float r0, r1;
                slab.get(row, column, r0, r1);
                v0 += r0;
                v1 += r1;
              }
            }
            slab.put(row, column, v0, v1);
          });
          sync_warp();
          slab.store(diff_src + at, channels, pixels - row0, channels - column0);
          if constexpr (kBn) sums.add(slab, x, norm + warp_column, pixels - row0, [](int) { return 1.0f; });
          if constexpr (kEnd) {
            if (end_src) sums.add(slab, x, norm + warp_column, pixels - row0, [&](int row) { return kept[row]; });
          }
          sync_warp();
        }
      });
  if (kBn || (kEnd && end_src)) {
    static_assert(kTileThreads * kMergeShared <= Shape::kStagesSize * sizeof(T));
    sums.merge(reinterpret_cast<float*>(slabs), a.sums.tiles + int64_t{block_y()} * 2 * channels, n0, channels);
    const int last_channel = n0 + Shape::kN < channels ? n0 + Shape::kN : channels;
    merge_tiles(stages, a.sums.tree, SumsMerge({a.sums}), block_x(), block_y(), n0, last_channel, channels);
  }
}

template <class T, int kN>
using BackwardDataShape = TileShape<sizeof(T), 128, kN, Layout::by_rows, Layout::by_depth>;

template <class T, int kN, DataEpilogue kEpilogue>
EFF_DEVICE void conv_backward_data_mma(const ConvBwdDataArgs& a) {
  using Shape = BackwardDataShape<T, kN>;
  conv_backward_data<T, Shape, TensorEngine<T, Shape>, kEpilogue>(a);
}
template <int kN, DataEpilogue kEpilogue>
EFF_DEVICE void conv_backward_data_fma(const ConvBwdDataArgs& a) {
  using Shape = BackwardDataShape<float, kN>;
  conv_backward_data<float, Shape, FmaEngine<Shape>, kEpilogue>(a);
}

}  // namespace effnet::cuda
