#include "cuda/providers/library.h"

#include <dlfcn.h>
#include <glob.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string_view>

#include "cuda/providers/cublaslt_api.h"
#include "cuda/providers/cudnn.h"
#include "cuda/providers/cudnn_api.h"
#include "cuda/providers/nvjpeg_api.h"
#include "cuda/shared_library.h"

namespace effnet::cuda {
namespace {

#define EFF_NAME(name, ...) #name,
constexpr const char* kCublasLtSymbols[] = {EFF_CUBLASLT(EFF_NAME)};
constexpr const char* kCudnnSymbols[] = {EFF_CUDNN(EFF_NAME)};
constexpr const char* kNvJpegSymbols[] = {EFF_NVJPEG(EFF_NAME)};
#undef EFF_NAME
// cuDNN compiles fused kernels with NVRTC and multiplies with cuBLASLt.
constexpr const char* kCudnnFriends[] = {"libnvrtc.so.13", "libcublasLt.so.13"};

template <class GetVersion>
int version_by(void* library, const char* name) {
  const auto function = reinterpret_cast<GetVersion*>(dlsym(library, name));
  return function ? static_cast<int>(function()) : 0;
}
int cublaslt_version(void* library) { return version_by<lt::GetVersion>(library, "cublasLtGetVersion"); }
int cudnn_version(void* library) { return version_by<CudnnGetVersion>(library, "cudnnGetVersion"); }
int nvjpeg_version(void* library) {
  const auto property = reinterpret_cast<nvjpeg::GetProperty*>(dlsym(library, "nvjpegGetProperty"));
  int parts[3] = {};
  for (const int part : {nvjpeg::kMajor, nvjpeg::kMinor, nvjpeg::kPatch})
    if (!property || property(part, &parts[part]) != nvjpeg::kSuccess) return 0;
  return parts[0] * 10000 + parts[1] * 100 + parts[2];
}

std::vector<std::string> files_like(const std::string& pattern) {
  glob_t found = {};
  std::vector<std::string> files;
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0) files.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  globfree(&found);
  return files;
}

// Of every Python package that NVIDIA publishes libraries in, e.g. lib/python3.11/site-packages/nvidia/cu13/lib.
void add_python_places(const char* environment, const char* soname, std::vector<std::string>& places) {
  for (std::string& file : files_like(std::string(environment) + "/lib/python3*/site-packages/nvidia/*/lib/" + soname))
    places.push_back(std::move(file));
}

void* open_at(const std::string& place, std::string& problem) {
  return open_shared_library(place, RTLD_NOW | RTLD_LOCAL, problem);
}

// Opened by soname later, a friend is then there already; so is what NVRTC opens, which lies beside it under the name
// of its minor version.
void open_friends(const LibraryKind& kind) {
  for (const char* soname : kind.friends) {
    for (const std::string& place : library_places(soname)) {
      std::string problem;
      if (!open_at(place, problem)) continue;
      const size_t folder = place.rfind('/');
      if (folder != std::string::npos && std::string_view(soname).starts_with("libnvrtc"))
        for (const std::string& builtins : files_like(place.substr(0, folder) + "/libnvrtc-builtins.so.*"))
          open_at(builtins, problem);
      break;
    }
  }
}

// What is wrong with a library that loads; empty when it will do.
std::string flaw(const LibraryKind& kind, const OpenLibrary& library) {
  if (library.version > 0 && library.version < kind.oldest)
    return "is " + version_text(library.version) + ", " + version_text(kind.oldest) + " or later is needed";
  for (const char* symbol : kind.symbols)
    if (!dlsym(library.handle, symbol)) return std::string("lacks ") + symbol;
  return library.version == 0 ? "does not say its version" : "";
}

// Where the loader found what was asked for by soname alone.
std::string path_of(const OpenLibrary& library, const char* symbol) {
  Dl_info info = {};
  void* function = dlsym(library.handle, symbol);
  return function && dladdr(function, &info) && info.dli_fname ? info.dli_fname : library.path;
}

}  // namespace

const LibraryKind kCublasLt = {"cuBLASLt",
                               "libcublasLt.so.13",
                               cublaslt_version,
                               130000,
                               kCublasLtSymbols,
                               {},
                               "matrix products use the package's own kernels",
                               "nvidia-cublas"};
const LibraryKind kCudnn = {"cuDNN",
                            "libcudnn.so.9",
                            cudnn_version,
                            91900,
                            kCudnnSymbols,
                            kCudnnFriends,
                            "dense convolutions use the package's own kernels",
                            "nvidia-cudnn-cu13"};
const LibraryKind kNvJpeg = {"nvJPEG",
                             "libnvjpeg.so.13",
                             nvjpeg_version,
                             130000,
                             kNvJpegSymbols,
                             {},
                             "JPEG files are decoded on the CPU (no --data-backend gpu)",
                             "nvidia-nvjpeg"};

std::span<const LibraryKind* const> library_kinds() {
  static const LibraryKind* const all[] = {&kCudnn, &kCublasLt, &kNvJpeg};
  return all;
}

std::string version_text(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

std::vector<std::string> library_places(const char* soname) {
  std::vector<std::string> places;
  if (const char* folder = library_folder()) places.push_back(std::string(folder) + "/" + soname);
  if (const char* home = std::getenv("CUDA_HOME"))
    for (const char* part : {"/lib64/", "/lib/", "/targets/x86_64-linux/lib/"})
      places.push_back(std::string(home) + part + soname);
  places.push_back(soname);
  for (const char* name : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (const char* environment = std::getenv(name)) add_python_places(environment, soname, places);
  places.push_back(std::string("/usr/lib/wsl/lib/") + soname);  // WSL does not put it on the loader's path
  return places;
}

StatusOr<OpenLibrary> find_library(const LibraryKind& kind) {
  std::string passed_over;
  for (const std::string& place : library_places(kind.soname)) {
    const bool named = place.find('/') != std::string::npos;
    if (named && access(place.c_str(), F_OK) != 0) continue;
    std::string problem;
    OpenLibrary library{open_at(place, problem), place, 0};
    if (library.handle) {
      library.version = kind.version(library.handle);
      problem = flaw(kind, library);
      if (!named) library.path = path_of(library, kind.symbols.front());
      if (problem.empty()) {
        open_friends(kind);
        return library;
      }
      dlclose(library.handle);
    } else {
      // By its soname alone: the loader has none, or one that lacks something itself.
      if (!named && problem.starts_with(std::string(kind.soname) + ": cannot open")) continue;
    }
    passed_over +=
        (passed_over.empty() ? "" : "; ") + library.path + " " + (library.handle ? "" : "does not load: ") + problem;
  }
  if (passed_over.empty()) passed_over = std::string(kind.soname) + " was not found";
  return Status(Code::backend_missing, passed_over);
}

StatusOr<OpenLibrary> open_library(const LibraryKind& kind) {
  static std::mutex* const mutex = new std::mutex;
  static auto* const known = new std::map<const LibraryKind*, StatusOr<OpenLibrary>>;
  const std::lock_guard lock(*mutex);
  if (const auto found = known->find(&kind); found != known->end()) return found->second;
  return known->emplace(&kind, find_library(kind)).first->second;
}

Status does_not_start(const LibraryKind& kind, const char* call, int status, bool full) {
  const auto library = open_library(kind);
  return error(full ? Code::oom : Code::backend_missing, "%s does not start: %s failed with status %d",
               library.ok() ? library.value().path.c_str() : kind.soname, call, status);
}

LibraryFacts library_facts(const LibraryKind& kind) {
  LibraryFacts facts{kind.name, {}, {}, {}, {}, {}};
  if (const char* absent = Cudnn::absent(); absent && &kind == &kCudnn) {
    const std::string text = absent;
    const size_t end = text.find(". ");
    return {kind.name, {}, {}, text.substr(0, end), kind.without, text.substr(end + 2)};
  }
  const auto library = open_library(kind);
  if (library.ok()) {
    facts.path = library.value().path;
    facts.version = version_text(library.value().version);
    return facts;
  }
  facts.problem = library.status().message();
  facts.without = kind.without;
  facts.mend = std::string("pip install ") + kind.package +
               " in an active Python environment, or set EFFNET_LIB_DIR to the folder that has " + kind.soname;
  return facts;
}

}  // namespace effnet::cuda
