// The entry points of cuDNN 9 that cudnn-frontend calls for a convolution, beside the version: what a library must have
// to be used.
#pragma once

#include <cstddef>

namespace effnet::cuda {

using CudnnGetVersion = size_t();  // cudnnGetVersion, which library.cc asks first

}  // namespace effnet::cuda

#define EFF_CUDNN(X)               \
  X(cudnnGetErrorString)           \
  X(cudnnGetLastErrorString)       \
  X(cudnnCreate)                   \
  X(cudnnDestroy)                  \
  X(cudnnSetStream)                \
  X(cudnnBackendCreateDescriptor)  \
  X(cudnnBackendDestroyDescriptor) \
  X(cudnnBackendFinalize)          \
  X(cudnnBackendSetAttribute)      \
  X(cudnnBackendGetAttribute)      \
  X(cudnnBackendExecute)
