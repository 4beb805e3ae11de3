// Depthwise convolutions: what the kernels (depthwise.cc) hand to the vector code (depthwise_conv.cc,
// depthwise_grad.cc).
//
//   forward:          dst[n,y,x,c] = sum_{i,j} src[n, y*stride - pad_t + i, x*stride - pad_l + j, c] * weights[i,j,c]
//   backward data:    diff_src = the transpose of that
//   backward weights: diff_weights[i,j,c] = sum_{n,y,x} src[n, y*stride - pad_t + i, ...] * diff_dst[n,y,x,c]
//
// All work on one block of channels at a time, a vector wide. Rows are first copied to a ring in the worker's scratch:
// as FP32, contiguous, with zero columns in place of the padding and zero lanes beyond the last channel. So the inner
// loops know neither borders, nor storage types, nor tails, and a bf16 value is widened once and not once a tap.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/math.h"
#include "cpu/kernels/lanes.h"
#include "plan/format.h"

namespace effnet::cpu {

// A sliding-window pass from `src` to `dst`. Backward data is one too: with diff_dst as the source, at stride 1 with
// the weights mirrored, at larger strides as `transposed`.
struct DepthwisePass {
  int64_t n, src_h, src_w, dst_h, dst_w, c;
  int64_t kh, kw, stride;
  int64_t pad_t, pad_l;  // of the pass; may be negative in a mirrored one
  bool mirrored;         // tap (i, j) uses weights[kh-1-i, kw-1-j]
  bool transposed;       // dst[y] takes src[(y + pad_t - i) / stride] where that is integral
  bool bf16;             // storage of src and dst; the weights are then rounded to bf16

  int64_t ring_rows() const { return transposed ? ceil_div(kh, stride) : kh; }
  int64_t ring_cols() const;       // columns of a ring row, with padding
  int64_t out_cols() const;        // columns of the row buffer
  int64_t blocks_at_once() const;  // channel blocks (of kMaxLanes) in the ring
  int64_t scratch_floats() const;  // of conv_depthwise()
  bool has_tiles() const { return !transposed && kh == kw && (kw == 3 || kw == 5) && (stride == 1 || stride == 2); }
};

// One shard: rows [row0, row1) of image `image`, channels [c0, c1); c0 is a multiple of kMaxLanes.
struct DepthwiseShard {
  int64_t image, row0, row1, c0, c1;
};

// Where a source that is not a whole tensor lies: one image's rows from first_row on, a pixel being `channels` values,
// the first of them of channel first_channel.
struct DepthwiseBand {
  bool used;
  int64_t first_row, first_channel, channels;
};

struct DepthwiseConvArgs {
  const DepthwisePass* pass;
  const void* src;
  const float* weights;
  const float* bias;  // [C] or nullptr
  plan::Act act;
  void* dst;
  float* pooled;  // [C] or nullptr: receives pool_scale * sum of the stored values of the shard's rows
  float pool_scale;
  float* scratch;
  DepthwiseBand band;  // of src; tiles only
  bool stream;         // dst is larger than the caches: write past them where that is possible (tiles only)
};
void conv_depthwise(const DepthwiseConvArgs& args, const DepthwiseShard& shard);
// The same for passes that has_tiles(), where the shard has a whole vector of channels.
void conv_depthwise_tiles(const DepthwiseConvArgs& args, const DepthwiseShard& shard);

// Sums of `count` rows [C] that lie `stride` floats apart, in order, times `scale`.
void sum_rows(const float* rows, int64_t count, int64_t stride, float scale, float* dst, int64_t c);

struct DepthwiseGrad {
  int64_t n, h, w, out_h, out_w, c;
  int64_t kh, kw, stride, pad_t, pad_l;
  bool bf16;

  int64_t ring_cols() const { return (out_w - 1) * stride + kw; }
  int64_t rows_at_once() const;  // output rows that one sweep takes
  int64_t blocks_at_once() const;
  int64_t ring_rows() const { return (rows_at_once() - 1) * stride + kh; }
  int64_t scratch_floats() const;  // of grad_depthwise()
};

// Images [n0, n1), output rows [row0, row1) of each, channels [c0, c1).
struct DepthwiseGradShard {
  int64_t n0, n1, row0, row1, c0, c1;
};

struct DepthwiseGradArgs {
  const DepthwiseGrad* grad;
  const void* src;
  const void* diff_dst;
  float* diff_weights;  // [kh, kw, C]: the shard's own sums, channels [c0, c1) are written
  float* scratch;
};
void grad_depthwise(const DepthwiseGradArgs& args, const DepthwiseGradShard& shard);

}  // namespace effnet::cpu
