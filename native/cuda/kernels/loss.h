// Arguments of loss.cu: softmax and its cross entropy with label smoothing, over rows of logits in f32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/kernels/step_state.h"

namespace effnet::cuda {

// A block a row. A thread holds 16 values; longer rows are read three times, from the caches.
inline constexpr uint32_t kLossThreads = 256;
inline constexpr int kLossHeld = 16;
inline constexpr size_t kLossShared = kLossThreads / 32 * 3 * sizeof(double) + 16;

// A label of -1 has no loss and no gradient; one outside the classes makes the loss NaN.
struct CrossEntropyArgs {
  const float* logits;    // [rows][classes]
  const int32_t* labels;  // [rows]
  int64_t rows, classes;
  double smoothing;
  float* diff_logits;
  int32_t* rank;     // classes that score above the label's; ties count where the index is smaller; -1 without a label
  double* row_loss;  // [rows], divided by the number of rows with a label; the last block adds them up
  float* loss;
  bool updates;  // a loss that is not finite skips the update; one of an evaluation between its batches does not
  StepState* state;
};

struct SoftmaxArgs {
  const float* logits;
  float* probs;
  int64_t classes;
};

}  // namespace effnet::cuda
