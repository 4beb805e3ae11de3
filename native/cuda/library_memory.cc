#include "cuda/library_memory.h"

#include <utility>

namespace effnet::cuda {

Status LibraryMemory::start() {
  EFF_CUDA(device_->driver(), cuStreamCreateWithPriority, &stream_, CU_STREAM_NON_BLOCKING, 0);
  return ok_status();
}

LibraryMemory::~LibraryMemory() {
  if (!stream_ || !device_->enter().ok()) return;
  on_device_.clear();
  device_->driver().cuStreamDestroy(stream_);
}

nvjpeg::Allocator LibraryMemory::device_blocks() {
  return {[](void* self, void** data, size_t bytes, nvjpeg::Stream) {
            auto* memory = static_cast<LibraryMemory*>(self);
            return memory->note(memory->allocate_on_device(data, bytes));
          },
          [](void* self, void* data, size_t, nvjpeg::Stream) {
            auto* memory = static_cast<LibraryMemory*>(self);
            return memory->give_back(memory->on_device_, data);
          },
          this};
}

nvjpeg::Allocator LibraryMemory::host_blocks() {
  return {[](void* self, void** data, size_t bytes, nvjpeg::Stream) {
            auto* memory = static_cast<LibraryMemory*>(self);
            return memory->note(memory->allocate_on_host(data, bytes));
          },
          [](void* self, void* data, size_t, nvjpeg::Stream) {
            auto* memory = static_cast<LibraryMemory*>(self);
            return memory->give_back(memory->on_host_, data);
          },
          this};
}

Status LibraryMemory::allocate_on_device(void** data, size_t bytes) {
  auto block = DeviceBlock::allocate(device_, bytes, stream_, budget_);
  if (!block.ok()) return block.status();
  EFF_CUDA(device_->driver(), cuStreamSynchronize, stream_);
  *data = block.value().data();
  const std::lock_guard lock(mutex_);
  if (*data) on_device_[*data] = std::move(block.value());
  return ok_status();
}

Status LibraryMemory::allocate_on_host(void** data, size_t bytes) {
  auto block = HostBlock::allocate(device_, bytes);
  if (!block.ok()) return block.status();
  *data = block.value().data();
  const std::lock_guard lock(mutex_);
  if (*data) on_host_[*data] = std::move(block.value());
  return ok_status();
}

int LibraryMemory::note(const Status& status) {
  if (status.ok()) return nvjpeg::kTaken;
  const std::lock_guard lock(mutex_);
  refusal_ = status;
  return nvjpeg::kRefused;
}

template <class Blocks>
int LibraryMemory::give_back(Blocks& blocks, void* data) {
  typename Blocks::node_type block;  // freed outside the lock
  const std::lock_guard lock(mutex_);
  block = blocks.extract(data);
  return !data || block ? nvjpeg::kTaken : nvjpeg::kRefused;
}

Status LibraryMemory::take_refusal() {
  const std::lock_guard lock(mutex_);
  return std::exchange(refusal_, ok_status());
}

}  // namespace effnet::cuda
