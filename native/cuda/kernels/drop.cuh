#pragma once

#include "cuda/device/device.h"
#include "cuda/kernels/drop.h"

namespace effnet::cuda {

struct Words4 {
  uint32_t word[4];
};

// Philox4x32-10; the counter is (element / 4, stream, step), the key the seed, the result the words of four elements.
EFF_DEVICE Words4 philox_words(uint64_t seed, uint64_t step, uint32_t stream, uint64_t element) {
  uint32_t c0 = static_cast<uint32_t>(element >> 2), c1 = stream;
  uint32_t c2 = static_cast<uint32_t>(step), c3 = static_cast<uint32_t>(step >> 32);
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  EFF_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0, p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(p0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

EFF_DEVICE Words4 drop_words(const DropArgs& drop, int64_t element) {
  return philox_words(static_cast<uint64_t>(drop.scalars->seed), static_cast<uint64_t>(drop.scalars->step), drop.stream,
                      static_cast<uint64_t>(element));
}

// 0 for a dropped element, else 1 / (1 - rate).
EFF_DEVICE float drop_factor(const DropArgs& drop, int64_t element) {
  if (!drop.scalars) return 1.0f;
  const Words4 words = drop_words(drop, element);
  const auto own = static_cast<uint32_t>(element & 3);
  const uint32_t word = own == 0 ? words.word[0] : own == 1 ? words.word[1] : own == 2 ? words.word[2] : words.word[3];
  return word < drop.threshold ? 0.0f : drop.kept_factor;
}

// Of elements first.., a multiple of 4.
EFF_DEVICE void drop_factors(const DropArgs& drop, int64_t first, float (&factor)[4]) {
  EFF_UNROLL
  for (int i = 0; i < 4; ++i) factor[i] = 1.0f;
  if (!drop.scalars) return;
  const Words4 words = drop_words(drop, first);
  EFF_UNROLL
  for (int i = 0; i < 4; ++i) factor[i] = words.word[i] < drop.threshold ? 0.0f : drop.kept_factor;
}

}  // namespace effnet::cuda
