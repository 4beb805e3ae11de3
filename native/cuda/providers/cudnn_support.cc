#include "cuda/providers/cudnn_support.h"

namespace effnet::cuda {
namespace {

constexpr SupportRow kRows[] = {
#define X(...) {__VA_ARGS__},
#include "cuda/providers/cudnn_support.inc"
#undef X
};

const char* type_name(const Convolution& c) {
  return c.tf32 ? "tf32" : c.dtype == plan::DType::f16 ? "f16" : c.dtype == plan::DType::bf16 ? "bf16" : "f32";
}

}  // namespace

std::span<const SupportRow> support_rows() { return kRows; }

std::string graph_name(const Convolution& c) {
  switch (c.pass) {
    case Convolution::Pass::bwd_data:
      return "bwd_data";
    case Convolution::Pass::bwd_weights:
      return c.result == plan::DType::f32 ? "bwd_weights" : "bwd_weights_half";
    default:
      return std::string("forward") + (c.bias ? "_bias" : "") + (c.silu ? "_silu" : "") +
             (c.residual ? "_residual" : "");
  }
}

bool is_supported(int capability, const Convolution& c) {
  const int known = capability >= 90 ? 90 : 80;
  bool any = false;
  for (const SupportRow& row : kRows) {
    if (row.capability != known || row.graph != graph_name(c) || std::string(row.dtype) != type_name(c) ||
        row.kernel != c.kh || row.kernel != c.kw || row.stride != c.stride)
      continue;
    if (row.engine == 0) return false;
    any = true;
  }
  return any;
}

}  // namespace effnet::cuda
