// Convolution forward where there are few pixels.
#include "cuda/kernels/conv_small.cuh"

namespace effnet::cuda {

// 3 and 4 blocks: without the bound the merge takes more than the 64 registers that let 4 fit.
#define CONV_SMALL(unit, suffix, ...)                                                   \
  EFF_KERNEL_FITTING(conv2d_##unit##_64x32_##suffix, ConvArgs, kTileThreads, 3) {       \
    conv_forward_small_##unit<__VA_ARGS__ false>(a);                                    \
  }                                                                                     \
  EFF_MERGING_KERNEL(conv2d_stats_##unit##_64x32_##suffix, ConvArgs, kTileThreads, 4) { \
    conv_forward_small_##unit<__VA_ARGS__ true>(a);                                     \
  }

CONV_SMALL(mma, bf16, Bf16, )
CONV_SMALL(mma, f16, F16, )
CONV_SMALL(mma, tf32, float, )
CONV_SMALL(fma, f32, )

}  // namespace effnet::cuda
