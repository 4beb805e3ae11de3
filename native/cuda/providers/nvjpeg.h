// JPEG files decoded on the GPU, a batch at a time, by nvJPEG.
#pragma once

#include <memory>
#include <span>

#include "core/status.h"
#include "cuda/providers/nvjpeg_api.h"

namespace effnet::cuda {

class NvJpeg {
 public:
  struct Size {
    int width = 0, height = 0;
  };
  // Where an image goes: RGB, rows of `pitch` bytes, at a device address with room for all of them.
  struct Place {
    void* data = nullptr;
    size_t pitch = 0;
  };
  using File = std::span<const std::byte>;

  // Where the library has its own memory from, which outlives this.
  struct Memory {
    nvjpeg::Allocator device, host;
  };
  // With a handle of the context that is current. Without `memory` the library asks the driver. Code::backend_missing
  // where there is none, or where it does not start.
  static StatusOr<std::unique_ptr<NvJpeg>> create(const Memory* memory = nullptr);
  ~NvJpeg();
  NvJpeg(const NvJpeg&) = delete;
  NvJpeg& operator=(const NvJpeg&) = delete;

  // As stored, before the EXIF orientation. Code::data_decode where nvJPEG does not take the file: it is then for the
  // CPU to decode. Any thread.
  StatusOr<Size> size(File file) const;
  // Queues all of them on a stream (a CUstream), which must be empty: a hardware engine writes images without regard to
  // what the stream still has to do, and there is one state for all batches. The files must stay until the stream has
  // come to them. One caller at a time. A file that size() takes and that is damaged behind its header fails the batch:
  // Code::data_decode, which a fault of the device may look like; the stream tells.
  Status decode(std::span<const File> files, std::span<const Place> into, void* stream);

 private:
  NvJpeg() = default;
  nvjpeg::Functions functions_;
  Memory memory_ = {};
  nvjpeg::Handle handle_ = nullptr;
  nvjpeg::State state_ = nullptr;
  size_t batch_ = 0;  // that the state is prepared for
};

}  // namespace effnet::cuda
