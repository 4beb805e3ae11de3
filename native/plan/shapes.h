// What the operands of each op must look like to one another. Part of load(): after it a kernel may compute any address
// from the dimensions of any operand.
#pragma once

#include "core/status.h"
#include "plan/plan.h"

namespace effnet::plan {

Status check_shapes(const Op& op);

}  // namespace effnet::plan
