// Arguments of instructions.cu.
#pragma once

#include <cstdint>

namespace effnet::test {

struct InstructionArgs {
  const void* in;
  void* out;
  int64_t count;  // elements, where the host may choose how many
};

// What one float becomes.
struct OfFloat {
  uint32_t tf32, bf16, f16;
  uint32_t pair_bf16, pair_f16;            // it and its negative in one word
  float exp, sqrt, greater, smaller, fma;  // the last three with kOther
  uint32_t is_nan, is_finite;
};
inline constexpr float kOther = 0.625f;

// What 16 bits become.
struct OfBits {
  float bf16, f16, tanh_bf16, tanh_f16;
  float first_bf16, second_bf16, first_f16, second_f16;  // of a word: they below, their complement above
};

struct OfDoubles {
  double fma, log, sqrt, power;  // of the first; fma and power with the second
};

inline constexpr int kMasks = 5;  // of lanes: 1, 2, 4, 8, 16
struct OfLane {
  float single[kMasks], single_sum;
  double precise[kMasks], precise_sum;
};

inline constexpr int kMatrixBytes = 512;  // four matrices of 8 rows of 16 bytes
struct OfMatrices {
  uint32_t straight[4], transposed[4];
};

inline constexpr uint32_t kCopyThreads = 96, kCopyGroups = 3;  // a thread copies 16 bytes in each group

inline constexpr uint32_t kCountingBlocks = 200;
struct OfBlocks {
  uint32_t counter, last_blocks, flag;
  uint32_t sum;  // made by the last block from what all left in `of_block`
  uint32_t of_block[kCountingBlocks];
};

}  // namespace effnet::test
