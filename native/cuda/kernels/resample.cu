// Pillow's resampling of decoded images, bit for bit what io/resize.h gives: rows, then columns, in integers.
#include "cuda/kernels/resample.h"

#include "cuda/device/device.h"

namespace effnet::cuda {

constexpr int kFractionBits = 22;  // of the weights

EFF_DEVICE uint8_t rounded(uint32_t sum) {
  const int32_t value = static_cast<int32_t>(sum) >> kFractionBits;
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// Every output column of the rows that the second pass reads; a thread keeps to one column.
EFF_KERNEL(resample_columns, ResampleArgs, kResampleThreads) {
  const ResampleImage& image = a.images[block_y()];
  const int32_t groups = (image.row_count + kResampleRows - 1) / kResampleRows;
  const int64_t id = global_id();
  if (id >= static_cast<int64_t>(groups) * a.size) return;
  const int32_t column = static_cast<int32_t>(id % a.size), row = static_cast<int32_t>(id / a.size) * kResampleRows;
  const int32_t first = image.columns[column], count = image.columns[a.size + column];
  const int32_t* weights = image.columns + 2 * static_cast<int64_t>(a.size) + column;

  const uint8_t* source[kResampleRows];
  uint32_t sums[kResampleRows][3];
  EFF_UNROLL
  for (int r = 0; r < kResampleRows; ++r) {
    const int32_t y = row + r < image.row_count ? row + r : image.row_count - 1;
    source[r] = image.pixels + (image.first_row + y) * image.step_y + first * image.step_x;
    sums[r][0] = sums[r][1] = sums[r][2] = 1u << (kFractionBits - 1);
  }
  for (int32_t t = 0; t < count; ++t) {
    const uint32_t weight = static_cast<uint32_t>(weights[static_cast<int64_t>(t) * a.size]);
    EFF_UNROLL
    for (int r = 0; r < kResampleRows; ++r) {
      const uint8_t* pixel = source[r] + t * image.step_x;
      sums[r][0] += pixel[0] * weight;
      sums[r][1] += pixel[1] * weight;
      sums[r][2] += pixel[2] * weight;
    }
  }
  const int32_t at = image.mirror ? a.size - 1 - column : column;
  EFF_UNROLL
  for (int r = 0; r < kResampleRows; ++r) {
    if (row + r >= image.row_count) continue;
    uint8_t* out = image.middle + static_cast<int64_t>(row + r) * a.middle_pitch + at * 3;
    out[0] = rounded(sums[r][0]);
    out[1] = rounded(sums[r][1]);
    out[2] = rounded(sums[r][2]);
  }
}

// Every byte of the square: the channels of a row need not be told apart.
EFF_KERNEL(resample_rows, ResampleArgs, kResampleThreads) {
  const ResampleImage& image = a.images[block_y()];
  const int32_t bytes = a.size * 3, words = (bytes + kResampleBytes - 1) / kResampleBytes;
  const int64_t id = global_id();
  if (id >= static_cast<int64_t>(words) * a.size) return;
  const int32_t row = static_cast<int32_t>(id / words), at = static_cast<int32_t>(id % words) * kResampleBytes;
  const int32_t first = image.rows[row] - image.first_row, count = image.rows[a.size + row];
  const int32_t* weights = image.rows + 2 * static_cast<int64_t>(a.size) + row;

  const uint8_t* source = image.middle + static_cast<int64_t>(first) * a.middle_pitch + at;
  uint32_t sums[kResampleBytes];
  EFF_UNROLL
  for (uint32_t& sum : sums) sum = 1u << (kFractionBits - 1);
  for (int32_t t = 0; t < count; ++t) {
    const uint32_t weight = static_cast<uint32_t>(weights[static_cast<int64_t>(t) * a.size]);
    const uint32_t word = *reinterpret_cast<const uint32_t*>(source + static_cast<int64_t>(t) * a.middle_pitch);
    EFF_UNROLL
    for (int b = 0; b < kResampleBytes; ++b) sums[b] += (word >> (8 * b) & 0xff) * weight;
  }
  uint8_t* out = image.square + static_cast<int64_t>(row) * bytes + at;
  EFF_UNROLL
  for (int b = 0; b < kResampleBytes; ++b)
    if (at + b < bytes) out[b] = rounded(sums[b]);
}

}  // namespace effnet::cuda
