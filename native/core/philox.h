// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The same bits as
// ts/graph/philox.ts and the CUDA kernels: key = seed, counter = (block, stream, step low, step high), where `block`
// is element / 4 and the element's word is element % 4.
#pragma once

#include <array>
#include <cstdint>

namespace effnet {

inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(p0)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

inline uint32_t philox_u32(uint64_t seed, uint64_t step, uint32_t stream, uint64_t element) {
  const auto words = philox4x32(
      {static_cast<uint32_t>(element >> 2), stream, static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32)},
      static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return words[element & 3];
}

// An element is dropped when its word is below this; rate in [0, 1).
inline uint32_t drop_threshold(double rate) { return static_cast<uint32_t>(rate * 4294967296.0); }

}  // namespace effnet
