// The inner loops of resize.cc, compiled for several instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>

namespace effnet::io {

inline constexpr int kPrecisionBits = 32 - 8 - 2;
inline constexpr int kLowBits = 11;

// `count` pixels of up to four rows: out[i] = sum over taps of row[first[i] + t] * weight. A row may be read up to
// 16 bytes past its last tap, and is written one byte past its last pixel.
void resample_columns(const uint8_t* const* rows, uint8_t* const* out, int row_count, int count, const int* first,
                      const int16_t* high, const int16_t* low, int taps, bool mirror);
// One row of `bytes` bytes from `taps` (even) source rows.
void resample_rows(const uint8_t* const* rows, uint8_t* out, size_t bytes, const int16_t* high, const int16_t* low,
                   int taps);

}  // namespace effnet::io
