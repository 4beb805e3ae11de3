// Convolution forward on tiles: rows are destination pixels, columns output channels.
#pragma once

#include "cuda/kernels/conv_loaders.cuh"

namespace effnet::cuda {

// `rows`, `columns`: loaders of the operands, whose sum goes over `terms` at each of kh x kw taps.
template <class T, class Shape, class Engine, bool kStats, class Rows, class Columns>
EFF_DEVICE void conv_forward(const ConvArgs& a, Rows& rows, Columns& columns, int terms, int kh, int kw) {
  Shared shared;
  T* stages = shared.take<T>(Shape::kStagesSize);
  T* slabs = shared.take<T>(Shape::kSlabsSize);
  const int warp = static_cast<int>(thread_id()) / 32, channels = static_cast<int>(a.g.oc);
  const int n0 = static_cast<int>(block_x()) * Shape::kN;
  const int column0 = n0 + warp % Shape::kWarpsN * Shape::kWarpColumns;
  const int pixels = static_cast<int>(a.g.n * a.g.oh * a.g.ow);
  const int first = static_cast<int>(block_y() * a.tiles_a_block);
  const int end = first + static_cast<int>(a.tiles_a_block), last = end < a.tiles ? end : static_cast<int>(a.tiles);

  const Slab<T, Shape> slab(slabs);
  ColumnStats<T, Shape> stats;
  const T* residual = static_cast<const T*>(a.residual);
  T* dst = static_cast<T*>(a.dst);
  multiply_tiles<Shape, Engine>(stages, first, last, terms, kh, kw, rows, columns, [&](int tile, const Engine& engine) {
    EFF_UNROLL
    for (int i = 0; i < Shape::kWarpRows / 16; ++i) {
      const int row0 = tile * Shape::kM + warp / Shape::kWarpsN * Shape::kWarpRows + 16 * i;
      if (row0 >= pixels) continue;
      const int64_t at = static_cast<int64_t>(row0) * channels + column0;
      if (!kStats && residual) slab.load(residual + at, channels, pixels - row0, channels - column0);
      engine.visit(i, [&](int row, int column, float v0, float v1) {
        if constexpr (!kStats) {
          if (a.bias && column0 + column < channels) {
            v0 += a.bias[column0 + column];
            v1 += a.bias[column0 + column + 1];
          }
          v0 = activate<T>(a.act, v0);
          v1 = activate<T>(a.act, v1);
          if (residual) {
            float r0, r1;
            slab.get(row, column, r0, r1);
            v0 += r0;
            v1 += r1;
          }
        }
        slab.put(row, column, v0, v1);
      });
      sync_warp();
      slab.store(dst + at, channels, pixels - row0, channels - column0);
      if constexpr (kStats) stats.add(slab, pixels - row0);
      sync_warp();
    }
  });
  if constexpr (kStats)
    stats.merge(reinterpret_cast<float*>(slabs), a.stats + static_cast<int64_t>(block_y()) * 2 * channels, n0,
                channels);
}

template <class T, int kN>
using ForwardShape = TileShape<sizeof(T), 128, kN, Layout::by_rows, Layout::by_rows>;

template <class T, class Shape, class Engine, bool kStats>
EFF_DEVICE void conv_forward(const ConvArgs& a) {
  PixelRows<Shape, T, false> rows(a.g, static_cast<const T*>(a.src.data), is_finished_later(a.src) ? &a.src : nullptr);
  WeightRows<Shape, T> columns(a.g, static_cast<const T*>(a.weights), static_cast<int>(block_x()) * Shape::kN);
  conv_forward<T, Shape, Engine, kStats>(a, rows, columns, static_cast<int>(a.g.ic), static_cast<int>(a.g.kh),
                                         static_cast<int>(a.g.kw));
}
template <class T, int kN, bool kStats>
EFF_DEVICE void conv_forward_mma(const ConvArgs& a) {
  using Shape = ForwardShape<T, kN>;
  conv_forward<T, Shape, TensorEngine<T, Shape>, kStats>(a);
}
template <int kN, bool kStats>
EFF_DEVICE void conv_forward_fma(const ConvArgs& a) {
  using Shape = ForwardShape<float, kN>;
  conv_forward<float, Shape, FmaEngine<Shape>, kStats>(a);
}

}  // namespace effnet::cuda
