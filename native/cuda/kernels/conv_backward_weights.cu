// The gradient of a convolution's weights, on tensor cores and by FP32 multiply-adds.
#include "cuda/kernels/conv_backward_weights.cuh"

namespace effnet::cuda {

#define CONV_BACKWARD_WEIGHTS_MMA(m, n, blocks, suffix, T)                                                    \
  EFF_KERNEL_FITTING(conv2d_bwd_weights_mma_##m##x##n##_##suffix, ConvBwdWeightsArgs, kTileThreads, blocks) { \
    conv_backward_weights_mma<T, m, n>(a);                                                                    \
  }
#define CONV_BACKWARD_WEIGHTS(m, n, blocks)                                                              \
  CONV_BACKWARD_WEIGHTS_MMA(m, n, blocks, bf16, Bf16)                                                    \
  CONV_BACKWARD_WEIGHTS_MMA(m, n, blocks, f16, F16)                                                      \
  CONV_BACKWARD_WEIGHTS_MMA(m, n, blocks, tf32, float)                                                   \
  EFF_KERNEL_FITTING(conv2d_bwd_weights_fma_##m##x##n##_f32, ConvBwdWeightsArgs, kTileThreads, blocks) { \
    conv_backward_weights_fma<m, n>(a);                                                                  \
  }

CONV_BACKWARD_WEIGHTS(32, 128, 3)
CONV_BACKWARD_WEIGHTS(64, 64, 3)
CONV_BACKWARD_WEIGHTS(128, 32, 3)
CONV_BACKWARD_WEIGHTS(128, 128, 2)

}  // namespace effnet::cuda
