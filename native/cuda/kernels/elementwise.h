// Arguments of elementwise.cu: one thread an element, striding by the grid. Pointers are device addresses.
#pragma once

#include <cstdint>

#include "cuda/kernels/drop.h"
#include "plan/format.h"

namespace effnet::cuda {

inline constexpr uint32_t kElementwiseThreads = 256;

struct NormalizeArgs {
  const uint8_t* src;  // [count / 3][3]
  void* dst;
  int64_t count;
  float mean[3], std[3];
};

struct ElementwiseArgs {
  const void *src0, *src1;
  void* dst;
  int64_t count;
  plan::Act act;
};

struct FillArgs {
  void* dst;
  int64_t count;
  double value;
};

// Images [n][pixels][c] beside values of an image and channel, [n][c].
struct PerChannelArgs {
  const void* src;       // not read by the gradient of a pooling
  const float* channel;  // gate, or gradient of the pooled values
  void* dst;
  int64_t count, pixels, c;
  float factor;
};

struct DropElementsArgs {
  const void* src;
  void* dst;
  int64_t count;
  int64_t group;  // neighbouring elements that are dropped together: an image, or 1
  DropArgs drop;
};

}  // namespace effnet::cuda
