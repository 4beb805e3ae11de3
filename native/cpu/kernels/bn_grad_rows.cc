#include "cpu/kernels/bn_grad_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/bn_grad_rows.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/bn_pack-inl.h"

#ifndef EFFNET_BN_GRAD_ROWS_
#define EFFNET_BN_GRAD_ROWS_
#include <algorithm>

namespace effnet::cpu {
// Whole vectors on every target.
inline int64_t bn_grad_capacity(int64_t channels) { return (channels + 15) / 16 * 16; }
}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

// diff_src = a*g + p*xm + q with g = diff_dst * drop * act'(xm*a + shift), xm = src - mean: see bn_act_bwd.cc.
template <plan::Act act>
void grad_rows(const BnGradRowsArgs& k) {
  const int64_t capacity = bn_grad_capacity(k.channels);
  const float *mean = k.coefs, *a = mean + capacity, *shift = a + capacity, *p = shift + capacity, *q = p + capacity;
  float* to = k.diff_src;
  for (int64_t row = k.row_begin; row < k.row_end; ++row, to += k.channels) {
    const Vec factor = splat(k.drop.factor(*k.scalars, row / k.image_rows));
    const float *src = k.src + row * k.channels, *diff_dst = k.diff_dst + row * k.channels;
    for_each_vector(k.channels, [&](int64_t c, size_t n, auto full) HWY_ATTR {
      const Vec xm = hn::Sub(load_part(src + c, n, full), load(mean + c));
      Vec g = hn::Mul(load_part(diff_dst + c, n, full), factor);
      const Vec scale = load(a + c);
      if constexpr (act != plan::Act::identity)
        g = hn::Mul(g, activate_grad<act>(hn::MulAdd(xm, scale, load(shift + c))));
      store_part(hn::MulAdd(scale, g, hn::MulAdd(load(p + c), xm, load(q + c))), to + c, n, full);
    });
  }
}

void bn_grad_rows_target(const BnGradRowsArgs& args) {
  with_act(args.act, [&](auto act) HWY_ATTR { grad_rows<act()>(args); });
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {

HWY_EXPORT(bn_grad_rows_target);

size_t bn_grad_coef_floats(int64_t channels) { return static_cast<size_t>(5 * bn_grad_capacity(channels)); }

void bn_grad_coefs(const BnGradRowsArgs& k) {
  const int64_t capacity = bn_grad_capacity(k.channels);
  float *mean = k.coefs, *a = mean + capacity, *shift = a + capacity, *p = shift + capacity, *q = p + capacity;
  std::fill_n(k.coefs, bn_grad_coef_floats(k.channels), 0.0f);
  const float inv_m = 1.0f / static_cast<float>(k.total_rows);
  for (int64_t c = 0; c < k.channels; ++c) {
    mean[c] = k.mean[c];
    a[c] = k.scale[c] * k.inv_std[c];
    if (k.shift) shift[c] = k.shift[c];
    if (!k.diff_scale) continue;
    p[c] = -a[c] * k.inv_std[c] * (k.diff_scale[c] * inv_m);
    q[c] = -a[c] * (k.diff_shift[c] * inv_m);
  }
}

void bn_grad_rows(const BnGradRowsArgs& args) { EFF_DISPATCH(bn_grad_rows_target)(args); }

}  // namespace effnet::cpu
#endif
