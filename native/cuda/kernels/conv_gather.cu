// Convolutions of few input channels, forward and the gradient of weights: see conv_gather.cuh.
#include "cuda/kernels/conv_gather.cuh"

namespace effnet::cuda {

#define CONV_GATHER_FORWARD(n, blocks, unit, suffix, ...)                                               \
  EFF_KERNEL_FITTING(conv2d_##unit##_gather_128x##n##_##suffix, ConvArgs, kTileThreads, blocks) {       \
    conv_gather_forward_##unit<__VA_ARGS__ n, false>(a);                                                \
  }                                                                                                     \
  EFF_KERNEL_FITTING(conv2d_stats_##unit##_gather_128x##n##_##suffix, ConvArgs, kTileThreads, blocks) { \
    conv_gather_forward_##unit<__VA_ARGS__ n, true>(a);                                                 \
  }
#define CONV_GATHER(n, blocks)                       \
  CONV_GATHER_FORWARD(n, blocks, mma, bf16, Bf16, )  \
  CONV_GATHER_FORWARD(n, blocks, mma, f16, F16, )    \
  CONV_GATHER_FORWARD(n, blocks, mma, tf32, float, ) \
  CONV_GATHER_FORWARD(n, blocks, fma, f32, )

CONV_GATHER(32, 3)
CONV_GATHER(64, 2)

#define CONV_GATHER_WEIGHTS(unit, suffix, ...)                                                                  \
  EFF_KERNEL_FITTING(conv2d_bwd_weights_##unit##_gather_128x32_##suffix, ConvBwdWeightsArgs, kTileThreads, 3) { \
    conv_gather_backward_weights_##unit<__VA_ARGS__ 128, 32>(a);                                                \
  }

CONV_GATHER_WEIGHTS(mma, bf16, Bf16, )
CONV_GATHER_WEIGHTS(mma, f16, F16, )
CONV_GATHER_WEIGHTS(mma, tf32, float, )
CONV_GATHER_WEIGHTS(fma, f32, )

}  // namespace effnet::cuda
