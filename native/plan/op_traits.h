// What every backend asks about an op or a tensor, whatever kernel runs it.
#pragma once

#include <cstddef>

#include "plan/plan.h"

namespace effnet::plan {

// Optimizer and moving average: what a step leaves out when its loss or the norm of its gradients is not finite.
bool updates_parameters(OpId id);

// The norm of the gradients and what follows it: where an update takes several batches, done after the last of them.
bool is_of_update(OpId id);

// Whether it moves averages: of its operands, or of what it updates.
bool averages(const Op& op);

// Whether kOpHalfGradient means something: a gradient of a convolution's weights, from 16-bit images.
bool can_have_half_gradient(const Op& op);

// Bytes of an op's operands, those of a region's images counted for `images` of them.
double operand_bytes(const Op& op, int64_t images);

// Whether none of a tensor's values is NaN or infinity. True for integers.
bool all_finite(const Tensor& tensor, const std::byte* data);

}  // namespace effnet::plan
