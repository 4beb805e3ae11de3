// The entry points of the NVIDIA driver that the backend uses, found by name in libcuda.so.1 at first use: nothing
// links to it, so the backend loads, and explains itself, where there is none.
#pragma once

#include <cuda.h>

#include <string>

#include "core/status.h"

namespace effnet::cuda {

#define EFF_CUDA_DRIVER(X)       \
  X(cuInit)                      \
  X(cuDriverGetVersion)          \
  X(cuGetErrorName)              \
  X(cuGetErrorString)            \
  X(cuDeviceGetCount)            \
  X(cuDeviceGet)                 \
  X(cuDeviceGetName)             \
  X(cuDeviceGetAttribute)        \
  X(cuDeviceTotalMem)            \
  X(cuDevicePrimaryCtxRetain)    \
  X(cuDevicePrimaryCtxRelease)   \
  X(cuCtxSetCurrent)             \
  X(cuMemGetInfo)                \
  X(cuMemAlloc)                  \
  X(cuMemFree)                   \
  X(cuMemHostAlloc)              \
  X(cuMemFreeHost)               \
  X(cuMemcpyHtoDAsync)           \
  X(cuMemcpyDtoHAsync)           \
  X(cuMemcpyDtoDAsync)           \
  X(cuMemsetD8Async)             \
  X(cuStreamCreateWithPriority)  \
  X(cuStreamDestroy)             \
  X(cuStreamSynchronize)         \
  X(cuStreamIsCapturing)         \
  X(cuStreamWaitEvent)           \
  X(cuEventCreate)               \
  X(cuEventDestroy)              \
  X(cuEventRecord)               \
  X(cuEventSynchronize)          \
  X(cuEventElapsedTime)          \
  X(cuLibraryLoadData)           \
  X(cuLibraryUnload)             \
  X(cuLibraryGetKernelCount)     \
  X(cuLibraryEnumerateKernels)   \
  X(cuKernelGetName)             \
  X(cuKernelGetFunction)         \
  X(cuFuncSetAttribute)          \
  X(cuLaunchKernelEx)            \
  X(cuStreamBeginCapture)        \
  X(cuStreamEndCapture)          \
  X(cuGraphInstantiateWithFlags) \
  X(cuGraphLaunch)               \
  X(cuGraphExecDestroy)          \
  X(cuGraphDestroy)

struct Driver {
#define X(name) decltype(&::name) name = nullptr;
  EFF_CUDA_DRIVER(X)
#undef X
  int version = 0;   // e.g. 13000
  std::string path;  // as it was opened
};

// CUDA 13's kernels need a driver that knows it: release 580 or later.
inline constexpr int kOldestDriver = 13000;

// The driver of this machine, or Code::backend_missing with what is missing and the mend. Opened once a process.
// `facts`: also path and version of one that is there and cannot be used.
struct DriverFacts {
  std::string path;
  int version = 0;
};
StatusOr<const Driver*> driver(DriverFacts* facts = nullptr);

// What brings a driver where none was found: on the machine, into a container, under WSL. `root`: where its files lie.
std::string missing_driver_mend(const std::string& root = "");

// What mends a driver that is there and does not start, by what cuInit said.
const char* driver_start_mend(CUresult result);

// Whether every later call of the process fails, too: the context is lost. By its name alone; of CUDA_ERROR_UNKNOWN,
// which a GPU that is gone often gives for all that it is asked, `context_is_lost` asks once more.
bool is_fault(CUresult result);
bool context_is_lost(const Driver& driver, CUresult result);

// What a driver call says: ok, Code::oom for memory, Code::gpu_fault, else Code::internal; with the call and the
// error's name.
Status driver_status(const Driver& driver, const char* call, CUresult result);

#define EFF_CUDA(driver, call, ...) \
  EFF_RETURN_IF_ERROR(::effnet::cuda::driver_status((driver), #call, (driver).call(__VA_ARGS__)))

}  // namespace effnet::cuda
