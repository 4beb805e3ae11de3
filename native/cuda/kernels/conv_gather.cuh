// Convolutions whose input channels do not fill chunks of 16 bytes, such as the three of an image: operands are
// gathered value by value. The sum goes over taps and channels as one index k, in the order of OHWI weights: the kw *
// ic terms of a tap's row lie together in the image, too.
#pragma once

#include "cuda/kernels/conv_backward_weights.cuh"
#include "cuda/kernels/conv_forward.cuh"

namespace effnet::cuda {

// Terms k .. of what the window of destination pixel `dst` sees, as a chunk; 0 beyond the image and the last term.
template <class T>
EFF_DEVICE void gather_chunk(const ConvGeometry& g, const T* data, int dst, bool valid, int k, T* chunk) {
  const int width = static_cast<int>(g.w * g.ic), row_terms = static_cast<int>(g.kw * g.ic);
  const uint32_t line = static_cast<uint32_t>(dst) / static_cast<uint32_t>(g.ow);
  const uint32_t n = line / static_cast<uint32_t>(g.oh);
  const int out_y = static_cast<int>(line - n * static_cast<uint32_t>(g.oh));
  const int out_x = dst - static_cast<int>(line) * static_cast<int>(g.ow);
  const int x = (out_x * static_cast<int>(g.stride) - static_cast<int>(g.pad_l)) * static_cast<int>(g.ic);
  int ky = k / row_terms, at = k - ky * row_terms;
  const T* image = data + static_cast<int64_t>(n) * g.h * width;
  float v[kVec<T>];
  EFF_UNROLL
  for (int i = 0; i < kVec<T>; ++i) {
    const int y = out_y * static_cast<int>(g.stride) - static_cast<int>(g.pad_t) + ky;
    const bool inside = valid && ky < static_cast<int>(g.kh) && static_cast<uint32_t>(y) < static_cast<uint32_t>(g.h) &&
                        static_cast<uint32_t>(x + at) < static_cast<uint32_t>(width);
    v[i] = inside ? to_float(image[y * width + x + at]) : 0.0f;
    if (++at == row_terms) {
      at = 0;
      ++ky;
    }
  }
  if constexpr (sizeof(T) == 4) {
    store_floats(chunk, v);
  } else {
    *reinterpret_cast<Bits128*>(chunk) = pack<T>(v);
  }
}

// A of the forward direction, by rows of destination pixels.
template <class Shape, class T>
class GatheredRows {
 public:
  EFF_DEVICE GatheredRows(const ConvGeometry& g, const T* data) : g_(g), data_(data) {}

  EFF_DEVICE void begin_load(int tile) { tile_ = tile; }
  EFF_DEVICE void load(T* stage, const Step& step) {
    const int pixels = static_cast<int>(g_.n * g_.oh * g_.ow);
    EFF_UNROLL_BY(1)
    for (int pass = 0; pass < C::kPasses; ++pass) {
      if (!C::exists(pass)) continue;
      const int pixel = tile_ * Shape::kM + C::row(pass);
      gather_chunk(g_, data_, pixel, pixel < pixels, step.k + C::column(pass), stage + C::at(pass));
    }
  }
  EFF_DEVICE void finish(T*, int, const Step&) {}

 private:
  using C = ChunksA<Shape>;
  const ConvGeometry& g_;
  const T* data_;
  int tile_ = 0;
};

// B of the forward direction, by rows of output channels.
template <class Shape, class T>
class GatheredWeights {
 public:
  EFF_DEVICE GatheredWeights(const ConvGeometry& g, const T* weights, int first)
      : g_(g), weights_(weights), first_(first) {}

  EFF_DEVICE void load(T* stage, const Step& step) {
    const int terms = static_cast<int>(g_.kh * g_.kw * g_.ic);
    EFF_UNROLL_BY(1)
    for (int pass = 0; pass < C::kPasses; ++pass) {
      if (!C::exists(pass)) continue;
      const int o = first_ + C::row(pass), k = step.k + C::column(pass);
      EFF_UNROLL
      for (int i = 0; i < Shape::kVector; ++i)
        stage[C::at(pass) + i] =
            o < static_cast<int>(g_.oc) && k + i < terms ? weights_[o * terms + k + i] : from_float<T>(0.0f);
    }
  }
  EFF_DEVICE void finish(T*, int, const Step&) {}

 private:
  using C = ChunksB<Shape>;
  const ConvGeometry& g_;
  const T* weights_;
  int first_;
};

// B of the gradient of weights, by depth: columns are the terms.
template <class Shape, class T>
class GatheredPixels {
 public:
  EFF_DEVICE GatheredPixels(const ConvGeometry& g, const T* data, PixelRange range, int first_column)
      : g_(g), data_(data), range_(range), first_column_(first_column) {}

  EFF_DEVICE void load(T* stage, const Step& step) {
    EFF_UNROLL_BY(1)
    for (int pass = 0; pass < C::kPasses; ++pass) {
      if (!C::exists(pass)) continue;
      const int pixel = range_.first + step.k + C::row(pass);
      gather_chunk(g_, data_, pixel, pixel < range_.last, first_column_ + C::column(pass), stage + C::at(pass));
    }
  }
  EFF_DEVICE void finish(T*, int, const Step&) {}

 private:
  using C = ChunksB<Shape>;
  const ConvGeometry& g_;
  const T* data_;
  PixelRange range_;
  int first_column_;
};

template <class T, class Engine, class Shape, bool kStats>
EFF_DEVICE void conv_gather_forward(const ConvArgs& a) {
  const int n0 = static_cast<int>(block_x()) * Shape::kN;
  GatheredRows<Shape, T> rows(a.g, static_cast<const T*>(a.src.data));
  GatheredWeights<Shape, T> columns(a.g, static_cast<const T*>(a.weights), n0);
  conv_forward<T, Shape, Engine, kStats>(a, rows, columns, static_cast<int>(a.g.kh * a.g.kw * a.g.ic), 1, 1);
}
template <class T, int kN, bool kStats>
EFF_DEVICE void conv_gather_forward_mma(const ConvArgs& a) {
  using Shape = ForwardShape<T, kN>;
  conv_gather_forward<T, TensorEngine<T, Shape>, Shape, kStats>(a);
}
template <int kN, bool kStats>
EFF_DEVICE void conv_gather_forward_fma(const ConvArgs& a) {
  using Shape = ForwardShape<float, kN>;
  conv_gather_forward<float, FmaEngine<Shape>, Shape, kStats>(a);
}

template <class T, class Engine, class Shape>
EFF_DEVICE void conv_gather_backward_weights(const ConvBwdWeightsArgs& a) {
  const PixelRange range = range_of_split(a);
  GatheredPixels<Shape, T> src(a.g, static_cast<const T*>(a.src.data), range, static_cast<int>(block_x()) * Shape::kN);
  conv_backward_weights<T, Shape, Engine>(a, range, src);
}
template <class T, int kM, int kN>
EFF_DEVICE void conv_gather_backward_weights_mma(const ConvBwdWeightsArgs& a) {
  using Shape = BackwardWeightsShape<T, kM, kN>;
  conv_gather_backward_weights<T, TensorEngine<T, Shape>, Shape>(a);
}
template <int kM, int kN>
EFF_DEVICE void conv_gather_backward_weights_fma(const ConvBwdWeightsArgs& a) {
  using Shape = BackwardWeightsShape<float, kM, kN>;
  conv_gather_backward_weights<float, FmaEngine<Shape>, Shape>(a);
}

}  // namespace effnet::cuda
