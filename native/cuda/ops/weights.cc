#include "cuda/ops/weights.h"

#include "cuda/kernels/weights.h"

namespace effnet::cuda {

Launch cast_weights_launch(const void* src, void* dst, int64_t count, plan::DType dtype) {
  const CastWeightsArgs args{static_cast<const float*>(src), dst, count};
  return make_launch("cast_weights" + suffix(dtype), grid_for(count / kCastVector, kCastThreads), kCastThreads, 0,
                     args);
}

Launch widen_weights_launch(const void* src, void* dst, int64_t count, plan::DType dtype) {
  const WidenWeightsArgs args{src, static_cast<float*>(dst), count};
  return make_launch("widen_weights" + suffix(dtype), grid_for(count / kCastVector, kCastThreads), kCastThreads, 0,
                     args);
}

}  // namespace effnet::cuda
