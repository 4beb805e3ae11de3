// What kernels of a step tell each other, the next step and the host. One for all plans of a memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/step_scalars.h"

namespace effnet::cuda {

// Counters of blocks that are through (device.h, comes_last). Every launch leaves them 0.
inline constexpr int64_t kBlockCounters = 1024;

struct StepState {
  // Cleared where an update begins.
  uint32_t skip;     // loss, norm of the gradients or running statistics are not finite: nothing is updated
  uint32_t unsound;  // running statistics, or parameters that an update made, are not finite
  LossScale loss_scale;
  uint32_t block_counters[kBlockCounters];
};
// What the host reads.
inline constexpr size_t kStepReportBytes = offsetof(StepState, block_counters);

}  // namespace effnet::cuda
