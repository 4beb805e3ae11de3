// Convolution forward with windows of one pixel, on tensor cores.
#include "cuda/kernels/conv_point.cuh"

namespace effnet::cuda {

#define CONV_POINT_OF(n, blocks, suffix, T)                                                     \
  EFF_KERNEL_FITTING(conv2d_mma_1x1_128x##n##_##suffix, ConvArgs, kTileThreads, blocks) {       \
    conv_point<T, n, false>(a);                                                                 \
  }                                                                                             \
  EFF_MERGING_KERNEL(conv2d_stats_mma_1x1_128x##n##_##suffix, ConvArgs, kTileThreads, blocks) { \
    conv_point<T, n, true>(a);                                                                  \
  }
#define CONV_POINT(n, blocks)          \
  CONV_POINT_OF(n, blocks, bf16, Bf16) \
  CONV_POINT_OF(n, blocks, f16, F16)

CONV_POINT(32, 3)
CONV_POINT(64, 2)
CONV_POINT(96, 2)
CONV_POINT(128, 2)

}  // namespace effnet::cuda
