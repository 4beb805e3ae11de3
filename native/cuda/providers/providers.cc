#include "cuda/providers/providers.h"

#include <cstdlib>
#include <string_view>

namespace effnet::cuda {
namespace {

using plan::OpId;

// Of the ops whose kernels fuse nothing, what a library is likely to do as well or better. Everything else keeps its
// own kernel, which has prologues and epilogues that no library has.
Provider table_choice(const plan::Op& op) {
  switch (op.id) {
    case OpId::linear:
    case OpId::linear_bwd_data:
    case OpId::linear_bwd_weights:
      return Provider::cublaslt;
    default:
      return Provider::own;
  }
}

struct Named {
  std::string_view name;
  Provider provider;
};
constexpr Named kProviders[] = {{"own", Provider::own}, {"cublaslt", Provider::cublaslt}};

// What EFFNET_CUDA_PROVIDER asks for.
StatusOr<std::optional<Provider>> wanted() {
  const char* name = std::getenv("EFFNET_CUDA_PROVIDER");
  if (!name || !*name) return std::optional<Provider>();
  for (const Named& known : kProviders)
    if (known.name == name) return std::optional(known.provider);
  return error(Code::invalid_argument, "EFFNET_CUDA_PROVIDER=%s: there are own and cublaslt", name);
}

}  // namespace

StatusOr<std::shared_ptr<const CublasLt>> Providers::cublaslt() {
  const std::lock_guard lock(mutex_);
  if (!cublaslt_) cublaslt_ = CublasLt::create();
  return *cublaslt_;
}

StatusOr<KernelPtr> Providers::bind(const plan::Op& op, KernelFactory own) {
  const auto asked = wanted();
  if (!asked.ok()) return asked.status();
  const Provider provider = asked.value().value_or(table_choice(op));
  if (provider == Provider::own) return own(op);
  const auto library = cublaslt();
  if (!library.ok()) {
    if (!asked.value()) return own(op);  // doctor says what is missing, and what that means
    return Status(library.status().code(), "EFFNET_CUDA_PROVIDER=cublaslt: " + library.status().message());
  }
  auto kernel = make_matmul(library.value(), op);
  // No algorithm for this one is no failure: the own kernel takes every shape.
  if (!kernel.ok() && kernel.status().code() != Code::plan_invalid) return kernel;
  return kernel.ok() && kernel.value() ? std::move(kernel) : own(op);
}

}  // namespace effnet::cuda
