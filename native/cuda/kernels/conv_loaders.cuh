// The operands of convolutions as loaders of gemm_tiles.cuh. Channels are multiples of a chunk, numbers of pixels and
// elements of an image fit into 31 bits (ops/conv.cc).
#pragma once

#include "cuda/kernels/gemm.h"
#include "cuda/kernels/gemm_tiles.cuh"

namespace effnet::cuda {

// Shared memory: 8 bytes of a 16-bit type, or 16 of FP32.
template <class T>
EFF_DEVICE void load_four(const T* p, float (&v)[4]) {
  if constexpr (sizeof(T) == 4) {
    load_floats(p, v);
  } else {
    const Bits64 bits = *reinterpret_cast<const Bits64*>(p);
    unpack<T>(bits.word[0], v[0], v[1]);
    unpack<T>(bits.word[1], v[2], v[3]);
  }
}
template <class T>
EFF_DEVICE void store_four(T* p, const float (&v)[4]) {
  if constexpr (sizeof(T) == 4)
    store_floats(p, v);
  else
    *reinterpret_cast<Bits64*>(p) = {pack<T>(v[0], v[1]), pack<T>(v[2], v[3])};
}

// Of a chunk in shared memory, behind its copy: channels c .. of image n.
template <class T>
EFF_DEVICE void finish_chunk(const ConvSource& src, T* chunk, int n, int c, int channels) {
  EFF_UNROLL_BY(1)  // four values at a time: more would cost registers that the sums need
  for (int i = 0; i < kVec<T>; i += 4) {
    float v[4];
    load_four(chunk + i, v);
    if (src.norm.mean) {
      float mean[4], factor[4];
      load_floats(src.norm.mean + c + i, mean);
      load_floats(src.norm.inv_std + c + i, factor);
      EFF_UNROLL
      for (int j = 0; j < 4; ++j) v[j] = (v[j] - mean[j]) * factor[j];
      load_floats(src.norm.scale + c + i, factor);
      load_floats(src.norm.shift + c + i, mean);
      EFF_UNROLL
      for (int j = 0; j < 4; ++j) v[j] = fma(v[j], factor[j], mean[j]);
    }
    if (src.act != plan::Act::identity) {
      EFF_UNROLL
      for (int j = 0; j < 4; ++j) v[j] = activate<T>(src.act, v[j]);
    }
    if (src.gate) {
      float gate[4];
      load_floats(src.gate + static_cast<int64_t>(n) * channels + c + i, gate);
      EFF_UNROLL
      for (int j = 0; j < 4; ++j) v[j] *= gate[j];
    }
    store_four(chunk + i, v);
  }
}
EFF_DEVICE bool is_finished_later(const ConvSource& src) {
  return src.norm.mean || src.gate || src.act != plan::Act::identity;
}

// Where a pixel's window begins; far outside for a pixel behind the last one.
struct Window {
  int n;
  uint32_t yx;  // 16 bits each

  EFF_DEVICE int y() const { return static_cast<int>(yx) >> 16; }
  EFF_DEVICE int x() const { return static_cast<int16_t>(yx); }
};
EFF_DEVICE Window window_at(uint32_t n, int y, int x) {
  return {static_cast<int>(n), static_cast<uint32_t>(y) << 16 | (static_cast<uint32_t>(x) & 0xffff)};
}
inline constexpr int kFarOutside = -(1 << 14);

// A by rows: for destination pixels the source under a tap; backward, for source pixels the destination over it.
template <class Shape, class T, bool kBackward>
class PixelRows {
 public:
  EFF_DEVICE PixelRows(const ConvGeometry& g, const T* data, const ConvSource* src) : g_(g), data_(data), src_(src) {}

  EFF_DEVICE void begin_load(int tile) {
    EFF_UNROLL
    for (int pass = 0; pass < C::kPasses; ++pass) windows_[pass] = locate(tile, pass);
  }

  EFF_DEVICE void load(T* stage, const Step& step) {
    EFF_UNROLL
    for (int pass = 0; pass < C::kPasses; ++pass) {
      if (!C::exists(pass)) continue;
      int pixel;
      const int c = step.k + C::column(pass);
      const bool valid = find(windows_[pass], step, pixel) && c < channels();
      copy_async(stage + C::at(pass), data_ + (valid ? static_cast<int64_t>(pixel) * channels() + c : 0), valid);
    }
  }

  // Finds the windows again: keeping them would cost registers that the sums need.
  EFF_DEVICE void finish(T* stage, int tile, const Step& step) {
    if (!src_) return;
    EFF_UNROLL_BY(1)
    for (int pass = 0; pass < C::kPasses; ++pass) {
      if (!C::exists(pass)) continue;
      int pixel;
      const int c = step.k + C::column(pass);
      const Window window = locate(tile, pass);
      if (find(window, step, pixel) && c < channels())
        finish_chunk(*src_, stage + C::at(pass), window.n, c, channels());
    }
  }

 private:
  using C = ChunksA<Shape>;

  EFF_DEVICE int channels() const { return static_cast<int>(kBackward ? g_.oc : g_.ic); }

  EFF_DEVICE Window locate(int tile, int pass) const {
    const auto width = static_cast<uint32_t>(kBackward ? g_.w : g_.ow);
    const auto height = static_cast<uint32_t>(kBackward ? g_.h : g_.oh);
    const int stride = static_cast<int>(g_.stride), top = static_cast<int>(g_.pad_t), left = static_cast<int>(g_.pad_l);
    const auto pixel = static_cast<uint32_t>(tile * Shape::kM + C::row(pass));
    const uint32_t line = pixel / width, n = line / height;
    const int x = static_cast<int>(pixel - line * width), y = static_cast<int>(line - n * height);
    const int window_y = kBackward ? y + top : y * stride - top, window_x = kBackward ? x + left : x * stride - left;
    return window_at(n, n < static_cast<uint32_t>(g_.n) ? window_y : kFarOutside, window_x);
  }
  // Whether the tap falls onto a pixel, and which.
  EFF_DEVICE bool find(const Window& window, const Step& step, int& pixel) const {
    int y, x;
    if constexpr (kBackward) {
      y = window.y() - step.ky();
      x = window.x() - step.kx();
      if (g_.stride == 2) {
        if ((y | x) & 1) return false;
        y >>= 1;
        x >>= 1;
      }
    } else {
      y = window.y() + step.ky();
      x = window.x() + step.kx();
    }
    const int height = static_cast<int>(kBackward ? g_.oh : g_.h), width = static_cast<int>(kBackward ? g_.ow : g_.w);
    pixel = (window.n * height + y) * width + x;
    return static_cast<uint32_t>(y) < static_cast<uint32_t>(height) &&
           static_cast<uint32_t>(x) < static_cast<uint32_t>(width);
  }

  const ConvGeometry& g_;
  const T* data_;
  const ConvSource* src_;       // what is done to the values, or nullptr
  Window windows_[C::kPasses];  // of the tile that is loaded
};

// B of the forward direction, by rows: weights of output channels first, first + 1, ...
template <class Shape, class T>
class WeightRows {
 public:
  EFF_DEVICE WeightRows(const ConvGeometry& g, const T* weights, int first) : g_(g), weights_(weights), first_(first) {}

  EFF_DEVICE void load(T* stage, const Step& step) {
    const int channels = static_cast<int>(g_.ic), width = static_cast<int>(g_.kw);
    const int row = static_cast<int>(g_.kh) * width * channels, tap = (step.ky() * width + step.kx()) * channels;
    EFF_UNROLL
    for (int pass = 0; pass < C::kPasses; ++pass) {
      if (!C::exists(pass)) continue;
      const int o = first_ + C::row(pass), c = step.k + C::column(pass);
      const bool valid = o < static_cast<int>(g_.oc) && c < channels;
      copy_async(stage + C::at(pass), weights_ + (valid ? o * row + tap + c : 0), valid);
    }
  }
  EFF_DEVICE void finish(T*, int, const Step&) {}

 private:
  using C = ChunksB<Shape>;
  const ConvGeometry& g_;
  const T* weights_;
  int first_;
};

// B of the backward direction, by depth: weights of input channels first, first + 1, ...; the sum is over output ones.
template <class Shape, class T>
class WeightColumns {
 public:
  EFF_DEVICE WeightColumns(const ConvGeometry& g, const T* weights, int first)
      : g_(g), weights_(weights), first_(first) {}

  EFF_DEVICE void load(T* stage, const Step& step) {
    const int channels = static_cast<int>(g_.ic), width = static_cast<int>(g_.kw);
    const int row = static_cast<int>(g_.kh) * width * channels, tap = (step.ky() * width + step.kx()) * channels;
    EFF_UNROLL
    for (int pass = 0; pass < C::kPasses; ++pass) {
      if (!C::exists(pass)) continue;
      const int o = step.k + C::row(pass), c = first_ + C::column(pass);
      const bool valid = o < static_cast<int>(g_.oc) && c < channels;
      copy_async(stage + C::at(pass), weights_ + (valid ? o * row + tap + c : 0), valid);
    }
  }
  EFF_DEVICE void finish(T*, int, const Step&) {}

 private:
  using C = ChunksB<Shape>;
  const ConvGeometry& g_;
  const T* weights_;
  int first_;
};

}  // namespace effnet::cuda
