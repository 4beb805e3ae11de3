// Arguments of resample.cu: decoded images, each of its own size, to the squares of a batch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace effnet::cuda {

inline constexpr uint32_t kResampleThreads = 128;
inline constexpr int kResampleRows = 4;   // of the first pass that a thread makes
inline constexpr int kResampleBytes = 4;  // of the second pass that a thread makes

struct ResampleImage {
  const uint8_t* pixels;   // where the source begins, of the upright image
  int64_t step_x, step_y;  // bytes to the next pixel of the upright image
  uint8_t* middle;         // the first pass: `row_count` rows, `middle_pitch` apart
  uint8_t* square;         // of the batch
  // Of each direction `size` positions, as many counts, then weights (AxisWeights).
  const int32_t* columns;
  const int32_t* rows;
  int32_t first_row, row_count;  // of the source that the second pass reads
  int32_t mirror;
};

struct ResampleArgs {
  const ResampleImage* images;  // one for each block_y
  int32_t size;
  int32_t middle_pitch;  // a multiple of kResampleBytes
};

}  // namespace effnet::cuda
