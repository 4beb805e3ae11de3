// Convolution forward with windows of one pixel and stride 1, in 16 bits: pixels of source and result are the same, so
// that rows of an operand lie one behind the other and nothing is looked for; what is done to the source is done by
// thread and chunk of channels, from operands in shared memory.
#pragma once

#include "cuda/kernels/conv_forward.cuh"
#include "cuda/kernels/conv_point.h"
#include "cuda/kernels/norm_rows.cuh"

namespace effnet::cuda {

// The source's normalisation, or half of it where the activation is made of half its operand.
template <class T>
class PointNorm {
 public:
  EFF_DEVICE PointNorm(const ConvSource& src, int channels, float* of_block) : rows_(of_block), channels_(channels) {
    if (!src.norm.mean) return;
    fill_norm_rows(rows_, channels, src.norm, 0, halves<T>(src.act) ? 0.5f : 1.0f);
    EFF_SYNC_BLOCK();
  }
  // Of channels c .. c + 3.
  EFF_DEVICE void load(int c, float (&mean)[4], float (&factor)[4], float (&shift)[4]) const {
    load_floats(rows_ + c, mean);
    load_floats(rows_ + channels_ + c, factor);
    load_floats(rows_ + 2 * channels_ + c, shift);
  }

 private:
  float* rows_;
  int channels_;
};

// A by rows: pixels, of which a thread has the same channels of every kStep-th.
template <class Shape, class T>
class PointRows {
 public:
  // `norm`: kPointNormRows * channels floats of shared memory, where there is something to be done to the source.
  EFF_DEVICE PointRows(const ConvArgs& args, int first_tile, float* norm)
      : a(args),
        channels_(static_cast<int>(a.g.ic)),
        pixels_(static_cast<int>(a.g.n * a.g.oh * a.g.ow)),
        image_pixels_(static_cast<int>(a.g.oh * a.g.ow)),
        norm_(a.src, channels_, norm),
        tile_(first_tile) {
    static_assert(sizeof(T) == 2 && static_cast<int>(kTileThreads) % C::kAcross == 0 && C::kCount % kTileThreads == 0);
    if (!a.src.gate) return;
    image_ = first_tile * Shape::kM / image_pixels_;
    offset_ = first_tile * Shape::kM - image_ * image_pixels_;
  }

  EFF_DEVICE void begin_load(int tile) { row_ = tile * Shape::kM + C::row(0); }
  EFF_DEVICE void load(T* stage, const Step& step) {
    const int c = step.k + C::column(0);
    const T* from = data() + static_cast<int64_t>(row_) * channels_ + c;
    EFF_UNROLL
    for (int pass = 0; pass < C::kPasses; ++pass) {
      const bool valid = c < channels_ && row_ + pass * kStep < pixels_;
      copy_async(stage + C::at(pass), valid ? from + pass * kStep * channels_ : data(), valid);
    }
  }

  EFF_DEVICE void finish(T* stage, int tile, const Step& step) {
    if (!is_finished_later(a.src)) return;
    const int c = step.k + C::column(0);
    if (a.src.gate) follow(tile);
    if (c >= channels_) return;
    if (!a.src.norm.mean)
      edit(stage, tile, c, [](float x, float, float, float) { return x; });
    else if (a.src.act == plan::Act::silu)
      edit(stage, tile, c,
           [](float x, float mean, float factor, float shift) { return silu_of_half(fma(x - mean, factor, shift)); });
    else
      edit(stage, tile, c, [this](float x, float mean, float factor, float shift) {
        return activate<T>(a.src.act, fma(x - mean, factor, shift));
      });
  }

 private:
  using C = ChunksA<Shape>;
  static constexpr int kStep = static_cast<int>(kTileThreads) / C::kAcross;  // rows between those of a thread

  EFF_DEVICE const T* data() const { return static_cast<const T*>(a.src.data); }

  // Goes on to the image that the tile's first pixel is in.
  EFF_DEVICE void follow(int tile) {
    if (tile == tile_) return;
    tile_ = tile;
    for (offset_ += Shape::kM; offset_ >= image_pixels_; offset_ -= image_pixels_) ++image_;
  }
  EFF_DEVICE int image_of(int row) const {
    const int at = offset_ + row;
    if (image_pixels_ >= Shape::kM) return image_ + (at >= image_pixels_ ? 1 : 0);
    // Less than 2 * kM: exact, half a pixel from where it would change.
    return image_ + static_cast<int>((static_cast<float>(at) + 0.5f) / static_cast<float>(image_pixels_));
  }

  // Channels c .. of this thread's rows of the tile, behind their copies. One at a time, four values of each: more
  // would cost registers that the sums need.
  template <class F>
  EFF_DEVICE void edit(T* stage, int tile, int c, F value) const {
    const int rows = pixels_ - tile * Shape::kM;
    EFF_UNROLL_BY(1)
    for (int row = C::row(0); row < Shape::kM && row < rows; row += kStep) {
      T* chunk = stage + row * Shape::kPitchA + C::column(0);
      const float* gate = a.src.gate ? a.src.gate + static_cast<int64_t>(image_of(row)) * channels_ + c : nullptr;
      EFF_UNROLL_BY(1)
      for (int i = 0; i < kVec<T>; i += 4) {
        float v[4], mean[4] = {}, factor[4] = {}, shift[4] = {};
        load_four(chunk + i, v);
        if (a.src.norm.mean) norm_.load(c + i, mean, factor, shift);
        EFF_UNROLL
        for (int j = 0; j < 4; ++j) v[j] = value(v[j], mean[j], factor[j], shift[j]);
        if (a.src.gate) {
          load_floats(gate + i, mean);
          EFF_UNROLL
          for (int j = 0; j < 4; ++j) v[j] *= mean[j];
        }
        store_four(chunk + i, v);
      }
    }
  }

  const ConvArgs& a;
  int channels_, pixels_, image_pixels_;
  PointNorm<T> norm_;
  int tile_, image_ = 0, offset_ = 0;  // whose source is finished: the image of its first pixel, and where in it
  int row_ = 0;                        // of the tile that is loaded, the thread's first
};

// B by rows: weights of output channels first, first + 1, ...
template <class Shape, class T>
class PointWeights {
 public:
  EFF_DEVICE PointWeights(const ConvArgs& args, int first) : a(args), first_(first) {}

  EFF_DEVICE void load(T* stage, const Step& step) {
    const T* weights = static_cast<const T*>(a.weights);
    const int channels = static_cast<int>(a.g.ic), o = first_ + C::row(0), c = step.k + C::column(0);
    EFF_UNROLL
    for (int pass = 0; pass < C::kPasses; ++pass) {
      if (!C::exists(pass)) continue;
      const bool valid = c < channels && o + pass * kStep < static_cast<int>(a.g.oc);
      copy_async(stage + C::at(pass), weights + (valid ? (o + pass * kStep) * channels + c : 0), valid);
    }
  }
  EFF_DEVICE void finish(T*, int, const Step&) {}

 private:
  using C = ChunksB<Shape>;
  static constexpr int kStep = static_cast<int>(kTileThreads) / C::kAcross;

  const ConvArgs& a;
  int first_;
};

template <class T, int kN, bool kStats>
EFF_DEVICE void conv_point(const ConvArgs& a) {
  using Shape = ForwardShape<T, kN>;
  Shared shared;
  shared.take<T>(Shape::kStagesSize);  // what conv_forward takes comes first
  shared.take<T>(Shape::kSlabsSize);
  float* norm = is_finished_later(a.src) ? shared.take<float>(static_cast<size_t>(kPointNormRows * a.g.ic)) : nullptr;
  PointRows<Shape, T> rows(a, static_cast<int>(block_y() * a.tiles_a_block), norm);
  PointWeights<Shape, T> columns(a, static_cast<int>(block_x()) * kN);
  conv_forward<T, Shape, TensorEngine<T, Shape>, kStats>(a, rows, columns, static_cast<int>(a.g.ic), 1, 1);
}

}  // namespace effnet::cuda
