#include "cuda/input_ring.h"

#include <algorithm>
#include <cstring>

namespace effnet::cuda {

Status InputRing::add_slot(const DeviceMemory& memory, CUstream stream) {
  const auto& device = memory.device();
  const auto pinned = [&](PinnedBlock& block, uint64_t bytes) -> Status {
    auto allocated = PinnedBlock::allocate(device, bytes);
    if (!allocated.ok()) return allocated.status();
    block = std::move(allocated.value());
    return ok_status();
  };
  auto slot = std::make_unique<Slot>();
  slot->number = slots_.size();
  EFF_RETURN_IF_ERROR(pinned(slot->scalars, sizeof(StepScalars)));
  EFF_RETURN_IF_ERROR(pinned(slot->input, input_bytes_));
  EFF_RETURN_IF_ERROR(pinned(slot->output, output_bytes_));
  auto block = memory.allocate(Slot::kInputAt + input_bytes_, stream);
  if (!block.ok()) return block.status();
  slot->device = std::move(block.value());
  slots_.push_back(std::move(slot));
  Slot& added = *slots_.back();
  EFF_CUDA(device->driver(), cuEventCreate, &added.copied, CU_EVENT_DISABLE_TIMING);
  EFF_CUDA(device->driver(), cuEventCreate, &added.done, CU_EVENT_DISABLE_TIMING);
  return ok_status();
}

Status InputRing::create(const DeviceMemory& memory, uint64_t input_bytes, uint64_t output_bytes) {
  input_bytes_ = input_bytes;
  output_bytes_ = output_bytes;
  return add_slot(memory, memory.stream());
}

void InputRing::destroy(const Driver& driver) {
  for (const auto& slot : slots_)
    for (const CUevent event : {slot->copied, slot->done})
      if (event) driver.cuEventDestroy(event);
  slots_.clear();
}

template <class Copy>
StatusOr<Slot*> InputRing::stage(const DeviceMemory& memory, bool ahead, bool taken_later, Copy&& copy) {
  const std::lock_guard lock(mutex_);
  if (ahead && ahead_.size() == kSlots) return nullptr;
  if (ahead && slots_.size() < kSlots) {
    // Not on the stream of the steps, which may be capturing one.
    EFF_RETURN_IF_ERROR(add_slot(memory, memory.copy_stream()));
    next_ = slots_.size() - 1;
  }
  if (!ahead) ahead_.clear();
  Slot& slot = *slots_[next_];
  const Driver& driver = memory.device()->driver();
  const CUstream stream = ahead ? memory.copy_stream() : memory.stream();
  EFF_CUDA(driver, cuEventSynchronize, slot.copied);  // of the input before
  if (input_bytes_) {
    if (ahead) EFF_CUDA(driver, cuStreamWaitEvent, stream, slot.done, 0);
    EFF_RETURN_IF_ERROR(copy(slot, stream));
    EFF_CUDA(driver, cuEventRecord, slot.copied, stream);
  }
  slot.copied_on = stream;
  if (taken_later) ahead_.push_back(&slot);
  next_ = (next_ + 1) % slots_.size();
  return &slot;
}

StatusOr<Slot*> InputRing::stage(const DeviceMemory& memory, const std::byte* input, bool ahead) {
  return stage(memory, ahead, ahead, [&](Slot& slot, CUstream stream) -> Status {
    std::memcpy(slot.input.data(), input, input_bytes_);
    EFF_CUDA(memory.device()->driver(), cuMemcpyHtoDAsync, slot.device.address() + Slot::kInputAt, slot.input.data(),
             input_bytes_, stream);
    return ok_status();
  });
}

StatusOr<Slot*> InputRing::stage(const DeviceMemory& memory, const DeviceBatch& input, bool ahead) {
  return stage(memory, ahead, true, [&](Slot& slot, CUstream stream) {
    return input.copy_to(slot.device.address() + Slot::kInputAt, input_bytes_, stream);
  });
}

Slot* InputRing::take() {
  const std::lock_guard lock(mutex_);
  if (ahead_.empty()) return nullptr;
  Slot* slot = ahead_.front();
  ahead_.pop_front();
  return slot;
}

}  // namespace effnet::cuda
