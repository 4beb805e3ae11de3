// The ring of FP32 rows that the depthwise kernels read (see depthwise.h). Included once per target.

#if defined(EFFNET_DEPTHWISE_RING_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EFFNET_DEPTHWISE_RING_INL_H_
#undef EFFNET_DEPTHWISE_RING_INL_H_
#else
#define EFFNET_DEPTHWISE_RING_INL_H_
#endif

#include <algorithm>

#include "cpu/kernels/simd-inl.h"
#include "hwy/cache_control.h"

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

// Before a loop with a constant count whose arrays of vectors shall live in registers.
#ifndef EFF_UNROLL
#ifdef __clang__
#define EFF_UNROLL _Pragma("clang loop unroll(full)")
#else
#define EFF_UNROLL _Pragma("GCC unroll 32")
#endif
#endif

// Hides where a pointer came from. GCC's predictive commoning would otherwise carry the source vectors that
// neighbouring tiles share from one tile to the next, and spill the sums that the registers are needed for.
template <class T>
HWY_INLINE T* fresh(T* pointer) {
  asm("" : "+r"(pointer));
  return pointer;
}

template <class T>
struct SourceImage {
  const T* pixels;    // at the first channel of the first block
  int64_t h, w, c;    // c = elements from pixel to pixel
  int64_t full;       // whole blocks
  size_t tail_lanes;  // channels of one more block, or 0
};

// Some rows of some neighbouring channel blocks. Row y of the source is in slot y mod `rows`. Column `left` of a slot
// holds pixel 0; columns that no pixel falls on stay zero for the life of the ring.
class Ring {
 public:
  Ring(float* memory, int64_t blocks, int64_t rows, int64_t cols, int64_t left, int64_t src_w)
      : memory_(memory), rows_(rows), cols_(cols), left_(left) {
    lo_ = std::clamp<int64_t>(-left, 0, src_w);
    hi_ = std::clamp<int64_t>(cols - left, lo_, src_w);
    const int64_t begin = std::clamp<int64_t>(left + lo_, 0, cols), end = std::clamp<int64_t>(left + hi_, 0, cols);
    for (int64_t i = 0; i < blocks * rows; ++i) {
      float* row = memory_ + i * cols_ * kLanes;
      for (int64_t x = 0; x < begin; ++x) store(zero(), row + x * kLanes);
      for (int64_t x = end; x < cols; ++x) store(zero(), row + x * kLanes);
    }
  }

  const float* row(int64_t block, int64_t y) const { return memory_ + (block * rows_ + y % rows_) * cols_ * kLanes; }

  template <class T>
  void fill(const SourceImage<T>& src, int64_t y) {
    const int64_t block_size = rows_ * cols_ * kLanes, count = hi_ - lo_;
    float* HWY_RESTRICT to = memory_ + ((y % rows_) * cols_ + left_ + lo_) * kLanes;
    const T* HWY_RESTRICT from = src.pixels + (y * src.w + lo_) * src.c;
    // Pixels of a block lie far apart, which defeats the hardware prefetcher; the next row is what is needed next.
    const int64_t ahead = y + 1 < src.h ? src.w * src.c : 0;
    for (int64_t x = 0; x < count; ++x) {
      const T* p = from + x * src.c;
      float* q = to + x * kLanes;
      for (int64_t b = 0; b < src.full; ++b, p += kLanes, q += block_size) {
        hwy::Prefetch(p + ahead);
        store(load(p), q);
      }
      if (src.tail_lanes) store(load_n(p, src.tail_lanes), q);
    }
  }

 private:
  float* memory_;
  int64_t rows_, cols_, left_, lo_, hi_;
};

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
