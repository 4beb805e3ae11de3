// 1x1 convolutions, stride 1, as kernels of the plan: forward (with the inference epilogue), backward data and backward
// weights.
#pragma once

#include "cpu/kernel.h"
#include "cpu/kernels/drop.h"

namespace effnet::cpu {

struct PointwiseOperands {
  const plan::Tensor *src, *weights, *dst;  // src is what is read: diff_dst in backward data
  bool transposed = false;                  // backward data: sums run over the weights' output channels
  const plan::Tensor *bias = nullptr, *gate = nullptr, *residual = nullptr;
  plan::Act act = plan::Act::identity;
  // Batch statistics of dst, if mean is there; without bias, activation and residual.
  const plan::Tensor *mean = nullptr, *inv_std = nullptr, *running_mean = nullptr, *running_var = nullptr;
  double eps = 0, momentum = 0;
};

// Only where has_dense_rows(). `name` is the base of the kernel's name.
StatusOr<KernelPtr> make_pointwise(const PointwiseOperands& operands, const char* name);

StatusOr<KernelPtr> make_pointwise_bwd_weights(const plan::Tensor* src, const plan::Tensor* diff_dst,
                                               const plan::Tensor* diff_weights);

// Both gradients of a convolution whose result is normalised: the gradient of that result is made from diff_dst, that
// of the normalised and activated value, a block of rows at a time, and never stored. FP32.
struct PointwiseBwdOperands {
  const plan::Tensor *src, *weights, *diff_dst, *dst;
  const plan::Tensor *mean, *inv_std, *scale, *shift, *diff_scale, *diff_shift;  // as of bn_act_bwd_apply
  plan::Act act;
  Drop drop;
  const plan::Tensor *diff_src, *diff_weights;
};
StatusOr<KernelPtr> make_pointwise_bwd(const PointwiseBwdOperands& operands);

}  // namespace effnet::cpu
