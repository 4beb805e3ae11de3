// Ops that are one dense convolution, by cuDNN.
#include "cuda/ops/batch_norm.h"
#include "cuda/ops/conv.h"
#include "cuda/ops/weights.h"
#include "cuda/providers/conv_bwd.h"
#include "plan/op_traits.h"

namespace effnet::cuda {
namespace {

using plan::DType;
using plan::Op;
using plan::OpId;
using plan::Tensor;
using Pass = Convolution::Pass;

struct Call {
  Convolution convolution;
  const Tensor *a = nullptr, *b = nullptr, *bias = nullptr, *residual = nullptr, *result = nullptr;
  bool b_is_weights = true;                     // f32, of which a 16-bit convolution takes the working copy
  std::optional<BnStats> stats = std::nullopt;  // of the result, by launches of their own
};

// All ops of convolutions have stride, pad_t, pad_l, pad_b, pad_r first.
Convolution geometry(const Op& op, Pass pass, const Tensor* src, const Tensor* weights, const Tensor* dst) {
  Convolution c;
  c.pass = pass;
  c.n = src->n();
  c.h = src->h();
  c.w = src->w();
  c.ic = src->c();
  c.oh = dst->h();
  c.ow = dst->w();
  c.oc = dst->c();
  c.kh = weights->dims[1];
  c.kw = weights->dims[2];
  c.stride = op.attr_int(0);
  c.pad_t = op.attr_int(1);
  c.pad_l = op.attr_int(2);
  c.pad_b = op.attr_int(3);
  c.pad_r = op.attr_int(4);
  return c;
}

std::optional<Call> call_of(const Op& op) {
  switch (op.id) {
    case OpId::conv2d: {
      using namespace op::conv2d;
      const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *dst = op.out(out_dst);
      return Call{geometry(op, Pass::forward, src, weights, dst), src, weights, nullptr, nullptr, dst};
    }
    case OpId::conv2d_stats: {
      using namespace op::conv2d_stats;
      if (op.in(in_gate) || op.in(in_src_mean) || op.act(attr_src_act) != plan::Act::identity) return {};
      const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *dst = op.out(out_dst);
      Call call{geometry(op, Pass::forward, src, weights, dst), src, weights, nullptr, nullptr, dst};
      call.stats = bn_stats_of(op, dst, out_mean, attr_eps);
      return call;
    }
    case OpId::conv2d_bias_act: {
      using namespace op::conv2d_bias_act;
      const plan::Act act = op.act(attr_act);
      if (op.in(in_gate) || (act != plan::Act::identity && act != plan::Act::silu)) return {};
      const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *dst = op.out(out_dst);
      Call call{geometry(op, Pass::forward, src, weights, dst), src, weights, op.in(in_bias), op.in(in_residual), dst};
      call.convolution.bias = call.bias != nullptr;
      call.convolution.silu = act == plan::Act::silu;
      call.convolution.residual = call.residual != nullptr;
      return call;
    }
    case OpId::conv2d_bwd_data: {
      using namespace op::conv2d_bwd_data;
      const Tensor *diff_dst = op.in(in_diff_dst), *weights = op.in(in_weights), *diff_src = op.out(out_diff_src);
      return Call{
          geometry(op, Pass::bwd_data, diff_src, weights, diff_dst), diff_dst, weights, nullptr, nullptr, diff_src};
    }
    case OpId::conv2d_bwd_weights: {
      using namespace op::conv2d_bwd_weights;
      const Tensor *src = op.in(in_src), *diff_dst = op.in(in_diff_dst), *diff_weights = op.out(out_diff_weights);
      return Call{geometry(op, Pass::bwd_weights, src, diff_weights, diff_dst),
                  diff_dst,
                  src,
                  nullptr,
                  nullptr,
                  diff_weights,
                  false};
    }
    default:
      return {};
  }
}

// Where its fast engines, which read 16 bytes at a time, and its types allow it.
bool complete(Convolution& c, DType dtype, DType result, bool tf32) {
  if (dtype != DType::f32 && dtype != DType::f16 && dtype != DType::bf16) return false;
  const int64_t multiple = dtype == DType::f32 ? 4 : 8;
  if (c.ic % multiple != 0 || c.oc % multiple != 0) return false;
  c.dtype = dtype;
  c.result = result;
  c.tf32 = dtype == DType::f32 && tf32;
  return true;
}

std::optional<Call> typed_call_of(const Op& op) {
  std::optional<Call> call = call_of(op);
  if (!call) return {};
  const DType result = op.has_half_gradient() ? call->a->dtype : call->result->dtype;
  if (!complete(call->convolution, call->a->dtype, result, op.allows_tf32())) return {};
  return call;
}

}  // namespace

std::optional<Convolution> bwd_convolution_of(const Op& op, Pass pass) {
  using namespace op::conv2d_bwd;
  if (op.id != OpId::conv2d_bwd) return {};
  const Tensor* src = op.in(in_src);
  // Its 16-bit result would be rounded before the addend joins, and again behind it.
  if (pass == Pass::bwd_data && op.in(in_addend) && src->dtype != DType::f32) return {};
  Convolution c = geometry(op, pass, src, op.in(in_weights), op.in(in_dst));
  const DType result = pass == Pass::bwd_weights ? DType::f32 : src->dtype;
  return complete(c, src->dtype, result, op.allows_tf32()) ? std::optional(c) : std::nullopt;
}

Launch convolution_launch(std::shared_ptr<const ConvolutionPlan> plan, const ConvolutionPlan::Operands& operands) {
  Launch launch;
  launch.kernel = "cuDNN " + plan->engine();
  launch.call = [plan = std::move(plan), operands](void* stream) { return plan->queue(operands, stream); };
  return launch;
}

std::optional<Convolution> convolution_of(const Op& op) {
  const std::optional<Call> call = typed_call_of(op);
  return call ? std::optional(call->convolution) : std::nullopt;
}

StatusOr<KernelPtr> make_convolution(const Cudnn& library, const Op& op, const std::string& engine) {
  const std::optional<Call> found = typed_call_of(op);
  if (!found) return KernelPtr();
  const Convolution& c = found->convolution;
  const auto plan = library.plan(c, engine);
  if (!plan.ok()) return plan.status();
  auto kernel = std::make_unique<Kernel>();
  kernel->name = plan::op_name(op.id) + (c.tf32 ? "_tf32" : suffix(c.dtype)) + ":cudnn";
  ScratchLayout layout;
  const size_t workspace_at = layout.add(plan.value()->workspace_bytes());
  const size_t stats_at = layout.add(found->stats ? found->stats->scratch_bytes() : 0);
  const bool half = op.has_half_gradient();
  const size_t half_at = layout.add(half ? found->result->bytes / 2 : 0);
  kernel->scratch_bytes = layout.bytes();
  kernel->flops = 2.0 * static_cast<double>(c.n * c.oh * c.ow) * static_cast<double>(c.oc * c.kh * c.kw * c.ic);
  if (found->b_is_weights) kernel->working = c.dtype;
  if (half) name_half_gradient(*kernel);
  kernel->record = [=, call = *found, plan = plan.value()](const Addresses& at, std::vector<Launch>& launches) {
    const bool copied = call.b_is_weights && call.convolution.dtype != DType::f32;
    void* result = half ? at.scratch + half_at : at.ptr(call.result);
    const ConvolutionPlan::Operands operands{at.ptr(call.a),
                                             copied ? at.working(call.b) : at.ptr(call.b),
                                             at.ptr(call.bias),
                                             at.ptr(call.residual),
                                             result,
                                             at.scratch + workspace_at};
    launches.push_back(convolution_launch(plan, operands));
    if (half)
      launches.push_back(
          widen_weights_launch(result, at.ptr(call.result), call.result->elements(), call.convolution.dtype));
    if (call.stats) call.stats->record(at, at.scratch + stats_at, launches);
  };
  return kernel;
}

}  // namespace effnet::cuda
