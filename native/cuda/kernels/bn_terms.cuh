// What kernels over act(bn(src)) and its gradient compute of a vector of V channels.
#pragma once

#include "cuda/kernels/activation.cuh"
#include "cuda/kernels/batch_norm.h"
#include "cuda/kernels/drop.cuh"
#include "cuda/kernels/walk.cuh"

namespace effnet::cuda {

// Calls f with an activation that is known when this is compiled where it is one that most of these networks' bytes go
// through; the others are chosen element by element.
template <plan::Act act>
struct Known {
  EFF_DEVICE constexpr operator plan::Act() const { return act; }
};
template <class F>
EFF_DEVICE void with_act(plan::Act act, F&& f) {
  if (act == plan::Act::silu)
    f(Known<plan::Act::silu>());
  else if (act == plan::Act::identity)
    f(Known<plan::Act::identity>());
  else
    f(act);
}

// bn(x) = (x - mean) * factor + shift. The mean is not folded into the shift: where it is large that costs digits.
template <int V>
struct NormOf {
  float mean[V], factor[V], shift[V];

  EFF_DEVICE NormOf(const Norm& norm, const Place& p) {
    fill(mean, 0.0f);
    fill(factor, 1.0f);
    fill(shift, 0.0f);
    if (!p.works || !norm.mean) return;
    float inv_std[V];
    load_channels(norm.mean + p.channel, mean);
    load_channels(norm.inv_std + p.channel, inv_std);
    if (norm.scale) load_channels(norm.scale + p.channel, factor);
    if (norm.shift) load_channels(norm.shift + p.channel, shift);
    EFF_UNROLL
    for (int i = 0; i < V; ++i) factor[i] *= inv_std[i];
  }
  EFF_DEVICE float operator()(float x, int i) const { return fma(x - mean[i], factor[i], shift[i]); }
};

// The gradient of act(bn(src)) is diff * factor + term, constants of an image.
template <int V>
struct UpstreamOf {
  float factor[V], term[V];

  EFF_DEVICE void set(const Upstream& u, const Walk& w, const Place& p, int64_t image) {
    fill(factor, 1.0f);
    fill(term, 0.0f);
    if (!p.works) return;
    const int64_t at = image * w.c + p.channel;
    if (u.gate) load_channels(u.gate + at, factor);
    if (u.diff_pooled) load_channels(u.diff_pooled + at, term);
    const float drop = drop_factor(u.drop, image),
                inv_pixels = u.diff_pooled ? 1.0f / static_cast<float>(w.rows) : 0.0f;
    EFF_UNROLL
    for (int i = 0; i < V; ++i) {
      factor[i] *= drop;
      term[i] *= inv_pixels;
    }
  }
};

}  // namespace effnet::cuda
