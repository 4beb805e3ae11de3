// The naive kernels of reference.h: loops from the definitions, with nothing that could be wrong for one shape only.
#include "tests/device/reference.h"

#include "cuda/device/device.h"
#include "plan/format.h"
#ifndef __CUDACC__
#include <cmath>
using std::exp, std::fabs, std::sqrt, std::tanh;
#endif

namespace effnet::test {

using cuda::Bf16;
using cuda::F16;

constexpr int kThreads = 128;

EFF_DEVICE double rounded(double v, RefType type) {
  if (type == RefType::f32) return static_cast<float>(v);
  if (type == RefType::bf16) return cuda::round_to<Bf16>(static_cast<float>(v));
  if (type == RefType::f16) return cuda::round_to<F16>(static_cast<float>(v));
  return v;
}
EFF_DEVICE double at(const RefTensor& t, int64_t i) {
  double v = 0;
  if (t.type == RefType::f32) v = static_cast<const float*>(t.data)[i];
  if (t.type == RefType::bf16) v = cuda::to_float(static_cast<const Bf16*>(t.data)[i]);
  if (t.type == RefType::f16) v = cuda::to_float(static_cast<const F16*>(t.data)[i]);
  if (t.type == RefType::f64) v = static_cast<const double*>(t.data)[i];
  return rounded(v, t.rounding);
}
EFF_DEVICE double at_or(const RefTensor& t, int64_t i, double absent) { return t.data ? at(t, i) : absent; }

EFF_DEVICE double hat(const RefNorm& bn, double x, int64_t c) { return (x - at(bn.mean, c)) * at(bn.inv_std, c); }
EFF_DEVICE double normalised(const RefNorm& bn, double x, int64_t c) {
  return bn.mean.data ? hat(bn, x, c) * at_or(bn.scale, c, 1) + at_or(bn.shift, c, 0) : x;
}
// In FP32 each of its terms is off by some units in its last place.
EFF_DEVICE double normalised_off(const RefNorm& bn, double x, int64_t c) {
  if (!bn.mean.data) return 0;
  const double slope = fabs(at(bn.inv_std, c) * at_or(bn.scale, c, 1));
  return 0x1p-22 * (slope * (fabs(x) + fabs(at(bn.mean, c))) + fabs(at_or(bn.shift, c, 0)));
}

EFF_DEVICE double act_of(plan::Act act, double x) {
  if (act == plan::Act::silu) return x / (1 + exp(-x));
  if (act == plan::Act::relu) return x > 0 ? x : 0;
  if (act == plan::Act::relu6) return x < 0 ? 0 : x > 6 ? 6 : x;
  if (act == plan::Act::sigmoid) return 1 / (1 + exp(-x));
  return x;
}
EFF_DEVICE double slope_of(plan::Act act, double x) {
  const double s = 1 / (1 + exp(-x));
  if (act == plan::Act::silu) return s * (1 + x * (1 - s));
  if (act == plan::Act::relu) return x > 0;
  if (act == plan::Act::relu6) return x > 0 && x < 6;
  if (act == plan::Act::sigmoid) return s * (1 - s);
  return 1;
}
// What tanh_fast may do to them (tests/reference.h), and FP32. Slopes of SiLU and the sigmoid are at most 1.1, their
// slopes' at most 0.5.
EFF_DEVICE double act_off(plan::Act act, bool fast, double x, double off) {
  if (act != plan::Act::silu && act != plan::Act::sigmoid) return off;
  const double tanh_off = fast ? 1.01 * 0x1p-12 * fabs(tanh(x / 2)) : 0x1p-22;
  return 1.1 * off + tanh_off * (act == plan::Act::silu ? fabs(x) : 1) + 1e-7;
}
EFF_DEVICE double slope_off(plan::Act act, bool fast, double x, double off) {
  if (act != plan::Act::silu && act != plan::Act::sigmoid) return 0;
  const double tanh_off = fast ? 1.01 * 0x1p-12 * fabs(tanh(x / 2)) : 0x1p-22;
  return 0.5 * off + tanh_off * (act == plan::Act::silu ? fabs(1 - x * tanh(x / 2)) : 1) + 1e-6;
}
// What a value that is off before it is rounded may be off by then: it falls to a neighbour now and then.
EFF_DEVICE double stored_off(RefType type, double v, double off) {
  return off + fabs(v) * (type == RefType::bf16 ? 0x1p-8 : type == RefType::f16 ? 0x1p-11 : 0x1p-22);
}

EFF_KERNEL(ref_fill, RefFillArgs, kThreads) {
  const int64_t i = cuda::global_id();
  if (i >= a.count) return;
  uint64_t x = (static_cast<uint64_t>(i) + a.seed * 0x9E3779B97F4A7C15u) * 0xBF58476D1CE4E5B9u;  // splitmix64
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  x ^= x >> 31;
  const double even = static_cast<double>(x >> 40) * 0x1p-23 - 1;
  const auto v = static_cast<float>(a.mean + a.spread * even);
  if (a.type == RefType::f32) static_cast<float*>(a.data)[i] = v;
  if (a.type == RefType::bf16) static_cast<Bf16*>(a.data)[i] = cuda::from_float<Bf16>(v);
  if (a.type == RefType::f16) static_cast<F16*>(a.data)[i] = cuda::from_float<F16>(v);
}

EFF_KERNEL(ref_activate, RefActivateArgs, kThreads) {
  const int64_t i = cuda::global_id();
  if (i >= a.count) return;
  const int64_t c = i % a.channels, n = i / a.image;
  const auto act = static_cast<plan::Act>(a.act);
  const double x = at(a.src, i), z = normalised(a.norm, x, c);
  const double factor = at_or(a.gate, n * a.channels + c, 1) * at_or(a.kept, n, 1);
  const double v = act_of(act, z) * factor + at_or(a.residual, i, 0);
  a.dst[i] = rounded(v, a.rounding);
  if (!a.off) return;
  const bool changed = a.norm.mean.data || a.gate.data || a.kept.data || a.residual.data || act != plan::Act::identity;
  const double off = act_off(act, a.fast, z, normalised_off(a.norm, x, c)) * fabs(factor);
  a.off[i] = changed ? stored_off(a.rounding, v, off) : 0;
}

EFF_KERNEL(ref_behind, RefBehindArgs, kThreads) {
  const int64_t i = cuda::global_id();
  if (i >= a.count) return;
  const int64_t c = i % a.channels, n = i / a.image, by_image = n * a.channels + c;
  const auto act = static_cast<plan::Act>(a.act);
  const double pixels = static_cast<double>(a.image / a.channels), rows = static_cast<double>(a.count / a.channels);
  const double x = at(a.x, i), z = normalised(a.norm, x, c);
  const double upstream =
      at(a.diff_dst, i) * at_or(a.kept, n, 1) * at_or(a.gate, by_image, 1) + at_or(a.diff_pooled, by_image, 0) / pixels;
  const double g = upstream * slope_of(act, z);
  double v = g, factor = 1, correction = 0, terms = 0;  // terms: sizes of what the correction is the sum of
  if (!a.plain) {
    factor = at(a.norm.scale, c) * at(a.norm.inv_std, c);
    if (a.diff_scale.data) {
      const double shift = at(a.diff_shift, c) / rows, scale = at(a.diff_scale, c) / rows;
      correction = shift + hat(a.norm, x, c) * scale;
      terms = fabs(shift) + fabs(at(a.norm.inv_std, c) * scale) * (fabs(x) + fabs(at(a.norm.mean, c)));
    }
    v = factor * (g - correction);
  }
  a.dst[i] = rounded(v, a.rounding);
  if (!a.off) return;
  const double off =
      fabs(upstream) * slope_off(act, a.fast, z, normalised_off(a.norm, x, c)) + 0x1p-21 * (fabs(g) + terms);
  a.off[i] = stored_off(a.rounding, v, off * fabs(factor));
}

EFF_DEVICE void add_product(RefTerms& terms, const RefConvArgs& a, double x, double x_off, double y, double y_off) {
  terms.sum += x * y;
  terms.size += fabs(x * y);
  const double one = (x_off + a.relative_off * fabs(x)) * y, other = x * (y_off + a.relative_off * fabs(y));
  terms.squares += one * one + other * other;
}

EFF_KERNEL(ref_conv_forward, RefConvArgs, kThreads) {
  const int64_t id = cuda::global_id();
  if (id >= a.n * a.oh * a.ow * a.oc) return;
  const int64_t o = id % a.oc, x = id / a.oc % a.ow, y = id / a.oc / a.ow % a.oh, n = id / a.oc / a.ow / a.oh;
  RefTerms terms{};
  for (int64_t ky = 0; ky < a.k; ++ky)
    for (int64_t kx = 0; kx < a.k; ++kx) {
      const int64_t iy = y * a.stride + ky - a.top, ix = x * a.stride + kx - a.left;
      if (iy < 0 || ix < 0 || iy >= a.h || ix >= a.w) continue;
      const int64_t pixel = (n * a.h + iy) * a.w + ix;
      for (int64_t i = a.depthwise ? o : 0; i < (a.depthwise ? o + 1 : a.ic); ++i) {
        const int64_t s = pixel * a.ic + i,
                      k = a.depthwise ? (ky * a.k + kx) * a.oc + o : ((o * a.k + ky) * a.k + kx) * a.ic + i;
        add_product(terms, a, at(a.src, s), at_or(a.off_src, s, 0), at(a.weights, k), 0);
      }
    }
  a.dst[id] = terms;
}

EFF_KERNEL(ref_conv_backward_data, RefConvArgs, kThreads) {
  const int64_t id = cuda::global_id();
  if (id >= a.n * a.h * a.w * a.ic) return;
  const int64_t i = id % a.ic, ix = id / a.ic % a.w, iy = id / a.ic / a.w % a.h, n = id / a.ic / a.w / a.h;
  RefTerms terms{};
  for (int64_t ky = 0; ky < a.k; ++ky)
    for (int64_t kx = 0; kx < a.k; ++kx) {
      const int64_t ty = iy + a.top - ky, tx = ix + a.left - kx;
      if (ty < 0 || tx < 0 || ty % a.stride || tx % a.stride || ty / a.stride >= a.oh || tx / a.stride >= a.ow)
        continue;
      const int64_t pixel = (n * a.oh + ty / a.stride) * a.ow + tx / a.stride;
      for (int64_t o = a.depthwise ? i : 0; o < (a.depthwise ? i + 1 : a.oc); ++o) {
        const int64_t t = pixel * a.oc + o,
                      k = a.depthwise ? (ky * a.k + kx) * a.oc + o : ((o * a.k + ky) * a.k + kx) * a.ic + i;
        add_product(terms, a, at(a.diff_dst, t), at_or(a.off_diff_dst, t, 0), at(a.weights, k), 0);
      }
    }
  a.dst[id] = terms;
}

// Slice s has every a.slices-th pixel of the result from s on.
EFF_KERNEL(ref_conv_backward_weights, RefConvArgs, kThreads) {
  const int64_t id = cuda::global_id(), weights = (a.depthwise ? 1 : a.oc) * a.k * a.k * a.ic;
  if (id >= a.slices * weights) return;
  const int64_t weight = id % weights, i = weight % a.ic, tap = weight / a.ic;
  const int64_t kx = tap % a.k, ky = tap / a.k % a.k, o = a.depthwise ? i : tap / a.k / a.k;
  RefTerms terms{};
  for (int64_t pixel = id / weights; pixel < a.n * a.oh * a.ow; pixel += a.slices) {
    const int64_t x = pixel % a.ow, y = pixel / a.ow % a.oh, n = pixel / a.ow / a.oh;
    const int64_t iy = y * a.stride + ky - a.top, ix = x * a.stride + kx - a.left;
    if (iy < 0 || ix < 0 || iy >= a.h || ix >= a.w) continue;
    const int64_t s = ((n * a.h + iy) * a.w + ix) * a.ic + i, t = pixel * a.oc + o;
    add_product(terms, a, at(a.src, s), at_or(a.off_src, s, 0), at(a.diff_dst, t), at_or(a.off_diff_dst, t, 0));
  }
  a.dst[id] = terms;
}

EFF_KERNEL(ref_add_slices, RefAddArgs, kThreads) {
  const int64_t id = cuda::global_id();
  if (id >= a.count) return;
  RefTerms all{};
  for (int64_t s = 0; s < a.slices; ++s) {
    const RefTerms& one = a.src[s * a.count + id];
    all.sum += one.sum;
    all.size += one.size;
    all.squares += one.squares;
  }
  a.dst[id] = all;
}

EFF_KERNEL(ref_finish, RefFinishArgs, kThreads) {
  const int64_t id = cuda::global_id();
  if (id >= a.count) return;
  const int64_t c = id % a.channels;
  const auto act = static_cast<plan::Act>(a.act);
  RefTerms t = a.dst[id];
  if (a.x.data) {
    const double x = at(a.x, id), z = normalised(a.norm, x, c), slope = slope_of(act, z);
    const double off = t.sum * slope_off(act, a.fast, z, normalised_off(a.norm, x, c));
    t = {t.sum * slope, t.size * fabs(slope), t.squares * slope * slope + off * off};
  } else {
    const double z = t.sum + at_or(a.bias, c, 0), residual = at_or(a.residual, id, 0);
    const double off = act_off(act, a.fast, z, 0);
    const bool curved = act == plan::Act::silu || act == plan::Act::sigmoid;
    t = {act_of(act, z) + residual, 1.1 * (t.size + fabs(at_or(a.bias, c, 0))) + fabs(residual),
         1.21 * t.squares + (curved ? off * off : 0)};
  }
  a.dst[id] = t;
}

// 6 * sqrt(squares) is `off` again.
EFF_KERNEL(ref_terms, RefTermsArgs, kThreads) {
  const int64_t i = cuda::global_id();
  if (i >= a.count) return;
  a.dst[i] = {a.value[i], fabs(a.value[i]), a.off[i] * a.off[i] / 36};
}

// What v is multiplied with, and how far that may be off.
EFF_DEVICE double factor_of(const RefSumArgs& a, double x, int64_t c, double& off) {
  off = 0;
  if (a.term == RefTerm::v) return 1;
  const auto act = static_cast<plan::Act>(a.act);
  const double mean = at(a.norm.mean, c);
  if (a.term == RefTerm::apart) return (x - mean) * (x - mean);
  const double z = normalised(a.norm, x, c), z_off = normalised_off(a.norm, x, c), h = hat(a.norm, x, c);
  double factor = 1;
  if (a.term == RefTerm::v_act) {
    factor = act_of(act, z);
    off = act_off(act, a.fast, z, z_off);
  } else if (a.term != RefTerm::v_hat) {
    factor = slope_of(act, z);
    off = slope_off(act, a.fast, z, z_off);
  }
  if (a.term == RefTerm::v_hat || a.term == RefTerm::v_slope_hat || a.term == RefTerm::slope_hat) {
    off = off * fabs(h) + fabs(factor) * 0x1p-22 * fabs(at(a.norm.inv_std, c)) * (fabs(x) + fabs(mean));
    factor *= h;
  }
  return factor;
}

EFF_KERNEL(ref_sums, RefSumArgs, kThreads) {
  const int64_t id = cuda::global_id(), results = a.groups * a.channels;
  if (id >= a.slices * results) return;
  const int64_t c = id % a.channels, group = id / a.channels % a.groups;
  RefTerms terms{};
  for (int64_t row = id / results; row < a.rows; row += a.slices) {
    const int64_t i = (group * a.rows + row) * a.channels + c;
    const double v = a.factor * at_or(a.v, i, 1), off_v = a.factor * at_or(a.off_v, i, 0);
    double off = 0;
    const double factor = factor_of(a, at_or(a.x, i, 0), c, off);
    terms.sum += v * factor;
    terms.size += fabs(v * factor);
    terms.squares += v * off * (v * off) + off_v * factor * (off_v * factor);
  }
  a.dst[id] = terms;
}

EFF_KERNEL(ref_compare, RefCompareArgs, kThreads) {
  const int64_t id = cuda::global_id(), first = id * a.chunk;
  if (first >= a.count) return;
  double worst = 0;
  int64_t where = first;
  for (int64_t i = first; i < a.count && i < first + a.chunk; ++i) {
    const RefTerms& want = a.want[i];
    const double limit = a.size_share * want.size + 6 * sqrt(want.squares) + a.want_share * fabs(want.sum) + a.least;
    const double share = fabs(at(a.got, i) - want.sum) / limit;
    if (share <= worst) continue;
    worst = share == share ? share : static_cast<double>(cuda::kInfinity);
    where = i;
    if (share != share) break;
  }
  a.worst[id] = worst;
  a.at[id] = where;
}

}  // namespace effnet::test
