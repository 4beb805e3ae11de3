// Arguments of batch_norm.cu: normalisation with activation, gate, stochastic depth and residual, forward and backward.
// Images are [n][pixels][c]; pointers are device addresses, nullptr = absent.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/kernels/drop.h"
#include "cuda/kernels/merge.h"
#include "cuda/kernels/walk.h"
#include "plan/format.h"

namespace effnet::cuda {

inline constexpr uint32_t kBnThreads = kWalkThreads;
// Reductions: a block takes 32 channels, 8 threads to a channel.
inline constexpr int64_t kBnChannels = 32, kBnLanes = kBnThreads / kBnChannels;
inline constexpr size_t kBnSumsShared = kBnThreads * sizeof(float);

struct Norm {
  const float *mean, *inv_std, *scale, *shift;  // [c]
};

// Where upstream gradients of act(bn(src)) come from: diff_z = drop(diff) * gate + diff_pooled / pixels.
struct Upstream {
  const void* diff;
  const float* gate;         // [n][c]
  const float* diff_pooled;  // [n][c]
  DropArgs drop;
  plan::Act act;
};

// dst = residual + drop(act(bn(src)) * gate)
struct BnActArgs {
  Walk walk;
  const void* src;
  Norm norm;
  plan::Act act;
  const float* gate;
  const void* residual;
  DropArgs drop;
  void* dst;
};

// Of each tile of rows and channel the mean of the stored values and the sum of squared deviations from it, merged.
struct BnTilesArgs {
  Walk walk;
  const void* src;
  StatsMergeArgs merge;
};
// Sums over all rows of g = diff_z * act'(bn(src)) and of g * (src - mean), by tiles, merged.
struct BnBwdTilesArgs {
  Walk walk;
  Upstream upstream;
  const void* src;
  Norm norm;
  SumsMergeArgs merge;
};
// diff_scale = sum over images of gate * sums[2] + diff_pooled / pixels * sums[3]; diff_shift with sums 0 and 1.
struct BnImageMergeArgs {
  const float *sums, *gate, *diff_pooled;  // [n][4][c], [n][c], [n][c]
  int64_t n, c;
  double inv_pixels;
  float *diff_scale, *diff_shift;
  MergeTree tree;  // images are its tiles; a block takes one group of them
};

// diff_src = scale * inv_std * (g - diff_shift / rows - xhat * diff_scale / rows); without sums scale * inv_std * g.
struct BnBwdApplyArgs {
  Walk walk;
  Upstream upstream;
  const void* src;
  Norm norm;
  const float *diff_scale, *diff_shift;  // both or neither
  float inv_rows;
  void* diff_src;
};

// Sums over the pixels of each image and channel. Where an image is cut into tiles, their last block adds them up.
struct ImageSumsArgs {
  Walk walk;
  const void* src;
  Norm norm;  // mean nullptr: src as it is
  plan::Act act;
  const void* diff;
  DropArgs drop;
  const float* gate;
  float* value;        // [n][c]: sum of the stored act(bn(src)), or with diff of drop(diff) * act(bn(src))
  float value_factor;  // of each sum
  float* sums;         // [n][4][c]: of bn_act_bwd_sums
  void* dst;           // act(bn(src)), with a gate drop(act(bn(src)) * gate); or nullptr
  float* tiles;        // [n][tile][1 or 5][c], not used for one tile
  StepState* state;
};

struct InvStdArgs {
  const float* var;
  float* inv_std;
  int64_t count;
  double eps;
};

struct FoldArgs {
  const float *weights, *scale, *shift, *running_mean, *running_var;
  float *folded_weights, *folded_bias;
  int64_t count;  // of the weights
  int64_t channels;
  int64_t inner;  // weights of one output channel that lie together: OHWI has them all, HWC one
  double eps;
};

}  // namespace effnet::cuda
