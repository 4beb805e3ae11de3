// The 16-bit storage types, by their definitions: what backends' conversions are measured against.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "plan/format.h"

namespace effnet::test {

using plan::DType;

inline float bf16_to_float(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// Round to nearest even, by the definition: of the two neighbours the nearer one, on a tie the even one.
inline uint16_t float_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  const uint32_t low = bits & 0xffff, high = bits >> 16;
  if (low > 0x8000 || (low == 0x8000 && (high & 1))) return static_cast<uint16_t>(high + 1);
  return static_cast<uint16_t>(high);
}

inline float f16_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
}

// By the definition too: `value` in units of the last place of its binade, ties to even. From 65520 on it is infinite.
inline uint16_t float_to_f16(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return sign | 0x7e00;
  const float size = std::abs(value);
  if (size >= 65520.0f) return sign | 0x7c00;
  const int binade = size > 0 ? std::max(std::ilogb(size), -14) : -14;
  const auto units = static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 10 - binade)));
  // Units of a normal number have their leading bit, which counts into the exponent; so does rounding up to 2048.
  return static_cast<uint16_t>(sign + ((binade + 14) << 10) + units);
}

// As 16 bits of `dtype`, bf16 or f16.
inline uint16_t to_bits16(DType dtype, float value) {
  return dtype == DType::f16 ? float_to_f16(value) : float_to_bf16(value);
}
inline float from_bits16(DType dtype, uint16_t bits) {
  return dtype == DType::f16 ? f16_to_float(bits) : bf16_to_float(bits);
}

inline double round_to(DType dtype, double value) {
  const float single = static_cast<float>(value);
  return dtype == DType::bf16 || dtype == DType::f16 ? from_bits16(dtype, to_bits16(dtype, single)) : single;
}

}  // namespace effnet::test
