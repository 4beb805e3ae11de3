#pragma once

#include "cuda/device/device.h"
#include "cuda/kernels/drop.h"

namespace effnet::cuda {

// Philox4x32-10; the counter is (element / 4, stream, step), the key the seed, the result the element's word.
EFF_DEVICE uint32_t philox_word(uint64_t seed, uint64_t step, uint32_t stream, uint64_t element) {
  uint32_t c0 = static_cast<uint32_t>(element >> 2), c1 = stream;
  uint32_t c2 = static_cast<uint32_t>(step), c3 = static_cast<uint32_t>(step >> 32);
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0, p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(p0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  const uint32_t word = static_cast<uint32_t>(element & 3);
  return word == 0 ? c0 : word == 1 ? c1 : word == 2 ? c2 : c3;
}

// 0 for a dropped element, else 1 / (1 - rate).
EFF_DEVICE float drop_factor(const DropArgs& drop, int64_t element) {
  if (!drop.scalars) return 1.0f;
  const uint32_t word =
      philox_word(static_cast<uint64_t>(drop.scalars->seed), static_cast<uint64_t>(drop.scalars->step), drop.stream,
                  static_cast<uint64_t>(element));
  return word < drop.threshold ? 0.0f : drop.kept_factor;
}

}  // namespace effnet::cuda
