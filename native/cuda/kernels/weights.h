// Arguments of weights.cu.
#pragma once

#include <cstdint>

namespace effnet::cuda {

inline constexpr uint32_t kCastThreads = 256;
inline constexpr int64_t kCastVector = 8;  // values a thread takes at a time

// dst[i] = src[i] as a 16-bit type; both 16-byte aligned.
struct CastWeightsArgs {
  const float* src;
  void* dst;
  int64_t count;
};

// dst[i] = src[i], of a 16-bit type; both 16-byte aligned.
struct WidenWeightsArgs {
  const void* src;
  float* dst;
  int64_t count;
};

}  // namespace effnet::cuda
