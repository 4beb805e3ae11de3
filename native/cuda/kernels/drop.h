// Stochastic depth and dropout: what a kernel needs to draw, the same bits as core/philox.h.
#pragma once

#include <cstdint>

#include "core/step_scalars.h"

namespace effnet::cuda {

struct DropArgs {
  const StepScalars* scalars = nullptr;  // its seed and step; nullptr: nothing is dropped
  uint32_t stream = 0;
  uint32_t threshold = 0;  // an element is dropped when its word is below
  float kept_factor = 1;
};

}  // namespace effnet::cuda
