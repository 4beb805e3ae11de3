#include "cuda/ops/conv.h"

#include "cuda/kernels/gemm_tile.h"
#include "cuda/ops/batch_norm.h"
#include "cuda/ops/sum_parts.h"
#include "cuda/ops/weights.h"

namespace effnet::cuda {
namespace {

using plan::Op;
using plan::Tensor;

uint32_t tiles(int64_t count) { return blocks_of(count, kGemmTile); }

int64_t weights_count(const ConvGeometry& g) { return g.oc * g.kh * g.kw * g.ic; }

std::string plain_suffix(const ConvForm& form, ConvType type) {
  return (form.pixels ? "_pixels" : "") + suffix(type.dtype);
}

}  // namespace

ConvSource conv_source(const SourceNorm& source, const Addresses& at) {
  const auto* gate = at.ptr<const float>(source.gate);
  if (!source) return {at.ptr(source.src), {}, {}, gate, {}};
  return {at.ptr(source.src), source.norm(at), source.act, gate, {}};
}

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

Launch conv_launch(ConvArgs args, const ConvForm& form, ConvType type, bool stats) {
  if (form.plain())
    return make_launch("conv2d" + plain_suffix(form, type), {tiles(args.g.dst_pixels()), tiles(args.g.oc), 1},
                       kGemmThreads, kGemmShared, args);
  args.tiles_a_block = form.tiles_a_block;
  args.tiles = form.tiles;
  args.split_steps = form.split_steps;
  args.splits = form.splits;
  return make_launch((stats ? "conv2d_stats_" : "conv2d_") + form.name() + type.suffix(), form.grid(args.g.oc),
                     kTileThreads, form.shared_bytes, args);
}

Launch conv_bwd_data_launch(ConvBwdDataArgs args, const ConvForm& form, ConvType type) {
  if (form.plain())
    return make_launch("conv2d_bwd_data" + suffix(type.dtype), {tiles(args.g.src_pixels()), tiles(args.g.ic), 1},
                       kGemmThreads, kGemmShared, args);
  args.tiles_a_block = form.tiles_a_block;
  args.tiles = form.tiles;
  const bool end = args.end.addend || args.end.src, sums = args.sums.tiles;
  const char* base = end ? "conv2d_bwd_data_end_" : sums ? "conv2d_bwd_data_bn_" : "conv2d_bwd_data_";
  const size_t shared_bytes = end    ? conv_backward_data_end_shared(form, type.dtype)
                              : sums ? conv_backward_data_bn_shared(form, type.dtype)
                                     : form.shared_bytes;
  return make_launch(base + form.name() + type.suffix(), form.grid(args.g.ic), kTileThreads, shared_bytes, args);
}

size_t conv_bwd_weights_scratch(const ConvGeometry& g, const ConvForm& form) {
  const int64_t splits = form.pixel_splits(g.dst_pixels());
  return splits == 1 ? 0 : static_cast<size_t>(splits * weights_count(g)) * sizeof(float);
}

void record_conv_bwd_weights(ConvBwdWeightsArgs args, const ConvForm& form, ConvType type, float* diff_weights,
                             std::vector<Launch>& launches) {
  const ConvGeometry& g = args.g;
  const int64_t splits = form.pixel_splits(g.dst_pixels()), width = g.kh * g.kw * g.ic;
  args.split_pixels = form.split_pixels;
  if (splits == 1) args.parts = diff_weights;
  if (form.plain())
    launches.push_back(make_launch("conv2d_bwd_weights" + plain_suffix(form, type),
                                   {tiles(g.oc), tiles(width), static_cast<uint32_t>(splits)}, kGemmThreads,
                                   kGemmShared, args));
  else
    launches.push_back(
        make_launch("conv2d_bwd_weights_" + form.name() + type.suffix(),
                    {blocks_of(width, form.tile_n), blocks_of(g.oc, form.tile_m), static_cast<uint32_t>(splits)},
                    kTileThreads, form.shared_bytes, args));
  if (splits > 1) launches.push_back(sum_parts(args.parts, splits, weights_count(g), diff_weights));
}

KernelPtr conv_kernel(const std::string& base, const ConvForm& form, ConvType type, Kernel::Record record,
                      size_t scratch_bytes, double flops) {
  auto kernel = make_kernel(base, type.dtype, std::move(record), scratch_bytes, flops);
  kernel->name = base + "_" + form.full_name() + type.suffix() + ":cuda";
  if (!form.plain() && type.dtype != plan::DType::f32) kernel->working = type.dtype;
  return kernel;
}

ConvForm over_weights(const Tensor* weights, ConvType type, ConvForm form) {
  const bool copied = weights->arena == plan::Arena::weights || weights->arena == plan::Arena::prepared;
  return copied || type.dtype == plan::DType::f32 ? form : ConvForm{};
}

const void* weights_at(const Addresses& at, const Tensor* weights, const ConvForm& form, ConvType type) {
  return form.plain() || type.dtype == plan::DType::f32 ? at.ptr(weights) : at.working(weights);
}

void name_half_gradient(Kernel& kernel) { kernel.name.insert(kernel.name.rfind(':'), "_half"); }

ConvOperands::ConvOperands(const Op& op, int first_attr, const SourceNorm& source, const Tensor* weights,
                           const Tensor* dst, const std::optional<PixelNorm>& pixels)
    : g(conv_geometry(op, first_attr, source.src, dst, weights->dims[1], weights->dims[2])),
      type(dst->dtype, op.allows_tf32()),
      source(source),
      weights(weights),
      dst(dst),
      pixels(pixels) {}

ConvForm ConvOperands::forward_form(const FormOf& form_of) const {
  const ConvForm form = over_weights(weights, type, form_of(g, type, source || source.gate));
  return pixels ? over_pixels(form) : form;
}

ConvForm ConvOperands::bwd_weights_form() const {
  const ConvForm form = conv_backward_weights_form(g, type);
  return pixels ? over_pixels(form) : form;
}

ConvSource ConvOperands::source_at(const Addresses& at) const {
  ConvSource src = conv_source(source, at);
  if (pixels) src.pixels = *pixels;
  return src;
}

ConvArgs ConvOperands::forward_args(const ConvForm& form, const Addresses& at) const {
  ConvArgs args{};
  args.g = g;
  args.src = source_at(at);
  args.weights = weights_at(at, weights, form, type);
  args.dst = at.ptr(dst);
  args.state = at.state;
  return args;
}

KernelPtr conv_bias_act_kernel(const std::string& base, const ConvOperands& o, const ConvForm& form,
                               const ConvBiasAct& epilogue) {
  return conv_kernel(
      base, form, o.type,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        ConvArgs args = o.forward_args(form, at);
        args.bias = at.ptr<const float>(epilogue.bias);
        args.act = epilogue.act;
        args.residual = at.ptr(epilogue.residual);
        args.parts = reinterpret_cast<float*>(at.scratch);
        launches.push_back(conv_launch(args, form, o.type));
      },
      form.parts_bytes(o.g.oc), conv_flops(o.g));
}

KernelPtr conv_stats_kernel(const std::string& base, const ConvOperands& o, const ConvForm& form,
                            const BnStats& stats) {
  ScratchLayout layout;
  const MergeTiles tiles = form.plain() ? MergeTiles() : form.merge_tiles(o.g.oc, 3);
  const size_t tiles_at = layout.add(form.plain() ? stats.scratch_bytes() : tiles.bytes());
  const size_t parts_at = layout.add(form.parts_bytes(o.g.oc));
  return conv_kernel(
      base, form, o.type,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        ConvArgs args = o.forward_args(form, at);
        if (!form.plain())
          args.stats = stats.merge_args(at, tiles, at.scratch + tiles_at, form.tiles_a_block * form.tile_m);
        args.parts = reinterpret_cast<float*>(at.scratch + parts_at);
        launches.push_back(conv_launch(args, form, o.type, true));
        if (form.plain()) stats.record(at, at.scratch + tiles_at, launches);
      },
      layout.bytes(), conv_flops(o.g));
}

KernelPtr conv_bwd_weights_kernel(const std::string& base, const ConvOperands& o, const Tensor* diff_dst,
                                  const Tensor* diff_weights, bool half) {
  const ConvForm form = o.bwd_weights_form();
  ScratchLayout layout;
  layout.add(conv_bwd_weights_scratch(o.g, form));
  const size_t half_at = layout.add(half ? diff_weights->bytes / 2 : 0);
  auto kernel = conv_kernel(
      base, form, o.type,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        ConvBwdWeightsArgs args{};
        args.g = o.g;
        args.src = o.source_at(at);
        args.diff_dst = at.ptr(diff_dst);
        args.parts = reinterpret_cast<float*>(at.scratch);
        record_conv_bwd_weights(args, form, o.type, at.ptr<float>(diff_weights), launches);
        if (!half) return;
        std::byte* rounded = at.scratch + half_at;
        launches.push_back(cast_weights_launch(at.ptr(diff_weights), rounded, weights_count(o.g), o.type.dtype));
        launches.push_back(widen_weights_launch(rounded, at.ptr(diff_weights), weights_count(o.g), o.type.dtype));
      },
      layout.bytes(), conv_flops(o.g));
  if (half) name_half_gradient(*kernel);
  return kernel;
}

namespace {

KernelPtr conv2d(const Op& op, const FormOf& form_of) {
  using namespace op::conv2d;
  const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *dst = op.out(out_dst);
  const ConvOperands operands(op, attr_stride, {.src = src}, weights, dst);
  return conv_bias_act_kernel("conv2d", operands, operands.forward_form(form_of), {});
}

KernelPtr conv2d_bias_act(const Op& op, const FormOf& form_of) {
  using namespace op::conv2d_bias_act;
  const SourceNorm source{.src = op.in(in_src), .gate = op.in(in_gate)};
  const ConvOperands operands(op, attr_stride, source, op.in(in_weights), op.out(out_dst));
  return conv_bias_act_kernel("conv2d_bias_act", operands, operands.forward_form(form_of),
                              {op.in(in_bias), op.in(in_residual), op.act(attr_act)});
}

KernelPtr conv2d_stats(const Op& op, const FormOf& form_of) {
  using namespace op::conv2d_stats;
  const Tensor* dst = op.out(out_dst);
  const SourceNorm source{op.in(in_src),       op.in(in_src_mean), op.in(in_src_inv_std), op.in(in_src_scale),
                          op.in(in_src_shift), op.in(in_gate),     op.act(attr_src_act)};
  const BnStats stats = bn_stats_of(op, dst, out_mean, attr_eps);
  const ConvOperands operands(op, attr_stride, source, op.in(in_weights), dst);
  return conv_stats_kernel("conv2d_stats", operands, operands.forward_form(form_of), stats);
}

// nullptr for what is no forward convolution.
KernelPtr forward(const Op& op, const FormOf& form_of) {
  switch (op.id) {
    case plan::OpId::conv2d:
      return conv2d(op, form_of);
    case plan::OpId::conv2d_bias_act:
      return conv2d_bias_act(op, form_of);
    case plan::OpId::conv2d_stats:
      return conv2d_stats(op, form_of);
    default:
      return nullptr;
  }
}

}  // namespace

StatusOr<KernelPtr> make_conv2d(const Op& op) { return conv2d(op, conv_forward_form); }
StatusOr<KernelPtr> make_conv2d_bias_act(const Op& op) { return conv2d_bias_act(op, conv_forward_form); }
StatusOr<KernelPtr> make_conv2d_stats(const Op& op) { return conv2d_stats(op, conv_forward_form); }

std::vector<std::string> other_forms(const Op& op) {
  std::vector<std::string> names;
  const KernelPtr of_table = forward(op, [&](const ConvGeometry& g, ConvType type, bool edited) {
    const std::vector<ConvForm> forms = conv_forward_forms(g, type, edited);
    for (size_t i = 1; i < forms.size(); ++i) names.push_back(forms[i].full_name());
    return forms[0];
  });
  // Of weights that have no 16-bit copy.
  if (of_table && of_table->name.starts_with(std::string(plan::op_name(op.id)) + "_plain")) names.clear();
  return names;
}

StatusOr<KernelPtr> make_in_form(const Op& op, const std::string& name) {
  bool found = false;
  KernelPtr kernel = forward(op, [&](const ConvGeometry& g, ConvType type, bool edited) {
    const std::vector<ConvForm> forms = conv_forward_forms(g, type, edited);
    for (const ConvForm& form : forms)
      if (form.full_name() == name) {
        found = true;
        return form;
      }
    return forms[0];
  });
  if (found) return kernel;
  return error(Code::plan_invalid, "%s has no form %s here", plan::op_name(op.id), name.c_str());
}

StatusOr<KernelPtr> make_conv2d_bwd_data(const Op& op) {
  using namespace op::conv2d_bwd_data;
  const Tensor *diff_dst = op.in(in_diff_dst), *weights = op.in(in_weights), *diff_src = op.out(out_diff_src);
  const ConvGeometry g = conv_geometry(op, attr_stride, diff_src, diff_dst, weights->dims[1], weights->dims[2]);
  const ConvType type(diff_src->dtype, op.allows_tf32());
  const ConvForm form = over_weights(weights, type, conv_backward_data_form(g, type));
  return conv_kernel(
      "conv2d_bwd_data", form, type,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        ConvBwdDataArgs args{};
        args.g = g;
        args.diff_dst = at.ptr(diff_dst);
        args.weights = weights_at(at, weights, form, type);
        args.diff_src = at.ptr(diff_src);
        launches.push_back(conv_bwd_data_launch(args, form, type));
      },
      0, conv_flops(g));
}

StatusOr<KernelPtr> make_conv2d_bwd_weights(const Op& op) {
  using namespace op::conv2d_bwd_weights;
  const Tensor *diff_dst = op.in(in_diff_dst), *diff_weights = op.out(out_diff_weights);
  const ConvOperands operands(op, attr_stride, {.src = op.in(in_src)}, diff_weights, diff_dst);
  return conv_bwd_weights_kernel("conv2d_bwd_weights", operands, diff_dst, diff_weights, op.has_half_gradient());
}

}  // namespace effnet::cuda
