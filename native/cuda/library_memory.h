// Memory that nvJPEG takes for itself: from the driver, counted where the model's is.
#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "core/memory.h"
#include "cuda/device.h"
#include "cuda/providers/nvjpeg_api.h"

namespace effnet::cuda {

class LibraryMemory {
 public:
  LibraryMemory(std::shared_ptr<Device> device, std::shared_ptr<Budget> budget)
      : device_(std::move(device)), budget_(std::move(budget)) {}
  ~LibraryMemory();
  LibraryMemory(const LibraryMemory&) = delete;
  LibraryMemory& operator=(const LibraryMemory&) = delete;

  Status start();
  // For nvjpegCreateExV2; they call this object, which must outlive the handle.
  nvjpeg::Allocator device_blocks();
  // Page-locked, as the library wants them; ordinary memory where the host has none to lock, which no real nvJPEG has
  // tried.
  nvjpeg::Allocator host_blocks();
  // Why a block could not be had since this was asked last; ok where none was refused. The library has its own word
  // for it.
  Status take_refusal();

 private:
  // Any thread: the library has its own.
  Status allocate_on_device(void** data, size_t bytes);
  Status allocate_on_host(void** data, size_t bytes);
  int note(const Status& status);
  template <class Blocks>
  int give_back(Blocks& blocks, void* data);

  const std::shared_ptr<Device> device_;
  const std::shared_ptr<Budget> budget_;
  CUstream stream_ = nullptr;  // zeroes a block, and is waited for before the library has it
  std::mutex mutex_;
  std::map<void*, DeviceBlock> on_device_;
  std::map<void*, HostBlock> on_host_;
  Status refusal_;
};

}  // namespace effnet::cuda
