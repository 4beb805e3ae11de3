#include "cuda/driver.h"

#include <dlfcn.h>
#include <unistd.h>

#include <vector>

#include "cuda/shared_library.h"

namespace effnet::cuda {
namespace {

// Twice, so that a macro of cuda.h becomes the versioned name behind it: cuMemAlloc is "cuMemAlloc_v2".
#define EFF_TEXT_OF(x) #x
#define EFF_TEXT(x) EFF_TEXT_OF(x)

void* open_library(std::string& path, std::string& tried) {
  std::vector<std::string> places;
  if (const char* folder = library_folder()) places.push_back(std::string(folder) + "/libcuda.so.1");
  places.push_back("libcuda.so.1");
  places.push_back("/usr/lib/wsl/lib/libcuda.so.1");  // WSL does not put it on the loader's path
  for (const std::string& place : places) {
    std::string problem;
    if (void* library = open_shared_library(place, RTLD_NOW | RTLD_GLOBAL, problem)) {
      path = place;
      return library;
    }
    tried += (tried.empty() ? "" : "; ") + problem;
  }
  return nullptr;
}

// `driver` is filled in as far as it goes.
Status load(Driver* driver) {
  std::string tried;
  void* library = open_library(driver->path, tried);
  if (!library)
    return error(Code::backend_missing, "no NVIDIA driver: %s. %s", tried.c_str(), missing_driver_mend().c_str());
#define X(name)                                                                                          \
  driver->name = reinterpret_cast<decltype(driver->name)>(dlsym(library, EFF_TEXT(name)));               \
  if (!driver->name)                                                                                     \
    return error(Code::backend_missing,                                                                  \
                 "the NVIDIA driver (%s) lacks " EFF_TEXT(name) ": it is too old. Install 580 or later", \
                 driver->path.c_str());
  EFF_CUDA_DRIVER(X)
#undef X
  if (driver->cuDriverGetVersion(&driver->version) != CUDA_SUCCESS)
    return error(Code::backend_missing, "the NVIDIA driver (%s) does not say its version", driver->path.c_str());
  if (driver->version < kOldestDriver)
    return error(Code::backend_missing,
                 "the NVIDIA driver supports CUDA %d.%d; CUDA %d.%d is needed. Install driver 580 or later",
                 driver->version / 1000, driver->version % 1000 / 10, kOldestDriver / 1000, kOldestDriver % 1000 / 10);
  const CUresult started = driver->cuInit(0);
  int devices = 0;
  if (started == CUDA_ERROR_NO_DEVICE ||
      (started == CUDA_SUCCESS && (driver->cuDeviceGetCount(&devices) != CUDA_SUCCESS || devices == 0)))
    return error(Code::backend_missing,
                 "an NVIDIA driver, but no GPU that this process may use. See nvidia-smi and CUDA_VISIBLE_DEVICES; in "
                 "a container, run it with --gpus all");
  if (started != CUDA_SUCCESS) {
    const Status status = driver_status(*driver, "cuInit", started);
    return Status(Code::backend_missing,
                  "the NVIDIA driver does not start: " + status.message() + ". " + driver_start_mend(started));
  }
  return ok_status();
}

struct Loaded {
  Driver driver;
  Status status = load(&driver);
};

}  // namespace

StatusOr<const Driver*> driver(DriverFacts* facts) {
  static const Loaded* const loaded = new Loaded;
  if (facts) *facts = {loaded->driver.path, loaded->driver.version};
  if (!loaded->status.ok()) return loaded->status;
  return &loaded->driver;
}

std::string missing_driver_mend(const std::string& root) {
  const auto there = [&](const char* file) { return access((root + file).c_str(), F_OK) == 0; };
  if (const char* folder = library_folder();
      folder && access((std::string(folder) + "/libcuda.so.1").c_str(), F_OK) == 0)
    return "EFFNET_LIB_DIR names a folder whose libcuda.so.1 does not load: unset it, or put the driver's there";
  if (there("/dev/dxg"))
    return "Under WSL the driver is the one of Windows: install 580 or later there, none here; "
           "/usr/lib/wsl/lib then has libcuda.so.1";
  if (there("/.dockerenv") || there("/run/.containerenv"))
    return "This is a container: install driver 580 or later and the NVIDIA container toolkit on its host, "
           "and run it with --gpus all";
  return "Install driver 580 or later; in a container, run it with --gpus all";
}

const char* driver_start_mend(CUresult result) {
  switch (result) {
    case CUDA_ERROR_SYSTEM_NOT_READY:
      return "GPUs that NVSwitch joins need nvidia-fabricmanager, of the driver's version, running on the host "
             "(systemctl status nvidia-fabricmanager); then see nvidia-smi";
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
      return "libcuda.so.1 is of another release than the kernel's module, as after an update: reboot, or end what "
             "uses the GPU and load the module again (sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia; sudo "
             "modprobe "
             "nvidia). nvidia-smi says the same as long as it is so";
    case CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE:
      return "This libcuda.so.1 is of a cuda-compat package, which this GPU does not take: keep its folder off "
             "LD_LIBRARY_PATH and install driver 580 or later";
    default:
      return "See nvidia-smi; where it works, load the driver's module again (sudo rmmod nvidia_uvm; sudo modprobe "
             "nvidia_uvm), as after a suspend; else reboot";
  }
}

bool is_fault(CUresult result) {
  switch (result) {
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_CONTAINED:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_CONTEXT_IS_DESTROYED:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_TENSOR_MEMORY_LEAK:
    case CUDA_ERROR_MPS_CLIENT_TERMINATED:
    case CUDA_ERROR_EXTERNAL_DEVICE:
      return true;
    default:
      return false;
  }
}

// What is asked has no work to wait for: no stream of ours is the default one, nor waits for it. A stream in a capture
// gives another error, where the context is sound.
bool context_is_lost(const Driver& driver, CUresult result) {
  if (result != CUDA_ERROR_UNKNOWN) return is_fault(result);
  const CUresult again = driver.cuStreamSynchronize(CU_STREAM_LEGACY);
  return again == CUDA_ERROR_UNKNOWN || is_fault(again);
}

Status driver_status(const Driver& driver, const char* call, CUresult result) {
  if (result == CUDA_SUCCESS) return ok_status();
  const char *name = nullptr, *text = nullptr;
  if (driver.cuGetErrorName(result, &name) != CUDA_SUCCESS || !name) name = "unknown error";
  if (driver.cuGetErrorString(result, &text) != CUDA_SUCCESS || !text) text = "";
  if (context_is_lost(driver, result))
    return error(Code::gpu_fault, "GPU fault: %s failed: %s (%d) %s. This process cannot use the GPU any more", call,
                 name, static_cast<int>(result), text);
  const Code code = result == CUDA_ERROR_OUT_OF_MEMORY ? Code::oom : Code::internal;
  return error(code, "%s failed: %s (%d) %s", call, name, static_cast<int>(result), text);
}

}  // namespace effnet::cuda
