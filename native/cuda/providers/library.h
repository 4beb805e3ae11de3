// NVIDIA's libraries, found by soname when they are first needed: none is linked to, none is shipped, each may be
// missing, with a consequence that has a name.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/status.h"
#include "cuda/module.h"

namespace effnet::cuda {

struct LibraryKind {
  const char* name;
  const char* soname;
  // Of a loaded library: major * 10000 + minor * 100 + patch, or 0 where it does not say.
  int (*version)(void* library);
  int oldest;
  std::span<const char* const> symbols;  // it must have
  std::span<const char* const> friends;  // libraries that it opens by soname itself, found as it is found
  const char* without;                   // what is different where there is none
  const char* package;                   // that brings it, in Python's registry
};

extern const LibraryKind kCublasLt, kCudnn, kNvJpeg;
std::span<const LibraryKind* const> library_kinds();

struct OpenLibrary {
  void* handle = nullptr;  // open until the process ends
  std::string path;
  int version = 0;
};

// The first of library_places() that loads, is new enough and lacks nothing; opened once a process. Else
// Code::backend_missing with everything that was passed over and why.
StatusOr<OpenLibrary> open_library(const LibraryKind& kind);
// The same, at every call anew.
StatusOr<OpenLibrary> find_library(const LibraryKind& kind);
LibraryFacts library_facts(const LibraryKind& kind);
// Of one that loads: `call` ended with `status`, for want of memory where it is `full`. Code::oom or
// Code::backend_missing, whose mends ts/binding.ts knows by these words.
Status does_not_start(const LibraryKind& kind, const char* call, int status, bool full);

// Where a library is looked for, in this order: EFFNET_LIB_DIR, CUDA_HOME, what the loader finds, the Python
// environments that are active, WSL's folder of drivers.
std::vector<std::string> library_places(const char* soname);

// "9.19.0"
std::string version_text(int version);

}  // namespace effnet::cuda
