#include "cuda/providers/cublaslt.h"

#include <dlfcn.h>

#include <algorithm>

#include "cuda/providers/library.h"

namespace effnet::cuda {
namespace {

using plan::DType;

// What one product may take of an op's scratch; what NVIDIA advises for its newest GPUs.
constexpr uint64_t kMostWorkspace = 32 << 20;
constexpr int kMostAlgorithms = 8;

int data_type(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return lt::kF16;
    case DType::bf16:
      return lt::kBf16;
    default:
      return lt::kF32;
  }
}

// What the library cannot, this product or on this GPU, an own kernel does. All else is a mistake of ours or a failure,
// and told.
Code code_of(int result) {
  switch (result) {
    case lt::kAllocFailed:
      return Code::oom;
    case lt::kNotSupported:
    case lt::kArchMismatch:
      return Code::plan_invalid;
    default:
      return Code::internal;
  }
}

Status lt_status(const char* call, int result) {
  if (result == lt::kSuccess) return ok_status();
  return error(code_of(result), "%s failed with status %d", call, result);
}

// FP32 as it is: newer releases make such products of BF16 ones on tensor cores, where CUBLAS_EMULATE_SINGLE_PRECISION
// is set or they think that it is as good.
bool is_true_fp32(const Product& p) { return p.a.dtype == DType::f32 && !p.tf32; }

#define EFF_LT(functions, call, ...) EFF_RETURN_IF_ERROR(lt_status(#call, (functions).call(__VA_ARGS__)))

}  // namespace

StatusOr<std::shared_ptr<const CublasLt>> CublasLt::create() {
  const auto found = open_library(kCublasLt);
  if (!found.ok()) return found.status();
  std::shared_ptr<CublasLt> library(new CublasLt());
#define X(name, ...) \
  library->functions_.name = reinterpret_cast<decltype(library->functions_.name)>(dlsym(found.value().handle, #name));
  EFF_CUBLASLT(X)
#undef X
  if (const int result = library->functions_.cublasLtCreate(&library->handle_); result != lt::kSuccess) {
    library->handle_ = nullptr;
    return does_not_start(kCublasLt, "cublasLtCreate", result, result == lt::kAllocFailed);
  }
  return std::shared_ptr<const CublasLt>(std::move(library));
}

CublasLt::~CublasLt() {
  if (handle_) functions_.cublasLtDestroy(handle_);
}

StatusOr<std::shared_ptr<const Matmul>> Matmul::create(std::shared_ptr<const CublasLt> library, const Product& product,
                                                       int nth) {
  std::shared_ptr<Matmul> matmul(new Matmul());
  matmul->library_ = std::move(library);
  EFF_RETURN_IF_ERROR(matmul->start(product, nth));
  return std::shared_ptr<const Matmul>(std::move(matmul));
}

Matmul::~Matmul() {
  const lt::Functions& f = library_->functions();
  for (lt::Layout layout : {a_, b_, d_})
    if (layout) f.cublasLtMatrixLayoutDestroy(layout);
  if (desc_) f.cublasLtMatmulDescDestroy(desc_);
}

Status Matmul::start(const Product& p, int nth) {
  const lt::Functions& f = library_->functions();
  bias_ = p.bias;
  add_c_ = p.add_c;
  EFF_LT(f, cublasLtMatmulDescCreate, &desc_, p.tf32 ? lt::kCompute32FFastTf32 : lt::kCompute32F, lt::kF32);
  const auto set = [&](int attribute, auto value) {
    return lt_status("cublasLtMatmulDescSetAttribute",
                     f.cublasLtMatmulDescSetAttribute(desc_, attribute, &value, sizeof value));
  };
  EFF_RETURN_IF_ERROR(set(lt::kTransA, static_cast<int32_t>(p.a.transposed ? lt::kTransposed : lt::kPlain)));
  EFF_RETURN_IF_ERROR(set(lt::kTransB, static_cast<int32_t>(p.b.transposed ? lt::kTransposed : lt::kPlain)));
  EFF_RETURN_IF_ERROR(set(lt::kEpilogue, static_cast<uint32_t>(p.bias ? lt::kEpilogueBias : lt::kEpilogueNone)));
  if (p.bias) EFF_RETURN_IF_ERROR(set(lt::kBiasDataType, static_cast<int32_t>(lt::kF32)));
  const auto layout = [&](lt::Layout* into, const Product::Matrix& m) {
    return lt_status("cublasLtMatrixLayoutCreate",
                     f.cublasLtMatrixLayoutCreate(into, data_type(m.dtype), static_cast<uint64_t>(m.rows),
                                                  static_cast<uint64_t>(m.columns), m.rows));
  };
  EFF_RETURN_IF_ERROR(layout(&a_, p.a));
  EFF_RETURN_IF_ERROR(layout(&b_, p.b));
  EFF_RETURN_IF_ERROR(layout(&d_, p.d));
  return choose(p, nth);
}

Status Matmul::choose(const Product& p, int nth) {
  const lt::Functions& f = library_->functions();
  lt::Preference preference = nullptr;
  EFF_LT(f, cublasLtMatmulPreferenceCreate, &preference);
  Status status;
  const auto set = [&](int attribute, auto value) {
    if (status.ok())
      status = lt_status("cublasLtMatmulPreferenceSetAttribute",
                         f.cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
  };
  set(lt::kMaxWorkspaceBytes, uint64_t{kMostWorkspace});
  // Split sums are FP32 and have one order.
  set(lt::kReductionSchemes, static_cast<uint32_t>(lt::kReduceInComputeType));
  set(lt::kAlignmentA, static_cast<uint32_t>(p.a.alignment));
  set(lt::kAlignmentB, static_cast<uint32_t>(p.b.alignment));
  set(lt::kAlignmentC, static_cast<uint32_t>(p.d.alignment));
  set(lt::kAlignmentD, static_cast<uint32_t>(p.d.alignment));
  if (is_true_fp32(p)) set(lt::kImplementations, uint64_t{lt::kMultiplyAdds | lt::kSumsF32 | lt::kFactorsF32});
  lt::Heuristic found[kMostAlgorithms] = {};
  int count = 0;
  if (status.ok())
    status = lt_status("cublasLtMatmulAlgoGetHeuristic",
                       f.cublasLtMatmulAlgoGetHeuristic(library_->handle(), desc_, a_, b_, d_, d_, preference,
                                                        std::min(nth + 1, kMostAlgorithms), found, &count));
  f.cublasLtMatmulPreferenceDestroy(preference);
  EFF_RETURN_IF_ERROR(status);
  if (nth >= count) return error(Code::plan_invalid, "cuBLASLt has no algorithm %d for this product", nth);
  if (found[nth].state != lt::kSuccess)
    return error(Code::plan_invalid, "cuBLASLt's algorithm %d is not for this product: status %d", nth,
                 found[nth].state);
  best_ = found[nth];
  return is_true_fp32(p) ? check_multiply_adds(nth) : ok_status();
}

Status Matmul::check_multiply_adds(int nth) const {
  uint64_t implementation = 0;
  size_t written = 0;
  EFF_LT(library_->functions(), cublasLtMatmulAlgoCapGetAttribute, &best_.algorithm, lt::kAlgorithmImplementation,
         &implementation, sizeof implementation, &written);
  if (written == sizeof implementation && !(implementation & lt::kTensorOps)) return ok_status();
  return error(Code::plan_invalid, "cuBLASLt's algorithm %d emulates FP32", nth);
}

Status Matmul::queue(const Operands& at, void* stream) const {
  const lt::Functions& f = library_->functions();
  if (bias_) EFF_LT(f, cublasLtMatmulDescSetAttribute, desc_, lt::kBiasPointer, &at.bias, sizeof at.bias);
  const float alpha = 1, beta = add_c_ ? 1 : 0;
  EFF_LT(f, cublasLtMatmul, library_->handle(), desc_, &alpha, at.a, a_, at.b, b_, &beta, add_c_ ? at.c : at.d, d_,
         at.d, d_, &best_.algorithm, best_.workspace_bytes ? at.workspace : nullptr, best_.workspace_bytes, stream);
  return ok_status();
}

}  // namespace effnet::cuda
