// Convolution forward on tensor cores.
#include "cuda/kernels/conv_forward.cuh"

namespace effnet::cuda {

#define CONV_FORWARD_OF(n, blocks, suffix, T)                                               \
  EFF_KERNEL_FITTING(conv2d_mma_128x##n##_##suffix, ConvArgs, kTileThreads, blocks) {       \
    conv_forward_mma<T, n, false>(a);                                                       \
  }                                                                                         \
  EFF_MERGING_KERNEL(conv2d_stats_mma_128x##n##_##suffix, ConvArgs, kTileThreads, blocks) { \
    conv_forward_mma<T, n, true>(a);                                                        \
  }
#define CONV_FORWARD(n, blocks)          \
  CONV_FORWARD_OF(n, blocks, bf16, Bf16) \
  CONV_FORWARD_OF(n, blocks, f16, F16)   \
  CONV_FORWARD_OF(n, blocks, tf32, float)

CONV_FORWARD(32, 3)
CONV_FORWARD(64, 2)
CONV_FORWARD(96, 2)
CONV_FORWARD(128, 2)

}  // namespace effnet::cuda
