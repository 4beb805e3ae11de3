#include "cuda/providers/providers.h"

#include <charconv>
#include <cstdlib>
#include <string_view>

#include "cuda/ops/conv.h"
#include "cuda/providers/conv_bwd.h"
#include "cuda/providers/cudnn_support.h"
#include "cuda/providers/library.h"

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

// "own": the form that the table has; "own/mma_64x32_by4".
constexpr std::string_view kOwnId = "own", kOwnForm = "own/", kOwnParts = "own+own", kCublasLtId = "cublaslt/",
                           kCudnnId = "cudnn/";
// Candidates of a library: the first are its own guess at the best, and a plan of cuDNN's may take seconds to build.
constexpr int kMostOfLibrary = 4;
// Of each part of conv2d_bwd, whose parts are tried in all combinations.
constexpr int kMostOfPart = 2;

// "conv2d_f32:cudnn/eng7"; own kernels are named after their form already.
void name_after(const std::string& provider, Kernel& kernel) {
  if (provider != kOwnId && provider != kOwnParts && !provider.starts_with(kOwnForm))
    kernel.name = kernel.name.substr(0, kernel.name.rfind(':') + 1) + provider;
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

Status Providers::check_libraries() {
  if (const auto one = cublaslt(); !one.ok() && open_library(kCublasLt).ok()) return one.status();
  if (const auto other = cudnn(); !other.ok() && !Cudnn::absent() && open_library(kCudnn).ok()) return other.status();
  return ok_status();
}

Libraries Providers::libraries() {
  const auto one = cublaslt();
  const auto other = cudnn();
  return {one.ok() ? one.value() : nullptr, other.ok() ? other.value() : nullptr};
}

StatusOr<KernelPtr> Providers::by_library(Provider provider, const plan::Op& op) {
  if (op.id == OpId::conv2d_bwd) {
    EFF_RETURN_IF_ERROR(provider == Provider::cublaslt ? cublaslt().status() : cudnn().status());
    const Libraries all = libraries();
    const ConvBwdChoice choice = conv_bwd_by(provider, op, all);
    if (!choice.by_library()) return KernelPtr();
    auto kernel = make_conv2d_bwd_by(op, choice, all);
    if (kernel.ok()) name_after(provider == Provider::cublaslt ? "cublaslt" : "cudnn", *kernel.value());
    return kernel;
  }
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
      if (!asked.value()) {
        EFF_RETURN_IF_ERROR(check_libraries());
        return own(op);
      }
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
  return op.id == OpId::conv2d_bwd || is_product(op) || convolution_of(op) || !other_forms(op).empty();
}

void Providers::add_products(const plan::Op& op, std::vector<Candidate>& candidates) {
  const auto library = cublaslt();
  for (int nth = 0; library.ok() && nth < kMostOfLibrary; ++nth) {
    auto kernel = make_matmul(library.value(), op, nth);
    if (!kernel.ok() || !kernel.value()) return;
    candidates.push_back({KernelId{Provider::cublaslt, nth, {}}.text(), std::move(kernel.value())});
  }
}

void Providers::add_convolutions(const plan::Op& op, std::vector<Candidate>& candidates) {
  const std::optional<Convolution> convolution = convolution_of(op);
  if (!convolution) return;
  const auto library = cudnn();
  if (!library.ok()) return;
  for (const auto& plan : library.value()->plans(*convolution, kMostOfLibrary)) {
    auto kernel = make_convolution(*library.value(), op, plan->engine());
    if (!kernel.ok() || !kernel.value()) continue;
    candidates.push_back({KernelId{Provider::cudnn, 0, plan->engine()}.text(), std::move(kernel.value())});
  }
}

std::vector<Candidate> Providers::candidates(const plan::Op& op, KernelFactory own) {
  std::vector<Candidate> all;
  if (op.id == OpId::conv2d_bwd) {
    auto first = own(op);
    if (!first.ok()) return all;
    const std::string name = first.value()->name;
    all.push_back({std::string(kOwnId), std::move(first.value())});
    const Libraries all_there_are = libraries();
    for (const ConvBwdChoice& choice : conv_bwd_choices(op, all_there_are, kMostOfPart)) {
      auto kernel = make_conv2d_bwd_by(op, choice, all_there_are);
      if (!kernel.ok() || (!choice.by_library() && kernel.value()->name == name)) continue;
      all.push_back({choice.text(), std::move(kernel.value())});
    }
  } else {
    std::vector<Candidate> of_own, products, convolutions;
    if (auto kernel = own(op); kernel.ok()) of_own.push_back({std::string(kOwnId), std::move(kernel.value())});
    for (const std::string& form : other_forms(op))
      if (auto kernel = make_in_form(op, form); kernel.ok())
        of_own.push_back({std::string(kOwnForm) + form, std::move(kernel.value())});
    add_products(op, products);
    add_convolutions(op, convolutions);
    const Provider first = table_choice(op, capability_);
    if (first == Provider::cublaslt) std::swap(of_own, products);
    if (first == Provider::cudnn) std::swap(of_own, convolutions);
    for (auto* some : {&of_own, &products, &convolutions})
      for (Candidate& candidate : *some) all.push_back(std::move(candidate));
  }
  // What was chosen among several says which it is.
  for (Candidate& candidate : all) name_after(candidate.id, *candidate.kernel);
  return all;
}

StatusOr<KernelPtr> Providers::bind_to(const std::string& id, const plan::Op& op, KernelFactory own) {
  if (id == kOwnId) return own(op);
  if (id.starts_with(kOwnForm)) return make_in_form(op, id.substr(kOwnForm.size()));
  StatusOr<KernelPtr> kernel = KernelPtr();
  if (op.id == OpId::conv2d_bwd) {
    if (const auto choice = ConvBwdChoice::parse(id)) kernel = make_conv2d_bwd_by(op, *choice, libraries());
  } else if (const auto one = KernelId::parse(id)) {
    const Libraries all = libraries();
    if (one->provider == Provider::cublaslt && all.cublaslt) kernel = make_matmul(all.cublaslt, op, one->algorithm);
    if (one->provider == Provider::cudnn && all.cudnn) kernel = make_convolution(*all.cudnn, op, one->engine);
  }
  if (!kernel.ok() || !kernel.value()) return error(Code::plan_invalid, "there is no kernel %s here", id.c_str());
  name_after(id, *kernel.value());
  return kernel;
}

std::string KernelId::text() const {
  switch (provider) {
    case Provider::cublaslt:
      return std::string(kCublasLtId) + std::to_string(algorithm);
    case Provider::cudnn:
      return std::string(kCudnnId) + engine;
    default:
      return std::string(kOwnId);
  }
}

std::optional<KernelId> KernelId::parse(const std::string& text) {
  if (text == kOwnId) return KernelId{};
  if (text.starts_with(kCudnnId) && text.size() > kCudnnId.size())
    return KernelId{Provider::cudnn, 0, text.substr(kCudnnId.size())};
  if (!text.starts_with(kCublasLtId)) return {};
  KernelId id{Provider::cublaslt, 0, {}};
  const char *first = text.data() + kCublasLtId.size(), *last = text.data() + text.size();
  const auto [end, failure] = std::from_chars(first, last, id.algorithm);
  return failure == std::errc() && end == last && id.algorithm >= 0 ? std::optional(id) : std::nullopt;
}

}  // namespace effnet::cuda
