// How the per-channel kernels walk rows of C channels, compiled per target.
//
// Packing: where C is not a multiple of the vector and small, `pack` rows are taken as one row of pack*C values, so
// that no lane idles; per-channel coefficients are repeated to that width. Coefficient arrays are padded to whole
// vectors: only loads and stores of tensors need a tail.
#if defined(EFFNET_BN_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EFFNET_BN_PACK_INL_H_
#undef EFFNET_BN_PACK_INL_H_
#else
#define EFFNET_BN_PACK_INL_H_
#endif

#include <numeric>

#include "cpu/kernels/bn_pack.h"
#include "cpu/kernels/simd-inl.h"
#include "hwy/cache_control.h"

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

inline int64_t pack_factor(int64_t channels) {
  constexpr int64_t lanes = kLanes;
  return channels >= kPackBelow ? 1 : lanes / std::gcd(channels, lanes);
}

// dst[i] = f(i % channels) for i < pack * channels.
template <class F>
HWY_INLINE void fill_packed(float* HWY_RESTRICT dst, int64_t channels, int64_t pack, F&& f) {
  for (int64_t c = 0; c < channels; ++c) dst[c] = f(c);
  for (int64_t i = channels; i < pack * channels; ++i) dst[i] = dst[i - channels];
}

// Calls f(offset, lanes, full) for the vectors of a row of `width` values; `full` is a compile-time flag.
template <class F>
HWY_INLINE void for_each_vector(int64_t width, F&& f) {
  int64_t c = 0;
  for (; c + static_cast<int64_t>(kLanes) <= width; c += kLanes) f(c, kLanes, std::true_type());
  if (c < width) f(c, static_cast<size_t>(width - c), std::false_type());
}

template <class T, class Full>
HWY_INLINE Vec load_part(const T* HWY_RESTRICT p, size_t n, Full) {
  if constexpr (Full::value) {
    return load(p);
  } else {
    return load_n(p, n);
  }
}

template <class T, class Full>
HWY_INLINE void store_part(Vec v, T* HWY_RESTRICT p, size_t n, Full) {
  if constexpr (Full::value) {
    store(v, p);
  } else {
    store_n(v, p, n);
  }
}

// As store_part(). `past_caches`: a whole vector at a multiple of its size goes to memory without being read first, for
// results that no cache could hold until they are used. FP32 only: half lines of bf16 were measured to be slower so.
// The shard ends with hwy::FlushStream().
template <class T, class Full>
HWY_INLINE void store_part_past(Vec v, T* HWY_RESTRICT p, size_t n, Full full, bool past_caches) {
  if constexpr (std::is_same_v<T, float> && Full::value) {
    if (past_caches && reinterpret_cast<uintptr_t>(p) % (kLanes * sizeof(T)) == 0) return hn::Stream(v, F32(), p);
  }
  store_part(v, p, n, full);
}

// Splits `rows` rows at `first` (of `channels` values) into blocks: f(row, width, std::integral_constant<int, R>) with
// R packed rows at a time, then single ones, then the rows that do not fill a pack.
template <int R, class F>
HWY_INLINE void for_each_block(int64_t first, int64_t rows, int64_t channels, int64_t pack, F&& f) {
  const int64_t packed = rows / pack, width = pack * channels;
  int64_t r = 0;
  for (; r + R <= packed; r += R) f(first + r * pack, width, std::integral_constant<int, R>());
  for (; r < packed; ++r) f(first + r * pack, width, std::integral_constant<int, 1>());
  for (int64_t i = packed * pack; i < rows; ++i) f(first + i, channels, std::integral_constant<int, 1>());
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
