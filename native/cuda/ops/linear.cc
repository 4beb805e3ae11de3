// Classifier and squeeze-and-excitation gates: [rows, channels] matrices in f32.
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

StatusOr<KernelPtr> make_se_gate(const Op& op) {
  using namespace op::se_gate;
  const Tensor *pooled = op.in(in_pooled), *weights0 = op.in(in_weights0), *bias0 = op.in(in_bias0),
               *weights1 = op.in(in_weights1), *bias1 = op.in(in_bias1), *gate = op.out(out_gate),
               *hidden = op.out(out_hidden);
  const int64_t n = pooled->dims[0], c = pooled->dims[1], r = weights0->dims[0];
  const Act act = op.act(attr_act);
  return make_kernel(
      "se_gate", DType::f32,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        launches.push_back(matrix(n, c, r, at.ptr<const float>(pooled), Act::identity, at.ptr<const float>(weights0),
                                  at.ptr<const float>(bias0), Act::identity, at.ptr<float>(hidden)));
        launches.push_back(matrix(n, r, c, at.ptr<const float>(hidden), act, at.ptr<const float>(weights1),
                                  at.ptr<const float>(bias1), Act::sigmoid, at.ptr<float>(gate)));
      },
      0, 2 * conv_flops(matrix_geometry(n, c, r)));
}

StatusOr<KernelPtr> make_se_gate_bwd(const Op& op) {
  using namespace op::se_gate_bwd;
  const Tensor *diff_gate = op.in(in_diff_gate), *pooled = op.in(in_pooled), *hidden = op.in(in_hidden),
               *gate = op.in(in_gate), *weights0 = op.in(in_weights0), *weights1 = op.in(in_weights1);
  const Tensor *diff_pooled = op.out(out_diff_pooled), *diff_weights0 = op.out(out_diff_weights0),
               *diff_bias0 = op.out(out_diff_bias0), *diff_weights1 = op.out(out_diff_weights1),
               *diff_bias1 = op.out(out_diff_bias1);
  const int64_t n = pooled->dims[0], c = pooled->dims[1], r = weights0->dims[0];
  const Act act = op.act(attr_act);
  const ConvGeometry squeeze = matrix_geometry(n, c, r), excite = matrix_geometry(n, r, c);
  ScratchLayout layout;
  const size_t excite_at = layout.add(static_cast<size_t>(n * c) * sizeof(float));
  const size_t squeeze_at = layout.add(static_cast<size_t>(n * r) * sizeof(float));
  const size_t parts_at = layout.add(std::max(conv_bwd_weights_scratch(squeeze), conv_bwd_weights_scratch(excite)));
  return make_kernel(
      "se_gate_bwd", DType::f32,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        // Gradients in front of the sigmoid, and in front of the activation between the two products.
        auto* of_excite = reinterpret_cast<float*>(at.scratch + excite_at);
        auto* of_squeeze = reinterpret_cast<float*>(at.scratch + squeeze_at);
        auto* parts = reinterpret_cast<float*>(at.scratch + parts_at);
        launches.push_back(
            make_launch("gate_slope", grid_for(n * c, kGemmThreads), kGemmThreads, 0,
                        GateSlopeArgs{at.ptr<const float>(diff_gate), at.ptr<const float>(gate), of_excite, n * c}));
        launches.push_back(sum_rows(of_excite, n, c, at.ptr<float>(diff_bias1)));
        record_conv_bwd_weights({excite, at.ptr(hidden), act, of_excite, 0, parts}, DType::f32,
                                at.ptr<float>(diff_weights1), launches);
        launches.push_back(conv_bwd_data_launch(
            {excite, of_excite, at.ptr<const float>(weights1), at.ptr(hidden), act, of_squeeze}, DType::f32));
        launches.push_back(sum_rows(of_squeeze, n, r, at.ptr<float>(diff_bias0)));
        record_conv_bwd_weights({squeeze, at.ptr(pooled), {}, of_squeeze, 0, parts}, DType::f32,
                                at.ptr<float>(diff_weights0), launches);
        launches.push_back(conv_bwd_data_launch(
            {squeeze, of_squeeze, at.ptr<const float>(weights0), nullptr, {}, at.ptr(diff_pooled)}, DType::f32));
      },
      layout.bytes(), 4 * conv_flops(squeeze));
}

}  // namespace effnet::cuda
