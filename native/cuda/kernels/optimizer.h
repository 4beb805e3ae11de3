// Arguments of optimizer.cu: updates over pieces of the flat arenas of parameters.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/step_scalars.h"
#include "cuda/kernels/step_state.h"
#include "plan/segments.h"

namespace effnet::cuda {

inline constexpr uint32_t kOptimizerThreads = 256;
inline constexpr size_t kNormShared = kOptimizerThreads * sizeof(double);

enum class Rule : int32_t { sgd, sgd_nesterov, rmsprop_torch, rmsprop_tf, adamw };

struct UpdateArgs {
  Rule rule;
  const plan::Segment* pieces;  // a block takes one
  std::byte *weights, *moment0, *moment1;
  const std::byte* grads;
  const StepScalars* scalars;
  const float* norm;  // of the gradients, or nullptr
  double decay_mult;
  StepState* state;
};

struct EmaArgs {
  const plan::Segment* pieces;
  const std::byte* weights;
  std::byte* ema;
  const StepScalars* scalars;
  const StepState* state;
};

struct NormArgs {
  const plan::Segment* pieces;
  const std::byte* grads;
  double* sums;  // of squares, one a piece
};
struct NormMergeArgs {
  const double* sums;
  int64_t count;
  float* norm;
  StepState* state;
};

}  // namespace effnet::cuda
