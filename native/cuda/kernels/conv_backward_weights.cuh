// The gradient of a convolution's weights on tiles: rows are output channels, columns taps x input channels, and the
// sum is over the destination pixels of a split.
#pragma once

#include "cuda/kernels/conv_loaders.cuh"

namespace effnet::cuda {

// Pixels [first, last) of an operand, channels innermost. A step's k counts from `first`.
struct PixelRange {
  int first, last;
};

// A by depth: the gradient of output channels first_channel, ...
template <class Shape, class T>
class DstPixels {
 public:
  EFF_DEVICE DstPixels(const T* data, int channels, PixelRange range, int first_channel)
      : data_(data), channels_(channels), range_(range), first_channel_(first_channel) {}

  EFF_DEVICE void begin_load(int) {}
  EFF_DEVICE void load(T* stage, const Step& step) {
    EFF_UNROLL
    for (int pass = 0; pass < C::kPasses; ++pass) {
      if (!C::exists(pass)) continue;
      const int pixel = range_.first + step.k + C::row(pass), c = first_channel_ + C::column(pass);
      const bool valid = pixel < range_.last && c < channels_;
      copy_async(stage + C::at(pass), data_ + (valid ? static_cast<int64_t>(pixel) * channels_ + c : 0), valid);
    }
  }
  EFF_DEVICE void finish(T*, int, const Step&) {}

 private:
  using C = ChunksA<Shape>;
  const T* data_;
  int channels_;
  PixelRange range_;
  int first_channel_;
};

// B by depth: what a tap sees of the source at destination pixels. A thread's chunks are all in one column.
template <class Shape, class T>
class SrcPixels {
 public:
  EFF_DEVICE SrcPixels(const ConvGeometry& g, const ConvSource& src, PixelRange range, int first_column)
      : g_(g), src_(src), range_(range) {
    static_assert(static_cast<int>(kTileThreads) % C::kAcross == 0);
    const int column = first_column + C::column(0), channels = static_cast<int>(g.ic), width = static_cast<int>(g.kw);
    const int tap = column / channels;
    c_ = tap < static_cast<int>(g.kh) * width ? column - tap * channels : -1;
    tap_y_ = tap / width;
    tap_x_ = tap - tap_y_ * width;
  }

  EFF_DEVICE void load(T* stage, const Step& step) {
    const T* data = static_cast<const T*>(src_.data);
    EFF_UNROLL
    for (int pass = 0; pass < C::kPasses; ++pass) {
      if (!C::exists(pass)) continue;
      int n, pixel;
      const bool valid = find(step, pass, n, pixel);
      copy_async(stage + C::at(pass), data + (valid ? pixel * g_.ic + c_ : 0), valid);
    }
  }
  EFF_DEVICE void finish(T* stage, int, const Step& step) {
    if (!is_finished_later(src_)) return;
    EFF_UNROLL_BY(1)
    for (int pass = 0; pass < C::kPasses; ++pass) {
      if (!C::exists(pass)) continue;
      int n, pixel;
      if (find(step, pass, n, pixel)) finish_chunk(src_, stage + C::at(pass), n, c_, static_cast<int>(g_.ic));
    }
  }

 private:
  using C = ChunksB<Shape>;

  EFF_DEVICE bool find(const Step& step, int pass, int& n, int& pixel) const {
    const int dst = range_.first + step.k + C::row(pass);
    const auto width = static_cast<uint32_t>(g_.ow), height = static_cast<uint32_t>(g_.oh);
    const uint32_t line = static_cast<uint32_t>(dst) / width, image = line / height;
    const int stride = static_cast<int>(g_.stride);
    const int y = static_cast<int>(line - image * height) * stride - static_cast<int>(g_.pad_t) + tap_y_;
    const int x =
        static_cast<int>(static_cast<uint32_t>(dst) - line * width) * stride - static_cast<int>(g_.pad_l) + tap_x_;
    n = static_cast<int>(image);
    pixel = (n * static_cast<int>(g_.h) + y) * static_cast<int>(g_.w) + x;
    return dst < range_.last && c_ >= 0 && static_cast<uint32_t>(y) < static_cast<uint32_t>(g_.h) &&
           static_cast<uint32_t>(x) < static_cast<uint32_t>(g_.w);
  }

  const ConvGeometry& g_;
  const ConvSource& src_;
  PixelRange range_;
  int c_, tap_y_, tap_x_;  // c_ < 0: behind the last column
};

EFF_DEVICE PixelRange range_of_split(const ConvBwdWeightsArgs& a) {
  const int64_t pixels = a.g.n * a.g.oh * a.g.ow, first = block_z() * a.split_pixels, end = first + a.split_pixels;
  return {static_cast<int>(first), static_cast<int>(end < pixels ? end : pixels)};
}

template <class T, class Shape, class Engine, class Src>
EFF_DEVICE void conv_backward_weights(const ConvBwdWeightsArgs& a, PixelRange range, Src& src) {
  Shared shared;
  T* stages = shared.take<T>(Shape::kStagesSize);
  float* slabs = shared.take<float>(Shape::kSlabsSize);
  const int warp = static_cast<int>(thread_id()) / 32;
  const int rows = static_cast<int>(a.g.oc), width = static_cast<int>(a.g.kh * a.g.kw * a.g.ic);
  const int n0 = static_cast<int>(block_x()) * Shape::kN, m0 = static_cast<int>(block_y()) * Shape::kM;
  const int column0 = n0 + warp % Shape::kWarpsN * Shape::kWarpColumns;

  DstPixels<Shape, T> dst(static_cast<const T*>(a.diff_dst), rows, range, m0);
  const Slab<float, Shape> slab(slabs);
  multiply_tiles<Shape, Engine>(stages, 0, 1, range.last - range.first, 1, 1, dst, src, [&](int, const Engine& engine) {
    EFF_UNROLL
    for (int i = 0; i < Shape::kWarpRows / 16; ++i) {
      const int row0 = m0 + warp / Shape::kWarpsN * Shape::kWarpRows + 16 * i;
      if (row0 >= rows) continue;
      float* parts = a.parts + (static_cast<int64_t>(block_z()) * rows + row0) * width + column0;
      if (width % 4 != 0) {
        engine.visit(i, [&](int row, int column, float v0, float v1) {
          if (row0 + row >= rows) return;
          if (column0 + column < width) parts[row * width + column] = v0;
          if (column0 + column + 1 < width) parts[row * width + column + 1] = v1;
        });
        continue;
      }
      engine.visit(i, [&](int row, int column, float v0, float v1) { slab.put(row, column, v0, v1); });
      sync_warp();
      slab.store(parts, width, rows - row0, width - column0);
      sync_warp();
    }
  });
}

template <class T, int kM, int kN>
using BackwardWeightsShape = TileShape<sizeof(T), kM, kN, Layout::by_depth, Layout::by_depth, sizeof(float)>;

template <class T, class Shape, class Engine>
EFF_DEVICE void conv_backward_weights(const ConvBwdWeightsArgs& a) {
  const PixelRange range = range_of_split(a);
  SrcPixels<Shape, T> src(a.g, a.src, range, static_cast<int>(block_x()) * Shape::kN);
  conv_backward_weights<T, Shape, Engine>(a, range, src);
}
template <class T, int kM, int kN>
EFF_DEVICE void conv_backward_weights_mma(const ConvBwdWeightsArgs& a) {
  using Shape = BackwardWeightsShape<T, kM, kN>;
  conv_backward_weights<T, Shape, TensorEngine<T, Shape>>(a);
}
template <int kM, int kN>
EFF_DEVICE void conv_backward_weights_fma(const ConvBwdWeightsArgs& a) {
  using Shape = BackwardWeightsShape<float, kM, kN>;
  conv_backward_weights<float, Shape, FmaEngine<Shape>>(a);
}

}  // namespace effnet::cuda
