// Arguments of depthwise*.cu. NHWC images, HWC weights in f32 (rounded to the images' type where it is 16-bit).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/kernels/batch_norm.h"
#include "cuda/kernels/merge.h"
#include "plan/format.h"

namespace effnet::cuda {

inline constexpr uint32_t kDepthwiseThreads = 256;

struct DepthwiseGeometry {
  int64_t n, h, w, c, oh, ow;
  int64_t kh, kw, stride, pad_t, pad_l;
};

// ---- plain: any window, any number of channels -------------------------------------------------------------------

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

// ---- by tiles: windows of 3 or 5, stride 1 or 2, channels in whole 16-byte vectors -------------------------------

// Columns that a thread takes of a row.
inline constexpr int kDepthwiseStrip = 4;
// Threads that a multiprocessor must have registers for, 96 each for 640 and 128 each for 512. Blocks have at most
// kDepthwiseThreads.
inline constexpr uint32_t kDepthwiseK3Threads = 640, kDepthwiseK5Threads = 512;

// Floats a channel that a block keeps in shared memory besides taps: a normalisation, and with that all that diff_dst
// may be made of.
inline constexpr int kDepthwiseNormRows = 3, kDepthwiseOperandRows = 10;

// Blocks are [tiles / this][tiles % this][slab], the last fastest, so that those on one pixel come together.
inline constexpr int kDepthwiseGridRows = 32768;

// How an image is cut. A block stages what its tile's windows see of `slab` channels in shared memory. Its threads are
// [row group][strip][pair of channels], the last fastest: a warp's accesses are whole lines.
struct DepthwiseTiling {
  int32_t slab;              // divides c
  int32_t rows, cols;        // of a tile; the last ones of an image may have fewer
  int32_t tiles_y, tiles_x;  // of an image
  int32_t row_groups, group_rows, strips;
  int32_t staged_rows, staged_cols;  // pixels that a tile's windows see, of src or, backward, of diff_dst
};

// dst = act(conv(src_act(bn(src))) + bias), with what is made of the stored values in passing.
struct DepthwiseTilesArgs {
  DepthwiseGeometry g;
  DepthwiseTiling t;
  const void* src;
  Norm norm;  // mean nullptr: src as it is
  plan::Act src_act;
  const float *weights, *bias;
  plan::Act act;
  void* dst;
  StatsMergeArgs stats;  // no tiles: not made
  float* pool;           // [tile of an image][n][c]: sums times pool_factor, or nullptr
  float pool_factor;
};

// What diff_dst is made of where only the gradient of what follows dst's normalisation is stored: that of dst, as
// bn_act_bwd_apply forms and rounds it.
struct DepthwiseBehind {
  const void* dst;  // nullptr: diff_dst as it is
  Norm norm;
  plan::Act act;
  const float *diff_scale, *diff_shift;  // [c]; nullptr: the statistics are constants
  const float *gate, *diff_pooled;       // [n][c] or nullptr
  float inv_rows, inv_pixels;            // 1 / rows of dst, 1 / pixels of an image
};

// diff_src, times src_act'(bn(src)) where there is a norm, and the sums of both backward parts. What is nullptr is not
// made.
struct DepthwiseBwdTilesArgs {
  DepthwiseGeometry g;
  DepthwiseTiling t;
  int32_t block_tiles;  // tiles, of one or more images, that a block takes in turn
  const void* diff_dst;
  DepthwiseBehind behind;
  const float* weights;
  const void* src;
  Norm norm;
  plan::Act src_act;
  void* diff_src;
  float* weight_parts;  // [block][k * k][c]
  SumsMergeArgs sums;   // of diff_src, a tile a block; no tiles: not made
};

}  // namespace effnet::cuda
