// Depthwise convolutions of any window and number of channels: a thread a result; the gradient of the weights by tiles
// of pixels.
#include "cuda/kernels/activation.cuh"
#include "cuda/kernels/depthwise.h"
#include "cuda/kernels/reduce.cuh"

namespace effnet::cuda {

template <class T>
EFF_DEVICE void depthwise_plain(const DepthwiseArgs& a) {
  const DepthwiseGeometry& g = a.g;
  const T* src = static_cast<const T*>(a.src);
  T* dst = static_cast<T*>(a.dst);
  const int64_t count = g.n * g.oh * g.ow * g.c;
  for (int64_t i = global_id(); i < count; i += global_threads()) {
    const int64_t c = i % g.c, x = i / g.c % g.ow, y = i / (g.c * g.ow) % g.oh, n = i / (g.c * g.ow * g.oh);
    float sum = 0.0f;
    for (int64_t tap = 0; tap < g.kh * g.kw; ++tap) {
      const int64_t h = y * g.stride - g.pad_t + tap / g.kw, w = x * g.stride - g.pad_l + tap % g.kw;
      if (h < 0 || h >= g.h || w < 0 || w >= g.w) continue;
      sum = fma(to_float(src[((n * g.h + h) * g.w + w) * g.c + c]), round_to<T>(a.weights[tap * g.c + c]), sum);
    }
    dst[i] = from_float<T>(activate<T>(a.act, a.bias ? sum + a.bias[c] : sum));
  }
}

template <class T>
EFF_DEVICE void depthwise_bwd_data_plain(const DepthwiseBwdDataArgs& a) {
  const DepthwiseGeometry& g = a.g;
  const T *diff_dst = static_cast<const T*>(a.diff_dst), *src = static_cast<const T*>(a.src);
  T* diff_src = static_cast<T*>(a.diff_src);
  const int64_t count = g.n * g.h * g.w * g.c;
  for (int64_t i = global_id(); i < count; i += global_threads()) {
    const int64_t c = i % g.c, w = i / g.c % g.w, h = i / (g.c * g.w) % g.h, n = i / (g.c * g.w * g.h);
    float sum = 0.0f;
    for (int64_t tap = 0; tap < g.kh * g.kw; ++tap) {
      const int64_t y = h + g.pad_t - tap / g.kw, x = w + g.pad_l - tap % g.kw;
      if (y < 0 || x < 0 || y % g.stride || x % g.stride) continue;
      if (y / g.stride >= g.oh || x / g.stride >= g.ow) continue;
      sum = fma(to_float(diff_dst[((n * g.oh + y / g.stride) * g.ow + x / g.stride) * g.c + c]),
                round_to<T>(a.weights[tap * g.c + c]), sum);
    }
    if (a.norm.mean) sum *= activation_slope<T>(a.act, normalised(a.norm, to_float(src[i]), c));
    diff_src[i] = from_float<T>(sum);
  }
}

template <class T>
EFF_DEVICE void depthwise_bwd_weights_plain(const DepthwiseBwdWeightsArgs& a) {
  Shared shared;
  float* scratch = shared.take<float>(kDepthwiseThreads);
  const DepthwiseGeometry& g = a.g;
  const T *src = static_cast<const T*>(a.src), *diff_dst = static_cast<const T*>(a.diff_dst);
  const Lane at = lane_of_thread();
  const int64_t pixels = g.n * g.oh * g.ow, first = block_y() * a.tile_pixels;
  const int64_t last = first + a.tile_pixels < pixels ? first + a.tile_pixels : pixels, taps = g.kh * g.kw;
  for (int64_t tap = 0; tap < taps; ++tap) {
    LongSum sum;
    if (at.c < g.c) {
      for (int64_t p = first + at.lane; p < last; p += kBnLanes) {
        const int64_t x = p % g.ow, y = p / g.ow % g.oh, n = p / (g.ow * g.oh);
        const int64_t h = y * g.stride - g.pad_t + tap / g.kw, w = x * g.stride - g.pad_l + tap % g.kw;
        if (h < 0 || h >= g.h || w < 0 || w >= g.w) continue;
        sum.add(to_float(src[((n * g.h + h) * g.w + w) * g.c + at.c]) * to_float(diff_dst[p * g.c + at.c]));
      }
    }
    const float total = sum_lanes(scratch, sum.total());
    if (at.lane == 0 && at.c < g.c) a.parts[(block_y() * taps + tap) * g.c + at.c] = total;
  }
}

EFF_KERNEL_OF_TYPES(depthwise_plain, DepthwiseArgs, kDepthwiseThreads)
EFF_KERNEL_OF_TYPES(depthwise_bwd_data_plain, DepthwiseBwdDataArgs, kDepthwiseThreads)
EFF_KERNEL_OF_TYPES(depthwise_bwd_weights_plain, DepthwiseBwdWeightsArgs, kDepthwiseThreads)

}  // namespace effnet::cuda
