#include "cuda/providers/providers.h"

#include <cstdlib>
#include <string_view>

#include "cuda/providers/cudnn_support.h"

namespace effnet::cuda {
namespace {

using plan::OpId;

// Of the ops whose kernels fuse nothing, what a library is likely to do as well or better. Everything else keeps its
// own kernel, which has prologues and epilogues that no library has.
Provider table_choice(const plan::Op& op, int capability) {
  switch (op.id) {
    case OpId::linear:
    case OpId::linear_bwd_data:
    case OpId::linear_bwd_weights:
      return Provider::cublaslt;
    default:
      break;
  }
  // Where cuDNN builds a plan on tensor cores. 1x1 convolutions are matrix products, which the own kernels fuse more
  // into.
  const std::optional<Convolution> c = convolution_of(op);
  if (op.id == OpId::conv2d_stats) return Provider::own;  // whose statistics cost no pass
  const bool tensor_cores = c && (c->tf32 || c->dtype != plan::DType::f32);
  return tensor_cores && c->kh > 1 && is_supported(capability, *c) ? Provider::cudnn : Provider::own;
}

struct Named {
  std::string_view name;
  Provider provider;
};
constexpr Named kProviders[] = {{"own", Provider::own}, {"cublaslt", Provider::cublaslt}, {"cudnn", Provider::cudnn}};

// What EFFNET_CUDA_PROVIDER asks for.
StatusOr<std::optional<Provider>> wanted() {
  const char* name = std::getenv("EFFNET_CUDA_PROVIDER");
  if (!name || !*name) return std::optional<Provider>();
  for (const Named& known : kProviders)
    if (known.name == name) return std::optional(known.provider);
  return error(Code::invalid_argument, "EFFNET_CUDA_PROVIDER=%s: there are own, cublaslt and cudnn", name);
}

}  // namespace

StatusOr<KernelPtr> Providers::by_library(Provider provider, const plan::Op& op) {
  const std::lock_guard lock(mutex_);
  if (provider == Provider::cublaslt) {
    if (!cublaslt_) cublaslt_ = CublasLt::create();
    return cublaslt_->ok() ? make_matmul(cublaslt_->value(), op) : cublaslt_->status();
  }
  if (!cudnn_) cudnn_ = Cudnn::create();
  return cudnn_->ok() ? make_convolution(*cudnn_->value(), op) : cudnn_->status();
}

StatusOr<KernelPtr> Providers::bind(const plan::Op& op, KernelFactory own) {
  const auto asked = wanted();
  if (!asked.ok()) return asked.status();
  const Provider provider = asked.value().value_or(table_choice(op, capability_));
  if (provider == Provider::own) return own(op);
  auto kernel = by_library(provider, op);
  if (kernel.ok()) return kernel.value() ? std::move(kernel) : own(op);
  switch (kernel.status().code()) {
    case Code::plan_invalid:  // no algorithm for this one: the own kernel takes every shape
      return own(op);
    case Code::backend_missing:  // by the table: doctor says what is missing, and what that means
      if (!asked.value()) return own(op);
      return Status(Code::backend_missing, std::string("EFFNET_CUDA_PROVIDER=") + std::getenv("EFFNET_CUDA_PROVIDER") +
                                               ": " + kernel.status().message());
    default:
      return kernel;
  }
}

}  // namespace effnet::cuda
