// Launches that crop, resize and flip decoded images into the squares of a batch: two passes over all of them.
#pragma once

#include <span>
#include <vector>

#include "core/device_images.h"
#include "cuda/kernels/resample.h"
#include "cuda/launch.h"

namespace effnet::cuda {

// Images of a launch at most: a grid's second dimension.
inline constexpr size_t kMostResampled = 65535;

struct ResampleSource {
  const Resampling* how;
  int width, height;        // as stored
  const std::byte* pixels;  // RGB, rows `pitch` bytes apart
  size_t pitch;
  std::byte* square;  // size * size * 3 bytes of the batch
};

// Of the tables of these images, and of the first pass of one of them.
size_t resample_table_bytes(std::span<const ResampleSource> images, int size);
size_t resample_middle_bytes(const Resampling& how, int size);

// Writes the tables to `host`, to be copied to `tables` before the launches run. `middle` has room for the first pass
// of all images. Both are aligned to 16 bytes.
void record_resample(std::span<const ResampleSource> images, int size, std::byte* host, const std::byte* tables,
                     std::byte* middle, std::vector<Launch>& launches);

}  // namespace effnet::cuda
