// A libnvidia-ml.so.1 for tests: the driver's release is FAKE_NVML_RELEASE, by default one that the backend takes;
// empty: it does not start.
#include <cstdlib>
#include <cstring>
#include <string>

#include "cuda/fake/fake_calls.h"

namespace {

constexpr int kSuccess = 0, kUninitialized = 1, kInsufficientSize = 7, kDriverNotLoaded = 9;
int starts = 0;

std::string release() {
  const char* asked = std::getenv("FAKE_NVML_RELEASE");
  return asked ? asked : "580.65.06";
}

}  // namespace

EFF_EXPORT int nvmlInit_v2() {
  if (release().empty()) return kDriverNotLoaded;
  ++starts;
  return kSuccess;
}
EFF_EXPORT int nvmlShutdown() { return starts-- > 0 ? kSuccess : kUninitialized; }
EFF_EXPORT int nvmlSystemGetDriverVersion(char* version, unsigned length) {
  if (starts == 0) return kUninitialized;
  const std::string text = release();
  if (text.size() >= length) return kInsufficientSize;
  std::memcpy(version, text.c_str(), text.size() + 1);
  return kSuccess;
}
