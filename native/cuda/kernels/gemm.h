// Arguments of dense convolutions in all directions, as matrix products whose operands are gathered on the way in, and
// of the matrix products of the classifier. Sums are in FP32.
//
// NHWC images, OHWI weights. Pointers are device addresses, nullptr = absent.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/kernels/batch_norm.h"
#include "cuda/kernels/drop.h"
#include "cuda/kernels/merge.h"
#include "cuda/kernels/pixels.h"
#include "plan/format.h"

namespace effnet::cuda {

// The plain kernels (gemm.cu): a block makes a tile of kGemmTile x kGemmTile results, a thread 4 x 4 of them,
// kGemmDepth terms at a time.
inline constexpr uint32_t kGemmThreads = 256;
inline constexpr int kGemmTile = 64, kGemmDepth = 16;
inline constexpr int kGemmPitch = kGemmTile + 4;  // of a row of a tile in shared memory, in floats
inline constexpr size_t kGemmShared = 2 * kGemmDepth * kGemmPitch * sizeof(float);

struct ConvGeometry {
  int64_t n, h, w, ic;  // source
  int64_t oh, ow, oc;   // destination
  int64_t kh, kw, stride, pad_t, pad_l;

  int64_t dst_pixels() const { return n * oh * ow; }
  int64_t src_pixels() const { return n * h * w; }
};

// What is multiplied: act(bn(data)) * gate, rounded once to the type of the images; 0 outside of them. Kernels whose
// form says `pixels` have uint8 data, normalised by `pixels` and nothing else.
struct ConvSource {
  const void* data;
  Norm norm;
  plan::Act act;
  const float* gate;  // [n][ic]
  PixelNorm pixels;
};

// dst = act(conv(src) + bias) + residual
struct ConvArgs {
  ConvGeometry g;
  ConvSource src;
  const void* weights;  // of the images' type; f32 for the plain kernels, which round them
  const float* bias;
  plan::Act act;
  const void* residual;
  void* dst;
  // Tiled kernels: a block makes so many tiles one below the other, and of what it stored statistics, which are a tile
  // of these.
  int64_t tiles_a_block, tiles;
  StatsMergeArgs stats;
  // Small tiles (conv_small.cuh): block z makes so many steps of the sum.
  int64_t split_steps, splits;
  float* parts;  // [tile][splits], not used for one split
  StepState* state;
};

// Of a source that ends a block, residual? + drop(bn(src)): what else its gradient is made of, and the operands of the
// sums that the BN needs of the whole.
struct BlockEnd {
  const void* addend;  // of the type of diff_src, or nullptr
  const void* src;     // nullptr: no sums
  const float* mean;
  DropArgs drop;
};

struct ConvBwdDataArgs {
  ConvGeometry g;
  const void* diff_dst;
  const void* weights;   // as in ConvArgs
  const void* slope_of;  // diff_src is multiplied by act'(bn(slope_of)), of the type of diff_src
  plan::Act act;
  void* diff_src;
  Norm slope_norm;  // mean nullptr: slope_of as it is
  // As in ConvArgs; the sums that the BN in front of the source needs. No tiles: they are not made.
  int64_t tiles_a_block, tiles;
  SumsMergeArgs sums;
  BlockEnd end;  // nothing to multiply with then
};

// Block z sums destination pixels [z, z + 1) * split_pixels.
struct ConvBwdWeightsArgs {
  ConvGeometry g;
  ConvSource src;
  const void* diff_dst;
  int64_t split_pixels;
  float* parts;  // [splits][oc][kh * kw * ic]
};

// Both gradients of a 1x1 convolution whose result `dst` is normalised; `diff_dst` is the gradient of the normalised
// value. Images are cut into tiles; a block makes some tiles of one image, or some images, of `slice` channels.
struct ConvBwdOnceArgs {
  int64_t images, image_pixels, oc, ic;  // one image, where nothing is constant in images
  const void *diff_dst, *dst;
  Norm norm;                             // of dst, without its shift
  const float *diff_scale, *diff_shift;  // both or neither
  float inv_rows;
  DropArgs drop;
  const void* weights;  // of the images' type
  ConvSource src;
  void* diff_src;
  int64_t tiles_a_block, blocks_an_image, images_a_block;  // one of the last two is 1
  int64_t slice;
  float* parts;  // [blocks][oc][ic]
  // Of a gated source five sums by image: of one block the first to `value`, [image][ic], the others to `image_sums`,
  // [image][4][ic]; of several parts, [image][block of it][5][ic].
  float *value, *image_sums, *image_parts;
  SumsMergeArgs sums;  // of a normalised source, or one that ends a block, a tile a block
  BlockEnd end;        // of a stored source
};

// Five sums by image and channel, added up over the blocks of an image: the first to `value`, the others to `sums`.
struct ConvImageSumsArgs {
  const float* parts;  // [image][parts_count][5][c]
  int64_t images, parts_count, c;
  float *value, *sums;  // [image][c], [image][4][c]
};

}  // namespace effnet::cuda
