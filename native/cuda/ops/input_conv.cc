// Convolutions of uint8 images.
#include "cuda/ops/conv.h"

namespace effnet::cuda {

using plan::Op;
using plan::Tensor;

StatusOr<KernelPtr> make_input_conv2d_stats(const Op& op) {
  using namespace op::input_conv2d_stats;
  const Tensor* dst = op.out(out_dst);
  const BnStats stats = bn_stats_of(op, dst, out_mean, attr_eps);
  const ConvOperands operands(op, attr_stride, {.src = op.in(in_src)}, op.in(in_weights), dst,
                              pixel_norm(op, attr_mean0, attr_std0));
  return conv_stats_kernel("input_conv2d_stats", operands, operands.forward_form(), stats);
}

StatusOr<KernelPtr> make_input_conv2d_bias_act(const Op& op) {
  using namespace op::input_conv2d_bias_act;
  const ConvOperands operands(op, attr_stride, {.src = op.in(in_src)}, op.in(in_weights), op.out(out_dst),
                              pixel_norm(op, attr_mean0, attr_std0));
  return conv_bias_act_kernel("input_conv2d_bias_act", operands, operands.forward_form(),
                              {op.in(in_bias), nullptr, op.act(attr_act)});
}

StatusOr<KernelPtr> make_input_conv2d_bwd_weights(const Op& op) {
  using namespace op::input_conv2d_bwd_weights;
  const Tensor *diff_dst = op.in(in_diff_dst), *diff_weights = op.out(out_diff_weights);
  const ConvOperands operands(op, attr_stride, {.src = op.in(in_src)}, diff_weights, diff_dst,
                              pixel_norm(op, attr_mean0, attr_std0));
  return conv_bwd_weights_kernel("input_conv2d_bwd_weights", operands, diff_dst, diff_weights, false);
}

}  // namespace effnet::cuda
