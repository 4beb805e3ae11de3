#include "cuda/device_memory.h"

namespace effnet::cuda {

StatusOr<std::shared_ptr<DeviceMemory>> DeviceMemory::create(std::shared_ptr<Device> device) {
  std::shared_ptr<DeviceMemory> memory(new DeviceMemory(std::move(device)));
  EFF_RETURN_IF_ERROR(memory->device_->enter());
  EFF_CUDA(memory->device_->driver(), cuStreamCreateWithPriority, &memory->stream_, CU_STREAM_NON_BLOCKING, 0);
  return memory;
}

DeviceMemory::~DeviceMemory() {
  if (!stream_ || !device_->enter().ok()) return;
  const Driver& driver = device_->driver();
  driver.cuStreamSynchronize(stream_);
  driver.cuStreamDestroy(stream_);
}

Status DeviceMemory::ensure(plan::Arena a, uint64_t bytes) {
  DeviceBlock& block = blocks_[static_cast<int>(a)];
  if (bytes <= block.bytes()) return ok_status();
  const Driver& driver = device_->driver();
  EFF_RETURN_IF_ERROR(device_->enter());
  EFF_CUDA(driver, cuStreamSynchronize, stream_);  // steps in flight use the old one
  const bool keep = a != plan::Arena::activations;
  ++generation_;
  if (!keep) block = DeviceBlock();  // freed first, so that the peak is not the sum
  auto grown = DeviceBlock::allocate(device_, bytes, stream_);
  if (!grown.ok()) return grown.status();
  if (keep && block.bytes())
    EFF_CUDA(driver, cuMemcpyDtoDAsync, grown.value().address(), block.address(), block.bytes(), stream_);
  EFF_CUDA(driver, cuStreamSynchronize, stream_);
  block = std::move(grown.value());
  return ok_status();
}

Status DeviceMemory::check_range(plan::Arena a, uint64_t offset, uint64_t bytes) const {
  const uint64_t total = this->bytes(a);
  if (offset <= total && bytes <= total - offset) return ok_status();
  return error(Code::invalid_argument, "bytes %llu to %llu lie outside arena %d of %llu bytes",
               static_cast<unsigned long long>(offset), static_cast<unsigned long long>(offset + bytes),
               static_cast<int>(a), static_cast<unsigned long long>(total));
}

Status DeviceMemory::read(plan::Arena a, uint64_t offset, std::span<std::byte> into) {
  EFF_RETURN_IF_ERROR(check_range(a, offset, into.size()));
  if (into.empty()) return ok_status();
  EFF_RETURN_IF_ERROR(device_->enter());
  const CUdeviceptr from = blocks_[static_cast<int>(a)].address() + offset;
  EFF_CUDA(device_->driver(), cuMemcpyDtoHAsync, into.data(), from, into.size(), stream_);
  EFF_CUDA(device_->driver(), cuStreamSynchronize, stream_);
  return ok_status();
}

Status DeviceMemory::write(plan::Arena a, uint64_t offset, std::span<const std::byte> from) {
  EFF_RETURN_IF_ERROR(check_range(a, offset, from.size()));
  if (from.empty()) return ok_status();
  EFF_RETURN_IF_ERROR(device_->enter());
  const CUdeviceptr into = blocks_[static_cast<int>(a)].address() + offset;
  EFF_CUDA(device_->driver(), cuMemcpyHtoDAsync, into, from.data(), from.size(), stream_);
  EFF_CUDA(device_->driver(), cuStreamSynchronize, stream_);
  return ok_status();
}

}  // namespace effnet::cuda
