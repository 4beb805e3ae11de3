// The backward part of a 1x1 convolution whose result is normalised: in one read of its operands, or by a gradient of
// the result that is stored for both products.
#include "cuda/ops/conv.h"
#include "cuda/ops/conv_once.h"
#include "cuda/ops/drop.h"
#include "cuda/ops/elementwise.h"
#include "cuda/ops/sum_parts.h"

namespace effnet::cuda {
namespace {

using namespace op::conv2d_bwd;
using plan::Op;
using plan::Tensor;

struct ConvBackward {
  const Tensor *src, *weights, *dst, *diff_src, *diff_weights;
  BnBackward back;
  const Tensor *diff_scale, *diff_shift;  // of the BN behind the convolution, or nullptr
  SourceNorm source;
  const Tensor* addend;
  BnBackward behind_source;  // of the BN in front of the source, whose sums are wanted, in what is stored
  const Tensor *src_diff_scale, *src_diff_shift, *diff_gate, *image_sums;
  ConvGeometry g;
  ConvType type;

  explicit ConvBackward(const Op& op);
  BlockEnd end(const Addresses& at) const {
    const DropSpec drop{behind_source.drop_rate, behind_source.drop_stream};
    return {at.ptr(addend), at.ptr(behind_source.src), at.ptr<const float>(behind_source.mean), drop.at(at.scalars)};
  }
  OnceSource once_source() const {
    return !source ? OnceSource::stored : source.gate ? OnceSource::gated : OnceSource::normed;
  }
};

ConvBackward::ConvBackward(const Op& op)
    : src(op.in(in_src)),
      weights(op.in(in_weights)),
      dst(op.in(in_dst)),
      diff_src(op.out(out_diff_src)),
      diff_weights(op.out(out_diff_weights)),
      back{op.in(in_diff_dst),
           dst,
           op.in(in_mean),
           op.in(in_inv_std),
           op.in(in_scale),
           op.in(in_shift),
           nullptr,
           nullptr,
           op.act(attr_act),
           op.attr(attr_drop_rate),
           static_cast<uint32_t>(op.attr_int(attr_rng_stream))},
      diff_scale(op.attr(attr_batch_stats) == 1 ? op.in(in_diff_scale) : nullptr),
      diff_shift(op.attr(attr_batch_stats) == 1 ? op.in(in_diff_shift) : nullptr),
      source{src,
             op.in(in_src_mean),
             op.in(in_src_inv_std),
             op.in(in_src_scale),
             op.in(in_src_shift),
             op.in(in_gate),
             op.act(attr_src_act)},
      addend(op.in(in_addend)),
      src_diff_scale(op.out(out_src_diff_scale)),
      src_diff_shift(op.out(out_src_diff_shift)),
      diff_gate(op.out(out_diff_gate)),
      image_sums(op.out(out_sums)),
      g(conv_geometry(op, attr_stride, src, dst, weights->dims[1], weights->dims[2])),
      type(src->dtype, op.allows_tf32()) {
  behind_source.diff_dst = diff_src;
  if (source) {
    // Without a gate what is stored is the gradient of bn(src) already, so its sums need no activation.
    behind_source.src = src;
    behind_source.mean = source.mean;
    behind_source.inv_std = source.inv_std;
    return;
  }
  behind_source.src = op.in(in_end_src);
  behind_source.mean = op.in(in_end_mean);
  behind_source.inv_std = op.in(in_end_inv_std);
  behind_source.drop_rate = op.attr(attr_end_drop_rate);
  behind_source.drop_stream = static_cast<uint32_t>(op.attr_int(attr_end_rng_stream));
}

KernelPtr once(const ConvBackward& op, const ConvOnceForm& form) {
  const int64_t blocks = form.blocks(), count = op.g.oc * op.g.ic;
  const bool gated = form.source == OnceSource::gated, to_bn = op.src_diff_scale;
  const bool images_in_parts = gated && form.blocks_an_image > 1;
  const int64_t image_part_rows = images_in_parts ? form.images * form.blocks_an_image * 5 : 0;
  const MergeTiles tiles = to_bn ? MergeTiles(blocks, form.slices, op.g.ic) : MergeTiles();
  ScratchLayout layout;
  const size_t parts_at = layout.add(blocks > 1 ? static_cast<size_t>(blocks * count) * sizeof(float) : 0);
  const size_t image_parts_at = layout.add(static_cast<size_t>(image_part_rows * op.g.ic) * sizeof(float));
  const size_t tiles_at = layout.add(tiles.bytes());
  auto kernel = make_kernel(
      "conv2d_bwd_" + form.name(), op.type.dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        auto* diff_weights = at.ptr<float>(op.diff_weights);
        ConvBwdOnceArgs args{};
        args.images = form.images;
        args.image_pixels = form.image_pixels;
        args.oc = op.g.oc;
        args.ic = op.g.ic;
        args.diff_dst = at.ptr(op.back.diff_dst);
        args.dst = at.ptr(op.dst);
        args.norm = {at.ptr<const float>(op.back.mean), at.ptr<const float>(op.back.inv_std),
                     at.ptr<const float>(op.back.scale), nullptr};
        args.diff_scale = at.ptr<const float>(op.diff_scale);
        args.diff_shift = at.ptr<const float>(op.diff_shift);
        args.inv_rows = 1.0f / static_cast<float>(op.g.dst_pixels());
        args.drop = DropSpec{op.back.drop_rate, op.back.drop_stream}.at(at.scalars);
        args.weights = at.working(op.weights);
        args.src = conv_source(op.source, at);
        args.diff_src = at.ptr(op.diff_src);
        args.tiles_a_block = form.tiles_a_block;
        args.blocks_an_image = form.blocks_an_image;
        args.images_a_block = form.images_a_block;
        args.slice = form.slice;
        args.parts = blocks > 1 ? reinterpret_cast<float*>(at.scratch + parts_at) : diff_weights;
        if (gated) {
          args.value = at.ptr<float>(op.diff_gate);
          args.image_sums = at.ptr<float>(op.image_sums);
          args.image_parts = reinterpret_cast<float*>(at.scratch + image_parts_at);
        }
        if (to_bn)
          args.sums =
              op.behind_source.merge_args(at, tiles, at.scratch + tiles_at, op.src_diff_scale, op.src_diff_shift);
        if (form.source == OnceSource::stored) args.end = op.end(at);
        launches.push_back(make_launch("conv2d_bwd_" + form.name() + op.type.suffix(),
                                       {static_cast<uint32_t>(form.slices), static_cast<uint32_t>(blocks), 1},
                                       kOnceThreads, form.shared_bytes, args));
        if (blocks > 1) launches.push_back(sum_parts(args.parts, blocks, count, diff_weights));
        if (images_in_parts) {
          const ConvImageSumsArgs add{args.image_parts, form.images, form.blocks_an_image,
                                      op.g.ic,          args.value,  args.image_sums};
          launches.push_back(make_launch("conv2d_bwd_image_sums", grid_for(form.images * 5 * op.g.ic, kGemmThreads),
                                         kGemmThreads, 0, add));
        }
      },
      layout.bytes(), 2 * conv_flops(op.g));
  kernel->working = op.type.dtype;
  return kernel;
}

KernelPtr by_stored_gradient(const ConvBackward& op, const ConvBwdParts& others) {
  const bool to_bn = op.src_diff_scale;
  const ConvForm data = over_weights(op.weights, op.type, conv_backward_data_form(op.g, op.type)),
                 by_weights = conv_backward_weights_form(op.g, op.type, op.source.mean || op.source.gate);
  const bool sums_apart = to_bn && (data.plain() || others.data);
  const bool sums_within = to_bn && !sums_apart;
  const MergeTiles tiles = sums_within ? data.merge_tiles(op.g.ic) : MergeTiles();
  ScratchLayout layout;
  const size_t diff_at = layout.add(op.dst->bytes),
               parts_at = layout.add(others.weights ? 0 : conv_bwd_weights_scratch(op.g, by_weights)),
               convolved_at = layout.add(others.weights && op.source ? op.src->bytes : 0),
               workspace_at = layout.add(others.workspace_bytes);
  const size_t sums_at = layout.add(sums_apart ? op.behind_source.reduce_scratch_bytes() : tiles.bytes());
  const size_t image_sums_at = layout.add(op.image_sums ? op.source.sums_scratch_bytes() : 0);
  const auto record_weights = [=](const Addresses& at, void* diff, std::vector<Launch>& launches) {
    if (!others.weights) {
      ConvBwdWeightsArgs args{};
      args.g = op.g;
      args.src = conv_source(op.source, at);
      args.diff_dst = diff;
      args.parts = reinterpret_cast<float*>(at.scratch + parts_at);
      record_conv_bwd_weights(args, by_weights, op.type, at.ptr<float>(op.diff_weights), launches);
      return;
    }
    void* convolved = at.ptr(op.src);
    if (op.source) {
      convolved = at.scratch + convolved_at;
      op.source.record_apply(at, convolved, launches);
    }
    others.weights(at, diff, convolved, at.ptr(op.diff_weights), at.scratch + workspace_at, launches);
  };
  const auto record_data = [=](const Addresses& at, void* diff, std::vector<Launch>& launches) {
    if (others.data) {
      const void* weights = op.type.dtype == plan::DType::f32 ? at.ptr(op.weights) : at.working(op.weights);
      others.data(at, diff, weights, at.ptr(op.diff_src), at.scratch + workspace_at, launches);
      if (op.addend && !others.data_adds)
        launches.push_back(add_launch(at.ptr(op.diff_src), at.ptr(op.addend), at.ptr(op.diff_src),
                                      op.diff_src->elements(), op.type.dtype));
    } else {
      ConvBwdDataArgs args{};
      args.g = op.g;
      args.diff_dst = diff;
      args.weights = weights_at(at, op.weights, data, op.type);
      args.diff_src = at.ptr(op.diff_src);
      if (op.source && to_bn) {
        args.slope_of = at.ptr(op.src);
        args.act = op.source.act;
        args.slope_norm = op.source.norm(at);
      }
      if (!op.source) args.end = op.end(at);
      if (sums_within)
        args.sums = op.behind_source.merge_args(at, tiles, at.scratch + sums_at, op.src_diff_scale, op.src_diff_shift);
      launches.push_back(conv_bwd_data_launch(args, data, op.type));
    }
    if (sums_apart)
      op.behind_source.record_reduce(at, at.scratch + sums_at, op.src_diff_scale, op.src_diff_shift, launches);
    if (op.image_sums)
      op.source.record_sums(at, at.scratch + image_sums_at, at.ptr(op.diff_src), op.diff_gate, op.image_sums, launches);
  };
  return conv_kernel(
      "conv2d_bwd", data, op.type,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        void* diff = at.scratch + diff_at;
        op.back.record_apply(at, op.diff_scale, op.diff_shift, diff, launches);
        record_weights(at, diff, launches);
        record_data(at, diff, launches);
      },
      layout.bytes(), 2 * conv_flops(op.g));
}

}  // namespace

StatusOr<KernelPtr> make_conv2d_bwd(const Op& op) {
  const ConvBackward backward(op);
  const bool linear = backward.back.act == plan::Act::identity;
  const bool copied =
      !over_weights(backward.weights, backward.type, conv_backward_data_form(backward.g, backward.type)).plain();
  if (linear && copied) {
    const bool by_image = backward.back.drop_rate > 0 || backward.behind_source.drop_rate > 0;
    const auto form = conv_once_form(backward.g, backward.type, backward.once_source(), by_image);
    if (form) return once(backward, *form);
  }
  return by_stored_gradient(backward, {});
}

StatusOr<KernelPtr> make_conv2d_bwd_in_parts(const Op& op, const ConvBwdParts& others) {
  return by_stored_gradient(ConvBackward(op), others);
}

bool has_plain_bwd_data(const Op& op) {
  return !op.out(out_src_diff_scale) || op.act(attr_src_act) == plan::Act::identity;
}

}  // namespace effnet::cuda
