#include "cuda/driver.h"

#include <dlfcn.h>

#include <cstdlib>
#include <vector>

namespace effnet::cuda {
namespace {

// Twice, so that a macro of cuda.h becomes the versioned name behind it: cuMemAlloc is "cuMemAlloc_v2".
#define EFF_TEXT_OF(x) #x
#define EFF_TEXT(x) EFF_TEXT_OF(x)

void* open_library(std::string& path, std::string& tried) {
  std::vector<std::string> places;
  if (const char* folder = std::getenv("EFFNET_LIB_DIR")) places.push_back(std::string(folder) + "/libcuda.so.1");
  places.push_back("libcuda.so.1");
  places.push_back("/usr/lib/wsl/lib/libcuda.so.1");  // WSL does not put it on the loader's path
  for (const std::string& place : places) {
    if (void* library = dlopen(place.c_str(), RTLD_NOW | RTLD_GLOBAL)) {
      path = place;
      return library;
    }
    tried += (tried.empty() ? "" : "; ") + std::string(dlerror());
  }
  return nullptr;
}

// `driver` is filled in as far as it goes.
Status load(Driver* driver) {
  std::string tried;
  void* library = open_library(driver->path, tried);
  if (!library)
    return error(Code::backend_missing,
                 "no NVIDIA driver: %s. Install driver 580 or later; in a container, run it with --gpus all",
                 tried.c_str());
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
    return Status(Code::backend_missing, "the NVIDIA driver does not start: " + status.message());
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

// After these every call of the process fails.
static bool is_fault(CUresult result) {
  return (result >= CUDA_ERROR_ILLEGAL_ADDRESS && result <= CUDA_ERROR_LAUNCH_FAILED &&
          result != CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED && result != CUDA_ERROR_PEER_ACCESS_NOT_ENABLED &&
          result != CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED && result != CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED) ||
         result == CUDA_ERROR_ECC_UNCORRECTABLE || result == CUDA_ERROR_NVLINK_UNCORRECTABLE;
}

Status driver_status(const Driver& driver, const char* call, CUresult result) {
  if (result == CUDA_SUCCESS) return ok_status();
  const char *name = nullptr, *text = nullptr;
  if (driver.cuGetErrorName(result, &name) != CUDA_SUCCESS || !name) name = "unknown error";
  if (driver.cuGetErrorString(result, &text) != CUDA_SUCCESS || !text) text = "";
  if (is_fault(result))
    return error(Code::internal,
                 "GPU fault: %s failed: %s (%d) %s. This process cannot use the GPU any more; a run goes on from its "
                 "last checkpoint in another one. With EFFNET_CUDA_SYNC=1 it waits for every op and names the one at "
                 "fault",
                 call, name, static_cast<int>(result), text);
  const Code code = result == CUDA_ERROR_OUT_OF_MEMORY ? Code::oom : Code::internal;
  return error(code, "%s failed: %s (%d) %s", call, name, static_cast<int>(result), text);
}

}  // namespace effnet::cuda
