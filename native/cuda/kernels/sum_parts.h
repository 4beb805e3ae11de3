// Arguments of sum_parts.cu: adding up what blocks of another kernel have left, or the rows of a matrix.
#pragma once

#include <cstddef>
#include <cstdint>

namespace effnet::cuda {

inline constexpr uint32_t kSumPartsThreads = 256;
inline constexpr size_t kSumPartsShared = kSumPartsThreads * sizeof(double);

// dst[i] = sum over parts of parts[part][i]. Each of `lanes` threads, which divide a block's, takes every lanes-th
// part, in order; then they are added in order.
struct SumPartsArgs {
  const float* parts;
  float* dst;
  int64_t count, parts_count;
  int32_t lanes;
};

}  // namespace effnet::cuda
