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

const std::string kOwnId = "own", kCublasLtId = "cublaslt/", kCudnnId = "cudnn/";
// Candidates of a library: the first are its own guess at the best, and a plan of cuDNN's may take seconds to build.
constexpr int kMostOfLibrary = 4;

std::string product_id(int algorithm) { return kCublasLtId + std::to_string(algorithm); }

// "conv2d_f32:cudnn/eng7"; own kernels are named after their form already.
void name_after(const std::string& id, Kernel& kernel) {
  if (id != kOwnId) kernel.name = kernel.name.substr(0, kernel.name.rfind(':') + 1) + id;
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

StatusOr<std::shared_ptr<const CublasLt>> Providers::cublaslt() {
  const std::lock_guard lock(mutex_);
  if (!cublaslt_) cublaslt_ = CublasLt::create();
  return *cublaslt_;
}

StatusOr<std::shared_ptr<const Cudnn>> Providers::cudnn() {
  const std::lock_guard lock(mutex_);
  if (!cudnn_) cudnn_ = Cudnn::create();
  return *cudnn_;
}

StatusOr<KernelPtr> Providers::by_library(Provider provider, const plan::Op& op) {
  if (provider == Provider::cublaslt) {
    auto library = cublaslt();
    return library.ok() ? make_matmul(library.value(), op) : library.status();
  }
  const auto library = cudnn();
  return library.ok() ? make_convolution(*library.value(), op) : library.status();
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

// ---- the candidates of a choice ----------------------------------------------------------------------------------

bool Providers::has_choice(const plan::Op& op) const {
  const auto asked = wanted();
  if (!asked.ok() || asked.value()) return false;
  return is_product(op) || convolution_of(op);
}

void Providers::add_products(const plan::Op& op, std::vector<Candidate>& candidates) {
  const auto library = cublaslt();
  for (int nth = 0; library.ok() && nth < kMostOfLibrary; ++nth) {
    auto kernel = make_matmul(library.value(), op, nth);
    if (!kernel.ok() || !kernel.value()) return;
    candidates.push_back({product_id(nth), std::move(kernel.value())});
  }
}

void Providers::add_convolutions(const plan::Op& op, std::vector<Candidate>& candidates) {
  const std::optional<Convolution> convolution = convolution_of(op);
  if (!convolution) return;
  const auto library = cudnn();
  if (!library.ok()) return;
  for (const auto& plan : library.value()->plans(*convolution, kMostOfLibrary)) {
    auto kernel = make_convolution(*library.value(), op, plan->engine());
    if (kernel.ok() && kernel.value()) candidates.push_back({kCudnnId + plan->engine(), std::move(kernel.value())});
  }
}

std::vector<Candidate> Providers::candidates(const plan::Op& op, KernelFactory own) {
  std::vector<Candidate> of_own, products, convolutions;
  if (auto kernel = own(op); kernel.ok()) of_own.push_back({kOwnId, std::move(kernel.value())});
  add_products(op, products);
  add_convolutions(op, convolutions);
  const Provider first = table_choice(op, capability_);
  std::vector<Candidate> all;
  const auto append = [&](std::vector<Candidate>& some) {
    for (Candidate& candidate : some) all.push_back(std::move(candidate));
    some.clear();
  };
  if (first == Provider::cublaslt) append(products);
  if (first == Provider::cudnn) append(convolutions);
  append(of_own);
  append(products);
  append(convolutions);
  // What was chosen among several says which it is.
  for (Candidate& candidate : all) name_after(candidate.id, *candidate.kernel);
  return all;
}

StatusOr<KernelPtr> Providers::bind_to(const std::string& id, const plan::Op& op, KernelFactory own) {
  if (id == kOwnId) return own(op);
  StatusOr<KernelPtr> kernel = KernelPtr();
  if (id.starts_with(kCudnnId)) {
    const auto library = cudnn();
    kernel = library.ok() ? make_convolution(*library.value(), op, id.substr(kCudnnId.size())) : library.status();
  } else {
    for (int nth = 0; nth < kMostOfLibrary; ++nth) {
      if (id != product_id(nth)) continue;
      auto library = cublaslt();
      kernel = library.ok() ? make_matmul(library.value(), op, nth) : library.status();
    }
  }
  if (!kernel.ok() || !kernel.value()) return error(Code::plan_invalid, "there is no kernel %s here", id.c_str());
  name_after(id, *kernel.value());
  return kernel;
}

}  // namespace effnet::cuda
