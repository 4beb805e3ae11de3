// The 16-bit copy of weights (Addresses::working).
#pragma once

#include "cuda/ops/common.h"

namespace effnet::cuda {

// Values of 16-bit `dtype` out of `count` values of FP32.
Launch cast_weights_launch(const void* src, void* dst, int64_t count, plan::DType dtype);
// And back.
Launch widen_weights_launch(const void* src, void* dst, int64_t count, plan::DType dtype);

}  // namespace effnet::cuda
