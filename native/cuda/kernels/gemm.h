// Arguments of gemm.cu: dense convolutions in all directions as matrix products whose operands are gathered on the way
// in, and the matrix products of classifier and gates. All sums are FP32 multiply-adds.
//
// NHWC images, OHWI weights in f32 (rounded to the images' type where it is 16-bit). Pointers are device addresses.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/kernels/batch_norm.h"
#include "plan/format.h"

namespace effnet::cuda {

// A block makes a tile of kGemmTile x kGemmTile results, a thread 4 x 4 of them, kGemmDepth terms at a time.
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

// dst = act(conv(src * gate) + bias) + residual
struct ConvArgs {
  ConvGeometry g;
  const void* src;
  plan::Act src_act;  // applied to the source first, in float
  const float* gate;  // [n][ic]
  const float *weights, *bias;
  plan::Act act;
  const void* residual;
  void* dst;
};

struct ConvBwdDataArgs {
  ConvGeometry g;
  const void* diff_dst;
  const float* weights;
  const void* slope_of;  // diff_src is multiplied by act'(bn(slope_of)), of the type of diff_src; or nullptr
  plan::Act act;
  void* diff_src;
  Norm slope_norm = {};  // mean nullptr: slope_of as it is
};

// Block z sums destination pixels [z, z + 1) * split_pixels.
struct ConvBwdWeightsArgs {
  ConvGeometry g;
  const void* src;
  plan::Act src_act;
  const void* diff_dst;
  int64_t split_pixels;
  float* parts;  // [splits][oc][kh * kw * ic]
};

// dst[i] = sum over parts of parts[part][i], in order.
struct SumPartsArgs {
  const float* parts;
  float* dst;
  int64_t count, parts_count;
};

// dst[c] = sum over rows of src[row][c]
struct SumRowsArgs {
  const float* src;
  float* dst;
  int64_t rows, c;
};

// d = diff_gate * gate * (1 - gate)
struct GateSlopeArgs {
  const float *diff_gate, *gate;
  float* d;
  int64_t count;
};

}  // namespace effnet::cuda
