// A normalisation by channel in shared memory.
#pragma once

#include "cuda/device/device.h"
#include "cuda/kernels/batch_norm.h"

namespace effnet::cuda {

// Three rows of `count` floats, of channels c ..: mean, factor and shift of (x - mean) * factor + shift, as bn_act
// computes it; times `share`, a power of two. By all threads of a block, which wait for one another before they read.
EFF_DEVICE void fill_norm_rows(float* rows, int count, const Norm& norm, int64_t c, float share) {
  for (int i = static_cast<int>(thread_id()); i < count; i += static_cast<int>(block_threads())) {
    rows[i] = norm.mean[c + i];
    rows[count + i] = norm.scale[c + i] * norm.inv_std[c + i] * share;
    rows[2 * count + i] = norm.shift ? norm.shift[c + i] * share : 0.0f;
  }
}

}  // namespace effnet::cuda
