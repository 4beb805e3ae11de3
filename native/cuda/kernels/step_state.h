// What kernels of a step tell each other and the host; cleared before each step.
#pragma once

#include <cstdint>

namespace effnet::cuda {

struct StepState {
  uint32_t skip;     // loss, norm of the gradients or running statistics are not finite: nothing is updated
  uint32_t unsound;  // running statistics, or parameters that an update made, are not finite
};

}  // namespace effnet::cuda
