// The ring of FP32 rows that the depthwise kernels of training read (see depthwise_rows.h), and the BN + activation in
// front of it. Included once per target.

#if defined(EFFNET_DEPTHWISE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EFFNET_DEPTHWISE_ROWS_INL_H_
#undef EFFNET_DEPTHWISE_ROWS_INL_H_
#else
#define EFFNET_DEPTHWISE_ROWS_INL_H_
#endif

#include <algorithm>

#include "cpu/kernels/bn_pack-inl.h"
#include "cpu/kernels/depthwise_ring-inl.h"
#include "cpu/kernels/depthwise_rows.h"

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

// Some neighbouring channel blocks (a vector wide each) of an image.
struct Blocks {
  int64_t first;  // channel
  int64_t count;
  size_t last_lanes;  // channels of the last one

  Blocks(int64_t c0, int64_t c1)
      : first(c0), count(ceil_div(c1 - c0, kWidth)), last_lanes(static_cast<size_t>(c1 - c0 - (count - 1) * kWidth)) {}
  int64_t width() const { return (count - 1) * kWidth + static_cast<int64_t>(last_lanes); }
  size_t lanes(int64_t b) const { return b + 1 < count ? kLanes : last_lanes; }
  int64_t channel(int64_t b) const { return first + b * kWidth; }
  static constexpr int64_t kWidth = kLanes;
};

// Of whole blocks, zero beyond the last channel. `memory` holds 3 * C floats rounded up to blocks.
HWY_INLINE NormCoefs make_norm(const DepthwiseNormArgs& norm, const Blocks& blocks, float* memory) {
  const int64_t width = blocks.count * Blocks::kWidth;
  const NormCoefs k{memory, memory + width, memory + 2 * width};
  for (int64_t b = 0; b < blocks.count; ++b) {
    const int64_t c = blocks.channel(b), at = b * Blocks::kWidth;
    const size_t n = blocks.lanes(b);
    store(load_n(norm.mean + c, n), k.mean + at);
    store(hn::Mul(load_n(norm.scale + c, n), load_n(norm.inv_std + c, n)), k.a + at);
    store(load_n(norm.shift + c, n), k.shift + at);
  }
  return k;
}

// What a source value becomes on its way to the ring.
struct AsStored {
  template <class T>
  HWY_INLINE Vec operator()(Vec x, int64_t) const {
    return x;
  }
};

template <plan::Act act>
struct Normalised {
  NormCoefs k;
  template <class T>
  HWY_INLINE Vec operator()(Vec x, int64_t at) const {
    const Vec z = hn::MulAdd(hn::Sub(x, load(k.mean + at)), load(k.a + at), load(k.shift + at));
    return round_to<T>(activate<act, T>(z));
  }
};

// Pixels of a source to fetch into the caches while something else is computed, a line at a time and in order. They are
// not read.
class PixelsAhead {
 public:
  PixelsAhead() = default;
  // `run` values of each of `count` pixels, which lie `c` values apart.
  template <class T>
  PixelsAhead(const T* first, int64_t count, int64_t run, int64_t c) {
    if (count <= 0) return;
    const int64_t pitch = c * static_cast<int64_t>(sizeof(T)), bytes = run * static_cast<int64_t>(sizeof(T));
    at_ = reinterpret_cast<const char*>(first);
    lines_ = ceil_div(run == c ? bytes * count : bytes, kLine);
    left_ = lines_;
    runs_ = run == c ? 1 : count;
    skip_ = pitch - lines_ * kLine;
  }
  // Still to fetch.
  int64_t lines() const { return runs_ > 0 ? left_ + (runs_ - 1) * lines_ : 0; }

  // kWrite: they will be written.
  template <bool kWrite = false>
  HWY_INLINE void fetch(int64_t count) {
    while (count > 0 && runs_ > 0) {
      const int64_t n = std::min(count, left_);
      for (int64_t i = 0; i < n; ++i) __builtin_prefetch(at_ + i * kLine, kWrite, 2);
      at_ += n * kLine;
      count -= n;
      left_ -= n;
      if (left_ > 0) return;
      --runs_;
      left_ = lines_;
      at_ += skip_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* at_ = nullptr;
  int64_t lines_ = 0, left_ = 0, runs_ = 0, skip_ = 0;
};

class RowRing {
 public:
  // Column `left` of a row holds pixel 0 of `width`; columns that no pixel falls on stay zero.
  RowRing(const DepthwiseRing& shape, int64_t left, int64_t width, float* memory)
      : memory_(memory),
        rows_(shape.rows),
        row_(shape.cols * Blocks::kWidth),
        plane_(shape.plane() * Blocks::kWidth / kMaxLanes),
        left_(left) {
    lo_ = std::clamp<int64_t>(-left, 0, width);
    hi_ = std::clamp<int64_t>(shape.cols - left, lo_, width);
    const int64_t cols = shape.cols, begin = std::clamp<int64_t>(left + lo_, 0, cols);
    const int64_t end = std::clamp<int64_t>(left + hi_, 0, cols);
    const auto clear = [&](float* row, int64_t from, int64_t to) {
      for (int64_t x = from; x < to; ++x) store(zero(), row + x * Blocks::kWidth);
    };
    for (int64_t b = 0; b < shape.blocks * (kMaxLanes / Blocks::kWidth); ++b) {
      float* plane = memory_ + b * plane_;
      for (int64_t r = 0; r < rows_; ++r) {
        clear(plane + r * row_, 0, begin);
        clear(plane + r * row_, end, cols);
      }
      clear(plane + rows_ * row_, 0, cols);
    }
  }

  const float* plane(int64_t block) const { return memory_ + block * plane_; }
  // Of row y in a plane; of the zero row where the image has none.
  int64_t offset(int64_t y, int64_t height) const { return (y < 0 || y >= height ? rows_ : y % rows_) * row_; }

  // Copies row y; `pixels` is its first pixel's first channel, `c` the elements from pixel to pixel. `lines` of `ahead`
  // are fetched a pixel.
  template <class T, class F>
  HWY_INLINE void fill(const Blocks& blocks, const T* HWY_RESTRICT pixels, int64_t c, int64_t y, const F& f,
                       PixelsAhead& ahead, int64_t lines) const {
    float* HWY_RESTRICT to = memory_ + (y % rows_) * row_ + (left_ + lo_) * Blocks::kWidth;
    const T* HWY_RESTRICT from = pixels + lo_ * c;
    const int64_t full = blocks.last_lanes == kLanes ? blocks.count : blocks.count - 1;
    for (int64_t x = lo_; x < hi_; ++x, from += c, to += Blocks::kWidth) {
      ahead.fetch(lines);
      const T* HWY_RESTRICT p = from;
      float* HWY_RESTRICT q = to;
      for (int64_t b = 0; b < full; ++b, p += kLanes, q += plane_) {
        store(f.template operator()<T>(load(p), b * Blocks::kWidth), q);
      }
      if (full < blocks.count) store(f.template operator()<T>(load_n(p, blocks.last_lanes), full * Blocks::kWidth), q);
    }
  }

 private:
  float* memory_;
  int64_t rows_, row_, plane_, left_, lo_, hi_;
};

// The weights of the blocks, rounded as the arithmetic sees them: where they lie if that is possible, else packed.
struct TapWeights {
  const float* first;
  int64_t tap;  // floats from tap to tap
};

template <class T>
HWY_INLINE bool weights_in_place(const Blocks& blocks, int64_t b) {
  return std::is_same_v<T, float> && blocks.lanes(b) == kLanes;
}

template <class T>
void pack_tap_weights(const Blocks& blocks, const float* weights, int64_t taps, int64_t c, float* packed) {
  for (int64_t b = 0; b < blocks.count; ++b) {
    if (weights_in_place<T>(blocks, b)) continue;
    for (int64_t i = 0; i < taps; ++i) {
      store(round_to<T>(load_n(weights + i * c + blocks.channel(b), blocks.lanes(b))),
            packed + (b * taps + i) * Blocks::kWidth);
    }
  }
}

template <class T>
HWY_INLINE TapWeights tap_weights(const Blocks& blocks, int64_t b, const float* weights, int64_t taps, int64_t c,
                                  const float* packed) {
  if (weights_in_place<T>(blocks, b)) return {weights + blocks.channel(b), c};
  return {packed + b * taps * Blocks::kWidth, Blocks::kWidth};
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
