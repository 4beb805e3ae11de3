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

// Per-channel coefficients of (src - mean) * a + shift, a = scale * inv_std.
struct NormCoefs {
  float *mean, *a, *shift;
};

// Into three arrays of `capacity` floats one behind another. Absent scale or shift: zero.
HWY_INLINE NormCoefs fill_norm(float* memory, int64_t capacity, int64_t channels, int64_t pack, const float* mean,
                               const float* inv_std, const float* scale, const float* shift) {
  const NormCoefs k{memory, memory + capacity, memory + 2 * capacity};
  fill_packed(k.mean, channels, pack, [&](int64_t c) { return mean[c]; });
  fill_packed(k.a, channels, pack, [&](int64_t c) { return scale ? scale[c] * inv_std[c] : 0.0f; });
  fill_packed(k.shift, channels, pack, [&](int64_t c) { return shift ? shift[c] : 0.0f; });
  return k;
}

// The gradient's part that comes by way of the batch's statistics, p * (src - mean) + q, of `rows` rows in all.
HWY_INLINE void fill_grad(const NormCoefs& k, float* p, float* q, int64_t channels, int64_t pack, int64_t rows,
                          const float* inv_std, const float* diff_scale, const float* diff_shift) {
  const float inv_m = 1.0f / static_cast<float>(rows);
  fill_packed(p, channels, pack, [&](int64_t c) { return -k.a[c] * inv_std[c] * (diff_scale[c] * inv_m); });
  fill_packed(q, channels, pack, [&](int64_t c) { return -k.a[c] * (diff_shift[c] * inv_m); });
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

// Vectors that are worked on together: those of one column in R rows, or U neighbouring ones of one row.
template <int R, int U>
struct Group {
  static_assert(R == 1 || U == 1);
  static constexpr int kCount = R * U, kColumns = U;
  int64_t row;  // values from row to row
  HWY_INLINE int64_t at(int i) const { return i / U * row + column(i); }
  static HWY_INLINE int64_t column(int i) { return i % U * static_cast<int64_t>(kLanes); }
};

// Rows of a group side by side without fetching ahead.
inline constexpr int64_t kGroupBytes = 1024;

// Goes through `rows` rows of `channels` values, `pack` of them as one while there are enough: f(offset, column, lanes,
// full, Group) for groups of vectors, the first of which begins at the offset and at the column of its packed row.
//
// Groups are what the memory needs. One vector at a time fills the CPU's queues with the arithmetic of that vector
// before the next load. R rows side by side share what is loaded for a column, but beyond a KB they are too many
// streams for the CPU's prefetchers, and up to half of the bandwidth is lost; there a group lies in one row.
//
// `stride`: values from row to row, where these are only some of the channels (not packed then).
//
// kWide: R rows side by side however wide they are, for kernels that would load and store more by column than by value
// otherwise. They fetch the next rows themselves (fetch_group()).
template <class T, int R, bool kWide = false, class F>
HWY_INLINE void for_each_group(int64_t rows, int64_t channels, int64_t stride, int64_t pack, F&& f) {
  constexpr int64_t lanes = kLanes;
  const auto row = [&](int64_t offset, int64_t width, auto group) HWY_ATTR {
    constexpr int64_t step = decltype(group)::kColumns * lanes;
    int64_t c = 0;
    for (; c + step <= width; c += step) f(offset + c, c, kLanes, std::true_type(), group);
    const Group<decltype(group)::kCount / decltype(group)::kColumns, 1> one{group.row};
    for (; step > lanes && c + lanes <= width; c += lanes) f(offset + c, c, kLanes, std::true_type(), one);
    if (c < width) f(offset + c, c, static_cast<size_t>(width - c), std::false_type(), one);
  };
  const int64_t width = pack * channels, step = pack * stride, packed = rows / pack;
  int64_t r = 0;
  if (kWide || R * step * static_cast<int64_t>(sizeof(T)) <= kGroupBytes)
    for (; r + R <= packed; r += R) row(r * step, width, Group<R, 1>{step});
  for (; r < packed; ++r) row(r * step, width, Group<1, 2>{step});
  for (int64_t i = packed * pack; i < rows; ++i) row(i * stride, channels, Group<1, 2>{stride});
}
template <class T, int R, bool kWide = false, class F>
HWY_INLINE void for_each_group(int64_t rows, int64_t channels, int64_t pack, F&& f) {
  for_each_group<T, R, kWide>(rows, channels, channels, pack, f);
}

// Fetches what lies below a group that begins at p, for the next group of the same columns. Rows of narrower groups
// come as one stream.
template <class T, int R, int U>
HWY_INLINE void fetch_group(const T* p, const Group<R, U>& group) {
  if (R == 1 || R * group.row * static_cast<int64_t>(sizeof(T)) <= kGroupBytes) return;
  for (int i = 0; i < R; ++i) hwy::Prefetch(p + (R + i) * group.row);
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
