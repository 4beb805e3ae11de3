// Small FP32 matrix products for the classifier and squeeze-and-excitation, compiled per target. Every element of a
// result is summed in an order that depends on the length of the sum alone: not on the batch, the tile or the thread.
//
//   dot_product     dst[i,j] = sum_k a[i,k] * b[j,k]
//                   both run along k: vectors over k, a tree across lanes at the end
//   outer_product   dst[i,k] = sum_r a(i,r) * b[r,k]
//                   vectors over k; a(i,r) = a[i*a_row + r*a_red], so a may be transposed
#if defined(EFFNET_SMALL_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EFFNET_SMALL_GEMM_INL_H_
#undef EFFNET_SMALL_GEMM_INL_H_
#else
#define EFFNET_SMALL_GEMM_INL_H_
#endif

#include <algorithm>

#include "cpu/kernels/bn_pack-inl.h"
#include "cpu/kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

// The accumulators of a tile and what feeds them must fit 32 or 16 registers.
inline constexpr int kDotRows = HWY_TARGET == HWY_AVX3 ? 4 : 2, kDotColumns = 4;
inline constexpr int kOuterRows = 4, kOuterVectors = HWY_TARGET == HWY_AVX3 ? 4 : 2;

// The four sums of the lanes of v[0..3].
HWY_INLINE void sum_lanes4(const Vec* v, float* sums) {
  const F32 d;
  const hn::Repartition<double, F32> d64;
  const auto pair = [&](Vec a, Vec b)
                        HWY_ATTR { return hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)); };
  const auto ab = hn::BitCast(d64, pair(v[0], v[1])), cd = hn::BitCast(d64, pair(v[2], v[3]));
  // Each 128-bit block now holds its part of the four sums.
  const Vec blocks =
      hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, ab, cd)), hn::BitCast(d, hn::InterleaveUpper(d64, ab, cd)));
  const hn::Half<F32> dh;
  const auto half = hn::Add(hn::LowerHalf(dh, blocks), hn::UpperHalf(dh, blocks));
#if HWY_TARGET == HWY_AVX3
  const hn::Half<decltype(dh)> dq;
  hn::StoreU(hn::Add(hn::LowerHalf(dq, half), hn::UpperHalf(dq, half)), dq, sums);
#else
  hn::StoreU(half, dh, sums);
#endif
}

template <int R, class F>
HWY_INLINE void dot_tile(const float* a, int64_t a_row, const float* b, int64_t b_row, int64_t length, int columns,
                         F&& put) {
  Vec acc[R][kDotColumns];
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < kDotColumns; ++j) acc[i][j] = zero();
  }
  // Columns beyond the last repeat it: reading it again is cheaper than a second kernel.
  const float* rows[kDotColumns];
  for (int j = 0; j < kDotColumns; ++j) rows[j] = b + std::min(j, columns - 1) * b_row;
  for_each_vector(length, [&](int64_t k, size_t n, auto full) HWY_ATTR {
    Vec va[R];
    for (int i = 0; i < R; ++i) va[i] = load_part(a + i * a_row + k, n, full);
    for (int j = 0; j < kDotColumns; ++j) {
      const Vec vb = load_part(rows[j] + k, n, full);
      for (int i = 0; i < R; ++i) acc[i][j] = hn::MulAdd(va[i], vb, acc[i][j]);
    }
  });
  for (int i = 0; i < R; ++i) {
    float sums[kDotColumns];
    sum_lanes4(acc[i], sums);
    for (int j = 0; j < columns; ++j) put(i, j, sums[j]);
  }
}

// Calls put(i, j, sum) for all i < rows, j < columns.
template <class F>
HWY_INLINE void dot_product(const float* a, int64_t a_row, int64_t rows, const float* b, int64_t b_row, int64_t columns,
                            int64_t length, F&& put) {
  for (int64_t j = 0; j < columns; j += kDotColumns) {
    const int wide = static_cast<int>(std::min<int64_t>(kDotColumns, columns - j));
    int64_t i = 0;
    for (; i + kDotRows <= rows; i += kDotRows) {
      dot_tile<kDotRows>(a + i * a_row, a_row, b + j * b_row, b_row, length, wide,
                         [&](int di, int dj, float sum) HWY_ATTR { put(i + di, j + dj, sum); });
    }
    for (; i < rows; ++i) {
      dot_tile<1>(a + i * a_row, a_row, b + j * b_row, b_row, length, wide,
                  [&](int, int dj, float sum) HWY_ATTR { put(i, j + dj, sum); });
    }
  }
}

template <int R, int V, class Full>
HWY_INLINE void outer_tile(const float* a, int64_t a_row, int64_t a_red, const float* b, int64_t b_row, float* dst,
                           int64_t dst_row, int64_t length, bool first, size_t n, Full full) {
  Vec acc[R][V];
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < V; ++v) acc[i][v] = zero();
  }
  for (int64_t r = 0; r < length; ++r) {
    Vec vb[V];
    for (int v = 0; v < V; ++v) vb[v] = load_part(b + r * b_row + v * static_cast<int64_t>(kLanes), n, full);
    for (int i = 0; i < R; ++i) {
      const Vec va = splat(a[i * a_row + r * a_red]);
      for (int v = 0; v < V; ++v) acc[i][v] = hn::MulAdd(va, vb[v], acc[i][v]);
    }
  }
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < V; ++v) {
      float* p = dst + i * dst_row + v * static_cast<int64_t>(kLanes);
      store_part(first ? acc[i][v] : hn::Add(load_part(p, n, full), acc[i][v]), p, n, full);
    }
  }
}

template <int R>
HWY_INLINE void outer_rows(const float* a, int64_t a_row, int64_t a_red, const float* b, int64_t b_row, float* dst,
                           int64_t dst_row, int64_t width, int64_t length, bool first) {
  constexpr int64_t L = kLanes, wide = kOuterVectors * L;
  int64_t k = 0;
  for (; k + wide <= width; k += wide) {
    outer_tile<R, kOuterVectors>(a, a_row, a_red, b + k, b_row, dst + k, dst_row, length, first, kLanes,
                                 std::true_type());
  }
  for (; k + L <= width; k += L) {
    outer_tile<R, 1>(a, a_row, a_red, b + k, b_row, dst + k, dst_row, length, first, kLanes, std::true_type());
  }
  if (k < width) {
    outer_tile<R, 1>(a, a_row, a_red, b + k, b_row, dst + k, dst_row, length, first, static_cast<size_t>(width - k),
                     std::false_type());
  }
}

// dst [rows, width]; sums of 64 terms in registers, these in order in dst.
HWY_INLINE void outer_product(const float* a, int64_t a_row, int64_t a_red, int64_t rows, const float* b, int64_t b_row,
                              int64_t length, float* dst, int64_t dst_row, int64_t width) {
  constexpr int64_t kChunk = 64;
  for (int64_t r = 0; r < length; r += kChunk) {
    const int64_t count = std::min(kChunk, length - r);
    const float *ar = a + r * a_red, *br = b + r * b_row;
    int64_t i = 0;
    for (; i + kOuterRows <= rows; i += kOuterRows) {
      outer_rows<kOuterRows>(ar + i * a_row, a_row, a_red, br, b_row, dst + i * dst_row, dst_row, width, count, r == 0);
    }
    for (; i < rows; ++i) {
      outer_rows<1>(ar + i * a_row, a_row, a_red, br, b_row, dst + i * dst_row, dst_row, width, count, r == 0);
    }
  }
}

// dst[k] = sum over rows of a[r,k], in order.
HWY_INLINE void sum_rows(const float* a, int64_t a_row, int64_t rows, float* dst, int64_t width) {
  for_each_vector(width, [&](int64_t k, size_t n, auto full) HWY_ATTR {
    Vec total = zero();
    for (int64_t r = 0; r < rows; ++r) total = hn::Add(total, load_part(a + r * a_row + k, n, full));
    store_part(total, dst + k, n, full);
  });
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
