#include "cuda/driver_release.h"

#include <dlfcn.h>

#include <fstream>
#include <sstream>
#include <type_traits>

#include "cuda/shared_library.h"

namespace effnet::cuda {
namespace {

// "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build ..."; words differ by build.
std::string of_kernel_module(const std::string& root) {
  std::ifstream file(root + "/proc/driver/nvidia/version");
  std::string line;
  std::getline(file, line);
  if (!line.starts_with("NVRM version:")) return "";
  std::istringstream words(line);
  for (std::string word; words >> word;)
    if (word.find_first_not_of("0123456789.") == std::string::npos && word.find('.') != std::string::npos) return word;
  return "";
}

std::string of_nvml(const std::string& path) {
  std::string problem;
  void* library = open_shared_library(path, RTLD_NOW | RTLD_LOCAL, problem);
  if (!library) return "";
  const auto find = [&](auto*& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    return function != nullptr;
  };
  int (*init)() = nullptr, (*shutdown)() = nullptr, (*release)(char*, unsigned) = nullptr;
  char text[96] = {};
  if (find(init, "nvmlInit_v2") && find(shutdown, "nvmlShutdown") && find(release, "nvmlSystemGetDriverVersion") &&
      init() == 0) {
    if (release(text, sizeof text - 1) != 0) text[0] = '\0';
    shutdown();
  }
  dlclose(library);
  return text;
}

}  // namespace

std::string driver_release(const std::string& root) {
  constexpr const char* kNvml = "libnvidia-ml.so.1";
  std::string release;
  if (const char* folder = library_folder()) release = of_nvml(std::string(folder) + "/" + kNvml);
  if (release.empty()) release = of_kernel_module(root);
  if (release.empty()) release = of_nvml(kNvml);
  if (release.empty()) release = of_nvml(std::string("/usr/lib/wsl/lib/") + kNvml);
  return release;
}

}  // namespace effnet::cuda
