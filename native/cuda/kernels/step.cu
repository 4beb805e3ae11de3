// The ends of a training step.
#include "cuda/device/device.h"
#include "cuda/kernels/step.h"

namespace effnet::cuda {

EFF_DEVICE void copy_piece(const StepEndsArgs& a, bool back) {
  if (block_x() >= a.count) return;
  const plan::Segment piece = a.pieces[block_x()];
  auto* weights = reinterpret_cast<float*>(a.weights + piece.offset);
  auto* aside = reinterpret_cast<float*>(a.aside + piece.grad_offset);
  for (int64_t i = thread_id(); i < piece.count; i += kStepThreads)
    (back ? weights : aside)[i] = back ? aside[i] : weights[i];
}

EFF_KERNEL(begin_step, StepEndsArgs, kStepThreads) {
  if (a.scalars->part > 0) return;
  if (block_x() == 0 && thread_id() == 0) a.state->skip = a.state->unsound = 0;
  copy_piece(a, false);
}

EFF_KERNEL(finish_step, StepEndsArgs, kStepThreads) {
  const bool skipped = a.state->skip != 0;
  if (skipped) copy_piece(a, true);
  if (block_x() > 0 || thread_id() > 0 || a.scalars->scale_interval <= 0) return;
  LossScale& loss = a.state->loss_scale;
  if (skipped) {
    loss.scale = max_of(static_cast<float>(loss.scale * a.scalars->scale_backoff), 1.0f);
    loss.growth = 0;
    ++loss.skipped;
  } else if (++loss.growth >= a.scalars->scale_interval) {
    const float grown = static_cast<float>(loss.scale * a.scalars->scale_growth);
    if (is_finite(grown)) loss.scale = grown;
    loss.growth = 0;
  }
}

EFF_KERNEL(accumulate, AccumulateArgs, kStepThreads) {
  const double parts = a.scalars->parts;
  const bool first = a.scalars->part == 0, last = a.scalars->part + 1 == parts;
  const float share = static_cast<float>(1 / parts);
  float* into = last ? a.grads : a.sums;
  for (int64_t i = global_id(); i < a.count; i += global_threads())
    into[i] = (first ? 0.0f : a.sums[i]) + a.grads[i] * share;
}

}  // namespace effnet::cuda
