// How the tiled depthwise kernels cut a layer, from shapes alone.
#pragma once

#include "cuda/kernels/depthwise.h"
#include "cuda/launch.h"

namespace effnet::cuda {

// Whether the tiled kernels have code for it: else the plain ones are taken.
bool depthwise_has_tiles(const DepthwiseGeometry& g, size_t element_bytes);

struct DepthwisePlan {
  DepthwiseTiling tiling;
  Dim grid;
  uint32_t threads;
  int64_t parts;  // blocks on a slab
  size_t shared_bytes;
  int32_t block_tiles;  // backward: tiles that a block takes in turn
};

// normalises: src goes through its normalisation while it is staged. passes: statistics or sums are made of dst.
struct ForwardNeeds {
  bool normalises, passes;
};
DepthwisePlan depthwise_forward_plan(const DepthwiseGeometry& g, size_t element_bytes, const ForwardNeeds& needs);

// `differentiates`: diff_dst is made of what follows while it is staged.
DepthwisePlan depthwise_backward_plan(const DepthwiseGeometry& g, size_t element_bytes, bool differentiates);

}  // namespace effnet::cuda
