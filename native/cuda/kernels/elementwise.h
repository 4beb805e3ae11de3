// Arguments of elementwise.cu. Pointers are device addresses, as aligned as tensors are.
#pragma once

#include <cstdint>

#include "cuda/kernels/drop.h"
#include "cuda/kernels/pixels.h"
#include "cuda/kernels/walk.h"
#include "plan/format.h"

namespace effnet::cuda {

inline constexpr uint32_t kElementwiseThreads = 256;
// Of tensors that are read in order, whatever their shape: a thread takes 4 vectors of 8 elements, of f32 of 4.
inline constexpr int64_t kFlatVectors = 4;
inline constexpr int64_t kNormalizeBytes = 16;  // of a thread

struct NormalizeArgs {
  const uint8_t* src;  // [count / 3][3]
  void* dst;
  int64_t count;
  PixelNorm norm;
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

// Images beside values of an image and channel, [n][c].
struct PerChannelArgs {
  Walk walk;
  const void* src;       // not read by the gradient of a pooling
  const float* channel;  // gate, or gradient of the pooled values
  void* dst;
  float factor;
};

struct DropImagesArgs {
  Walk walk;
  const void* src;
  void* dst;
  DropArgs drop;
};

struct DropElementsArgs {
  const void* src;
  void* dst;
  int64_t count;
  DropArgs drop;
};

}  // namespace effnet::cuda
