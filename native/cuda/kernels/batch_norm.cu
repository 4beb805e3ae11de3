// Batch normalisation with what surrounds it. Reductions go by tiles of rows, merged in order, in double.
#include "cuda/kernels/activation.cuh"
#include "cuda/kernels/batch_norm.h"
#include "cuda/kernels/drop.cuh"
#include "cuda/kernels/merge.cuh"
#include "cuda/kernels/reduce.cuh"

namespace effnet::cuda {

// The gradient of act(bn(src)) at element `i`: of image n and channel c.
template <class T>
EFF_DEVICE float upstream_of(const Upstream& u, int64_t i, int64_t n, int64_t c, int64_t channels, float inv_pixels) {
  float g = to_float(static_cast<const T*>(u.diff)[i]) * drop_factor(u.drop, n);
  if (u.gate) g *= u.gate[n * channels + c];
  if (u.diff_pooled) g = fma(u.diff_pooled[n * channels + c], inv_pixels, g);
  return g;
}

// ---- element by element ------------------------------------------------------------------------------------------

template <class T>
EFF_DEVICE void bn_act(const BnActArgs& a) {
  const T *src = static_cast<const T*>(a.src), *residual = static_cast<const T*>(a.residual);
  T* dst = static_cast<T*>(a.dst);
  for (int64_t i = global_id(); i < a.count; i += global_threads()) {
    const int64_t c = i % a.c, n = i / (a.c * a.pixels);
    float v = activate(a.act, normalised(a.norm, to_float(src[i]), c));
    if (a.gate) v *= a.gate[n * a.c + c];
    v *= drop_factor(a.drop, n);
    if (residual) v += to_float(residual[i]);
    dst[i] = from_float<T>(v);
  }
}

template <class T>
EFF_DEVICE void bn_act_bwd_apply(const BnBwdApplyArgs& a) {
  const T* src = static_cast<const T*>(a.src);
  T* diff_src = static_cast<T*>(a.diff_src);
  const float inv_pixels = 1.0f / static_cast<float>(a.pixels), inv_rows = 1.0f / static_cast<float>(a.rows);
  for (int64_t i = global_id(); i < a.count; i += global_threads()) {
    const int64_t c = i % a.c, n = i / (a.c * a.pixels);
    const float xhat = (to_float(src[i]) - a.norm.mean[c]) * a.norm.inv_std[c];
    float g = upstream_of<T>(a.upstream, i, n, c, a.c, inv_pixels);
    if (a.norm.shift) g *= activation_slope(a.upstream.act, fma(xhat, a.norm.scale[c], a.norm.shift[c]));
    if (a.diff_scale) g -= (a.diff_shift[c] + xhat * a.diff_scale[c]) * inv_rows;
    diff_src[i] = from_float<T>(a.norm.scale[c] * a.norm.inv_std[c] * g);
  }
}

EFF_KERNEL(bn_inv_std, InvStdArgs, kBnThreads) {
  for (int64_t i = global_id(); i < a.count; i += global_threads())
    a.inv_std[i] = static_cast<float>(1.0 / sqrt_of(static_cast<double>(a.var[i]) + a.eps));
}

EFF_KERNEL(fold_bn, FoldArgs, kBnThreads) {
  for (int64_t i = global_id(); i < a.count; i += global_threads()) {
    const int64_t c = i / a.inner % a.channels;
    const double factor = a.scale[c] / sqrt_of(static_cast<double>(a.running_var[c]) + a.eps);
    a.folded_weights[i] = static_cast<float>(a.weights[i] * factor);
    if (i < a.channels) {
      const double own = a.scale[i] / sqrt_of(static_cast<double>(a.running_var[i]) + a.eps);
      a.folded_bias[i] = static_cast<float>(a.shift[i] - a.running_mean[i] * own);
    }
  }
}

// ---- statistics --------------------------------------------------------------------------------------------------

template <class T>
EFF_DEVICE void bn_tiles(const BnTilesArgs& a) {
  Shared shared;
  float* scratch = shared.take<float>(kBnThreads);
  const Lane at = lane_of_thread();
  const T* src = static_cast<const T*>(a.src);
  const int64_t first = block_y() * a.tile_rows, last = first + a.tile_rows < a.rows ? first + a.tile_rows : a.rows;
  LongSum sum;
  if (at.c < a.c)
    for (int64_t r = first + at.lane; r < last; r += kBnLanes) sum.add(to_float(src[r * a.c + at.c]));
  // Of the deviations from a value near the mean, so that a large mean costs no digits.
  const float rough = sum_lanes(scratch, sum.total()) / static_cast<float>(last - first);
  LongSum deviations, squares;
  if (at.c < a.c) {
    for (int64_t r = first + at.lane; r < last; r += kBnLanes) {
      const float d = to_float(src[r * a.c + at.c]) - rough;
      deviations.add(d);
      squares.add(d * d);
    }
  }
  const float shift = sum_lanes(scratch, deviations.total()) / static_cast<float>(last - first);
  const float m2 = sum_lanes(scratch, squares.total()) - shift * shift * static_cast<float>(last - first);
  if (at.lane == 0 && at.c < a.c) {
    float* tile = a.tiles + static_cast<int64_t>(block_y()) * 2 * a.c;
    tile[at.c] = rough + shift;
    tile[a.c + at.c] = max_of(m2, 0.0f);
  }
}

EFF_KERNEL(bn_merge, BnMergeLaunchArgs, kBnThreads) {
  const double shift = shift_of_stats(a.merge, static_cast<int64_t>(block_x()) * 32 + thread_id() % 32);
  merge_by_parts(a.parts, a.merge.tile_count, a.merge.c, a.merge.state, StatsTerm{a.merge, shift},
                 [&](int64_t c, const Sums2& sums) { store_stats(a.merge, c, shift, sums); });
}

// ---- sums of the backward part -----------------------------------------------------------------------------------

template <class T>
EFF_DEVICE void bn_bwd_tiles(const BnBwdTilesArgs& a) {
  Shared shared;
  float* scratch = shared.take<float>(kBnThreads);
  const Lane at = lane_of_thread();
  const T* src = static_cast<const T*>(a.src);
  const int64_t first = block_y() * a.tile_rows, last = first + a.tile_rows < a.rows ? first + a.tile_rows : a.rows;
  const float inv_pixels = 1.0f / static_cast<float>(a.pixels);
  LongSum products, sums;
  if (at.c < a.c) {
    for (int64_t r = first + at.lane; r < last; r += kBnLanes) {
      const int64_t i = r * a.c + at.c, n = r / a.pixels;
      const float xm = to_float(src[i]) - a.norm.mean[at.c];
      float g = upstream_of<T>(a.upstream, i, n, at.c, a.c, inv_pixels);
      if (a.norm.shift)
        g *= activation_slope(a.upstream.act, fma(xm * a.norm.inv_std[at.c], a.norm.scale[at.c], a.norm.shift[at.c]));
      products.add(g * xm);
      sums.add(g);
    }
  }
  const float product = sum_lanes(scratch, products.total()), sum = sum_lanes(scratch, sums.total());
  if (at.lane == 0 && at.c < a.c) {
    float* tile = a.tiles + static_cast<int64_t>(block_y()) * 2 * a.c;
    tile[at.c] = product;
    tile[a.c + at.c] = sum;
  }
}

EFF_KERNEL(bn_bwd_merge, BnSumsMergeLaunchArgs, kBnThreads) {
  merge_by_parts(a.parts, a.merge.tile_count, a.merge.c, a.state, BnSumsTerm{a.merge},
                 [&](int64_t c, const Sums2& sums) { store_bn_sums(a.merge, c, sums); });
}

EFF_KERNEL(bn_image_merge, BnImageMergeArgs, kBnThreads) {
  const int64_t c = global_id();
  if (c >= a.c) return;
  double scale = 0, shift = 0;
  for (int64_t n = 0; n < a.n; ++n) {
    const float* sums = a.sums + n * 4 * a.c + c;
    const double gate = a.gate[n * a.c + c], pooled = a.diff_pooled ? a.diff_pooled[n * a.c + c] / a.pixels : 0;
    shift += gate * sums[0] + pooled * sums[a.c];
    scale += gate * sums[2 * a.c] + pooled * sums[3 * a.c];
  }
  a.diff_scale[c] = static_cast<float>(scale);
  a.diff_shift[c] = static_cast<float>(shift);
}

template <class T>
EFF_DEVICE void image_sums(const ImageSumsArgs& a) {
  Shared shared;
  float* scratch = shared.take<float>(kBnThreads);
  const Lane at = lane_of_thread();
  const int64_t n = block_y() + static_cast<int64_t>(block_z()) * 32768;
  const T *src = static_cast<const T*>(a.src), *diff = static_cast<const T*>(a.diff);
  T* dst = static_cast<T*>(a.dst);
  LongSum value_sum, sums[4];
  if (at.c < a.c && n < a.n) {
    const float drop = drop_factor(a.drop, n);
    for (int64_t p = at.lane; p < a.pixels; p += kBnLanes) {
      const int64_t i = (n * a.pixels + p) * a.c + at.c;
      float value = to_float(src[i]), slope = 1.0f, xhat = 0.0f;
      if (a.norm.mean) {
        xhat = (value - a.norm.mean[at.c]) * a.norm.inv_std[at.c];
        activate_both(a.act, fma(xhat, a.norm.scale[at.c], a.norm.shift[at.c]), value, slope);
      }
      if (dst) dst[i] = from_float<T>(a.gate ? value * a.gate[n * a.c + at.c] * drop : value);
      if (!diff) {
        value_sum.add(round_to<T>(value));
        continue;
      }
      const float d = to_float(diff[i]) * drop;
      value_sum.add(d * value);
      if (!a.sums) continue;
      sums[0].add(d * slope);
      sums[1].add(slope);
      sums[2].add(d * slope * xhat);
      sums[3].add(slope * xhat);
    }
  }
  const float value = sum_lanes(scratch, value_sum.total());
  const bool writes = at.lane == 0 && at.c < a.c && n < a.n;
  if (writes) a.value[n * a.c + at.c] = value * a.value_factor;
  if (!a.sums) return;
  for (int k = 0; k < 4; ++k) {
    const float sum = sum_lanes(scratch, sums[k].total());
    if (writes) a.sums[(n * 4 + k) * a.c + at.c] = sum;
  }
}

EFF_KERNEL_OF_TYPES(bn_act, BnActArgs, kBnThreads)
EFF_KERNEL_OF_TYPES(bn_act_bwd_apply, BnBwdApplyArgs, kBnThreads)
EFF_KERNEL_OF_TYPES(bn_tiles, BnTilesArgs, kBnThreads)
EFF_KERNEL_OF_TYPES(bn_bwd_tiles, BnBwdTilesArgs, kBnThreads)
EFF_KERNEL_OF_TYPES(image_sums, ImageSumsArgs, kBnThreads)

}  // namespace effnet::cuda
