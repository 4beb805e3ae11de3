// One image from bytes to the pixels a model sees: decode, crop, resize, flip.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"
#include "io/jpeg.h"
#include "io/pixels.h"
#include "io/resize.h"

namespace effnet::io {

enum class Mode {
  eval,   // short side to resize_to, long = floor(resize_to * long / short), centre crop
  train,  // random resized crop and flip
  full,   // decoded size, nothing else
};

struct TransformOptions {
  Mode mode = Mode::eval;
  int size = 224;       // of the square result
  int resize_to = 256;  // eval; not below size
  bool squash = false;  // eval: the whole image to size x size, whatever its shape; resize_to is not used
  Filter filter = Filter::bicubic;
  bool exif_orientation = true;
  DecodeLimits limits;
  double scale_min = 0.08, scale_max = 1;           // train: share of the area
  double ratio_min = 3.0 / 4, ratio_max = 4.0 / 3;  // train: width / height, log-uniform
  double hflip = 0.5;                               // train: probability

  // invalid_argument naming the option.
  Status check() const;
};

// All that the random numbers of a sample depend on: Philox key, counters (epoch as step, index as stream).
struct SampleKey {
  uint64_t seed = 0;
  uint64_t epoch = 0;
  uint32_t index = 0;
};

// torchvision's RandomResizedCrop.get_params and a flip, drawn by Philox: attempt a of at most 10 uses elements 4a
// (area), 4a+1 (aspect), 4a+2 (y), 4a+3 (x); the flip uses element 40. Then the centre crop of the nearest ratio.
struct RandomCrop {
  Rect box;
  bool flip;
};
RandomCrop random_crop(int width, int height, const TransformOptions& options, const SampleKey& key);

// What becomes of an upright image in modes eval and train: `source` is resized to width x height, of which `window` is
// the result.
struct Placement {
  Rect source;
  int64_t width, height;
  Rect window;
  bool mirror;
};
// data_limit where it would be too long.
StatusOr<Placement> placement(int width, int height, const TransformOptions& options, const SampleKey& key);
// The same as tables, for a device that decodes the whole image of this stored size and EXIF orientation itself.
StatusOr<Resampling> resampling(int stored_width, int stored_height, int orientation, const TransformOptions& options,
                                const SampleKey& key);

// Decodes and transforms image after image; keeps its buffers. One per thread.
class Transformer {
 public:
  // modes eval and train: writes size*size*3 bytes to dst. data_decode, data_limit, aborted, oom.
  Status jpeg(const uint8_t* data, size_t bytes, const TransformOptions& options, const SampleKey& key, uint8_t* dst,
              const std::atomic<bool>* abort = nullptr);
  // The same for pixels that are decoded already (and upright).
  Status pixels(const View& image, const TransformOptions& options, const SampleKey& key, uint8_t* dst);
  // mode full: the upright image; valid until the next call.
  Status decode(const uint8_t* data, size_t bytes, const TransformOptions& options, View& out,
                const std::atomic<bool>* abort = nullptr);
  // Gives back the memory of unusually large images.
  void trim();

 private:
  Status train_jpeg(JpegReader& reader, const TransformOptions& options, const SampleKey& key, uint8_t* dst);

  Resizer resizer_;
  ByteBuffer decoded_, upright_;
};

}  // namespace effnet::io
