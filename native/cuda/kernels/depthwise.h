// Arguments of depthwise.cu. NHWC images, HWC weights in f32 (rounded to the images' type where it is 16-bit).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/kernels/batch_norm.h"
#include "plan/format.h"

namespace effnet::cuda {

inline constexpr uint32_t kDepthwiseThreads = kBnThreads;

struct DepthwiseGeometry {
  int64_t n, h, w, c, oh, ow;
  int64_t kh, kw, stride, pad_t, pad_l;
};

// dst = act(conv(src) + bias)
struct DepthwiseArgs {
  DepthwiseGeometry g;
  const void* src;
  const float *weights, *bias;
  plan::Act act;
  void* dst;
};

// diff_src, times act'(bn(src)) where there is a norm.
struct DepthwiseBwdDataArgs {
  DepthwiseGeometry g;
  const void* diff_dst;
  const float* weights;
  const void* src;
  Norm norm;  // mean nullptr: none
  plan::Act act;
  void* diff_src;
};

struct DepthwiseBwdWeightsArgs {
  DepthwiseGeometry g;
  const void *src, *diff_dst;
  int64_t tile_pixels;
  float* parts;  // [tile][kh * kw][c]
};

}  // namespace effnet::cuda
