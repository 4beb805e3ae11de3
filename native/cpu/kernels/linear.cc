// Fully connected layers, FP32:  dst = src * weights^T + bias,  weights [O, K].  The classifier is the one that counts:
// 32 x 1280 x 1000 reads 5 MB of weights and does 82 MFLOP in each of the three passes.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/linear.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/small_gemm-inl.h"

#ifndef EFFNET_LINEAR_ARGS_
#define EFFNET_LINEAR_ARGS_
#include "cpu/kernels/common.h"

namespace effnet::cpu {
struct LinearArgs {
  const float *src, *weights, *bias, *diff_dst;
  float *dst, *diff_src, *diff_weights, *diff_bias;
  int64_t n, o, k;
  int64_t o_begin, o_end, n_begin, n_end, k_begin, k_end;
};
}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

void linear_fwd(const LinearArgs& a) {
  const float* bias = a.bias ? a.bias + a.o_begin : nullptr;
  float* dst = a.dst + a.o_begin;
  dot_product(a.src, a.k, a.n, a.weights + a.o_begin * a.k, a.k, a.o_end - a.o_begin, a.k,
              [&](int64_t n, int64_t o, float sum) HWY_ATTR { dst[n * a.o + o] = bias ? sum + bias[o] : sum; });
}

void linear_bwd_data(const LinearArgs& a) {
  outer_product(a.diff_dst + a.n_begin * a.o, a.o, 1, a.n_end - a.n_begin, a.weights + a.k_begin, a.k, a.o,
                a.diff_src + a.n_begin * a.k + a.k_begin, a.k, a.k_end - a.k_begin);
}

void linear_bwd_weights(const LinearArgs& a) {
  const int64_t rows = a.o_end - a.o_begin;
  outer_product(a.diff_dst + a.o_begin, 1, a.o, rows, a.src, a.k, a.n, a.diff_weights + a.o_begin * a.k, a.k, a.k);
  if (a.diff_bias) sum_rows(a.diff_dst + a.o_begin, a.o, a.n, a.diff_bias + a.o_begin, rows);
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
namespace {

HWY_EXPORT(linear_fwd);
HWY_EXPORT(linear_bwd_data);
HWY_EXPORT(linear_bwd_weights);

enum class Pass { fwd, bwd_data, bwd_weights };

struct LinearPorts {
  const plan::Tensor *src, *weights, *bias, *diff_dst;
  const plan::Tensor *dst, *diff_src, *diff_weights, *diff_bias;
  int64_t n, o, k;
};

class Linear : public Kernel {
 public:
  Linear(const char* base, Pass pass, const LinearPorts& ports)
      : pass_(pass), p_(ports), name_(kernel_name(base, plan::DType::f32)) {
    outputs_ = {p_.o, 64};
    images_ = {p_.n, 16};
    columns_ = {p_.k, 256};
  }
  const char* name() const override { return name_.c_str(); }
  int shards(int) const override {
    return pass_ == Pass::bwd_data ? images_.count() * columns_.count() : outputs_.count();
  }
  double flops() const override {
    return 2.0 * static_cast<double>(p_.n) * static_cast<double>(p_.o) * static_cast<double>(p_.k);
  }
  void run(int, int shard, const ExecContext& ctx) override {
    LinearArgs a{ctx.ptr<const float>(p_.src),
                 ctx.ptr<const float>(p_.weights),
                 ctx.ptr<const float>(p_.bias),
                 ctx.ptr<const float>(p_.diff_dst),
                 ctx.ptr<float>(p_.dst),
                 ctx.ptr<float>(p_.diff_src),
                 ctx.ptr<float>(p_.diff_weights),
                 ctx.ptr<float>(p_.diff_bias),
                 p_.n,
                 p_.o,
                 p_.k,
                 0,
                 p_.o,
                 0,
                 p_.n,
                 0,
                 p_.k};
    if (pass_ == Pass::bwd_data) {
      const int image = shard / columns_.count(), column = shard % columns_.count();
      a.n_begin = images_.begin(image);
      a.n_end = images_.end(image);
      a.k_begin = columns_.begin(column);
      a.k_end = columns_.end(column);
      return EFF_DISPATCH(linear_bwd_data)(a);
    }
    a.o_begin = outputs_.begin(shard);
    a.o_end = outputs_.end(shard);
    if (pass_ == Pass::fwd) return EFF_DISPATCH(linear_fwd)(a);
    EFF_DISPATCH(linear_bwd_weights)(a);
  }

 private:
  Pass pass_;
  LinearPorts p_;
  std::string name_;
  Split outputs_, images_, columns_;
};

OpCheck& matrix(OpCheck& check, const plan::Tensor* t, const char* port) {
  return check.that(t && t->dtype == plan::DType::f32 && t->rank == 2 && t->elements() > 0, port);
}

}  // namespace

StatusOr<KernelPtr> make_linear(const plan::Op& op) {
  using namespace op::linear;
  const plan::Tensor *src = op.in(in_src), *weights = op.in(in_weights), *bias = op.in(in_bias), *dst = op.out(out_dst);
  OpCheck check(op);
  matrix(check, src, "src");
  matrix(check, weights, "weights");
  if (!check.ok()) return check.status();
  const int64_t n = src->dims[0], o = weights->dims[0], k = weights->dims[1];
  check.f32(src, {n, k}, "src").optional_f32(bias, {o}, "bias").f32(dst, {n, o}, "dst");
  if (!check.ok()) return check.status();
  return KernelPtr(
      new Linear("linear", Pass::fwd, {src, weights, bias, nullptr, dst, nullptr, nullptr, nullptr, n, o, k}));
}

StatusOr<KernelPtr> make_linear_bwd_data(const plan::Op& op) {
  using namespace op::linear_bwd_data;
  const plan::Tensor *diff_dst = op.in(in_diff_dst), *weights = op.in(in_weights), *diff_src = op.out(out_diff_src);
  OpCheck check(op);
  matrix(check, diff_dst, "diff_dst");
  matrix(check, weights, "weights");
  if (!check.ok()) return check.status();
  const int64_t n = diff_dst->dims[0], o = weights->dims[0], k = weights->dims[1];
  check.f32(diff_dst, {n, o}, "diff_dst").f32(diff_src, {n, k}, "diff_src");
  if (!check.ok()) return check.status();
  return KernelPtr(new Linear("linear_bwd_data", Pass::bwd_data,
                              {nullptr, weights, nullptr, diff_dst, nullptr, diff_src, nullptr, nullptr, n, o, k}));
}

StatusOr<KernelPtr> make_linear_bwd_weights(const plan::Op& op) {
  using namespace op::linear_bwd_weights;
  const plan::Tensor *src = op.in(in_src), *diff_dst = op.in(in_diff_dst);
  const plan::Tensor *diff_weights = op.out(out_diff_weights), *diff_bias = op.out(out_diff_bias);
  OpCheck check(op);
  matrix(check, src, "src");
  matrix(check, diff_dst, "diff_dst");
  if (!check.ok()) return check.status();
  const int64_t n = src->dims[0], k = src->dims[1], o = diff_dst->dims[1];
  check.f32(diff_dst, {n, o}, "diff_dst")
      .f32(diff_weights, {o, k}, "diff_weights")
      .optional_f32(diff_bias, {o}, "diff_bias");
  if (!check.ok()) return check.status();
  return KernelPtr(new Linear("linear_bwd_weights", Pass::bwd_weights,
                              {src, nullptr, nullptr, diff_dst, nullptr, nullptr, diff_weights, diff_bias, n, o, k}));
}

}  // namespace effnet::cpu
#endif
