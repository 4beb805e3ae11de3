// The compiled kernels that the backend carries: a fat binary for each file of kernels/.
#pragma once

#include <span>

namespace effnet::cuda {

struct KernelImage {
  const char* name;
  const void* data;
};

// Both written by CMake.
std::span<const KernelImage> kernel_images();
// What they are compiled for, e.g. "80;90a;80-ptx".
const char* kernel_architectures();

}  // namespace effnet::cuda
