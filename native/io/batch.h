// A decoded batch in native memory: what a loader fills and a step reads, without a copy through JavaScript.
#pragma once

#include <cstddef>
#include <memory>

#include "core/device_images.h"
#include "core/memory.h"

namespace effnet::io {

// Laid out as a plan's input arena: images uint8 [batch, size, size, 3] at 0, labels int32 [batch] at labels_offset
// (the next multiple of 64). A batch in use by a step is kept alive by its shared_ptr; the ring takes it back when the
// last owner lets go.
// It lies in `block`, or on a device.
struct Batch {
  Block block;
  std::shared_ptr<DeviceInput> device;
  size_t labels_offset = 0;

  std::byte* data() const { return block.data(); }
  size_t bytes() const { return device ? device->bytes() : block.bytes(); }
};

}  // namespace effnet::io
