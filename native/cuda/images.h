// The compiled kernels that the backend carries: a fat binary for each file of kernels/.
#pragma once

#include <span>

namespace effnet::cuda {

struct KernelImage {
  const char* name;
  const void* data;
};

// Written by CMake.
std::span<const KernelImage> kernel_images();

}  // namespace effnet::cuda
