// SGD, RMSProp (two forms), AdamW, moving average and gradient norm, in place over flat arenas. Constants are made in
// double from the step's scalars, the arithmetic is FP32, the norm double.
#include "cuda/device/device.h"
#include "cuda/kernels/optimizer.h"

namespace effnet::cuda {

struct Constants {
  float lr, momentum, one_minus_momentum, alpha, one_minus_alpha, eps, weight_decay, grad_factor;
  float adam_step, adam_inv_root;  // lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
  float adam_decay;                // lr * weight_decay
};

EFF_DEVICE Constants constants_of(const UpdateArgs& a) {
  const StepScalars& s = *a.scalars;
  double factor = 1;
  if (a.norm && s.clip_norm > 0) {
    const double norm = *a.norm;
    factor = s.clip_norm / (norm > s.clip_norm || norm != norm ? norm : s.clip_norm);
  }
  Constants k;
  k.lr = static_cast<float>(s.lr);
  k.momentum = static_cast<float>(s.momentum);
  k.one_minus_momentum = static_cast<float>(1 - s.momentum);
  k.alpha = static_cast<float>(s.alpha);
  k.one_minus_alpha = static_cast<float>(1 - s.alpha);
  k.eps = static_cast<float>(s.eps);
  k.weight_decay = static_cast<float>(s.weight_decay * a.decay_mult);
  k.grad_factor = static_cast<float>(factor);
  k.adam_step = k.adam_inv_root = k.adam_decay = 0.0f;
  if (a.rule == Rule::adamw) {
    k.adam_step = static_cast<float>(s.lr / (1 - power(s.momentum, s.optimizer_step)));
    k.adam_inv_root = static_cast<float>(1 / sqrt_of(1 - power(s.alpha, s.optimizer_step)));
    k.adam_decay = static_cast<float>(s.lr * s.weight_decay * a.decay_mult);
  }
  return k;
}

EFF_DEVICE void update(Rule rule, const Constants& k, float& w, float g, float& m0, float& m1) {
  if (rule == Rule::adamw) {
    m0 = fma(k.momentum, m0, k.one_minus_momentum * g);
    m1 = fma(k.alpha, m1, k.one_minus_alpha * (g * g));
    const float root = fma(sqrt_of(m1), k.adam_inv_root, k.eps);
    w = fma(-k.adam_decay, w, w);
    w = fma(-k.adam_step, m0 / root, w);
    return;
  }
  g = fma(k.weight_decay, w, g);
  switch (rule) {
    case Rule::sgd:
    case Rule::sgd_nesterov:
      m0 = fma(k.momentum, m0, g);
      w = fma(-k.lr, rule == Rule::sgd ? m0 : fma(k.momentum, m0, g), w);
      return;
    case Rule::rmsprop_tf:
      m0 = fma(k.alpha, m0, k.one_minus_alpha * (g * g));
      m1 = fma(k.momentum, m1, k.lr * g / sqrt_of(m0 + k.eps));
      w -= m1;
      return;
    default:
      m0 = fma(k.alpha, m0, k.one_minus_alpha * (g * g));
      m1 = fma(k.momentum, m1, g / (sqrt_of(m0) + k.eps));
      w = fma(-k.lr, m1, w);
  }
}

EFF_KERNEL(update_weights, UpdateArgs, kOptimizerThreads) {
  if (a.state->skip) return;
  const plan::Segment piece = a.pieces[block_x()];
  const Constants k = constants_of(a);
  const bool second = a.rule != Rule::sgd && a.rule != Rule::sgd_nesterov;
  auto* weights = reinterpret_cast<float*>(a.weights + piece.offset);
  auto* moment0 = reinterpret_cast<float*>(a.moment0 + piece.offset);
  auto* moment1 = second ? reinterpret_cast<float*>(a.moment1 + piece.offset) : nullptr;
  const auto* grads = reinterpret_cast<const float*>(a.grads + piece.grad_offset);
  bool sound = true;
  for (int64_t i = thread_id(); i < piece.count; i += kOptimizerThreads) {
    float w = weights[i], m0 = moment0[i], m1 = second ? moment1[i] : 0.0f;
    update(a.rule, k, w, grads[i] * k.grad_factor, m0, m1);
    weights[i] = w;
    moment0[i] = m0;
    if (second) moment1[i] = m1;
    sound = sound && w - w == 0.0f;
  }
  if (!sound) store_relaxed(&a.state->unsound, 1u);
}

// ema += (1-d) * (weights - ema): settles around the weights, where d*ema + (1-d)*weights would settle beside them.
EFF_KERNEL(update_ema, EmaArgs, kOptimizerThreads) {
  if (a.state->skip || a.state->unsound) return;
  const plan::Segment piece = a.pieces[block_x()];
  const float share = static_cast<float>(1 - a.scalars->ema_decay);
  const auto* weights = reinterpret_cast<const float*>(a.weights + piece.offset);
  auto* ema = reinterpret_cast<float*>(a.ema + piece.offset);
  for (int64_t i = thread_id(); i < piece.count; i += kOptimizerThreads)
    ema[i] = fma(share, weights[i] - ema[i], ema[i]);
}

EFF_KERNEL(sum_squares, NormArgs, kOptimizerThreads) {
  Shared shared;
  double* scratch = shared.take<double>(kOptimizerThreads);
  const plan::Segment piece = a.pieces[block_x()];
  const auto* grads = reinterpret_cast<const float*>(a.grads + piece.grad_offset);
  double sum = 0;
  for (int64_t i = thread_id(); i < piece.count; i += kOptimizerThreads)
    sum += static_cast<double>(grads[i]) * static_cast<double>(grads[i]);
  scratch[thread_id()] = sum;
  EFF_SYNC_BLOCK();
  if (thread_id() > 0) return;
  for (uint32_t i = 1; i < kOptimizerThreads; ++i) sum += scratch[i];
  a.sums[block_x()] = sum;
}

EFF_KERNEL(merge_norm, NormMergeArgs, kOptimizerThreads) {
  if (thread_id() > 0) return;
  double sum = 0;
  for (int64_t i = 0; i < a.count; ++i) sum += a.sums[i];
  *a.norm = static_cast<float>(sqrt_of(sum));
  if (!is_finite(*a.norm)) a.state->skip = 1;
}

}  // namespace effnet::cuda
