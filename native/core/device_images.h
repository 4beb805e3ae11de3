// Batches of images that a backend makes where its steps read them: files are decoded, cropped, resized and flipped on
// the device. What becomes of each image is decided outside (io/transform.h) and given as tables.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/memory.h"
#include "core/status.h"

namespace effnet {

// An input arena (images uint8 at 0, labels int32 behind them) on a device.
class DeviceInput {
 public:
  virtual ~DeviceInput() = default;
  virtual uint64_t bytes() const = 0;
  // Waits until it is made, and copies it to the host. Any thread.
  virtual Status read(std::span<std::byte> into) const = 0;
};

// One direction of a resize, of n outputs: output i is the sum over t < count[i] of source[first[i] + t] *
// weight[t * n + i], of 22 fractional bits. `first` and `first + count` never fall.
struct AxisWeights {
  std::vector<int32_t> first, count, weight;
  int32_t taps = 0;  // the most

  size_t outputs() const { return first.size(); }
};

// How a decoded image becomes a square of a batch: rows first, each pass rounded to 8 bits.
struct Resampling {
  int orientation = 1;   // EXIF: that of the pixels as they are stored; all else is in the upright image's coordinates
  int32_t x = 0, y = 0;  // where the source of the two directions begins
  bool mirror = false;   // left to right
  AxisWeights columns, rows;
};

// A file and what becomes of it, or finished pixels.
struct DeviceImage {
  std::vector<uint8_t> file;  // JPEG; empty: `pixels`
  int width = 0, height = 0;  // as stored
  Resampling how;
  std::vector<uint8_t> pixels;  // size * size * 3, decoded and transformed on the CPU
  int32_t label = -1;
};

class DeviceImages {
 public:
  struct Options {
    int batch_size = 1, size = 1;  // images of size x size
    uint64_t bytes = 0, labels_offset = 0;
    size_t keep = 1;  // batches' memory that goes round
    // Of the device, for decoded images before they are resized; more only where one image alone needs it.
    uint64_t scratch_bytes = uint64_t{512} << 20;
    // What all of it counts in, the decoder's own memory too. Where it has a limit, room for decoded images is a part
    // of that and is taken with the batches at the start, so that what comes later is not refused for it; absent:
    // nothing is counted.
    std::shared_ptr<Budget> budget;
  };
  virtual ~DeviceImages() = default;

  // Whether it would decode this file; the reason why not. Any thread.
  virtual Status accepts(std::span<const uint8_t> file, int width, int height) const = 0;

  // Queues a batch of the first images; missing ones are zero and without label. Where some cannot be decoded on the
  // device after all there is none, and `refused` has their positions. One caller at a time.
  virtual StatusOr<std::shared_ptr<DeviceInput>> make(std::span<const std::shared_ptr<const DeviceImage>> images,
                                                      std::vector<size_t>& refused) = 0;
};

}  // namespace effnet
