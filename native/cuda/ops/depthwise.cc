#include "cuda/kernels/depthwise.h"

#include "cuda/ops/batch_norm.h"
#include "cuda/ops/conv.h"

namespace effnet::cuda {
namespace {

using plan::Op;
using plan::Tensor;

DepthwiseGeometry geometry(const Op& op, int first_attr, const Tensor* src, const Tensor* dst, const Tensor* weights) {
  return {src->n(),
          src->h(),
          src->w(),
          src->c(),
          dst->h(),
          dst->w(),
          weights->dims[0],
          weights->dims[1],
          op.attr_int(first_attr),
          op.attr_int(first_attr + 1),
          op.attr_int(first_attr + 2)};
}

int64_t dst_pixels(const DepthwiseGeometry& g) { return g.n * g.oh * g.ow; }
double flops(const DepthwiseGeometry& g) { return 2.0 * static_cast<double>(dst_pixels(g) * g.c * g.kh * g.kw); }

Launch forward(const DepthwiseArgs& args, plan::DType dtype) {
  return make_launch("depthwise" + suffix(dtype), grid_for(dst_pixels(args.g) * args.g.c, kDepthwiseThreads),
                     kDepthwiseThreads, 0, args);
}

Launch backward_data(const DepthwiseBwdDataArgs& args, plan::DType dtype) {
  return make_launch("depthwise_bwd_data" + suffix(dtype),
                     grid_for(args.g.n * args.g.h * args.g.w * args.g.c, kDepthwiseThreads), kDepthwiseThreads, 0,
                     args);
}

int64_t tile_pixels(const DepthwiseGeometry& g) { return bn_tile_rows(dst_pixels(g)); }
int64_t tile_count(const DepthwiseGeometry& g) { return (dst_pixels(g) + tile_pixels(g) - 1) / tile_pixels(g); }
size_t weights_scratch(const DepthwiseGeometry& g) {
  return static_cast<size_t>(tile_count(g) * g.kh * g.kw * g.c) * sizeof(float);
}

void backward_weights(const DepthwiseGeometry& g, const void* src, const void* diff_dst, plan::DType dtype,
                      std::byte* scratch, float* diff_weights, std::vector<Launch>& launches) {
  auto* parts = reinterpret_cast<float*>(scratch);
  const auto blocks = static_cast<uint32_t>((g.c + kBnChannels - 1) / kBnChannels);
  launches.push_back(make_launch("depthwise_bwd_weights" + suffix(dtype),
                                 {blocks, static_cast<uint32_t>(tile_count(g)), 1}, kDepthwiseThreads, kBnSumsShared,
                                 DepthwiseBwdWeightsArgs{g, src, diff_dst, tile_pixels(g), parts}));
  const SumPartsArgs sum{parts, diff_weights, g.kh * g.kw * g.c, tile_count(g)};
  launches.push_back(make_launch("sum_parts", grid_for(sum.count, kGemmThreads), kGemmThreads, 0, sum));
}

}  // namespace

StatusOr<KernelPtr> make_depthwise_conv2d(const Op& op) {
  using namespace op::depthwise_conv2d;
  const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *dst = op.out(out_dst);
  const DepthwiseGeometry g = geometry(op, attr_stride, src, dst, weights);
  return make_kernel(
      "depthwise_conv2d", dst->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        launches.push_back(
            forward({g, at.ptr(src), at.ptr<const float>(weights), nullptr, {}, at.ptr(dst)}, dst->dtype));
      },
      0, flops(g));
}

StatusOr<KernelPtr> make_depthwise_conv2d_bias_act(const Op& op) {
  using namespace op::depthwise_conv2d_bias_act;
  const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *bias = op.in(in_bias), *dst = op.out(out_dst),
               *pooled = op.out(out_pooled);
  const DepthwiseGeometry g = geometry(op, attr_stride, src, dst, weights);
  const plan::Act act = op.act(attr_act);
  return make_kernel(
      "depthwise_conv2d_bias_act", dst->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        launches.push_back(forward(
            {g, at.ptr(src), at.ptr<const float>(weights), at.ptr<const float>(bias), act, at.ptr(dst)}, dst->dtype));
        if (pooled) record_pool(at, dst, pooled, launches);
      },
      0, flops(g));
}

StatusOr<KernelPtr> make_depthwise_conv2d_bwd_data(const Op& op) {
  using namespace op::depthwise_conv2d_bwd_data;
  const Tensor *diff_dst = op.in(in_diff_dst), *weights = op.in(in_weights), *diff_src = op.out(out_diff_src);
  const DepthwiseGeometry g = geometry(op, attr_stride, diff_src, diff_dst, weights);
  return make_kernel(
      "depthwise_conv2d_bwd_data", diff_src->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        launches.push_back(backward_data(
            {g, at.ptr(diff_dst), at.ptr<const float>(weights), nullptr, {}, {}, at.ptr(diff_src)}, diff_src->dtype));
      },
      0, flops(g));
}

StatusOr<KernelPtr> make_depthwise_conv2d_bwd_weights(const Op& op) {
  using namespace op::depthwise_conv2d_bwd_weights;
  const Tensor *src = op.in(in_src), *diff_dst = op.in(in_diff_dst), *diff_weights = op.out(out_diff_weights);
  const DepthwiseGeometry g = geometry(op, attr_stride, src, diff_dst, diff_weights);
  return make_kernel(
      "depthwise_conv2d_bwd_weights", src->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        backward_weights(g, at.ptr(src), at.ptr(diff_dst), src->dtype, at.scratch, at.ptr<float>(diff_weights),
                         launches);
      },
      weights_scratch(g), flops(g));
}

StatusOr<KernelPtr> make_depthwise_conv2d_stats(const Op& op) {
  using namespace op::depthwise_conv2d_stats;
  const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *dst = op.out(out_dst);
  const SourceNorm source{src,     op.in(in_src_mean),  op.in(in_src_inv_std), op.in(in_src_scale), op.in(in_src_shift),
                          nullptr, op.act(attr_src_act)};
  const BnStats stats{dst,
                      op.out(out_mean),
                      op.out(out_inv_std),
                      op.upd(upd_running_mean),
                      op.upd(upd_running_var),
                      op.attr(attr_eps),
                      op.attr(attr_momentum)};
  const DepthwiseGeometry g = geometry(op, attr_stride, src, dst, weights);
  ScratchLayout layout;
  const size_t value_at = layout.add(source ? src->bytes : 0), stats_at = layout.add(stats.scratch_bytes());
  return make_kernel(
      "depthwise_conv2d_stats", dst->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        void* value = source ? at.scratch + value_at : at.ptr(src);
        if (source) source.record_apply(at, value, launches);
        launches.push_back(forward({g, value, at.ptr<const float>(weights), nullptr, {}, at.ptr(dst)}, dst->dtype));
        stats.record(at, at.scratch + stats_at, launches);
      },
      layout.bytes(), flops(g));
}

StatusOr<KernelPtr> make_depthwise_conv2d_bwd(const Op& op) {
  using namespace op::depthwise_conv2d_bwd;
  const Tensor *src = op.in(in_src), *diff_dst = op.in(in_diff_dst), *weights = op.in(in_weights), *dst = op.in(in_dst);
  const SourceNorm source{src,     op.in(in_src_mean),  op.in(in_src_inv_std), op.in(in_src_scale), op.in(in_src_shift),
                          nullptr, op.act(attr_src_act)};
  // Of the normalisation behind, where diff_dst is the gradient of what follows that.
  const BnBackward behind{diff_dst,
                          dst,
                          op.in(in_mean),
                          op.in(in_inv_std),
                          op.in(in_scale),
                          op.in(in_shift),
                          op.in(in_gate),
                          op.in(in_diff_pooled),
                          op.act(attr_act),
                          0,
                          0};
  const Tensor *behind_scale = op.in(in_diff_scale), *behind_shift = op.in(in_diff_shift);
  const Tensor *diff_src = op.out(out_diff_src), *diff_weights = op.out(out_diff_weights),
               *diff_scale = op.out(out_src_diff_scale), *diff_shift = op.out(out_src_diff_shift);
  const DepthwiseGeometry g = geometry(op, attr_stride, src, diff_dst, weights);
  // What is stored is the gradient of bn(src) already, so its sums need no activation.
  const BnBackward back{diff_src, src, source.mean, source.inv_std};
  ScratchLayout layout;
  const size_t value_at = layout.add(source ? src->bytes : 0), parts_at = layout.add(weights_scratch(g));
  const size_t diff_at = layout.add(dst ? dst->bytes : 0);
  const size_t sums_at = layout.add(diff_scale ? back.reduce_scratch_bytes() : 0);
  return make_kernel(
      "depthwise_conv2d_bwd", src->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        void* value = source ? at.scratch + value_at : at.ptr(src);
        if (source) source.record_apply(at, value, launches);
        void* diff = dst ? at.scratch + diff_at : at.ptr(diff_dst);
        if (dst) behind.record_apply(at, behind_scale, behind_shift, diff, launches);
        backward_weights(g, value, diff, src->dtype, at.scratch + parts_at, at.ptr<float>(diff_weights), launches);
        launches.push_back(backward_data(
            {g, diff, at.ptr<const float>(weights), at.ptr(src), source.norm(at), source.act, at.ptr(diff_src)},
            src->dtype));
        if (diff_scale) back.record_reduce(at, at.scratch + sums_at, diff_scale, diff_shift, launches);
      },
      layout.bytes(), 2 * flops(g));
}

StatusOr<KernelPtr> make_expand_depthwise_bias_act(const Op& op) {
  using namespace op::expand_depthwise_bias_act;
  const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *bias = op.in(in_bias),
               *taps = op.in(in_depthwise_weights), *depthwise_bias = op.in(in_depthwise_bias), *dst = op.out(out_dst),
               *pooled = op.out(out_pooled);
  const plan::Act expand_act = op.act(attr_expand_act), act = op.act(attr_act);
  DepthwiseGeometry g = geometry(op, attr_stride, src, dst, taps);
  const ConvGeometry expand = matrix_geometry(src->n() * src->h() * src->w(), src->c(), dst->c());
  g.c = dst->c();
  const size_t wide = static_cast<size_t>(expand.n * expand.oc) * plan::dtype_bytes(src->dtype);
  const ConvType type(src->dtype, op.allows_tf32());
  const ConvForm form = conv_forward_form(expand, type);
  return conv_kernel(
      "expand_depthwise_bias_act", form, type,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        ConvArgs args{};
        args.g = expand;
        args.src.data = at.ptr(src);
        args.weights = weights_at(at, weights, form, type);
        args.bias = at.ptr<const float>(bias);
        args.act = expand_act;
        args.dst = at.scratch;
        launches.push_back(conv_launch(args, form, type));
        launches.push_back(
            forward({g, at.scratch, at.ptr<const float>(taps), at.ptr<const float>(depthwise_bias), act, at.ptr(dst)},
                    dst->dtype));
        if (pooled) record_pool(at, dst, pooled, launches);
      },
      wide, conv_flops(expand) + flops(g));
}

}  // namespace effnet::cuda
