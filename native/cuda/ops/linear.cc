// The classifier: [rows, channels] matrices in f32.
#include "cuda/ops/conv.h"
#include "cuda/ops/sum_parts.h"

namespace effnet::cuda {

using plan::DType;
using plan::Op;
using plan::Tensor;

StatusOr<KernelPtr> make_linear(const Op& op) {
  using namespace op::linear;
  const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *bias = op.in(in_bias), *dst = op.out(out_dst);
  const ConvGeometry g = matrix_geometry(src->dims[0], src->dims[1], dst->dims[1]);
  const ConvType type(DType::f32, op.allows_tf32());
  const ConvForm form = conv_forward_form(g, type);
  return conv_kernel(
      "linear", form, type,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        ConvArgs args{};
        args.g = g;
        args.src.data = at.ptr(src);
        args.weights = at.ptr(weights);
        args.bias = at.ptr<const float>(bias);
        args.dst = at.ptr(dst);
        args.parts = reinterpret_cast<float*>(at.scratch);
        args.state = at.state;
        launches.push_back(conv_launch(args, form, type));
      },
      form.parts_bytes(g.oc), conv_flops(g));
}

StatusOr<KernelPtr> make_linear_bwd_data(const Op& op) {
  using namespace op::linear_bwd_data;
  const Tensor *diff_dst = op.in(in_diff_dst), *weights = op.in(in_weights), *diff_src = op.out(out_diff_src);
  const ConvGeometry g = matrix_geometry(diff_dst->dims[0], diff_src->dims[1], diff_dst->dims[1]);
  const ConvType type(DType::f32, op.allows_tf32());
  const ConvForm form = conv_backward_data_form(g, type);
  return conv_kernel(
      "linear_bwd_data", form, type,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        ConvBwdDataArgs args{};
        args.g = g;
        args.diff_dst = at.ptr(diff_dst);
        args.weights = at.ptr(weights);
        args.diff_src = at.ptr(diff_src);
        launches.push_back(conv_bwd_data_launch(args, form, type));
      },
      0, conv_flops(g));
}

StatusOr<KernelPtr> make_linear_bwd_weights(const Op& op) {
  using namespace op::linear_bwd_weights;
  const Tensor *src = op.in(in_src), *diff_dst = op.in(in_diff_dst), *diff_weights = op.out(out_diff_weights),
               *diff_bias = op.out(out_diff_bias);
  const ConvGeometry g = matrix_geometry(src->dims[0], src->dims[1], diff_dst->dims[1]);
  const ConvType type(DType::f32, op.allows_tf32());
  const ConvForm form = conv_backward_weights_form(g, type);
  return conv_kernel(
      "linear_bwd_weights", form, type,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        ConvBwdWeightsArgs args{};
        args.g = g;
        args.src.data = at.ptr(src);
        args.diff_dst = at.ptr(diff_dst);
        args.parts = reinterpret_cast<float*>(at.scratch);
        record_conv_bwd_weights(args, form, type, at.ptr<float>(diff_weights), launches);
        if (diff_bias)
          launches.push_back(sum_parts(at.ptr<const float>(diff_dst), g.n, g.oc, at.ptr<float>(diff_bias)));
      },
      conv_bwd_weights_scratch(g, form), conv_flops(g));
}

}  // namespace effnet::cuda
