// Where plans can run, by the names that users give devices.
#pragma once

#include <memory>
#include <string>

#include "core/backend.h"
#include "cuda/module.h"

namespace effnet::napi {

// "cpu", "cuda" or "cuda:N". Code::backend_missing with what is missing and the mend.
StatusOr<std::shared_ptr<Backend>> open_backend(const std::string& device);

// What doctor shows of the GPUs.
struct CudaDescription {
  std::string library;  // where the backend's shared library is looked for
  cuda::Facts facts;
  Status status;  // what keeps it from being used
};
CudaDescription describe_cuda();

}  // namespace effnet::napi
