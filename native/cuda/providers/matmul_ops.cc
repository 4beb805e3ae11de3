// Ops that are one matrix product, by cuBLASLt: linear layers and 1x1 convolutions. Row-major [rows, channels] is
// column-major channels x rows, so weights [out, in] are in x out, and every result is the transposed one.
#include "cuda/ops/sum_parts.h"
#include "cuda/providers/conv_bwd.h"
#include "plan/op_traits.h"

namespace effnet::cuda {
namespace {

using plan::DType;
using plan::Op;
using plan::OpId;
using plan::Tensor;

struct Call {
  Product product;
  const Tensor *a = nullptr, *b = nullptr, *bias = nullptr, *c = nullptr, *d = nullptr;
  bool a_is_weights = false;          // f32, of which a 16-bit product takes the working copy
  const Tensor* diff_bias = nullptr;  // the sums of b's rows
};

// What an address is a multiple of, at its arena's offset. The arenas themselves are at multiples of 256.
int alignment(uint64_t offset) { return static_cast<int>((offset | 256) & (~(offset | 256) + 1)); }

Product::Matrix matrix(const Tensor* t, int64_t rows, int64_t columns, bool transposed = false) {
  return {t->dtype, rows, columns, transposed, alignment(t->offset)};
}

// In the type of the images that they are multiplied with.
Product::Matrix weights_matrix(const Tensor* t, DType dtype, int64_t in, int64_t out, bool transposed) {
  return {dtype, in, out, transposed, alignment(dtype == DType::f32 ? t->offset : t->offset / 2)};
}

// Rows and channels of a matrix, or of an image's pixels.
int64_t channels(const Tensor* t) { return t->c(); }
int64_t rows(const Tensor* t) { return t->elements() / t->c(); }

// `add`: of d's type and shape, or nullptr.
void add_to(Product& p, const Tensor* add) {
  p.add_c = add != nullptr;
  if (add) p.d.alignment = std::min(p.d.alignment, alignment(add->offset));
}

Call forward(const Tensor* src, const Tensor* weights, const Tensor* bias, const Tensor* add, const Tensor* dst) {
  const int64_t in = channels(src), out = channels(dst);
  Product p{weights_matrix(weights, src->dtype, in, out, true), matrix(src, in, rows(src)),
            matrix(dst, out, rows(dst))};
  p.bias = bias != nullptr;
  add_to(p, add);
  return {p, weights, src, bias, add, dst, true};
}

Call bwd_data(const Tensor* diff_dst, const Tensor* weights, const Tensor* diff_src) {
  const int64_t in = channels(diff_src), out = channels(diff_dst);
  return {{weights_matrix(weights, diff_dst->dtype, in, out, false), matrix(diff_dst, out, rows(diff_dst)),
           matrix(diff_src, in, rows(diff_src))},
          weights,
          diff_dst,
          nullptr,
          nullptr,
          diff_src,
          true};
}

Call bwd_weights(const Tensor* src, const Tensor* diff_dst, const Tensor* diff_weights, const Tensor* diff_bias) {
  const int64_t in = channels(src), out = channels(diff_dst);
  return {{matrix(src, in, rows(src)), matrix(diff_dst, out, rows(diff_dst), true), matrix(diff_weights, in, out)},
          src,
          diff_dst,
          nullptr,
          nullptr,
          diff_weights,
          false,
          diff_bias};
}

// Whether a convolution takes every pixel as it is.
bool is_matrix(const Op& op, int first_attr, const Tensor* weights) {
  return weights->dims[1] == 1 && weights->dims[2] == 1 && op.attr_int(first_attr) == 1 &&
         op.attr_int(first_attr + 1) == 0 && op.attr_int(first_attr + 2) == 0;
}

std::optional<Call> call_of(const Op& op) {
  switch (op.id) {
    case OpId::linear: {
      using namespace op::linear;
      return forward(op.in(in_src), op.in(in_weights), op.in(in_bias), nullptr, op.out(out_dst));
    }
    case OpId::linear_bwd_data: {
      using namespace op::linear_bwd_data;
      return bwd_data(op.in(in_diff_dst), op.in(in_weights), op.out(out_diff_src));
    }
    case OpId::linear_bwd_weights: {
      using namespace op::linear_bwd_weights;
      return bwd_weights(op.in(in_src), op.in(in_diff_dst), op.out(out_diff_weights), op.out(out_diff_bias));
    }
    case OpId::conv2d: {
      using namespace op::conv2d;
      if (!is_matrix(op, attr_stride, op.in(in_weights))) return {};
      return forward(op.in(in_src), op.in(in_weights), nullptr, nullptr, op.out(out_dst));
    }
    case OpId::conv2d_bias_act: {
      using namespace op::conv2d_bias_act;
      if (!is_matrix(op, attr_stride, op.in(in_weights)) || op.in(in_gate) || op.act(attr_act) != plan::Act::identity)
        return {};
      return forward(op.in(in_src), op.in(in_weights), op.in(in_bias), op.in(in_residual), op.out(out_dst));
    }
    case OpId::conv2d_bwd_data: {
      using namespace op::conv2d_bwd_data;
      if (!is_matrix(op, attr_stride, op.in(in_weights))) return {};
      return bwd_data(op.in(in_diff_dst), op.in(in_weights), op.out(out_diff_src));
    }
    case OpId::conv2d_bwd_weights: {
      using namespace op::conv2d_bwd_weights;
      if (!is_matrix(op, attr_stride, op.out(out_diff_weights))) return {};
      return bwd_weights(op.in(in_src), op.in(in_diff_dst), op.out(out_diff_weights), nullptr);
    }
    default:
      return {};
  }
}

bool has_type(DType dtype) { return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16; }

}  // namespace

std::optional<ConvBwdProducts> bwd_products_of(const Op& op) {
  using namespace op::conv2d_bwd;
  const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *dst = op.in(in_dst);
  if (op.id != OpId::conv2d_bwd || !has_type(src->dtype) || !is_matrix(op, attr_stride, weights)) return {};
  // The gradient of dst lies in scratch, and the source may: where more is aligned than where the tensors are.
  ConvBwdProducts products{bwd_data(dst, weights, op.out(out_diff_src)).product,
                           bwd_weights(src, dst, op.out(out_diff_weights), nullptr).product};
  add_to(products.data, op.in(in_addend));
  products.data.tf32 = products.weights.tf32 = src->dtype == DType::f32 && op.allows_tf32();
  return products;
}

Launch matmul_launch(std::shared_ptr<const Matmul> matmul, const Matmul::Operands& operands) {
  Launch launch;
  launch.kernel = "cublasLtMatmul";
  launch.call = [matmul = std::move(matmul), operands](void* stream) { return matmul->queue(operands, stream); };
  return launch;
}

bool is_product(const Op& op) {
  const std::optional<Call> call = call_of(op);
  return call && has_type(call->b->dtype);
}

StatusOr<KernelPtr> make_matmul(std::shared_ptr<const CublasLt> library, const Op& op, int algorithm) {
  std::optional<Call> found = call_of(op);
  if (!found || !has_type(found->b->dtype)) return KernelPtr();
  const DType dtype = found->b->dtype;
  found->product.tf32 = dtype == DType::f32 && op.allows_tf32();
  const auto matmul = Matmul::create(std::move(library), found->product, algorithm);
  if (!matmul.ok()) return matmul.status();
  const Product& p = found->product;
  auto kernel = std::make_unique<Kernel>();
  kernel->name = plan::op_name(op.id) + (p.tf32 ? "_tf32" : suffix(dtype)) + ":cublaslt";
  kernel->scratch_bytes = matmul.value()->workspace_bytes();
  kernel->flops =
      2.0 * static_cast<double>(p.d.rows) * static_cast<double>(p.d.columns) * static_cast<double>(p.a.op_columns());
  if (found->a_is_weights) kernel->working = dtype;
  kernel->record = [call = *found, dtype, matmul = matmul.value()](const Addresses& at, std::vector<Launch>& launches) {
    const bool copied = call.a_is_weights && dtype != DType::f32;
    const Matmul::Operands operands{copied ? at.working(call.a) : at.ptr(call.a),
                                    at.ptr(call.b),
                                    at.ptr(call.bias),
                                    at.ptr(call.c),
                                    at.ptr(call.d),
                                    at.scratch};
    launches.push_back(matmul_launch(matmul, operands));
    if (call.diff_bias)
      launches.push_back(
          sum_parts(at.ptr<const float>(call.b), rows(call.b), channels(call.b), at.ptr<float>(call.diff_bias)));
  };
  return kernel;
}

}  // namespace effnet::cuda
