#include "cpu/kernels/bn_grad_rows.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/bn_grad_rows.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/bn_pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

// diff_src = a*g + p*xm + q with g = diff_dst * drop * act'(xm*a + shift), xm = src - mean: see bn_act_bwd.cc.
template <plan::Act act>
void grad_rows(const BnGradRowsArgs& k) {
  const int64_t capacity = whole_max_vectors(k.channels);
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

void bn_grad_coefs_target(const BnGradRowsArgs& k) {
  const int64_t capacity = whole_max_vectors(k.channels);
  std::fill_n(k.coefs, bn_grad_coef_floats(k.channels), 0.0f);
  const NormCoefs coefs = fill_norm(k.coefs, capacity, k.channels, 1, k.mean, k.inv_std, k.scale, k.shift);
  if (!k.diff_scale) return;
  float* p = coefs.shift + capacity;
  fill_grad(coefs, p, p + capacity, k.channels, 1, k.total_rows, k.inv_std, k.diff_scale, k.diff_shift);
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {

HWY_EXPORT(bn_grad_rows_target);
HWY_EXPORT(bn_grad_coefs_target);

size_t bn_grad_coef_floats(int64_t channels) { return static_cast<size_t>(5 * whole_max_vectors(channels)); }

void bn_grad_coefs(const BnGradRowsArgs& args) { EFF_DISPATCH(bn_grad_coefs_target)(args); }
void bn_grad_rows(const BnGradRowsArgs& args) { EFF_DISPATCH(bn_grad_rows_target)(args); }

}  // namespace effnet::cpu
#endif
