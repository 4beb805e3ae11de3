// Convolution forward by FP32 multiply-adds.
#include "cuda/kernels/conv_forward.cuh"

namespace effnet::cuda {

#define CONV_FORWARD(n, blocks)                                                                                   \
  EFF_KERNEL_FITTING(conv2d_fma_128x##n##_f32, ConvArgs, kTileThreads, blocks) { conv_forward_fma<n, false>(a); } \
  EFF_MERGING_KERNEL(conv2d_stats_fma_128x##n##_f32, ConvArgs, kTileThreads, blocks) { conv_forward_fma<n, true>(a); }

CONV_FORWARD(32, 3)
CONV_FORWARD(64, 2)
CONV_FORWARD(128, 1)

}  // namespace effnet::cuda
