// How sums over parts are shared out (kernels/sum_parts.h), from shapes alone.
#pragma once

#include "cuda/ops/common.h"

namespace effnet::cuda {

// dst[i] = sum over parts of parts[part][i], i < count.
Launch sum_parts(const float* parts, int64_t parts_count, int64_t count, float* dst);

}  // namespace effnet::cuda
