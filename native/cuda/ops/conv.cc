#include "cuda/ops/conv.h"

#include "cuda/ops/batch_norm.h"

namespace effnet::cuda {
namespace {

using plan::Op;
using plan::Tensor;

uint32_t tiles(int64_t count) { return static_cast<uint32_t>((count + kGemmTile - 1) / kGemmTile); }

// Pixels summed by one block: enough blocks to fill a GPU, no more than 64 parts of the result.
int64_t split_pixels(const ConvGeometry& g) { return std::max<int64_t>(2048, (g.dst_pixels() + 63) / 64); }
int64_t splits(const ConvGeometry& g) { return (g.dst_pixels() + split_pixels(g) - 1) / split_pixels(g); }
int64_t weights_count(const ConvGeometry& g) { return g.oc * g.kh * g.kw * g.ic; }

}  // namespace

ConvGeometry conv_geometry(const Op& op, int first_attr, const Tensor* src, const Tensor* dst, int64_t kh, int64_t kw) {
  return {src->n(),
          src->h(),
          src->w(),
          src->c(),
          dst->h(),
          dst->w(),
          dst->c(),
          kh,
          kw,
          op.attr_int(first_attr),
          op.attr_int(first_attr + 1),
          op.attr_int(first_attr + 2)};
}

double conv_flops(const ConvGeometry& g) {
  return 2.0 * static_cast<double>(g.dst_pixels()) * static_cast<double>(weights_count(g));
}

ConvGeometry matrix_geometry(int64_t rows, int64_t in, int64_t out) {
  return {rows, 1, 1, in, 1, 1, out, 1, 1, 1, 0, 0};
}

Launch conv_launch(const ConvArgs& args, plan::DType dtype) {
  return make_launch("conv2d" + suffix(dtype), {tiles(args.g.dst_pixels()), tiles(args.g.oc), 1}, kGemmThreads,
                     kGemmShared, args);
}

Launch conv_bwd_data_launch(const ConvBwdDataArgs& args, plan::DType dtype) {
  return make_launch("conv2d_bwd_data" + suffix(dtype), {tiles(args.g.src_pixels()), tiles(args.g.ic), 1}, kGemmThreads,
                     kGemmShared, args);
}

size_t conv_bwd_weights_scratch(const ConvGeometry& g) {
  return static_cast<size_t>(splits(g) * weights_count(g)) * sizeof(float);
}

void record_conv_bwd_weights(ConvBwdWeightsArgs args, plan::DType dtype, float* diff_weights,
                             std::vector<Launch>& launches) {
  const ConvGeometry& g = args.g;
  args.split_pixels = split_pixels(g);
  launches.push_back(make_launch("conv2d_bwd_weights" + suffix(dtype),
                                 {tiles(g.oc), tiles(g.kh * g.kw * g.ic), static_cast<uint32_t>(splits(g))},
                                 kGemmThreads, kGemmShared, args));
  const SumPartsArgs sum{args.parts, diff_weights, weights_count(g), splits(g)};
  launches.push_back(make_launch("sum_parts", grid_for(sum.count, kGemmThreads), kGemmThreads, 0, sum));
}

StatusOr<KernelPtr> make_conv2d(const Op& op) {
  using namespace op::conv2d;
  const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *dst = op.out(out_dst);
  const ConvGeometry g = conv_geometry(op, attr_stride, src, dst, weights->dims[1], weights->dims[2]);
  return make_kernel(
      "conv2d", dst->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        launches.push_back(
            conv_launch({g, at.ptr(src), {}, nullptr, at.ptr<const float>(weights), nullptr, {}, nullptr, at.ptr(dst)},
                        dst->dtype));
      },
      0, conv_flops(g));
}

StatusOr<KernelPtr> make_conv2d_bias_act(const Op& op) {
  using namespace op::conv2d_bias_act;
  const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *bias = op.in(in_bias), *gate = op.in(in_gate),
               *residual = op.in(in_residual), *dst = op.out(out_dst);
  const plan::Act act = op.act(attr_act);
  const ConvGeometry g = conv_geometry(op, attr_stride, src, dst, weights->dims[1], weights->dims[2]);
  return make_kernel(
      "conv2d_bias_act", dst->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        launches.push_back(conv_launch({g,
                                        at.ptr(src),
                                        {},
                                        at.ptr<const float>(gate),
                                        at.ptr<const float>(weights),
                                        at.ptr<const float>(bias),
                                        act,
                                        at.ptr(residual),
                                        at.ptr(dst)},
                                       dst->dtype));
      },
      0, conv_flops(g));
}

StatusOr<KernelPtr> make_conv2d_stats(const Op& op) {
  using namespace op::conv2d_stats;
  const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *gate = op.in(in_gate), *dst = op.out(out_dst);
  const SourceNorm source{src,  op.in(in_src_mean),  op.in(in_src_inv_std), op.in(in_src_scale), op.in(in_src_shift),
                          gate, op.act(attr_src_act)};
  const BnStats stats{dst,
                      op.out(out_mean),
                      op.out(out_inv_std),
                      op.upd(upd_running_mean),
                      op.upd(upd_running_var),
                      op.attr(attr_eps),
                      op.attr(attr_momentum)};
  const ConvGeometry g = conv_geometry(op, attr_stride, src, dst, weights->dims[1], weights->dims[2]);
  ScratchLayout layout;
  const size_t value_at = layout.add(source ? src->bytes : 0), stats_at = layout.add(stats.scratch_bytes());
  return make_kernel(
      "conv2d_stats", dst->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        void* value = source ? at.scratch + value_at : at.ptr(src);
        if (source) source.record_apply(at, value, launches);
        launches.push_back(conv_launch({g,
                                        value,
                                        {},
                                        source ? nullptr : at.ptr<const float>(gate),
                                        at.ptr<const float>(weights),
                                        nullptr,
                                        {},
                                        nullptr,
                                        at.ptr(dst)},
                                       dst->dtype));
        stats.record(at, at.scratch + stats_at, launches);
      },
      layout.bytes(), conv_flops(g));
}

StatusOr<KernelPtr> make_conv2d_bwd_data(const Op& op) {
  using namespace op::conv2d_bwd_data;
  const Tensor *diff_dst = op.in(in_diff_dst), *weights = op.in(in_weights), *diff_src = op.out(out_diff_src);
  const ConvGeometry g = conv_geometry(op, attr_stride, diff_src, diff_dst, weights->dims[1], weights->dims[2]);
  return make_kernel(
      "conv2d_bwd_data", diff_src->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        launches.push_back(conv_bwd_data_launch(
            {g, at.ptr(diff_dst), at.ptr<const float>(weights), nullptr, {}, at.ptr(diff_src)}, diff_src->dtype));
      },
      0, conv_flops(g));
}

StatusOr<KernelPtr> make_conv2d_bwd_weights(const Op& op) {
  using namespace op::conv2d_bwd_weights;
  const Tensor *src = op.in(in_src), *diff_dst = op.in(in_diff_dst), *diff_weights = op.out(out_diff_weights);
  const ConvGeometry g = conv_geometry(op, attr_stride, src, diff_dst, diff_weights->dims[1], diff_weights->dims[2]);
  return make_kernel(
      "conv2d_bwd_weights", src->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        record_conv_bwd_weights({g, at.ptr(src), {}, at.ptr(diff_dst), 0, reinterpret_cast<float*>(at.scratch)},
                                src->dtype, at.ptr<float>(diff_weights), launches);
      },
      conv_bwd_weights_scratch(g), conv_flops(g));
}

StatusOr<KernelPtr> make_conv2d_bwd(const Op& op) {
  using namespace op::conv2d_bwd;
  const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *dst = op.in(in_dst),
               *diff_src = op.out(out_diff_src), *diff_weights = op.out(out_diff_weights);
  const BnBackward back{op.in(in_diff_dst),
                        dst,
                        op.in(in_mean),
                        op.in(in_inv_std),
                        op.in(in_scale),
                        op.in(in_shift),
                        nullptr,
                        nullptr,
                        op.act(attr_act),
                        op.attr(attr_drop_rate),
                        static_cast<uint32_t>(op.attr_int(attr_rng_stream))};
  const bool batch = op.attr(attr_batch_stats) == 1;
  const Tensor *diff_scale = batch ? op.in(in_diff_scale) : nullptr,
               *diff_shift = batch ? op.in(in_diff_shift) : nullptr;
  const SourceNorm source{src,
                          op.in(in_src_mean),
                          op.in(in_src_inv_std),
                          op.in(in_src_scale),
                          op.in(in_src_shift),
                          op.in(in_gate),
                          op.act(attr_src_act)};
  const Tensor *src_diff_scale = op.out(out_src_diff_scale), *src_diff_shift = op.out(out_src_diff_shift),
               *diff_gate = op.out(out_diff_gate), *sums = op.out(out_sums);
  // What is stored without a gate is the gradient of bn(src) already, so its sums need no activation.
  const BnBackward linear{diff_src, src, source.mean, source.inv_std};
  const ConvGeometry g = conv_geometry(op, attr_stride, src, dst, weights->dims[1], weights->dims[2]);
  ScratchLayout layout;
  const size_t diff_at = layout.add(dst->bytes), parts_at = layout.add(conv_bwd_weights_scratch(g));
  const size_t value_at = layout.add(source ? src->bytes : 0);
  const size_t sums_at = layout.add(src_diff_scale ? linear.reduce_scratch_bytes() : 0),
               image_sums_at = layout.add(sums ? source.sums_scratch_bytes() : 0);
  return make_kernel(
      "conv2d_bwd", src->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        void* diff = at.scratch + diff_at;
        back.record_apply(at, diff_scale, diff_shift, diff, launches);
        void* value = source ? at.scratch + value_at : at.ptr(src);
        if (source) source.record_apply(at, value, launches);
        record_conv_bwd_weights({g, value, {}, diff, 0, reinterpret_cast<float*>(at.scratch + parts_at)}, src->dtype,
                                at.ptr<float>(diff_weights), launches);
        const bool to_bn = src_diff_scale;
        launches.push_back(conv_bwd_data_launch({g, diff, at.ptr<const float>(weights), to_bn ? at.ptr(src) : nullptr,
                                                 source.act, at.ptr(diff_src), source.norm(at)},
                                                src->dtype));
        if (to_bn) linear.record_reduce(at, at.scratch + sums_at, src_diff_scale, src_diff_shift, launches);
        if (sums) source.record_sums(at, at.scratch + image_sums_at, at.ptr(diff_src), diff_gate, sums, launches);
      },
      layout.bytes(), 2 * conv_flops(g));
}

}  // namespace effnet::cuda
