// A GPU: its primary context (shared with libraries), its kernels by name, blocks of its memory.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/memory.h"
#include "core/peaks.h"
#include "cuda/driver.h"
#include "cuda/launch.h"
#include "cuda/providers/providers.h"

namespace effnet::cuda {

// Why a GPU is of no use to kernels for `architectures` (e.g. "80;90a;80-ptx"); empty: it is.
std::string unusable_gpu(const std::string& name, int capability, const std::string& architectures);

class Device : public std::enable_shared_from_this<Device> {
 public:
  // Code::backend_missing without a driver, where the package has no kernels for the GPU or it is another process's
  // alone; Code::oom where others hold its memory.
  static StatusOr<std::shared_ptr<Device>> open(int ordinal);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  struct Properties {
    CUdevice handle = 0;
    std::string name;
    int capability = 0;    // major * 10 + minor
    int shared_bytes = 0;  // that a block may have
    int cache_bytes = 0;   // of the L2
    uint64_t total_bytes = 0;
  };
  static StatusOr<Properties> properties(const Driver& driver, int ordinal);

  const Driver& driver() const { return *driver_; }
  const std::string& name() const { return properties_.name; }
  int cache_bytes() const { return properties_.cache_bytes; }
  uint64_t total_bytes() const { return properties_.total_bytes; }
  Providers& providers() { return *providers_; }

  // Makes the context current on the calling thread: before any driver call.
  Status enter() const;
  // Code::plan_invalid where the package has no kernel of that name; Code::backend_missing as `open`, where the
  // driver loads it only now and finds it compiled for other GPUs. Any thread.
  StatusOr<CUfunction> function(const std::string& kernel);
  // `waited`: all before it has been waited for, so that a fault is its own. Without it a fault that comes up here may
  // be of anything before, and says so.
  Status launch(const Launch& launch, CUfunction function, CUstream stream, bool waited = false) const;
  // Whether all of it lies in page-locked memory, so that copies may read it where it is. Any thread.
  bool page_locked(const std::byte* data, uint64_t bytes) const;
  // Of the host, asked for since the start, that could not be page-locked. Any thread.
  uint64_t unlocked_bytes() const { return unlocked_bytes_; }
  // What a library's failure on this stream comes to: itself, or Code::gpu_fault with what it said.
  Status failure_of_library(const Status& failure, CUstream stream) const;
  // How fast it copies in its own memory.
  StatusOr<Peaks> measure_peaks();

 private:
  friend class HostBlock;
  Device() = default;
  Status start(int ordinal);
  Status load_kernels();
  Status image_status(const char* call, CUresult result) const;
  Status taken_by_others() const;

  const Driver* driver_ = nullptr;
  Properties properties_;
  CUcontext context_ = nullptr;
  bool retained_ = false;
  std::vector<CUlibrary> libraries_;
  std::map<std::string, CUkernel, std::less<>> kernels_;  // of all libraries
  std::unique_ptr<Providers> providers_;
  std::mutex functions_mutex_;
  std::map<std::string, CUfunction> functions_;
  mutable std::mutex page_locked_mutex_;
  std::map<const std::byte*, uint64_t> page_locked_;  // bytes of each block
  std::atomic<uint64_t> unlocked_bytes_{0};
};

// Device memory, zeroed; freed with the object.
class DeviceBlock {
 public:
  DeviceBlock() = default;
  ~DeviceBlock();
  DeviceBlock(DeviceBlock&& other) noexcept { swap(other); }
  DeviceBlock& operator=(DeviceBlock&& other) noexcept {
    DeviceBlock taken(std::move(other));
    swap(taken);
    return *this;
  }
  // Code::oom with what was asked for and what is free, or what `budget` leaves. `stream` zeroes it: other streams wait
  // for that one.
  static StatusOr<DeviceBlock> allocate(const std::shared_ptr<Device>& device, uint64_t bytes, CUstream stream,
                                        std::shared_ptr<Budget> budget = nullptr);
  CUdeviceptr address() const { return address_; }
  std::byte* data() const { return reinterpret_cast<std::byte*>(address_); }
  uint64_t bytes() const { return bytes_; }

 private:
  void swap(DeviceBlock& other) {
    std::swap(device_, other.device_);
    std::swap(budget_, other.budget_);
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
  }
  std::shared_ptr<Device> device_;
  std::shared_ptr<Budget> budget_;
  CUdeviceptr address_ = 0;
  uint64_t bytes_ = 0;
};

// Host memory that the GPU's copies read and write: page-locked, so that they run beside the CPU, or where the host has
// none to lock any more ordinary memory, from which they are slower (Device::unlocked_bytes tells).
class HostBlock {
 public:
  HostBlock() = default;
  ~HostBlock();
  HostBlock(HostBlock&& other) noexcept { swap(other); }
  HostBlock& operator=(HostBlock&& other) noexcept {
    HostBlock taken(std::move(other));
    swap(taken);
    return *this;
  }
  static StatusOr<HostBlock> allocate(const std::shared_ptr<Device>& device, uint64_t bytes);
  // Empty where the host has none to lock, which counts as above.
  static StatusOr<HostBlock> allocate_locked(const std::shared_ptr<Device>& device, uint64_t bytes);
  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  // A graph copies to and from such memory only: what else the driver does for other memory has no place in a capture.
  bool locked() const { return locked_; }

 private:
  void swap(HostBlock& other) {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(locked_, other.locked_);
  }
  std::shared_ptr<Device> device_;
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
  bool locked_ = true;
};

}  // namespace effnet::cuda
