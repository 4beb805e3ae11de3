// Arguments of step.cu: how a training step begins and ends.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/step_scalars.h"
#include "cuda/kernels/step_state.h"
#include "plan/segments.h"

namespace effnet::cuda {

inline constexpr uint32_t kStepThreads = 256;

// Running statistics are updated in the forward part, when nobody knows yet whether the step is any good: an update
// begins by putting them aside, and one that is skipped ends by putting them back.
struct StepEndsArgs {
  const plan::Segment* pieces;  // a block takes one: of the weights at `offset`, put aside at `grad_offset`
  int64_t count;                // of them; blocks: at least one
  std::byte* weights;
  std::byte* aside;
  const StepScalars* scalars;
  StepState* state;
};

// Adds the gradients of a batch to those of the batches before it; the last one leaves their mean in `grads`.
struct AccumulateArgs {
  float* grads;
  float* sums;
  int64_t count;
  const StepScalars* scalars;
};

}  // namespace effnet::cuda
