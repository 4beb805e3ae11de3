// Statistics of a tile of rows, compiled per target: sums of (x - k) and (x - k)^2 in FP32 by channel, k near the mean,
// so that nothing cancels where a mean is large against its deviation; a constant channel has variance 0 exactly. The
// tile then joins its shard by Chan's formula in double.
//
//   per tile of at most kStatsTileRows rows: d = x - shift; s1 += d; s2 += d * d     (x as stored)
//   stats_merge_tile(); stats_next_shift(); s1 = s2 = 0
//
// The first shift is a value of the tile, or the mean of 8 in a tree (exact where they are equal).
#if defined(EFFNET_STATS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EFFNET_STATS_INL_H_
#undef EFFNET_STATS_INL_H_
#else
#define EFFNET_STATS_INL_H_
#endif

#include "cpu/kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

// Adds a group of `count` values with `mean` and squared deviations `m2` to one of `total` values.
HWY_INLINE void chan_merge(double total, double count, double group_mean, double group_m2, double& mean, double& m2) {
  const double delta = group_mean - mean, share = count / (total + count);
  mean += delta * share;
  m2 += group_m2 + delta * delta * total * share;
}

// The mean of get(0) to get(7), in a tree: exact where they are equal.
template <class F>
HWY_INLINE Vec mean_of_8(F&& get) {
  const auto pair = [&](int i) HWY_ATTR { return hn::Add(get(i), get(i + 1)); };
  return hn::Mul(hn::Add(hn::Add(pair(0), pair(2)), hn::Add(pair(4), pair(6))), splat(0.125f));
}

// Adds a tile of `count` rows to the `total` rows whose mean and squared deviations are in `mean` and `m2`. Arrays are
// whole vectors.
HWY_INLINE void stats_merge_tile(double total, double count, int64_t width, const float* HWY_RESTRICT shift,
                                 const float* HWY_RESTRICT s1, const float* HWY_RESTRICT s2, double* HWY_RESTRICT mean,
                                 double* HWY_RESTRICT m2) {
  const hn::ScalableTag<double> dd;
  const hn::Rebind<float, decltype(dd)> df;
  const auto inv = hn::Set(dd, 1.0 / count), share = hn::Set(dd, count / (total + count)), base = hn::Set(dd, total);
  for (int64_t c = 0; c < width; c += static_cast<int64_t>(hn::Lanes(dd))) {
    const auto sum1 = hn::PromoteTo(dd, hn::LoadU(df, s1 + c)), sum2 = hn::PromoteTo(dd, hn::LoadU(df, s2 + c));
    const auto offset = hn::Mul(sum1, inv), tile_m2 = hn::NegMulAdd(sum1, offset, sum2);
    const auto before = hn::LoadU(dd, mean + c);
    const auto delta = hn::Sub(hn::Add(hn::PromoteTo(dd, hn::LoadU(df, shift + c)), offset), before);
    const auto step = hn::Mul(delta, share);
    hn::StoreU(hn::Add(before, step), dd, mean + c);
    hn::StoreU(hn::Add(hn::LoadU(dd, m2 + c), hn::MulAdd(hn::Mul(delta, base), step, tile_m2)), dd, m2 + c);
  }
}

// The shift of every tile but the first is the mean so far.
HWY_INLINE void stats_next_shift(int64_t width, const double* HWY_RESTRICT mean, float* HWY_RESTRICT shift) {
  const hn::ScalableTag<double> dd;
  const hn::Rebind<float, decltype(dd)> df;
  for (int64_t c = 0; c < width; c += static_cast<int64_t>(hn::Lanes(dd))) {
    hn::StoreU(hn::DemoteTo(df, hn::LoadU(dd, mean + c)), df, shift + c);
  }
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
