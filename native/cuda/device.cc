#include "cuda/device.h"

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include "core/byte_text.h"
#include "core/math.h"
#include "cuda/images.h"

namespace effnet::cuda {
namespace {

constexpr int kOldestCapability = 80;

// "90a" runs on 9.0 alone, "80" on 8.x, "80-ptx" on all from 8.0 on.
bool runs_on(const std::string& architecture, int capability) {
  const int built = std::atoi(architecture.c_str());
  if (architecture.ends_with("-ptx")) return capability >= built;
  if (architecture.ends_with("a")) return capability == built;
  return capability / 10 == built / 10 && capability >= built;
}

// A host's way to say that it has no memory to lock, or lets this process lock none.
bool cannot_lock(CUresult result) {
  return result == CUDA_ERROR_OUT_OF_MEMORY || result == CUDA_ERROR_OPERATING_SYSTEM ||
         result == CUDA_ERROR_NOT_PERMITTED || result == CUDA_ERROR_NOT_SUPPORTED;
}

// A stream and two events, given back.
struct Scope {
  explicit Scope(const Driver& d) : driver(d) {}
  ~Scope() {
    if (stream) driver.cuStreamSynchronize(stream);
    for (const CUevent event : events)
      if (event) driver.cuEventDestroy(event);
    if (stream) driver.cuStreamDestroy(stream);
  }
  const Driver& driver;
  CUstream stream = nullptr;
  CUevent events[2] = {};
};

// "cuda:0 (NVIDIA H200), cuda:1 (...)"
std::string list_of_gpus(const Driver& driver, int count) {
  std::string list;
  for (int i = 0; i < count; ++i) {
    const auto gpu = Device::properties(driver, i);
    list += (i ? ", cuda:" : "cuda:") + std::to_string(i) + " (" +
            (gpu.ok() ? gpu.value().name : gpu.status().message()) + ")";
  }
  return list;
}

}  // namespace

std::string unusable_gpu(const std::string& name, int capability, const std::string& architectures) {
  const std::string version = std::to_string(capability / 10) + "." + std::to_string(capability % 10);
  if (capability < kOldestCapability)
    return name + " has compute capability " + version + "; 8.0 (Ampere) or later is needed";
  std::stringstream list(architectures);
  for (std::string each; std::getline(list, each, ';');)
    if (runs_on(each, capability)) return "";
  return "this build has no kernels for " + name + " (compute capability " + version + ")";
}

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
  if (ordinal < 0 || ordinal >= count) {
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    const std::string list = count ? ", counted from 0: " + list_of_gpus(*driver_, count) : "";
    return error(Code::backend_missing, "there is no GPU %d: this process sees %d%s%s%s", ordinal, count, list.c_str(),
                 visible ? "; CUDA_VISIBLE_DEVICES is " : "", visible ? visible : "");
  }
  auto properties = Device::properties(*driver_, ordinal);
  if (!properties.ok()) return properties.status();
  properties_ = properties.value();
  // Not left to the driver, which by default loads a kernel when it is first asked for.
  const std::string unusable = unusable_gpu(properties_.name, properties_.capability, kernel_architectures());
  if (!unusable.empty()) return Status(Code::backend_missing, unusable);
  providers_ = std::make_unique<Providers>(properties_.capability);
  const CUresult retained = driver_->cuDevicePrimaryCtxRetain(&context_, properties_.handle);
  if (retained == CUDA_ERROR_DEVICE_UNAVAILABLE)
    return error(Code::backend_missing,
                 "GPU %d (%s): another process has the GPU exclusively, or its compute mode lets none in. nvidia-smi "
                 "names processes and the mode; end that process, or share the GPU (sudo nvidia-smi -i %d -c DEFAULT)",
                 ordinal, properties_.name.c_str(), ordinal);
  if (retained == CUDA_ERROR_OUT_OF_MEMORY) return taken_by_others();
  EFF_RETURN_IF_ERROR(driver_status(*driver_, "cuDevicePrimaryCtxRetain", retained));
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

// Of what is taken before the first model: its batch size does not matter.
Status Device::taken_by_others() const {
  return error(Code::oom,
               "%s: others hold the GPU's memory, not even a context and the kernels fit beside them. nvidia-smi names "
               "those processes; end one, or take another GPU",
               properties_.name.c_str());
}

// Whichever call it is that looks into an image first: it may be one for a kernel.
Status Device::image_status(const char* call, CUresult result) const {
  if (result == CUDA_ERROR_NO_BINARY_FOR_GPU)
    return Status(Code::backend_missing, unusable_gpu(properties_.name, properties_.capability, ""));
  return driver_status(*driver_, call, result);
}

// All names at once: to ask image after image for a kernel is a failed call for each that lacks it, and
// compute-sanitizer counts failed calls as errors of the program.
Status Device::load_kernels() {
  const auto loaded = [this](const char* call, CUresult result) {
    return result == CUDA_ERROR_OUT_OF_MEMORY ? taken_by_others() : image_status(call, result);
  };
  for (const KernelImage& image : kernel_images()) {
    CUlibrary library;
    EFF_RETURN_IF_ERROR(loaded("cuLibraryLoadData", driver_->cuLibraryLoadData(&library, image.data, nullptr, nullptr,
                                                                               0, nullptr, nullptr, 0)));
    libraries_.push_back(library);
    unsigned count = 0;
    EFF_RETURN_IF_ERROR(loaded("cuLibraryGetKernelCount", driver_->cuLibraryGetKernelCount(&count, library)));
    std::vector<CUkernel> kernels(count);
    EFF_RETURN_IF_ERROR(
        loaded("cuLibraryEnumerateKernels", driver_->cuLibraryEnumerateKernels(kernels.data(), count, library)));
    for (const CUkernel kernel : kernels) {
      const char* name = nullptr;
      EFF_CUDA(*driver_, cuKernelGetName, &name, kernel);
      kernels_.emplace(name, kernel);
    }
  }
  return ok_status();
}

StatusOr<CUfunction> Device::function(const std::string& kernel) {
  const std::lock_guard lock(functions_mutex_);
  if (const auto known = functions_.find(kernel); known != functions_.end()) return known->second;
  const auto found = kernels_.find(kernel);
  if (found == kernels_.end()) return error(Code::plan_invalid, "no CUDA kernel %s", kernel.c_str());
  CUfunction function;
  EFF_RETURN_IF_ERROR(image_status("cuKernelGetFunction", driver_->cuKernelGetFunction(&function, found->second)));
  // Beyond 48 KiB a kernel has to ask; ours have no other shared memory than what a launch declares.
  EFF_RETURN_IF_ERROR(image_status(
      "cuFuncSetAttribute", driver_->cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                                        properties_.shared_bytes)));
  functions_.emplace(kernel, function);
  return function;
}

Status Device::launch(const Launch& launch, CUfunction function, CUstream stream, bool waited) const {
  const auto named = [&](const Status& why) {
    const char* where = why.code() == Code::gpu_fault && !waited ? "at or before " : "";
    return Status(why.code(), where + launch.kernel + ": " + why.message());
  };
  if (launch.call) {
    const Status called = launch.call(stream);
    if (called.ok()) return called;
    const Status why = failure_of_library(called, stream);
    return why.code() == called.code() ? called : named(why);
  }
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
  return result == CUDA_SUCCESS ? ok_status() : named(driver_status(*driver_, "cuLaunchKernelEx", result));
}

// A library that fails does not say that the GPU is lost. What lies before its call on the stream may have been what
// lost it, and is waited for; a stream in a capture does nothing, and any call tells what has stuck before.
Status Device::failure_of_library(const Status& failure, CUstream stream) const {
  CUstreamCaptureStatus capturing = CU_STREAM_CAPTURE_STATUS_NONE;
  CUresult state = driver_->cuStreamIsCapturing(stream, &capturing);
  const char* asked = "cuStreamIsCapturing";
  if (state == CUDA_SUCCESS && capturing == CU_STREAM_CAPTURE_STATUS_NONE) {
    state = driver_->cuStreamSynchronize(stream);
    asked = "cuStreamSynchronize";
  }
  if (!context_is_lost(*driver_, state)) return failure;
  return Status(Code::gpu_fault, failure.message() + ": " + driver_status(*driver_, asked, state).message());
}

StatusOr<Peaks> Device::measure_peaks() {
  constexpr uint64_t kMostBytes = 256 << 20;  // several times the largest cache
  constexpr int kRounds = 8;
  EFF_RETURN_IF_ERROR(enter());
  size_t free = 0, total = 0;
  EFF_CUDA(*driver_, cuMemGetInfo, &free, &total);
  Scope scope(*driver_);
  EFF_CUDA(*driver_, cuStreamCreateWithPriority, &scope.stream, CU_STREAM_NON_BLOCKING, 0);
  for (CUevent& event : scope.events) EFF_CUDA(*driver_, cuEventCreate, &event, CU_EVENT_DEFAULT);
  const uint64_t bytes = std::min<uint64_t>(kMostBytes, free / 4);
  DeviceBlock blocks[2];
  for (DeviceBlock& block : blocks) {
    auto allocated = DeviceBlock::allocate(shared_from_this(), bytes, scope.stream);
    if (!allocated.ok()) return allocated.status();
    block = std::move(allocated.value());
  }
  float best = 0;
  for (int i = 0; i < kRounds; ++i) {
    EFF_CUDA(*driver_, cuEventRecord, scope.events[0], scope.stream);
    EFF_CUDA(*driver_, cuMemcpyDtoDAsync, blocks[0].address(), blocks[1].address(), bytes, scope.stream);
    EFF_CUDA(*driver_, cuEventRecord, scope.events[1], scope.stream);
    EFF_CUDA(*driver_, cuEventSynchronize, scope.events[1]);
    float ms = 0;
    EFF_CUDA(*driver_, cuEventElapsedTime, &ms, scope.events[0], scope.events[1]);
    if (ms > 0 && (best == 0 || ms < best)) best = ms;
  }
  Peaks peaks;
  if (best > 0) peaks.bytes = 2e3 * static_cast<double>(bytes) / static_cast<double>(best);
  return peaks;
}

DeviceBlock::~DeviceBlock() {
  if (!address_) return;
  if (device_->enter().ok()) device_->driver().cuMemFree(address_);
  if (budget_) budget_->give_back(bytes_);
}

StatusOr<DeviceBlock> DeviceBlock::allocate(const std::shared_ptr<Device>& device, uint64_t bytes, CUstream stream,
                                            std::shared_ptr<Budget> budget) {
  DeviceBlock block;
  if (bytes == 0) return block;
  const Driver& driver = device->driver();
  EFF_RETURN_IF_ERROR(device->enter());
  if (budget) EFF_RETURN_IF_ERROR(budget->take(bytes));
  const CUresult result = driver.cuMemAlloc(&block.address_, bytes);
  if (result != CUDA_SUCCESS) {
    block.address_ = 0;
    if (budget) budget->give_back(bytes);
  }
  if (result == CUDA_ERROR_OUT_OF_MEMORY) {
    size_t free = 0, total = 0;
    driver.cuMemGetInfo(&free, &total);
    return error(Code::oom, "%s of GPU memory could not be allocated; %s of %s are free", byte_text(bytes).c_str(),
                 byte_text(free).c_str(), byte_text(total).c_str());
  }
  EFF_RETURN_IF_ERROR(driver_status(driver, "cuMemAlloc", result));
  block.device_ = device;
  block.budget_ = std::move(budget);
  block.bytes_ = bytes;
  EFF_CUDA(driver, cuMemsetD8Async, block.address_, 0, bytes, stream);
  return block;
}

bool Device::page_locked(const std::byte* data, uint64_t bytes) const {
  const std::lock_guard lock(page_locked_mutex_);
  const auto after = page_locked_.upper_bound(data);
  if (after == page_locked_.begin()) return false;
  const auto& [start, size] = *std::prev(after);
  return data + bytes <= start + size;
}

HostBlock::~HostBlock() {
  if (!data_) return;
  if (!locked_) {
    std::free(data_);
    return;
  }
  {
    const std::lock_guard lock(device_->page_locked_mutex_);
    device_->page_locked_.erase(data_);
  }
  if (!device_->enter().ok()) return;
  device_->driver().cuMemFreeHost(data_);
}

StatusOr<HostBlock> HostBlock::allocate_locked(const std::shared_ptr<Device>& device, uint64_t bytes) {
  HostBlock block;
  if (bytes == 0) return block;
  EFF_RETURN_IF_ERROR(device->enter());
  void* data = nullptr;
  const CUresult result = device->driver().cuMemHostAlloc(&data, bytes, CU_MEMHOSTALLOC_PORTABLE);
  if (cannot_lock(result)) {
    device->unlocked_bytes_ += bytes;
    return block;
  }
  EFF_RETURN_IF_ERROR(driver_status(device->driver(), "cuMemHostAlloc", result));
  block.device_ = device;
  block.data_ = static_cast<std::byte*>(data);
  block.bytes_ = bytes;
  const std::lock_guard lock(device->page_locked_mutex_);
  device->page_locked_[block.data_] = bytes;
  return block;
}

StatusOr<HostBlock> HostBlock::allocate(const std::shared_ptr<Device>& device, uint64_t bytes) {
  auto block = allocate_locked(device, bytes);
  if (!block.ok() || block.value().data() || bytes == 0) return block;
  HostBlock ordinary;
  ordinary.data_ = static_cast<std::byte*>(std::aligned_alloc(plan::kAlignment, round_up(bytes, plan::kAlignment)));
  if (!ordinary.data_)
    return error(Code::oom, "%s of the host's memory could not be allocated", byte_text(bytes).c_str());
  ordinary.bytes_ = bytes;
  ordinary.locked_ = false;
  return ordinary;
}

}  // namespace effnet::cuda
