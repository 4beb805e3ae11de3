#include "cuda/device.h"

#include "cuda/images.h"

namespace effnet::cuda {
namespace {

constexpr int kOldestCapability = 80;

}  // namespace

StatusOr<std::shared_ptr<Device>> Device::open(int ordinal) {
  std::shared_ptr<Device> device(new Device());
  EFF_RETURN_IF_ERROR(device->start(ordinal));
  return device;
}

StatusOr<Device::Properties> Device::properties(const Driver& driver, int ordinal) {
  Properties p;
  EFF_CUDA(driver, cuDeviceGet, &p.handle, ordinal);
  char name[256] = {};
  EFF_CUDA(driver, cuDeviceGetName, name, sizeof name - 1, p.handle);
  p.name = name;
  int major = 0, minor = 0;
  EFF_CUDA(driver, cuDeviceGetAttribute, &major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, p.handle);
  EFF_CUDA(driver, cuDeviceGetAttribute, &minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, p.handle);
  p.capability = 10 * major + minor;
  EFF_CUDA(driver, cuDeviceGetAttribute, &p.shared_bytes, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
           p.handle);
  EFF_CUDA(driver, cuDeviceGetAttribute, &p.cache_bytes, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, p.handle);
  size_t total = 0;
  EFF_CUDA(driver, cuDeviceTotalMem, &total, p.handle);
  p.total_bytes = total;
  return p;
}

Status Device::start(int ordinal) {
  auto found = cuda::driver();
  if (!found.ok()) return found.status();
  driver_ = found.value();
  int count = 0;
  EFF_CUDA(*driver_, cuDeviceGetCount, &count);
  if (ordinal < 0 || ordinal >= count)
    return error(Code::backend_missing, "there is no GPU %d: this process sees %d, counted from 0", ordinal, count);
  auto properties = Device::properties(*driver_, ordinal);
  if (!properties.ok()) return properties.status();
  properties_ = properties.value();
  if (properties_.capability < kOldestCapability)
    return error(Code::backend_missing, "%s has compute capability %d.%d; 8.0 (Ampere) or later is needed",
                 properties_.name.c_str(), properties_.capability / 10, properties_.capability % 10);
  providers_ = std::make_unique<Providers>(properties_.capability);
  EFF_CUDA(*driver_, cuDevicePrimaryCtxRetain, &context_, properties_.handle);
  retained_ = true;
  EFF_RETURN_IF_ERROR(enter());
  return load_kernels();
}

Device::~Device() {
  if (!retained_) return;
  (void)enter();
  providers_.reset();  // while there is a context
  for (CUlibrary library : libraries_) driver_->cuLibraryUnload(library);
  driver_->cuDevicePrimaryCtxRelease(properties_.handle);
}

Status Device::enter() const {
  EFF_CUDA(*driver_, cuCtxSetCurrent, context_);
  return ok_status();
}

Status Device::load_kernels() {
  for (const KernelImage& image : kernel_images()) {
    CUlibrary library;
    const CUresult result = driver_->cuLibraryLoadData(&library, image.data, nullptr, nullptr, 0, nullptr, nullptr, 0);
    if (result == CUDA_ERROR_NO_BINARY_FOR_GPU)
      return error(Code::backend_missing, "this build has no kernels for %s (compute capability %d.%d)",
                   properties_.name.c_str(), properties_.capability / 10, properties_.capability % 10);
    EFF_RETURN_IF_ERROR(driver_status(*driver_, "cuLibraryLoadData", result));
    libraries_.push_back(library);
  }
  return ok_status();
}

StatusOr<CUfunction> Device::function(const std::string& kernel) {
  const std::lock_guard lock(functions_mutex_);
  if (const auto known = functions_.find(kernel); known != functions_.end()) return known->second;
  for (CUlibrary library : libraries_) {
    CUkernel found;
    const CUresult result = driver_->cuLibraryGetKernel(&found, library, kernel.c_str());
    if (result == CUDA_ERROR_NOT_FOUND) continue;
    EFF_RETURN_IF_ERROR(driver_status(*driver_, "cuLibraryGetKernel", result));
    CUfunction function;
    EFF_CUDA(*driver_, cuKernelGetFunction, &function, found);
    // Beyond 48 KiB a kernel has to ask; ours have no other shared memory than what a launch declares.
    EFF_CUDA(*driver_, cuFuncSetAttribute, function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
             properties_.shared_bytes);
    functions_.emplace(kernel, function);
    return function;
  }
  return error(Code::plan_invalid, "no CUDA kernel %s", kernel.c_str());
}

Status Device::launch(const Launch& launch, CUfunction function, CUstream stream) const {
  if (launch.call) return launch.call(stream);
  CUlaunchConfig config{};
  config.gridDimX = launch.grid.x;
  config.gridDimY = launch.grid.y;
  config.gridDimZ = launch.grid.z;
  config.blockDimX = launch.threads;
  config.blockDimY = config.blockDimZ = 1;
  config.sharedMemBytes = launch.shared_bytes;
  config.hStream = stream;
  void* parameters[] = {const_cast<std::byte*>(launch.args.data())};  // copied by the call
  const CUresult result = driver_->cuLaunchKernelEx(&config, function, parameters, nullptr);
  if (result == CUDA_SUCCESS) return ok_status();
  const Status status = driver_status(*driver_, "cuLaunchKernelEx", result);
  return Status(status.code(), launch.kernel + ": " + status.message());
}

DeviceBlock::~DeviceBlock() {
  if (!address_ || !device_->enter().ok()) return;
  device_->driver().cuMemFree(address_);
}

StatusOr<DeviceBlock> DeviceBlock::allocate(const std::shared_ptr<Device>& device, uint64_t bytes, CUstream stream) {
  DeviceBlock block;
  if (bytes == 0) return block;
  const Driver& driver = device->driver();
  EFF_RETURN_IF_ERROR(device->enter());
  const CUresult result = driver.cuMemAlloc(&block.address_, bytes);
  if (result == CUDA_ERROR_OUT_OF_MEMORY) {
    block.address_ = 0;
    size_t free = 0, total = 0;
    driver.cuMemGetInfo(&free, &total);
    return error(Code::oom, "%.1f MiB of GPU memory could not be allocated; %.1f of %.1f MiB are free",
                 static_cast<double>(bytes) / (1 << 20), static_cast<double>(free) / (1 << 20),
                 static_cast<double>(total) / (1 << 20));
  }
  EFF_RETURN_IF_ERROR(driver_status(driver, "cuMemAlloc", result));
  block.device_ = device;
  block.bytes_ = bytes;
  EFF_CUDA(driver, cuMemsetD8Async, block.address_, 0, bytes, stream);
  return block;
}

PinnedBlock::~PinnedBlock() {
  if (!data_ || !device_->enter().ok()) return;
  device_->driver().cuMemFreeHost(data_);
}

StatusOr<PinnedBlock> PinnedBlock::allocate(const std::shared_ptr<Device>& device, uint64_t bytes) {
  PinnedBlock block;
  if (bytes == 0) return block;
  EFF_RETURN_IF_ERROR(device->enter());
  void* data = nullptr;
  const CUresult result = device->driver().cuMemHostAlloc(&data, bytes, CU_MEMHOSTALLOC_PORTABLE);
  if (result == CUDA_ERROR_OUT_OF_MEMORY)
    return error(Code::oom, "%.1f MiB of page-locked memory could not be allocated",
                 static_cast<double>(bytes) / (1 << 20));
  EFF_RETURN_IF_ERROR(driver_status(device->driver(), "cuMemHostAlloc", result));
  block.device_ = device;
  block.data_ = static_cast<std::byte*>(data);
  block.bytes_ = bytes;
  return block;
}

}  // namespace effnet::cuda
