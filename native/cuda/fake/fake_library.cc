// A library with the names that the backend wants of cuDNN, cuBLASLt and nvJPEG, for tests of how libraries are found.
// FAKE_LIBRARY_VERSION is what it says it is (e.g. 91900).
#include <cstddef>
#include <cstdlib>

#include "cuda/providers/cublaslt_api.h"
#include "cuda/providers/cudnn_api.h"
#include "cuda/providers/nvjpeg_api.h"

#define EFF_EXPORT extern "C" __attribute__((visibility("default")))
#define EFF_STUB(name, ...) \
  EFF_EXPORT void name(void) { std::abort(); }
EFF_CUBLASLT(EFF_STUB)
EFF_CUDNN(EFF_STUB)
EFF_NVJPEG(EFF_STUB)

static int version() {
  const char* value = std::getenv("FAKE_LIBRARY_VERSION");
  return value ? std::atoi(value) : 999999;
}

EFF_EXPORT size_t cublasLtGetVersion() { return static_cast<size_t>(version()); }
EFF_EXPORT size_t cudnnGetVersion() { return static_cast<size_t>(version()); }
EFF_EXPORT int nvjpegGetProperty(int which, int* value) {
  const int parts[] = {version() / 10000, version() / 100 % 100, version() % 100};
  *value = parts[which];
  return 0;
}
