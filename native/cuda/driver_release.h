// Which release of NVIDIA's driver a machine has: what cuDriverGetVersion says is the newest CUDA that it knows, and
// many releases know the same.
#pragma once

#include <string>

namespace effnet::cuda {

// e.g. "580.65.06"; "" where nothing tells. By libnvidia-ml.so.1 in EFFNET_LIB_DIR, the driver's module in the kernel
// (under `root`), else libnvidia-ml.so.1 as the loader finds it, or WSL's.
std::string driver_release(const std::string& root = "");

}  // namespace effnet::cuda
