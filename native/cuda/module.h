// The shared library of the CUDA backend, effnet_cuda.so beside the addon: found by name, so that the addon loads, and
// says what is missing, where there is none.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"

namespace effnet::cuda {

// One of NVIDIA's libraries (cuda/providers), as this process finds it.
struct LibraryFacts {
  std::string name;           // e.g. "cuDNN"
  std::string path, version;  // of the one that is used; both empty without
  std::string problem;        // why there is none; the others say what that means, and the mend
  std::string without, mend;
};

struct Facts {
  std::string driver_path;
  int driver_version = 0;      // of CUDA, e.g. 13000; 0 where there is none
  std::string driver_release;  // e.g. "580.65.06"; empty: there is no driver, or nothing tells
  std::string architectures;   // that this build has kernels for, e.g. "80;90a"
  bool cudnn = false;          // whether this build has cuDNN's part
  struct Gpu {
    std::string name;
    int capability = 0;  // major * 10 + minor
    uint64_t total_bytes = 0;
    std::string problem;  // why it cannot be used; empty: it can
  };
  std::vector<Gpu> gpus;
  std::vector<LibraryFacts> libraries;
};

struct Module {
  // EFFNET_INTERFACE of the build; where the addon's differs nothing below may be used.
  const char* interface;
  // One backend for a GPU and process. Code::backend_missing with what is missing and the mend.
  StatusOr<std::shared_ptr<Backend>> (*open)(int ordinal);
  // Fills in what there is; the status says what keeps the backend from running.
  Status (*describe)(Facts& facts);
};

constexpr const char* kModuleFile = "effnet_cuda.so";
constexpr const char* kModuleEntry = "effnet_cuda_module";
using ModuleEntry = const Module* (*)();

}  // namespace effnet::cuda
