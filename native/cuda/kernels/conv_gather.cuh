// Convolutions whose input channels do not fill chunks of 16 bytes, such as the three of an image: operands are
// gathered value by value. The sum goes over taps and channels as one index k, in the order of OHWI weights: the kw *
// ic terms of a tap's row lie together in the image, too.
#pragma once

#include "cuda/kernels/conv_backward_weights.cuh"
#include "cuda/kernels/conv_forward.cuh"
#include "cuda/kernels/pixels.cuh"

namespace effnet::cuda {

// What is gathered: from_term(k).value(stored, i) is term k + i, of what lies in its place.
template <class T>
class StoredTerms {
 public:
  using Value = T;
  EFF_DEVICE explicit StoredTerms(const ConvSource& src) : data_(static_cast<const T*>(src.data)) {}
  EFF_DEVICE const T* data() const { return data_; }
  EFF_DEVICE const StoredTerms& from_term(int) const { return *this; }
  EFF_DEVICE float value(T stored, int) const { return to_float(stored); }

 private:
  const T* data_;
};

// uint8 images of three channels, normalised.
class PixelTerms {
 public:
  using Value = uint8_t;
  EFF_DEVICE explicit PixelTerms(const ConvSource& src)
      : data_(static_cast<const uint8_t*>(src.data)), norm_(src.pixels) {}
  EFF_DEVICE const uint8_t* data() const { return data_; }
  EFF_DEVICE PixelTerms from_term(int k) const { return {data_, turned(norm_, k % 3)}; }
  EFF_DEVICE float value(uint8_t stored, int i) const {
    return normalised_pixel(static_cast<float>(stored), norm_.mean[i % 3], norm_.inv_std[i % 3]);
  }

 private:
  EFF_DEVICE PixelTerms(const uint8_t* data, const PixelNorm& norm) : data_(data), norm_(norm) {}

  const uint8_t* data_;
  PixelNorm norm_;
};

inline constexpr int kOutsideOfRows = -(1 << 30);

// Terms k .. of what the window of destination pixel `dst` sees, as a chunk; 0 beyond the image and the last term. They
// lie in two rows of the image at most (ops/conv_form.cc, fits_gather). Loads come before arithmetic, so that they are
// on their way together: with the arithmetic in a branch behind each, a chunk waits for memory as often as it has
// values.
template <class T, class Terms>
EFF_DEVICE void gather_chunk(const ConvGeometry& g, const Terms& terms, int dst, bool valid, int k, T* chunk) {
  const int width = static_cast<int>(g.w * g.ic), row_terms = static_cast<int>(g.kw * g.ic);
  const uint32_t line = static_cast<uint32_t>(dst) / static_cast<uint32_t>(g.ow);
  const uint32_t n = line / static_cast<uint32_t>(g.oh);
  const int out_y = static_cast<int>(line - n * static_cast<uint32_t>(g.oh));
  const int out_x = dst - static_cast<int>(line) * static_cast<int>(g.ow);
  const int ky = k / row_terms, first = row_terms - (k - ky * row_terms);  // values in the first of the rows
  const int y = out_y * static_cast<int>(g.stride) - static_cast<int>(g.pad_t) + ky;
  const int x = (out_x * static_cast<int>(g.stride) - static_cast<int>(g.pad_l)) * static_cast<int>(g.ic) - first;
  const auto in_image = [&](int row) {
    return valid && ky + row < static_cast<int>(g.kh) && static_cast<uint32_t>(y + row) < static_cast<uint32_t>(g.h);
  };
  // Where value 0 would be, were it in the first or in the second row: in it, or far outside of the image.
  const int column0 = in_image(0) ? x + row_terms : kOutsideOfRows, column1 = in_image(1) ? x : kOutsideOfRows;
  const typename Terms::Value* row1 = terms.data() + (static_cast<int64_t>(n) * g.h + y + 1) * width + x;
  const typename Terms::Value* row0 = row1 - width + row_terms;
  typename Terms::Value stored[kVec<T>];
  bool inside[kVec<T>];
  EFF_UNROLL
  for (int i = 0; i < kVec<T>; ++i) {
    stored[i] = {};
    inside[i] = static_cast<uint32_t>((i < first ? column0 : column1) + i) < static_cast<uint32_t>(width);
    if (inside[i]) stored[i] = (i < first ? row0 : row1)[i];
  }
  const auto& edit = terms.from_term(k);
  float v[kVec<T>];
  EFF_UNROLL
  for (int i = 0; i < kVec<T>; ++i) {
    const float value = edit.value(stored[i], i);
    v[i] = inside[i] ? value : 0.0f;
  }
  if constexpr (sizeof(T) == 4) {
    store_floats(chunk, v);
  } else {
    *reinterpret_cast<Bits128*>(chunk) = pack<T>(v);
  }
}

// A of the forward direction, by rows of destination pixels.
template <class Shape, class T, class Terms>
class GatheredRows {
 public:
  EFF_DEVICE GatheredRows(const ConvGeometry& g, const Terms& terms) : g_(g), terms_(terms) {}

  EFF_DEVICE void begin_load(int tile) { tile_ = tile; }
  EFF_DEVICE void load(T* stage, const Step& step) {
    const int pixels = static_cast<int>(g_.n * g_.oh * g_.ow);
    EFF_UNROLL_BY(1)
    for (int pass = 0; pass < C::kPasses; ++pass) {
      if (!C::exists(pass)) continue;
      const int pixel = tile_ * Shape::kM + C::row(pass);
      gather_chunk(g_, terms_, pixel, pixel < pixels, step.k + C::column(pass), stage + C::at(pass));
    }
  }
  EFF_DEVICE void finish(T*, int, const Step&) {}

 private:
  using C = ChunksA<Shape>;
  const ConvGeometry& g_;
  const Terms terms_;
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
template <class Shape, class T, class Terms>
class GatheredPixels {
 public:
  EFF_DEVICE GatheredPixels(const ConvGeometry& g, const Terms& terms, PixelRange range, int first_column)
      : g_(g), terms_(terms), range_(range), first_column_(first_column) {}

  EFF_DEVICE void load(T* stage, const Step& step) {
    EFF_UNROLL_BY(1)
    for (int pass = 0; pass < C::kPasses; ++pass) {
      if (!C::exists(pass)) continue;
      const int pixel = range_.first + step.k + C::row(pass);
      gather_chunk(g_, terms_, pixel, pixel < range_.last, first_column_ + C::column(pass), stage + C::at(pass));
    }
  }
  EFF_DEVICE void finish(T*, int, const Step&) {}

 private:
  using C = ChunksB<Shape>;
  const ConvGeometry& g_;
  const Terms terms_;
  PixelRange range_;
  int first_column_;
};

template <class T, class Terms, class Engine, class Shape, bool kStats>
EFF_DEVICE void conv_gather_forward(const ConvArgs& a) {
  const int n0 = static_cast<int>(block_x()) * Shape::kN;
  GatheredRows<Shape, T, Terms> rows(a.g, Terms(a.src));
  GatheredWeights<Shape, T> columns(a.g, static_cast<const T*>(a.weights), n0);
  conv_forward<T, Shape, Engine, kStats>(a, rows, columns, static_cast<int>(a.g.kh * a.g.kw * a.g.ic), 1, 1);
}
template <class T, class Terms, int kN, bool kStats>
EFF_DEVICE void conv_gather_forward_mma(const ConvArgs& a) {
  using Shape = ForwardShape<T, kN>;
  conv_gather_forward<T, Terms, TensorEngine<T, Shape>, Shape, kStats>(a);
}
template <class T, class Terms, int kN, bool kStats>
EFF_DEVICE void conv_gather_forward_fma(const ConvArgs& a) {
  using Shape = ForwardShape<T, kN>;
  conv_gather_forward<T, Terms, FmaEngine<Shape>, Shape, kStats>(a);
}

template <class T, class Terms, class Engine, class Shape>
EFF_DEVICE void conv_gather_backward_weights(const ConvBwdWeightsArgs& a) {
  const PixelRange range = range_of_split(a);
  GatheredPixels<Shape, T, Terms> src(a.g, Terms(a.src), range, static_cast<int>(block_x()) * Shape::kN);
  conv_backward_weights<T, Shape, Engine>(a, range, src);
}
template <class T, class Terms, int kM, int kN>
EFF_DEVICE void conv_gather_backward_weights_mma(const ConvBwdWeightsArgs& a) {
  using Shape = BackwardWeightsShape<T, kM, kN>;
  conv_gather_backward_weights<T, Terms, TensorEngine<T, Shape>, Shape>(a);
}
template <class T, class Terms, int kM, int kN>
EFF_DEVICE void conv_gather_backward_weights_fma(const ConvBwdWeightsArgs& a) {
  using Shape = BackwardWeightsShape<T, kM, kN>;
  conv_gather_backward_weights<T, Terms, FmaEngine<Shape>, Shape>(a);
}

// Kernels of all types that gather Terms, whose forms are named `word`: columns n so that `blocks` fit onto a
// multiprocessor.
#define CONV_GATHER_FORWARD(word, n, blocks, unit, suffix, T, ...)                                        \
  EFF_KERNEL_FITTING(conv2d_##unit##_##word##_128x##n##_##suffix, ConvArgs, kTileThreads, blocks) {       \
    conv_gather_forward_##unit<T, __VA_ARGS__, n, false>(a);                                              \
  }                                                                                                       \
  EFF_MERGING_KERNEL(conv2d_stats_##unit##_##word##_128x##n##_##suffix, ConvArgs, kTileThreads, blocks) { \
    conv_gather_forward_##unit<T, __VA_ARGS__, n, true>(a);                                               \
  }
#define CONV_GATHER_WEIGHTS(word, unit, suffix, T, ...)                                                           \
  EFF_KERNEL_FITTING(conv2d_bwd_weights_##unit##_##word##_128x32_##suffix, ConvBwdWeightsArgs, kTileThreads, 3) { \
    conv_gather_backward_weights_##unit<T, __VA_ARGS__, 128, 32>(a);                                              \
  }
#define CONV_GATHER(word, unit, suffix, T, ...)                  \
  CONV_GATHER_FORWARD(word, 32, 3, unit, suffix, T, __VA_ARGS__) \
  CONV_GATHER_FORWARD(word, 64, 2, unit, suffix, T, __VA_ARGS__) \
  CONV_GATHER_WEIGHTS(word, unit, suffix, T, __VA_ARGS__)

}  // namespace effnet::cuda
