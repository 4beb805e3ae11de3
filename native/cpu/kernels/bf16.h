// bfloat16 as stored in arenas: the upper half of an FP32. Scalar conversions; the vector ones are in simd-inl.h.
#pragma once

#include <bit>
#include <cstdint>

namespace effnet {

struct BFloat16 {
  uint16_t bits;
};
static_assert(sizeof(BFloat16) == 2);

inline float to_float(BFloat16 v) { return std::bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }
inline float to_float(float v) { return v; }

// Round to nearest even; overflow becomes infinity; a NaN stays one (quiet).
inline BFloat16 to_bf16(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  if (v != v) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

}  // namespace effnet
