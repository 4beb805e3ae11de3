// Arguments of se.cu: squeeze-and-excitation gates of n images, c channels, r squeezed ones; all f32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/kernels/step_state.h"
#include "plan/format.h"

namespace effnet::cuda {

inline constexpr uint32_t kSeThreads = 256;
// A block of the forward part's first product and of the backward part's sums by channel takes so many images.
inline constexpr int kSeImages = 4;
// Tiles of the other products: results of so many channels, squeezed channels and images; terms at a time.
inline constexpr int kSeTileC = 64, kSeTileR = 32, kSeTileN = 16, kSeDepth = 32, kSeDepthN = 64;
// Channels of one part of the backward part's first product.
inline constexpr int64_t kSePart = 256;

struct SeShape {
  int64_t n, c, r;
};

// hidden[n][r] = pooled weights0^T + bias0; a warp for a squeezed channel of kSeImages images.
struct SeSqueezeArgs {
  SeShape s;
  const float *pooled, *weights0, *bias0;  // [n][c], [r][c], [r]
  float* hidden;
};

// gate[n][c] = sigmoid(act(hidden) weights1^T + bias1)
struct SeExciteArgs {
  SeShape s;
  const float *hidden, *weights1, *bias1;  // [n][r], [c][r], [c]
  plan::Act act;
  float* gate;
};
inline constexpr size_t kSeExciteShared = (kSeTileC + kSeTileN) * (kSeDepth + 1) * sizeof(float);

// d1 = diff_gate * gate * (1 - gate), in front of the sigmoid; d0 = (d1 weights1) * act'(hidden), in front of act.
// Block (x, y, z): images x, squeezed channels y * 32.., channels z * kSePart..; the last of z adds up what they found.
struct SeBwdSqueezeArgs {
  SeShape s;
  const float *diff_gate, *gate, *hidden, *weights1;
  plan::Act act;
  float *d1, *activated, *d0;  // [n][c], act(hidden) [n][r], [n][r]
  int64_t parts_count;
  float* parts;  // [part][n][r], not used for one part
  StepState* state;
};
inline constexpr size_t kSeBwdSqueezeShared =
    kSeImages * static_cast<size_t>(kSePart) * sizeof(float) + kSeThreads * kSeImages * sizeof(float) + 16;

// diff_weights1[c][r] = d1^T activated, diff_bias1 = sum of d1; diff_weights0[r][c] = d0^T pooled, diff_bias0 = sum of
// d0; diff_pooled = d0 weights0. The blocks are dealt out to the three products in this order.
struct SeBwdArgs {
  SeShape s;
  const float *d1, *activated, *d0, *pooled, *weights0;
  float *diff_weights1, *diff_bias1, *diff_weights0, *diff_bias0, *diff_pooled;
  int64_t weights_blocks;  // of each of the first two
};
inline constexpr size_t kSeBwdShared = kSeDepthN * (kSeTileC + kSeTileR) * sizeof(float);
static_assert(kSeBwdShared >= (kSeDepth * kSeTileC + kSeTileN * kSeDepth) * sizeof(float));

}  // namespace effnet::cuda
