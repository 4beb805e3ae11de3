#include "cuda/providers/conv_bwd.h"

#include "cuda/ops/conv.h"

namespace effnet::cuda {
namespace {

using plan::DType;
using plan::Op;
using Pass = Convolution::Pass;

// Matrix products in columns: weights or what was convolved is the first factor.
StatusOr<ConvBwdParts::Record> by_product(const Libraries& libraries, const Product& product,
                                          const plan::Tensor* addend, int algorithm, size_t& workspace) {
  const auto made = Matmul::create(libraries.cublaslt, product, algorithm);
  if (!made.ok()) return made.status();
  workspace = std::max(workspace, made.value()->workspace_bytes());
  return ConvBwdParts::Record([matmul = made.value(), addend](const Addresses& at, const void* diff_dst,
                                                              const void* other, void* result, std::byte* beside,
                                                              std::vector<Launch>& launches) {
    launches.push_back(matmul_launch(matmul, {other, diff_dst, nullptr, at.ptr(addend), result, beside}));
  });
}

StatusOr<ConvBwdParts::Record> by_convolution(const Libraries& libraries, const Convolution& convolution,
                                              const std::string& engine, size_t& workspace) {
  const auto made = libraries.cudnn->plan(convolution, engine);
  if (!made.ok()) return made.status();
  workspace = std::max(workspace, made.value()->workspace_bytes());
  return ConvBwdParts::Record([plan = made.value()](const Addresses&, const void* diff_dst, const void* other,
                                                    void* result, std::byte* at, std::vector<Launch>& launches) {
    launches.push_back(convolution_launch(plan, {diff_dst, other, nullptr, nullptr, result, at}));
  });
}

// A part by a library.
StatusOr<ConvBwdParts::Record> part(const Op& op, Pass pass, const KernelId& id, const Libraries& libraries,
                                    size_t& workspace) {
  if (id.provider == Provider::cublaslt && libraries.cublaslt)
    if (const auto products = bwd_products_of(op)) {
      if (pass == Pass::bwd_weights) return by_product(libraries, products->weights, nullptr, id.algorithm, workspace);
      return by_product(libraries, products->data, op.in(op::conv2d_bwd::in_addend), id.algorithm, workspace);
    }
  if (id.provider == Provider::cudnn && libraries.cudnn)
    if (const auto convolution = bwd_convolution_of(op, pass))
      return by_convolution(libraries, *convolution, id.engine, workspace);
  return error(Code::plan_invalid, "there is no kernel %s for a part of conv2d_bwd here", id.text().c_str());
}

// A library reads 16-bit weights as a copy, which those of other arenas have not.
bool may_have_data(const Op& op) {
  using namespace op::conv2d_bwd;
  const plan::Tensor* weights = op.in(in_weights);
  const bool copied = weights->arena == plan::Arena::weights || weights->arena == plan::Arena::prepared;
  return has_plain_bwd_data(op) && (copied || op.in(in_src)->dtype == DType::f32);
}

std::vector<KernelId> of_libraries(const Op& op, Pass pass, const Libraries& libraries, int most) {
  std::vector<KernelId> ids;
  if (pass == Pass::bwd_data && !may_have_data(op)) return ids;
  const auto products = bwd_products_of(op);
  for (int nth = 0; products && libraries.cublaslt && nth < most; ++nth) {
    const Product& product = pass == Pass::bwd_data ? products->data : products->weights;
    if (!Matmul::create(libraries.cublaslt, product, nth).ok()) break;
    ids.push_back({Provider::cublaslt, nth, {}});
  }
  const auto convolution = bwd_convolution_of(op, pass);
  if (convolution && libraries.cudnn)
    for (const auto& plan : libraries.cudnn->plans(*convolution, most))
      ids.push_back({Provider::cudnn, 0, plan->engine()});
  return ids;
}

}  // namespace

std::string ConvBwdChoice::text() const { return data.text() + "+" + weights.text(); }

std::optional<ConvBwdChoice> ConvBwdChoice::parse(const std::string& text) {
  const size_t plus = text.find('+');
  if (plus == std::string::npos) return {};
  const auto data = KernelId::parse(text.substr(0, plus)), weights = KernelId::parse(text.substr(plus + 1));
  return data && weights ? std::optional(ConvBwdChoice{*data, *weights}) : std::nullopt;
}

std::vector<ConvBwdChoice> conv_bwd_choices(const Op& op, const Libraries& libraries, int most_of_library) {
  std::vector<KernelId> data{{}}, weights{{}};
  for (KernelId& id : of_libraries(op, Pass::bwd_data, libraries, most_of_library)) data.push_back(std::move(id));
  for (KernelId& id : of_libraries(op, Pass::bwd_weights, libraries, most_of_library)) weights.push_back(std::move(id));
  std::vector<ConvBwdChoice> choices;
  for (const KernelId& of_data : data)
    for (const KernelId& of_weights : weights) choices.push_back({of_data, of_weights});
  return choices;
}

ConvBwdChoice conv_bwd_by(Provider library, const Op& op, const Libraries& libraries) {
  ConvBwdChoice choice;
  size_t workspace = 0;
  const KernelId first{library, 0, {}};
  if (may_have_data(op) && part(op, Pass::bwd_data, first, libraries, workspace).ok()) choice.data = first;
  if (part(op, Pass::bwd_weights, first, libraries, workspace).ok()) choice.weights = first;
  return choice;
}

StatusOr<KernelPtr> make_conv2d_bwd_by(const Op& op, const ConvBwdChoice& choice, const Libraries& libraries) {
  using namespace op::conv2d_bwd;
  ConvBwdParts parts;
  const struct {
    const KernelId& id;
    Pass pass;
    ConvBwdParts::Record& record;
  } both[] = {{choice.data, Pass::bwd_data, parts.data}, {choice.weights, Pass::bwd_weights, parts.weights}};
  for (const auto& [id, pass, record] : both) {
    if (id.provider == Provider::own) continue;
    if (pass == Pass::bwd_data && !may_have_data(op))
      return error(Code::plan_invalid, "the source's gradient of this conv2d_bwd is an own kernel's alone");
    auto made = part(op, pass, id, libraries, parts.workspace_bytes);
    if (!made.ok()) return made.status();
    record = std::move(made.value());
  }
  parts.data_adds = choice.data.provider == Provider::cublaslt;
  auto kernel = make_conv2d_bwd_in_parts(op, parts);
  if (!kernel.ok() || !parts.data) return kernel;
  const ConvType type(op.in(in_src)->dtype, op.allows_tf32());
  kernel.value()->name = "conv2d_bwd" + type.suffix() + ":cuda";  // of no form: that is the own kernel's
  if (type.dtype != DType::f32) kernel.value()->working = type.dtype;
  return kernel;
}

}  // namespace effnet::cuda
