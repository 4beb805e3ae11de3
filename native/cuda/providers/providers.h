// Who runs an op: the package's own kernel, or a library that can. The choice shows in the kernel's name.
#pragma once

#include <memory>
#include <mutex>
#include <optional>

#include "cuda/kernel.h"
#include "cuda/providers/cublaslt.h"

namespace effnet::cuda {

enum class Provider { own, cublaslt };

// The libraries of a GPU, opened when an op first asks for one.
class Providers {
 public:
  // Its context is current whenever this is used.
  Providers() = default;
  Providers(const Providers&) = delete;
  Providers& operator=(const Providers&) = delete;

  // The kernel that a plan binds `op` to. EFFNET_CUDA_PROVIDER names one of own, cublaslt for every op that it can do;
  // else a table decides. Code::backend_missing where the one named is not there.
  StatusOr<KernelPtr> bind(const plan::Op& op, KernelFactory own);

 private:
  StatusOr<std::shared_ptr<const CublasLt>> cublaslt();

  std::mutex mutex_;
  std::optional<StatusOr<std::shared_ptr<const CublasLt>>> cublaslt_;
};

// The op as a matrix product of cuBLASLt; nullptr where it is none.
StatusOr<KernelPtr> make_matmul(std::shared_ptr<const CublasLt> library, const plan::Op& op);

}  // namespace effnet::cuda
