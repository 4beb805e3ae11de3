// What is done to a convolution's tile while it is in the core's cache.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plan/format.h"

namespace effnet::cpu {

// dst[i] = act(dst[i]) + residual[i]; residual may be null. dtype f32 or bf16; the sum is taken in FP32.
void act_residual(plan::Act act, void* dst, const void* residual, size_t count, plan::DType dtype);

// dst[r][c] = src[r][c] * gate[image of r][c] for `rows` rows of c channels; row 0 is row `first_row` of the batch and
// an image has image_rows rows.
void scale_by_gate(const void* src, const float* gate, void* dst, int64_t first_row, int64_t rows, int64_t image_rows,
                   int64_t channels, plan::DType dtype);

// parts[0][i] = parts[0][i] + parts[1][i] + ... in this order; part p begins at parts + p * stride.
void add_parts(float* parts, size_t count, size_t stride, int part_count);

}  // namespace effnet::cpu
