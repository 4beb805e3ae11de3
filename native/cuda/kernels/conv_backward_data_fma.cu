// The gradient of a convolution's source by FP32 multiply-adds.
#include "cuda/kernels/conv_backward_data.cuh"

namespace effnet::cuda {

#define CONV_BACKWARD_DATA_WITH(KERNEL, name, epilogue, n, blocks)                           \
  KERNEL(conv2d_bwd_data_##name##fma_128x##n##_f32, ConvBwdDataArgs, kTileThreads, blocks) { \
    conv_backward_data_fma<n, DataEpilogue::epilogue>(a);                                    \
  }
#define CONV_BACKWARD_DATA(n, blocks)                             \
  CONV_BACKWARD_DATA_WITH(EFF_KERNEL_FITTING, , none, n, blocks)  \
  CONV_BACKWARD_DATA_WITH(EFF_MERGING_KERNEL, bn_, bn, n, blocks) \
  CONV_BACKWARD_DATA_WITH(EFF_MERGING_KERNEL, end_, end, n, blocks)

CONV_BACKWARD_DATA(32, 3)
CONV_BACKWARD_DATA(64, 2)

}  // namespace effnet::cuda
