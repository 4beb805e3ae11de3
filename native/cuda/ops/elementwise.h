// Launches over elements in order that other ops' bindings use too.
#pragma once

#include "cuda/kernel.h"

namespace effnet::cuda {

// dst = src0 + src1 of `count` elements; dst may be one of them.
Launch add_launch(const void* src0, const void* src1, void* dst, int64_t count, plan::DType dtype);

}  // namespace effnet::cuda
