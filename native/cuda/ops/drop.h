#pragma once

#include "core/philox.h"
#include "cuda/kernels/drop.h"
#include "plan/plan.h"

namespace effnet::cuda {

// Its scalars are set when launches are made: DropSpec::at.
struct DropSpec {
  double rate = 0;
  uint32_t stream = 0;

  static DropSpec of(const plan::Op& op, int attr_rate, int attr_stream) {
    return {op.attr(attr_rate), static_cast<uint32_t>(op.attr_int(attr_stream))};
  }
  DropArgs at(const StepScalars* scalars) const {
    if (rate == 0) return {};
    return {scalars, stream, drop_threshold(rate), static_cast<float>(1.0 / (1.0 - rate))};
  }
};

}  // namespace effnet::cuda
