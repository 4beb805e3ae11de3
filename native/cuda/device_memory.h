// The arenas of a model on a GPU, shared by its plans; they grow to what the plans need.
#pragma once

#include <memory>
#include <span>

#include "cuda/device.h"
#include "plan/format.h"

namespace effnet::cuda {

// One thread at a time.
class DeviceMemory {
 public:
  static StatusOr<std::shared_ptr<DeviceMemory>> create(std::shared_ptr<Device> device);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  const std::shared_ptr<Device>& device() const { return device_; }
  // Where all steps of the model run, one after another.
  CUstream stream() const { return stream_; }
  std::byte* arena(plan::Arena a) const { return blocks_[static_cast<int>(a)].data(); }
  uint64_t bytes(plan::Arena a) const { return blocks_[static_cast<int>(a)].bytes(); }
  // Counts growths: addresses recorded before one are stale.
  uint64_t generation() const { return generation_; }

  // Grows an arena to `bytes` if it is smaller, keeping its contents (new bytes are zero; activations are not kept).
  Status ensure(plan::Arena a, uint64_t bytes);
  // Copies after the work queued so far, and waits. Code::invalid_argument outside the arena.
  Status read(plan::Arena a, uint64_t offset, std::span<std::byte> into);
  Status write(plan::Arena a, uint64_t offset, std::span<const std::byte> from);

 private:
  explicit DeviceMemory(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  Status check_range(plan::Arena a, uint64_t offset, uint64_t bytes) const;

  std::shared_ptr<Device> device_;
  CUstream stream_ = nullptr;
  DeviceBlock blocks_[plan::kArenaCount];
  uint64_t generation_ = 0;
};

}  // namespace effnet::cuda
