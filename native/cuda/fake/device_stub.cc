// A libcuda.so.1 with no device: the real cuDNN loads with it, chooses engines and compiles kernels for a GPU that it
// is only told about. Versions, loading of modules and attributes of kernels succeed, everything else says "no device".
#include <dlfcn.h>

#include <cstring>
#include <initializer_list>

#define EFF_EXPORT extern "C" __attribute__((visibility("default"))) int

namespace {

constexpr int kNoDevice = 100;
int no_device() { return kNoDevice; }
int done() { return 0; }
int some_handle(void** into) {
  static char something;
  *into = &something;
  return 0;
}

bool begins(const char* name, std::initializer_list<const char*> with) {
  for (const char* start : with)
    if (std::strncmp(name, start, std::strlen(start)) == 0) return true;
  return false;
}

// What is asked for by name, of any version.
void* function(const char* name) {
  if (void* own = dlsym(RTLD_DEFAULT, name)) return own;
  if (begins(name, {"cuModuleUnload", "cuFuncSetAttribute", "cuTensorMapEncodeTiled", "cuTensorMapEncodeIm2col"}))
    return reinterpret_cast<void*>(done);
  if (begins(name, {"cuKernelGetFunction", "cuModuleLoadData", "cuModuleGetFunction", "cuLibraryGetModule"}))
    return reinterpret_cast<void*>(some_handle);
  return reinterpret_cast<void*>(no_device);
}

}  // namespace

#define EFF_NONE(name) \
  EFF_EXPORT name() { return kNoDevice; }
#define EFF_DONE(name) \
  EFF_EXPORT name() { return 0; }
#define EFF_HANDLE(name) \
  EFF_EXPORT name(void** into) { return some_handle(into); }
#define EFF_VALUE(name, answer) \
  EFF_EXPORT name(int* value) { \
    *value = answer;            \
    return 0;                   \
  }

EFF_NONE(cuInit)
EFF_NONE(cuCtxGetLimit)
EFF_NONE(cuDeviceGet)
EFF_NONE(cuDeviceGetCount)
EFF_NONE(cuLaunchCooperativeKernel)
EFF_NONE(cuLaunchKernel)
EFF_NONE(cuLaunchKernelEx)
EFF_NONE(cuLinkAddData)
EFF_NONE(cuLinkComplete)
EFF_NONE(cuLinkCreate)
EFF_NONE(cuLinkDestroy)
EFF_NONE(cuStreamGetCtx)
EFF_DONE(cuLibraryUnload)
EFF_DONE(cuKernelSetAttribute)
EFF_DONE(cuCtxPushCurrent)
EFF_HANDLE(cuLibraryLoadData)
EFF_HANDLE(cuLibraryGetKernel)
EFF_HANDLE(cuCtxGetCurrent)
EFF_HANDLE(cuCtxPopCurrent)
EFF_HANDLE(cuLibraryLoadFromFile)
EFF_VALUE(cuDriverGetVersion, 13000)
EFF_VALUE(cuKernelGetAttribute, 0)
EFF_VALUE(cuFuncGetAttribute, 0)
EFF_VALUE(cuOccupancyMaxPotentialClusterSize, 8)
EFF_VALUE(cuOccupancyMaxActiveClusters, 8)
EFF_EXPORT cuGetErrorString(int, const char** text) {
  *text = "no device";
  return 0;
}
EFF_EXPORT cuGetErrorName(int, const char** text) {
  *text = "CUDA_ERROR_NO_DEVICE";
  return 0;
}
EFF_EXPORT cuGetProcAddress_v2(const char* name, void** into, int, unsigned long long, int* status) {
  *into = function(name);
  if (status) *status = 0;
  return 0;
}
EFF_EXPORT cuGetProcAddress(const char* name, void** into, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(name, into, version, flags, nullptr);
}
