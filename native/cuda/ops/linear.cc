// The classifier: [rows, channels] matrices in f32.
#include "cuda/ops/conv.h"

namespace effnet::cuda {
namespace {

using plan::Act;
using plan::DType;
using plan::Op;
using plan::Tensor;

Launch matrix(int64_t rows, int64_t in, int64_t out, const float* src, Act src_act, const float* weights,
              const float* bias, Act act, float* dst) {
  return conv_launch({matrix_geometry(rows, in, out), src, src_act, nullptr, weights, bias, act, nullptr, dst},
                     DType::f32);
}

Launch sum_rows(const float* src, int64_t rows, int64_t c, float* dst) {
  return make_launch("sum_rows", grid_for(c, kGemmThreads), kGemmThreads, 0, SumRowsArgs{src, dst, rows, c});
}

}  // namespace

StatusOr<KernelPtr> make_linear(const Op& op) {
  using namespace op::linear;
  const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *bias = op.in(in_bias), *dst = op.out(out_dst);
  const int64_t rows = src->dims[0], in = src->dims[1], out = dst->dims[1];
  return make_kernel(
      "linear", DType::f32,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        launches.push_back(matrix(rows, in, out, at.ptr<const float>(src), Act::identity, at.ptr<const float>(weights),
                                  at.ptr<const float>(bias), Act::identity, at.ptr<float>(dst)));
      },
      0, conv_flops(matrix_geometry(rows, in, out)));
}

StatusOr<KernelPtr> make_linear_bwd_data(const Op& op) {
  using namespace op::linear_bwd_data;
  const Tensor *diff_dst = op.in(in_diff_dst), *weights = op.in(in_weights), *diff_src = op.out(out_diff_src);
  const ConvGeometry g = matrix_geometry(diff_dst->dims[0], diff_src->dims[1], diff_dst->dims[1]);
  return make_kernel(
      "linear_bwd_data", DType::f32,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        launches.push_back(conv_bwd_data_launch(
            {g, at.ptr(diff_dst), at.ptr<const float>(weights), nullptr, {}, at.ptr(diff_src)}, DType::f32));
      },
      0, conv_flops(g));
}

StatusOr<KernelPtr> make_linear_bwd_weights(const Op& op) {
  using namespace op::linear_bwd_weights;
  const Tensor *src = op.in(in_src), *diff_dst = op.in(in_diff_dst), *diff_weights = op.out(out_diff_weights),
               *diff_bias = op.out(out_diff_bias);
  const ConvGeometry g = matrix_geometry(src->dims[0], src->dims[1], diff_dst->dims[1]);
  return make_kernel(
      "linear_bwd_weights", DType::f32,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        record_conv_bwd_weights({g, at.ptr(src), {}, at.ptr(diff_dst), 0, reinterpret_cast<float*>(at.scratch)},
                                DType::f32, at.ptr<float>(diff_weights), launches);
        if (diff_bias) launches.push_back(sum_rows(at.ptr<const float>(diff_dst), g.n, g.oc, at.ptr<float>(diff_bias)));
      },
      conv_bwd_weights_scratch(g), conv_flops(g));
}

}  // namespace effnet::cuda
