// Activations and their slopes. `T` is what the result is stored as: exact to FP32 for float; 16-bit types take the
// sigmoid from tanh_fast, one instruction in place of two. ReLU's slope is 0 at 0, ReLU6's also at 6, as in PyTorch.
#pragma once

#include "cuda/device/device.h"
#include "plan/format.h"

namespace effnet::cuda {

// 1 / (1 + e^-x), and 1 minus it; to their own last bits where T is float.
template <class T = float>
EFF_DEVICE void sigmoid_and_complement(float x, float& s, float& complement) {
  if constexpr (sizeof(T) == 2) {
    const float half_tanh = 0.5f * tanh_fast(0.5f * x);
    s = 0.5f + half_tanh;
    complement = 0.5f - half_tanh;
    return;
  }
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

template <class T = float>
EFF_DEVICE void activate_both(plan::Act act, float x, float& value, float& slope) {
  float s, complement;
  value = x;
  slope = 1.0f;
  switch (act) {
    case plan::Act::silu:
      sigmoid_and_complement<T>(x, s, complement);
      value = x * s;
      slope = fma(value, complement, s);
      break;
    case plan::Act::sigmoid:
      sigmoid_and_complement<T>(x, value, complement);
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

template <class T = float>
EFF_DEVICE float activate(plan::Act act, float x) {
  float value, slope;
  activate_both<T>(act, x, value, slope);
  return value;
}

template <class T = float>
EFF_DEVICE float activation_slope(plan::Act act, float x) {
  float value, slope;
  activate_both<T>(act, x, value, slope);
  return slope;
}

// SiLU of 16-bit types can be made of half its operand, h = x / 2: x * sigmoid(x) = h + h tanh(h), one
// multiply-add behind the tanh, and its slope is (1 + w) / 2 with w = tanh(h) + h (1 - tanh(h)^2), two.
template <class T>
EFF_DEVICE constexpr bool halves(plan::Act act) {
  return sizeof(T) == 2 && act == plan::Act::silu;
}
EFF_DEVICE float silu_of_half(float h) { return fma(h, tanh_fast(h), h); }
// The `w` of above.
EFF_DEVICE float slope_of_half(float h, float tanh) { return fma(h, fma(-tanh, tanh, 1.0f), tanh); }

}  // namespace effnet::cuda
