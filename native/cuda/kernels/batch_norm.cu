// Batch normalisation with what surrounds it, element by element.
#include "cuda/kernels/bn_gradient.cuh"
#include "cuda/kernels/bn_terms.cuh"

namespace effnet::cuda {

template <class T, int V>
EFF_DEVICE void bn_act(const BnActArgs& a) {
  constexpr int kRows = sizeof(T) == 2 ? 4 : 3;
  const Place p = place_of<V>(a.walk);
  const NormOf<V> norm(a.norm, p);
  const T *src = static_cast<const T*>(a.src), *residual = static_cast<const T*>(a.residual);
  T* dst = static_cast<T*>(a.dst);
  const bool scaled = a.gate || a.drop.scalars;
  with_act(a.act, [&](auto act) {
    for (int64_t image = p.image; image < p.images_last; ++image) {
      float gate[V];
      fill(gate, 1.0f);
      if (scaled && p.works) {
        if (a.gate) load_channels(a.gate + image * a.walk.c + p.channel, gate);
        const float drop = drop_factor(a.drop, image);
        EFF_UNROLL
        for (int i = 0; i < V; ++i) gate[i] *= drop;
      }
      for_each_row<kRows, V>(a.walk, p, image, src, residual,
                             [&](const float(&x)[V], const float(&add)[V], int64_t at) {
                               float v[V];
                               EFF_UNROLL
                               for (int i = 0; i < V; ++i) v[i] = activate<T>(act, norm(x[i], i)) * gate[i];
                               if (residual) {
                                 EFF_UNROLL
                                 for (int i = 0; i < V; ++i) v[i] += add[i];
                               }
                               Packed<T, V>::store(dst + at, v);
                             });
    }
  });
}

template <class T, int V>
EFF_DEVICE void bn_act_bwd_apply(const BnBwdApplyArgs& a) {
  constexpr int kRows = sizeof(T) == 2 ? 4 : 2;
  const Place p = place_of<V>(a.walk);
  const NormOf<V> norm(a.norm, p);
  const T *src = static_cast<const T*>(a.src), *diff = static_cast<const T*>(a.upstream.diff);
  T* diff_src = static_cast<T*>(a.diff_src);
  float slope[V], constant[V];
  fill(slope, 0.0f);
  fill(constant, 0.0f);
  if (a.diff_scale && p.works) {
    float inv_std[V];
    load_channels(a.diff_scale + p.channel, slope);
    load_channels(a.diff_shift + p.channel, constant);
    load_channels(a.norm.inv_std + p.channel, inv_std);
    EFF_UNROLL
    for (int i = 0; i < V; ++i) {
      const BnGradient of(norm.factor[i], inv_std[i], slope[i], constant[i], a.inv_rows);
      slope[i] = of.slope;
      constant[i] = of.constant;
    }
  }
  const bool activated = a.norm.shift != nullptr;
  with_act(activated ? a.upstream.act : plan::Act::identity, [&](auto act) {
    UpstreamOf<V> upstream;
    for (int64_t image = p.image; image < p.images_last; ++image) {
      upstream.set(a.upstream, a.walk, p, image);
      for_each_row<kRows, V>(a.walk, p, image, src, diff, [&](const float(&x)[V], const float(&d)[V], int64_t at) {
        float v[V];
        EFF_UNROLL
        for (int i = 0; i < V; ++i) {
          const float g = fma(d[i], upstream.factor[i], upstream.term[i]) * activation_slope<T>(act, norm(x[i], i));
          v[i] = fma(norm.factor[i], g, fma(x[i] - norm.mean[i], slope[i], constant[i]));
        }
        Packed<T, V>::store(diff_src + at, v);
      });
    }
  });
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

EFF_KERNEL_OF_WALKS(bn_act, BnActArgs)
EFF_KERNEL_OF_NARROW_WALKS(bn_act_bwd_apply, BnBwdApplyArgs)

}  // namespace effnet::cuda
