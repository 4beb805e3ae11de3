#include "cuda/device_memory.h"

#include <algorithm>
#include <cstddef>

namespace effnet::cuda {

StatusOr<std::shared_ptr<DeviceMemory>> DeviceMemory::create(std::shared_ptr<Device> device, uint64_t limit) {
  std::shared_ptr<DeviceMemory> memory(new DeviceMemory(std::move(device), limit));
  EFF_RETURN_IF_ERROR(memory->device_->enter());
  const Driver& driver = memory->device_->driver();
  EFF_CUDA(driver, cuStreamCreateWithPriority, &memory->stream_, CU_STREAM_NON_BLOCKING, 0);
  EFF_CUDA(driver, cuStreamCreateWithPriority, &memory->copy_stream_, CU_STREAM_NON_BLOCKING, 0);
  auto state = memory->allocate(sizeof(StepState));
  if (!state.ok()) return state.status();
  memory->state_ = std::move(state.value());
  EFF_RETURN_IF_ERROR(memory->set_loss_scale({}));
  return memory;
}

DeviceMemory::~DeviceMemory() {
  if (!stream_ || !device_->enter().ok()) return;
  const Driver& driver = device_->driver();
  for (const CUstream stream : {stream_, copy_stream_}) {
    if (!stream) continue;
    driver.cuStreamSynchronize(stream);
    driver.cuStreamDestroy(stream);
  }
}

Status DeviceMemory::ensure(plan::Arena a, uint64_t bytes) {
  DeviceBlock& block = blocks_[static_cast<int>(a)];
  if (bytes <= block.bytes()) return ok_status();
  const Driver& driver = device_->driver();
  EFF_RETURN_IF_ERROR(device_->enter());
  EFF_CUDA(driver, cuStreamSynchronize, stream_);  // steps in flight use the old one
  const bool keep = a != plan::Arena::activations;
  ++generation_;
  const uint64_t before = block.bytes();
  if (!keep) block = DeviceBlock();  // freed first, so that the peak is not the sum
  auto grown = allocate(bytes);
  if (!grown.ok()) {
    // Plans bound earlier still run in what there was.
    if (block.bytes() < before)
      if (auto again = allocate(before); again.ok()) block = std::move(again.value());
    return grown.status();
  }
  if (keep && block.bytes())
    EFF_CUDA(driver, cuMemcpyDtoDAsync, grown.value().address(), block.address(), block.bytes(), stream_);
  EFF_CUDA(driver, cuStreamSynchronize, stream_);
  block = std::move(grown.value());
  return ok_status();
}

Status DeviceMemory::ensure_working(plan::DType dtype) {
  Working& working = this->working(dtype);
  const uint64_t bytes = this->bytes(plan::Arena::weights) / 2;
  if (working.copy.bytes() >= bytes) return ok_status();
  EFF_RETURN_IF_ERROR(device_->enter());
  if (working.copy.bytes()) {
    EFF_CUDA(device_->driver(), cuStreamSynchronize, stream_);  // steps in flight use the old one
    ++generation_;
  }
  working = {};
  auto made = allocate(bytes);
  if (!made.ok()) return made.status();
  working.copy = std::move(made.value());
  return ok_status();
}

void DeviceMemory::outdate_working() {
  for (auto& of_weights : working_)
    for (Working& working : of_weights) working.stale = true;
}

Status DeviceMemory::clear(plan::Arena a) {
  if (!bytes(a)) return ok_status();
  EFF_RETURN_IF_ERROR(device_->enter());
  EFF_CUDA(device_->driver(), cuMemsetD8Async, address(a), 0, bytes(a), stream_);
  EFF_CUDA(device_->driver(), cuStreamSynchronize, stream_);
  return ok_status();
}

Status DeviceMemory::copy(plan::Arena from, plan::Arena to) {
  EFF_RETURN_IF_ERROR(check_same_size(from, to));
  if (!bytes(to)) return ok_status();
  EFF_RETURN_IF_ERROR(device_->enter());
  EFF_CUDA(device_->driver(), cuMemcpyDtoDAsync, address(to), address(from), bytes(to), stream_);
  EFF_CUDA(device_->driver(), cuStreamSynchronize, stream_);
  return ok_status();
}

Status DeviceMemory::swap(plan::Arena a, plan::Arena b) {
  EFF_RETURN_IF_ERROR(check_same_size(a, b));
  std::swap(blocks_[static_cast<int>(a)], blocks_[static_cast<int>(b)]);
  if (std::minmax(a, b) == std::minmax(plan::Arena::weights, plan::Arena::ema))
    exchanged_ = !exchanged_;
  else
    ++generation_;
  return ok_status();
}

Status DeviceMemory::set_loss_scale(const LossScale& scale) {
  EFF_RETURN_IF_ERROR(device_->enter());
  EFF_CUDA(device_->driver(), cuMemcpyHtoDAsync, state_.address() + offsetof(StepReport, loss_scale), &scale,
           sizeof scale, stream_);
  EFF_CUDA(device_->driver(), cuStreamSynchronize, stream_);
  return Memory::set_loss_scale(scale);
}

Status DeviceMemory::read(plan::Arena a, uint64_t offset, std::span<std::byte> into) const {
  EFF_RETURN_IF_ERROR(check_range(a, offset, into.size()));
  if (into.empty()) return ok_status();
  EFF_RETURN_IF_ERROR(device_->enter());
  EFF_CUDA(device_->driver(), cuMemcpyDtoHAsync, into.data(), address(a) + offset, into.size(), stream_);
  EFF_CUDA(device_->driver(), cuStreamSynchronize, stream_);
  return ok_status();
}

Status DeviceMemory::write(plan::Arena a, uint64_t offset, std::span<const std::byte> from) {
  EFF_RETURN_IF_ERROR(check_range(a, offset, from.size()));
  if (from.empty()) return ok_status();
  EFF_RETURN_IF_ERROR(device_->enter());
  EFF_CUDA(device_->driver(), cuMemcpyHtoDAsync, address(a) + offset, from.data(), from.size(), stream_);
  EFF_CUDA(device_->driver(), cuStreamSynchronize, stream_);
  return ok_status();
}

}  // namespace effnet::cuda
