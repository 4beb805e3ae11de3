// A normalised value of the input, by whichever kernel reads it: always the same bits.
#pragma once

#include "cuda/device/device.h"
#include "cuda/kernels/pixels.h"

namespace effnet::cuda {

EFF_DEVICE float normalised_pixel(float value, float mean, float inv_std) { return (value - mean) * inv_std; }

// Of consecutive values the first of which is of channel `phase`: that of value i at i % 3. Chosen by comparisons: an
// index that is not known when this is compiled would put the arguments into memory.
EFF_DEVICE PixelNorm turned(const PixelNorm& norm, int phase) {
  const auto chosen = [phase](const float(&of)[3], int i) {
    return phase == 0 ? of[i] : phase == 1 ? of[(i + 1) % 3] : of[(i + 2) % 3];
  };
  PixelNorm result;
  EFF_UNROLL
  for (int i = 0; i < 3; ++i) {
    result.mean[i] = chosen(norm.mean, i);
    result.inv_std[i] = chosen(norm.inv_std, i);
  }
  return result;
}

// A value of channel `c`.
EFF_DEVICE float normalised_pixel(float value, const PixelNorm& norm, int c) {
  const PixelNorm from = turned(norm, c);
  return normalised_pixel(value, from.mean[0], from.inv_std[0]);
}

}  // namespace effnet::cuda
