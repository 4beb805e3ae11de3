// What changes from step to step and is no tensor.
#pragma once

namespace effnet {

// Hyper-parameters and counters of a step: inputs, never constants of the plan. Order = ts/runtime/scalars.ts.
struct StepScalars {
  double lr = 0;
  double step = 0;  // 0-based optimizer step; the Philox counter
  double seed = 0;  // integer below 2^53; the Philox key
  double weight_decay = 0;
  double momentum = 0;  // SGD, RMSProp: momentum; AdamW: beta1
  double alpha = 0;     // RMSProp: decay of the mean square; AdamW: beta2
  double eps = 0;
  double clip_norm = 0;       // 0 = no clipping
  double ema_decay = 0;       // the decay in force at this step
  double optimizer_step = 1;  // 1-based count of updates so far including this one (Adam's bias correction)
  double loss_scale = 1;
};
inline constexpr int kStepScalarCount = 11;

}  // namespace effnet
