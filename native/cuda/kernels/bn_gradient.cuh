// The gradient of a BN's source from that of its result, g, and the sums of g over all rows:
// factor * g + (src - mean) * slope + constant, with bn(src) = (src - mean) * factor + shift.
#pragma once

#include "cuda/device/device.h"

namespace effnet::cuda {

struct BnGradient {
  float slope, constant;

  // Of a channel. `inv_rows`: 1 / rows.
  EFF_DEVICE BnGradient(float factor, float inv_std, float diff_scale, float diff_shift, float inv_rows)
      : slope(diff_scale * (-factor * inv_std * inv_rows)), constant(diff_shift * (-factor * inv_rows)) {}
  // Where the statistics are constants.
  EFF_DEVICE BnGradient() : slope(0.0f), constant(0.0f) {}
};

}  // namespace effnet::cuda
