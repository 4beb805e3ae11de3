// Stochastic depth and dropout: which samples or elements survive a step. The counter is scalars.step, so a repeated
// forward op and the backward ops see the same choice.
#pragma once

#include <cstdint>

#include "core/philox.h"
#include "cpu/kernel.h"

namespace effnet::cpu {

struct Drop {
  double rate = 0;
  uint32_t stream = 0;

  static Drop of(const plan::Op& op, int attr_rate, int attr_stream) {
    return {op.attr(attr_rate), static_cast<uint32_t>(op.attr_int(attr_stream))};
  }
  float kept_factor() const { return static_cast<float>(1.0 / (1.0 - rate)); }
  // 0 for a dropped element, else 1/(1-rate).
  float factor(const StepScalars& scalars, int64_t element) const {
    if (rate == 0) return 1.0f;
    const uint32_t word = philox_u32(static_cast<uint64_t>(scalars.seed), static_cast<uint64_t>(scalars.step), stream,
                                     static_cast<uint64_t>(element));
    return word < drop_threshold(rate) ? 0.0f : kept_factor();
  }
};

}  // namespace effnet::cpu
