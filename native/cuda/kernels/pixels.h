// The uint8 images that a network begins with, and what normalises them.
#pragma once

namespace effnet::cuda {

// (value - mean) * inv_std, by channel.
struct PixelNorm {
  float mean[3], inv_std[3];
};

}  // namespace effnet::cuda
