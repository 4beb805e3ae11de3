// Activations and their slopes, exact to FP32. ReLU's slope is 0 at 0, ReLU6's also at 6, as in PyTorch.
#pragma once

#include "cuda/device/device.h"
#include "plan/format.h"

namespace effnet::cuda {

// 1 / (1 + e^-x), and 1 minus it to its own last bits.
EFF_DEVICE void sigmoid_and_complement(float x, float& s, float& complement) {
  const float e = exp_of(-min_of(87.0f, max_of(-87.0f, x)));
  s = 1.0f / (1.0f + e);
  complement = e * s;
  if (is_nan(x)) s = complement = x;
}

EFF_DEVICE float sigmoid(float x) {
  float s, complement;
  sigmoid_and_complement(x, s, complement);
  return s;
}

EFF_DEVICE void activate_both(plan::Act act, float x, float& value, float& slope) {
  float s, complement;
  value = x;
  slope = 1.0f;
  switch (act) {
    case plan::Act::silu:
      sigmoid_and_complement(x, s, complement);
      value = x * s;
      slope = fma(value, complement, s);
      break;
    case plan::Act::sigmoid:
      sigmoid_and_complement(x, value, complement);
      slope = value * complement;
      break;
    case plan::Act::relu:
      if (!(x > 0.0f) && !is_nan(x)) value = 0.0f;
      slope = x > 0.0f ? 1.0f : 0.0f;
      break;
    case plan::Act::relu6:
      if (!is_nan(x)) value = min_of(6.0f, max_of(0.0f, x));
      slope = x > 0.0f && x < 6.0f ? 1.0f : 0.0f;
      break;
    case plan::Act::identity:
      break;
  }
}

EFF_DEVICE float activate(plan::Act act, float x) {
  float value, slope;
  activate_both(act, x, value, slope);
  return value;
}

EFF_DEVICE float activation_slope(plan::Act act, float x) {
  float value, slope;
  activate_both(act, x, value, slope);
  return slope;
}

}  // namespace effnet::cuda
