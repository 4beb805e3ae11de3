// What kernels of a step tell each other, the next step and the host. One for all plans of a memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/step_scalars.h"

namespace effnet::cuda {

// Counters of blocks that are through (device.h, comes_last). They are 0 when the memory is taken, and the last block
// to count sets each back, so that every launch that ran leaves them 0 for the next one, replayed or not, in whichever
// step: a step that is not finite runs all its launches, one that could not be queued runs those that were, whole, and
// after a fault no memory of the context is used again. Those of merges (merge.h) are apart: a kernel may need both.
inline constexpr int64_t kBlockCounters = 1024, kMergeCounters = 8192;

// What the host reads after a step, in front of the rest.
struct StepReport {
  // Cleared where an update begins.
  uint32_t skip;     // loss, norm of the gradients or running statistics are not finite: nothing is updated
  uint32_t unsound;  // running statistics, or parameters that an update made, are not finite
  LossScale loss_scale;
};

struct StepState : StepReport {
  uint32_t block_counters[kBlockCounters];
  uint32_t merge_counters[kMergeCounters];
};

}  // namespace effnet::cuda
