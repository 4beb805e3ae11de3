#include "cuda/input_ring.h"

#include <algorithm>
#include <cstring>

namespace effnet::cuda {

Status InputRing::add_slot(const DeviceMemory& memory, CUstream stream) {
  const auto& device = memory.device();
  const auto pinned = [&](HostBlock& block, uint64_t bytes) -> Status {
    auto allocated = HostBlock::allocate(device, bytes);
    if (!allocated.ok()) return allocated.status();
    block = std::move(allocated.value());
    return ok_status();
  };
  auto slot = std::make_unique<Slot>();
  slot->number = slots_.size();
  EFF_RETURN_IF_ERROR(pinned(slot->scalars, sizeof(StepScalars)));
  EFF_RETURN_IF_ERROR(pinned(slot->output, output_bytes_));
  auto block = memory.allocate(Slot::kInputAt + input_bytes_, stream);
  if (!block.ok()) return block.status();
  slot->device = std::move(block.value());
  const Driver& driver = device->driver();
  // Who stages ahead waits for it beside threads that decode.
  EFF_CUDA(driver, cuEventCreate, &slot->copied, CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC);
  const Status created =
      driver_status(driver, "cuEventCreate", driver.cuEventCreate(&slot->done, CU_EVENT_DISABLE_TIMING));
  if (!created.ok()) {
    driver.cuEventDestroy(slot->copied);
    return created;
  }
  slots_.push_back(std::move(slot));
  return ok_status();
}

Status InputRing::make_room(const DeviceMemory& memory, Slot& slot) const {
  if (slot.input.bytes() >= input_bytes_) return ok_status();
  auto allocated = HostBlock::allocate(memory.device(), input_bytes_);
  if (!allocated.ok()) return allocated.status();
  slot.input = std::move(allocated.value());
  return ok_status();
}

// With memory of its own: where nothing is staged ahead a step has all that it needs from the start, whatever its input
// lies in.
Status InputRing::create(const DeviceMemory& memory, uint64_t input_bytes, uint64_t output_bytes) {
  input_bytes_ = input_bytes;
  output_bytes_ = output_bytes;
  EFF_RETURN_IF_ERROR(add_slot(memory, memory.stream()));
  return make_room(memory, *slots_.front());
}

void InputRing::destroy(const Driver& driver) {
  for (const auto& slot : slots_)
    for (const CUevent event : {slot->copied, slot->done})
      if (event) driver.cuEventDestroy(event);
  slots_.clear();
}

Slot* InputRing::free_slot() {
  for (size_t i = 0; i < slots_.size(); ++i) {
    Slot* slot = slots_[(next_ + i) % slots_.size()].get();
    if (!slot->taken && std::find(ahead_.begin(), ahead_.end(), slot) == ahead_.end()) return slot;
  }
  return nullptr;
}

template <class Copy>
Status InputRing::fill(const DeviceMemory& memory, Slot& slot, CUstream stream, const Copy& copy) {
  const Driver& driver = memory.device()->driver();
  EFF_CUDA(driver, cuEventSynchronize, slot.copied);  // of the input before
  if (input_bytes_) {
    if (stream != memory.stream()) EFF_CUDA(driver, cuStreamWaitEvent, stream, slot.done, 0);
    EFF_RETURN_IF_ERROR(copy(slot, stream));
    EFF_CUDA(driver, cuEventRecord, slot.copied, stream);
  }
  slot.copied_on = stream;
  slot.ticket = ++tickets_;
  next_ = (slot.number + 1) % slots_.size();
  return ok_status();
}

template <class Copy>
StatusOr<Slot*> InputRing::stage_now(const DeviceMemory& memory, const Copy& copy) {
  ahead_.clear();
  Slot* slot = free_slot();
  if (!slot) return error(Code::internal, "a step was begun before the one in front of it was queued");
  EFF_RETURN_IF_ERROR(fill(memory, *slot, memory.stream(), copy));
  return slot;
}

template <class Copy>
StatusOr<InputRing::Staged> InputRing::stage_beside(const DeviceMemory& memory, const Copy& copy) {
  std::unique_lock lock(mutex_);
  if (alone_) return Staged{nullptr, 0};
  // Not on the stream of the steps, which may be capturing one.
  if (slots_.size() < kSlots) {
    const Status added = add_slot(memory, memory.copy_stream());
    // Not asked for again: each time may take the driver long.
    alone_ = added.code() == Code::oom;
    if (alone_) return Staged{nullptr, 0};
    EFF_RETURN_IF_ERROR(added);
    next_ = slots_.size() - 1;
  }
  Slot* slot = nullptr;
  released_.wait(lock, [&] { return ahead_.size() == kSlots || (slot = free_slot()); });
  if (ahead_.size() == kSlots) return Staged{nullptr, 0};
  EFF_RETURN_IF_ERROR(fill(memory, *slot, memory.copy_stream(), copy));
  ahead_.push_back(slot);
  return Staged{slot, slot->ticket};
}

auto InputRing::copy_from(const DeviceMemory& memory, const std::byte* input) const {
  return [this, &memory, input](Slot& slot, CUstream stream) -> Status {
    const std::byte* from = input;
    if (!memory.device()->page_locked(input, input_bytes_)) {
      EFF_RETURN_IF_ERROR(make_room(memory, slot));
      std::memcpy(slot.input.data(), input, input_bytes_);
      from = slot.input.data();
    }
    EFF_CUDA(memory.device()->driver(), cuMemcpyHtoDAsync, slot.device.address() + Slot::kInputAt, from, input_bytes_,
             stream);
    return ok_status();
  };
}

auto InputRing::copy_from(const DeviceBatch& input) const {
  return [this, &input](Slot& slot, CUstream stream) {
    return input.copy_to(slot.device.address() + Slot::kInputAt, input_bytes_, stream);
  };
}

StatusOr<Slot*> InputRing::stage(const DeviceMemory& memory, const std::byte* input) {
  const std::lock_guard lock(mutex_);
  auto staged = stage_now(memory, copy_from(memory, input));
  if (staged.ok()) staged.value()->taken = true;
  return staged;
}

Status InputRing::stage(const DeviceMemory& memory, const DeviceBatch& input) {
  const std::lock_guard lock(mutex_);
  const auto staged = stage_now(memory, copy_from(input));
  if (staged.ok()) ahead_.push_front(staged.value());
  return staged.status();
}

StatusOr<uint64_t> InputRing::stage_ahead(const DeviceMemory& memory, const std::byte* input) {
  const auto staged = stage_beside(memory, copy_from(memory, input));
  if (!staged.ok()) return staged.status();
  const auto& [slot, ticket] = staged.value();
  // Not under the mutex: a step may take meanwhile what is on its way, for its stream waits.
  if (slot && memory.device()->page_locked(input, input_bytes_))
    EFF_CUDA(memory.device()->driver(), cuEventSynchronize, slot->copied);
  return ticket;
}

StatusOr<uint64_t> InputRing::stage_ahead(const DeviceMemory& memory, const DeviceBatch& input) {
  const auto staged = stage_beside(memory, copy_from(input));
  if (!staged.ok()) return staged.status();
  return staged.value().ticket;
}

bool InputRing::claim(uint64_t ticket) {
  const std::lock_guard lock(mutex_);
  const auto found =
      std::find_if(ahead_.begin(), ahead_.end(), [ticket](const Slot* slot) { return slot->ticket == ticket; });
  if (found == ahead_.end()) return false;
  ahead_.erase(ahead_.begin(), found);
  released_.notify_all();
  return true;
}

Slot* InputRing::take() {
  const std::lock_guard lock(mutex_);
  if (ahead_.empty()) return nullptr;
  Slot* slot = ahead_.front();
  ahead_.pop_front();
  slot->taken = true;
  return slot;
}

Status InputRing::release(Slot& slot, const Driver& driver, CUstream stream) {
  const Status marked = driver_status(driver, "cuEventRecord", driver.cuEventRecord(slot.done, stream));
  {
    const std::lock_guard lock(mutex_);
    slot.taken = false;
  }
  released_.notify_all();
  return marked;
}

}  // namespace effnet::cuda
