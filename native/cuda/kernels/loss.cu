// Softmax and its cross entropy: a block a row, sums in double.
//   loss = mean over rows with a label of (1-s) * NLL + s * mean_k(-log p_k),  diff_logits = (p - target) / their
//   number
#include "cuda/device/device.h"
#include "cuda/kernels/loss.h"

namespace effnet::cuda {

// Sum and maximum over the block, the same in every thread. A NaN makes the maximum one.
EFF_DEVICE double block_sum(double* scratch, double v) {
  EFF_SYNC_BLOCK();
  scratch[thread_id()] = v;
  for (uint32_t half = kLossThreads / 2; half > 0; half /= 2) {
    EFF_SYNC_BLOCK();
    if (thread_id() < half) scratch[thread_id()] += scratch[thread_id() + half];
  }
  EFF_SYNC_BLOCK();
  return scratch[0];
}

EFF_DEVICE float block_max(double* scratch, float v) {
  EFF_SYNC_BLOCK();
  scratch[thread_id()] = v;
  EFF_SYNC_BLOCK();
  float best = static_cast<float>(scratch[0]);
  for (uint32_t i = 1; i < kLossThreads; ++i) {
    const float other = static_cast<float>(scratch[i]);
    if (!(other <= best)) best = is_nan(best) ? best : other;
  }
  return best;
}

EFF_DEVICE float row_max(double* scratch, const float* x, int64_t classes) {
  float best = -kInfinity;
  for (int64_t k = thread_id(); k < classes; k += kLossThreads)
    if (!(x[k] <= best)) best = x[k];
  return block_max(scratch, best);
}

EFF_KERNEL(cross_entropy, CrossEntropyArgs, kLossThreads) {
  Shared shared;
  double* scratch = shared.take<double>(kLossThreads);
  const int64_t row = block_x(), label = a.labels[row];
  const float* x = a.logits + row * a.classes;
  float* diff = a.diff_logits + row * a.classes;
  double labelled = 0;
  for (int64_t r = thread_id(); r < a.rows; r += kLossThreads) labelled += a.labels[r] >= 0 ? 1 : 0;
  labelled = block_sum(scratch, labelled);
  if (label < 0 || label >= a.classes) {
    for (int64_t k = thread_id(); k < a.classes; k += kLossThreads) diff[k] = 0.0f;
    if (thread_id() == 0) {
      a.rank[row] = label < 0 ? -1 : static_cast<int32_t>(a.classes);
      a.row_loss[row] = label < 0 ? 0.0 : static_cast<double>(kNan);
    }
    return;
  }
  const float max = row_max(scratch, x, a.classes), own = x[label];
  double exponentials = 0, distances = 0, above = 0;
  for (int64_t k = thread_id(); k < a.classes; k += kLossThreads) {
    exponentials += exp_of(x[k] - max);
    distances += static_cast<double>(x[k]) - max;
    // What is not a number counts as above: a broken row is never right.
    above += !(x[k] <= own) || (x[k] == own && k < label) ? 1 : 0;
  }
  exponentials = block_sum(scratch, exponentials);
  distances = block_sum(scratch, distances);
  above = block_sum(scratch, above);
  const double classes = static_cast<double>(a.classes), s = a.smoothing;
  if (thread_id() == 0) {
    const double log_sum = log_of(exponentials);
    double loss = (1 - s) * (log_sum - (static_cast<double>(own) - max));
    if (s > 0) loss += s * (log_sum - distances / classes);
    a.row_loss[row] = loss / labelled;
    a.rank[row] = static_cast<int32_t>(above);
  }
  for (int64_t k = thread_id(); k < a.classes; k += kLossThreads) {
    const double target = s / classes + (k == label ? 1 - s : 0);
    diff[k] = static_cast<float>((exp_of(x[k] - max) / exponentials - target) / labelled);
  }
}

EFF_KERNEL(sum_loss, SumLossArgs, kLossThreads) {
  if (thread_id() > 0) return;
  double sum = 0;
  for (int64_t i = 0; i < a.count; ++i) sum += a.src[i];
  *a.dst = static_cast<float>(sum);
  if (!is_finite(*a.dst)) a.state->skip = 1;
}

EFF_KERNEL(softmax, SoftmaxArgs, kLossThreads) {
  Shared shared;
  double* scratch = shared.take<double>(kLossThreads);
  const float* x = a.logits + static_cast<int64_t>(block_x()) * a.classes;
  float* probs = a.probs + static_cast<int64_t>(block_x()) * a.classes;
  const float max = row_max(scratch, x, a.classes);
  double sum = 0;
  for (int64_t k = thread_id(); k < a.classes; k += kLossThreads) sum += exp_of(x[k] - max);
  sum = block_sum(scratch, sum);
  for (int64_t k = thread_id(); k < a.classes; k += kLossThreads)
    probs[k] = static_cast<float>(exp_of(x[k] - max) / sum);
}

}  // namespace effnet::cuda
