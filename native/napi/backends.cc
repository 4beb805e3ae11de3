#include "napi/backends.h"

#include <dlfcn.h>
#include <unistd.h>

#include <charconv>
#include <cstring>

#include "cpu/executable.h"
#include "cpu/kernels/dispatch.h"

namespace effnet::napi {
namespace {

// Beside the addon.
std::string module_path() {
  Dl_info info = {};
  if (dladdr(reinterpret_cast<const void*>(&module_path), &info) == 0 || !info.dli_fname) return cuda::kModuleFile;
  const std::string addon = info.dli_fname;
  return addon.substr(0, addon.rfind('/') + 1) + cuda::kModuleFile;
}

StatusOr<const cuda::Module*> load_cuda() {
  const std::string path = module_path();
  if (access(path.c_str(), F_OK) != 0)
    return error(Code::backend_missing,
                 "this package was built without the CUDA backend (%s is not there). npm run setup -- --cuda builds it",
                 path.c_str());
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) return error(Code::backend_missing, "the CUDA backend does not load: %s", dlerror());
  const auto entry = reinterpret_cast<cuda::ModuleEntry>(dlsym(library, cuda::kModuleEntry));
  const cuda::Module* module = entry ? entry() : nullptr;
  if (!module || std::strcmp(module->interface, EFFNET_INTERFACE) != 0)
    return error(Code::backend_missing, "%s is of another build than the addon. npm run build makes both again",
                 path.c_str());
  return module;
}

// Once a process: what is missing then stays missing.
StatusOr<const cuda::Module*> cuda_module() {
  static const auto* const module = new StatusOr<const cuda::Module*>(load_cuda());
  return *module;
}

// The backend of the CPU lives as long as the process.
std::shared_ptr<Backend> cpu_backend() { return {std::shared_ptr<void>(), &cpu::backend()}; }

}  // namespace

StatusOr<std::shared_ptr<Backend>> open_backend(const std::string& device) {
  if (device == "cpu") {
    if (const char* reason = cpu::unsupported_cpu_reason()) return error(Code::backend_missing, "%s", reason);
    return cpu_backend();
  }
  int ordinal = 0;
  if (device.starts_with("cuda:")) {
    const char *first = device.data() + 5, *last = device.data() + device.size();
    const auto [end, failure] = std::from_chars(first, last, ordinal);
    if (failure != std::errc() || end != last || ordinal < 0) ordinal = -1;
  } else if (device != "cuda") {
    ordinal = -1;
  }
  if (ordinal < 0) return error(Code::invalid_argument, "there is no device %s", device.c_str());
  const auto module = cuda_module();
  if (!module.ok()) return module.status();
  return module.value()->open(ordinal);
}

CudaDescription describe_cuda() {
  CudaDescription cuda{module_path(), {}, {}};
  const auto module = cuda_module();
  cuda.status = module.ok() ? module.value()->describe(cuda.facts) : module.status();
  return cuda;
}

}  // namespace effnet::napi
