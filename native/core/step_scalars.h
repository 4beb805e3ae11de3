// What changes from step to step and is no tensor.
#pragma once

#include <cstdint>

namespace effnet {

// Hyper-parameters and counters of a step: inputs, never constants of the plan. Order = ts/runtime/scalars.ts.
struct StepScalars {
  double lr = 0;
  double step = 0;  // 0-based count of batches; the Philox counter
  double seed = 0;  // integer below 2^53; the Philox key
  double weight_decay = 0;
  double momentum = 0;  // SGD, RMSProp: momentum; AdamW: beta1
  double alpha = 0;     // RMSProp: decay of the mean square; AdamW: beta2
  double eps = 0;
  double clip_norm = 0;       // 0 = no clipping
  double ema_decay = 0;       // the decay in force at this step
  double optimizer_step = 1;  // 1-based count of updates so far including this one (Adam's bias correction); those that
                              // LossScale counts as skipped are taken off
  // An update from several batches: this is batch `part` of `parts`. The update follows the last one.
  double part = 0, parts = 1;
  // The loss scale grows by the factor after so many updates without a skipped one; 0 = it stays what it is.
  double scale_interval = 0, scale_growth = 2, scale_backoff = 0.5;
};
inline constexpr int kStepScalarCount = 15;

// Outlives steps, and is part of checkpoints. A step whose gradients are not finite updates nothing, and the scale
// backs off; where it never changes, such a step is an error.
struct LossScale {
  float scale = 1;
  uint32_t growth = 0;   // updates since the scale has changed
  uint32_t skipped = 0;  // updates left out
};

}  // namespace effnet
