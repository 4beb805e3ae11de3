// Ranges that profilers show (Nsight Systems, Nsight Compute). A profiler names its library in NVTX_INJECTION64_PATH;
// where there is none, a range costs a comparison. Nothing links to NVTX and none of its headers is needed: this is its
// protocol for injected libraries, version 3.
#pragma once

#include <string_view>

namespace effnet::cuda {

// On the calling thread, for as long as it lives.
class Range {
 public:
  explicit Range(std::string_view name);
  ~Range();
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

 private:
  bool pushed_;
};

}  // namespace effnet::cuda
