// Arguments of loss.cu: softmax and its cross entropy with label smoothing, over rows of logits in f32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/kernels/step_state.h"

namespace effnet::cuda {

inline constexpr uint32_t kLossThreads = 256;
inline constexpr size_t kLossShared = kLossThreads * sizeof(double);

// A block a row. A label of -1 has no loss and no gradient; one outside the classes makes the loss NaN.
struct CrossEntropyArgs {
  const float* logits;    // [rows][classes]
  const int32_t* labels;  // [rows]
  int64_t rows, classes;
  double smoothing;
  float* diff_logits;
  int32_t* rank;     // classes that score above the label's; ties count where the index is smaller; -1 without a label
  double* row_loss;  // [rows], divided by the number of rows with a label
};

// dst = sum of src, in order; one thread.
struct SumLossArgs {
  const double* src;
  int64_t count;
  float* dst;
  StepState* state;
};

struct SoftmaxArgs {
  const float* logits;
  float* probs;
  int64_t classes;
};

}  // namespace effnet::cuda
