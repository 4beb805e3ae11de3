// The part of nvJPEG 13 that the backend calls, so that it builds where the library's header is not installed;
// native/tests/cuda_headers_test.cc holds it against that header where it is.
#pragma once

#include <cstddef>

namespace effnet::cuda::nvjpeg {

using Handle = struct HandleOpaque*;
using State = struct StateOpaque*;
using Stream = void*;

struct Image {
  unsigned char* channel[4];
  size_t pitch[4];
};

// What the library calls for memory, of the device or of the host (nvjpegDevAllocatorV2_t, nvjpegPinnedAllocatorV2_t).
// Thread-safe. 0: it has it, or has given it back.
struct Allocator {
  int (*allocate)(void* context, void** data, size_t bytes, Stream);
  int (*free)(void* context, void* data, size_t bytes, Stream);
  void* context;
};
inline constexpr int kTaken = 0, kRefused = 1;

enum Result : int {
  kSuccess = 0,
  kNotInitialized = 1,
  kInvalidParameter = 2,
  kBadJpeg = 3,
  kJpegNotSupported = 4,
  kAllocatorFailure = 5,
  kExecutionFailed = 6,
  kInternalError = 8,
  kImplementationNotSupported = 9,
  kIncompleteBitstream = 10,
};
enum Backend : int { kBackendDefault = 0 };
enum Flags : unsigned { kInterpolatedChroma = 1 << 5 };  // as libjpeg does; by default values are repeated
enum OutputFormat : int { kOutputRgbInterleaved = 5 };

// All return a Result.
#define EFF_NVJPEG(X)                                                                                       \
  X(nvjpegCreateExV2, int backend, Allocator* device, Allocator* pinned, unsigned flags, Handle*)           \
  X(nvjpegDestroy, Handle)                                                                                  \
  X(nvjpegJpegStateCreate, Handle, State*)                                                                  \
  X(nvjpegJpegStateDestroy, State)                                                                          \
  X(nvjpegGetImageInfo, Handle, const unsigned char* data, size_t bytes, int* components, int* subsampling, \
    int* widths, int* heights)                                                                              \
  X(nvjpegDecodeBatchedInitialize, Handle, State, int images, int cpu_threads, int format)                  \
  X(nvjpegDecodeBatched, Handle, State, const unsigned char* const* data, const size_t* bytes, Image* into, Stream)

// nvjpegGetProperty, which library.cc asks first, for each part of the version.
using GetProperty = int(int type, int* value);
enum Property : int { kMajor = 0, kMinor = 1, kPatch = 2 };

struct Functions {
#define X(name, ...) int (*name)(__VA_ARGS__) = nullptr;
  EFF_NVJPEG(X)
#undef X
};

}  // namespace effnet::cuda::nvjpeg
