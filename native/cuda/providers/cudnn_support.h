// Which graphs the real cuDNN builds a plan for: cudnn_support.inc, asked of cuDNN 9.19 without a GPU by
// native/tests/cuda_cudnn_support_test.cc, which also asks some rows again.
#pragma once

#include <span>
#include <string>

#include "cuda/providers/cudnn.h"

namespace effnet::cuda {

struct SupportRow {
  int capability;      // 80 or 90
  const char* dtype;   // "f32", "tf32", "f16", "bf16"
  const char* graph;   // as graph_name() says
  int kernel, stride;  // padded to half the kernel
  int size, ic, oc;    // of the source, square
  int engine;          // 0: none
};
std::span<const SupportRow> support_rows();

// "forward", "forward_bias", "forward_bias_silu", "forward_bias_silu_residual", "bwd_data", "bwd_weights" (FP32),
// "bwd_weights_half" (as wide as the images)
std::string graph_name(const Convolution& convolution);

// Whether every row of that capability, graph, type, kernel and stride has an engine, and there is one. Later GPUs
// count as 90, others as 80.
bool is_supported(int capability, const Convolution& convolution);

}  // namespace effnet::cuda
