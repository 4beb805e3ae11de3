// What kernels of a step tell each other and the host; cleared before each step.
#pragma once

#include <cstdint>

namespace effnet::cuda {

// Counters of blocks that are through (device.h, comes_last). Every launch leaves them 0.
inline constexpr int64_t kBlockCounters = 1024;

struct StepState {
  uint32_t skip;     // loss, norm of the gradients or running statistics are not finite: nothing is updated
  uint32_t unsound;  // running statistics, or parameters that an update made, are not finite
  uint32_t block_counters[kBlockCounters];
};

}  // namespace effnet::cuda
