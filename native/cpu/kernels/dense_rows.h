// 1x1 convolutions as matrix products over the rows (pixels) of NHWC tensors, at the core's peak on AVX2 and AVX-512,
// with everything that touches a row done while it is in L1: gate on the source; bias, activation and residual on the
// destination.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plan/format.h"

namespace effnet::cpu {

// Weights as the register tiles read them: panels of 1 to 3 vectors of output channels, filled up with zeros, each
// [terms][channels] (bf16: pairs of terms side by side). 64-byte aligned.
struct DenseWeights {
  plan::DType dtype;
  int64_t terms, channels;  // length of the sums; columns of the result
  size_t bytes() const;
  int64_t padded_channels() const;  // whole vectors
  int64_t panels() const;
  int64_t first_channel(int64_t panel) const;  // of panels(): the number of channels
  // From FP32 in rows: weights[channel][term], or weights[term][channel] when `transposed`.
  void pack(const float* weights, bool transposed, void* packed) const;
};

// Whether there is code for this type on this CPU: bf16 needs AVX512_BF16 and an even number of terms.
bool has_dense_rows(plan::DType dtype, int64_t terms);

struct DenseRowsArgs {
  DenseWeights weights;
  const void* packed;
  const void* src;  // [rows][terms]
  void* dst;        // rows of dst_row elements, the first channel of panel_begin first
  int64_t dst_row;
  bool past_caches;      // dst is too large for the caches: write it to memory
  const float* bias;     // [channels] or null
  const float* gate;     // [images][terms] or null: src is multiplied by it (and rounded to its type)
  const void* residual;  // like dst, or null: added after the activation
  plan::Act act;
  int64_t image_rows;  // rows of an image, for the gate
  // Statistics of the rows as stored, or null: means, then sums of squared deviations, each padded_channels(). Those of
  // the panels at hand are written. Then there is no bias, activation or residual.
  double* stats;
  // All rows for a panel before the next one is begun, for rows that are few beside the weights: those come from memory
  // once and are fetched ahead. No stats, nothing past the caches.
  bool by_panels;
  bool gated_before;  // by panels: the scratch still has these rows times the gate from another call
  int64_t row_begin, row_end, panel_begin, panel_end;
  void* scratch;  // dense_scratch_bytes(), 64-byte aligned
};

// `gated_rows`: where there is a gate, the rows that are computed together: dense_row_block(), or all of them by
// panels.
size_t dense_scratch_bytes(const DenseWeights& weights, int64_t gated_rows, bool stats = false);
// Rows that are computed together: row_begin of a split should be a multiple of it.
int64_t dense_row_block();
void dense_rows(const DenseRowsArgs& args);

}  // namespace effnet::cpu
