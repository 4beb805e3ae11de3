// Who runs an op: the package's own kernel, or a library that can. The choice shows in the kernel's name.
#pragma once

#include <memory>
#include <mutex>
#include <optional>

#include "cuda/kernel.h"
#include "cuda/providers/cublaslt.h"
#include "cuda/providers/cudnn.h"

namespace effnet::cuda {

enum class Provider { own, cublaslt, cudnn };

// The libraries of a GPU, opened when an op first asks for one.
class Providers {
 public:
  // Of a GPU of that compute capability, e.g. 90. Its context is current whenever this is used.
  explicit Providers(int capability) : capability_(capability) {}
  Providers(const Providers&) = delete;
  Providers& operator=(const Providers&) = delete;

  // The kernel that a plan binds `op` to. EFFNET_CUDA_PROVIDER names one of own, cublaslt, cudnn for every op that it
  // can do; else a table decides. Code::backend_missing where the one named is not there.
  StatusOr<KernelPtr> bind(const plan::Op& op, KernelFactory own);

 private:
  // nullptr where the library cannot do this op. Code::backend_missing where there is no such library.
  StatusOr<KernelPtr> by_library(Provider provider, const plan::Op& op);

  const int capability_;
  std::mutex mutex_;
  std::optional<StatusOr<std::shared_ptr<const CublasLt>>> cublaslt_;
  std::optional<StatusOr<std::shared_ptr<const Cudnn>>> cudnn_;
};

// The op as a matrix product of cuBLASLt; nullptr where it is none. Code::plan_invalid where the library cannot.
StatusOr<KernelPtr> make_matmul(std::shared_ptr<const CublasLt> library, const plan::Op& op);

// The op as a convolution of cuDNN, likewise.
StatusOr<KernelPtr> make_convolution(const Cudnn& library, const plan::Op& op);
std::optional<Convolution> convolution_of(const plan::Op& op);

}  // namespace effnet::cuda
