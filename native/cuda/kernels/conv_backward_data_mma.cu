// The gradient of a convolution's source on tensor cores.
#include "cuda/kernels/conv_backward_data.cuh"

namespace effnet::cuda {

#define CONV_BACKWARD_DATA_WITH(KERNEL, name, epilogue, n, blocks, suffix, T)                     \
  KERNEL(conv2d_bwd_data_##name##mma_128x##n##_##suffix, ConvBwdDataArgs, kTileThreads, blocks) { \
    conv_backward_data_mma<T, n, DataEpilogue::epilogue>(a);                                      \
  }
#define CONV_BACKWARD_DATA(n, blocks, suffix, T)                             \
  CONV_BACKWARD_DATA_WITH(EFF_KERNEL_FITTING, , none, n, blocks, suffix, T)  \
  CONV_BACKWARD_DATA_WITH(EFF_MERGING_KERNEL, bn_, bn, n, blocks, suffix, T) \
  CONV_BACKWARD_DATA_WITH(EFF_MERGING_KERNEL, end_, end, n, blocks, suffix, T)
#define CONV_BACKWARD_DATA_16(n, blocks)    \
  CONV_BACKWARD_DATA(n, blocks, bf16, Bf16) \
  CONV_BACKWARD_DATA(n, blocks, f16, F16)

CONV_BACKWARD_DATA_16(32, 3)
CONV_BACKWARD_DATA_16(64, 2)
CONV_BACKWARD_DATA_16(96, 2)
CONV_BACKWARD_DATA_16(128, 2)
CONV_BACKWARD_DATA(32, 3, tf32, float)
CONV_BACKWARD_DATA(64, 2, tf32, float)

}  // namespace effnet::cuda
