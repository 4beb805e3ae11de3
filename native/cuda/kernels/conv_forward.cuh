// Convolution forward on tiles: rows are destination pixels, columns output channels.
#pragma once

#include "cuda/kernels/conv_loaders.cuh"
#include "cuda/kernels/merge.cuh"

namespace effnet::cuda {

// What becomes of a tile of sums.
template <class T, class Shape, bool kStats>
class ForwardStore {
 public:
  EFF_DEVICE ForwardStore(const ConvArgs& args, T* slabs)
      : a(args), slab_(slabs), pixels_(static_cast<int>(a.g.n * a.g.oh * a.g.ow)) {}

  template <class Engine>
  EFF_DEVICE void operator()(int tile, const Engine& engine) {
    const int warp = static_cast<int>(thread_id()) / 32, channels = static_cast<int>(a.g.oc);
    // Made again for each tile: the sums of the next one leave no register for it.
    const int column0 = first_column() + warp % Shape::kWarpsN * Shape::kWarpColumns;
    const T* residual = static_cast<const T*>(a.residual);
    T* dst = static_cast<T*>(a.dst);
    EFF_UNROLL
    for (int i = 0; i < Shape::kWarpRows / 16; ++i) {
      const int row0 = tile * Shape::kM + warp / Shape::kWarpsN * Shape::kWarpRows + 16 * i;
      if (row0 >= pixels_) continue;
      const int64_t at = static_cast<int64_t>(row0) * channels + column0;
      if (!kStats && residual) slab_.load(residual + at, channels, pixels_ - row0, channels - column0);
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
            slab_.get(row, column, r0, r1);
            v0 += r0;
            v1 += r1;
          }
        }
        slab_.put(row, column, v0, v1);
      });
      sync_warp();
      slab_.store(dst + at, channels, pixels_ - row0, channels - column0);
      if constexpr (kStats) stats_.add(slab_, pixels_ - row0);
      sync_warp();
    }
  }
  // Behind the block's last tile; `scratch`: the stages.
  EFF_DEVICE void finish(T* scratch) {
    if constexpr (kStats) {
      static_assert(kTileThreads * kMergeShared <= Shape::kStagesSize * sizeof(T));
      const int channels = static_cast<int>(a.g.oc), first = first_column();
      const int last = first + Shape::kN < channels ? first + Shape::kN : channels;
      stats_.merge(reinterpret_cast<float*>(scratch), a.stats.tiles + int64_t{block_y()} * 2 * channels,
                   a.stats.rests + int64_t{block_y()} * channels, first, channels);
      merge_tiles(scratch, a.stats.tree, StatsMerge<true>{a.stats}, block_x(), block_y(), first, last, channels);
    }
  }

 private:
  static EFF_DEVICE int first_column() { return static_cast<int>(block_x()) * Shape::kN; }

  const ConvArgs& a;
  Slab<T, Shape> slab_;
  int pixels_;
  ColumnStats<T, Shape> stats_;
};

// `rows`, `columns`: loaders of the operands, whose sum goes over `terms` at each of kh x kw taps.
template <class T, class Shape, class Engine, bool kStats, class Rows, class Columns>
EFF_DEVICE void conv_forward(const ConvArgs& a, Rows& rows, Columns& columns, int terms, int kh, int kw) {
  Shared shared;
  T* stages = shared.take<T>(Shape::kStagesSize);
  ForwardStore<T, Shape, kStats> store(a, shared.take<T>(Shape::kSlabsSize));
  const int first = static_cast<int>(block_y() * a.tiles_a_block);
  const int end = first + static_cast<int>(a.tiles_a_block), last = end < a.tiles ? end : static_cast<int>(a.tiles);
  multiply_tiles<Shape, Engine>(stages, first, last, terms, kh, kw, rows, columns,
                                [&](int tile, const Engine& engine) { store(tile, engine); });
  store.finish(stages);
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
