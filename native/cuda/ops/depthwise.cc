#include "cuda/kernels/depthwise.h"

#include <span>

#include "cuda/ops/batch_norm.h"
#include "cuda/ops/conv.h"
#include "cuda/ops/depthwise_tiling.h"
#include "cuda/ops/sum_parts.h"

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

// "_k3s1": which instance of the tiled kernels; "_plain" where they have none.
std::string form(const DepthwiseGeometry& g, bool tiled) {
  if (!tiled) return "_plain";
  return "_k" + std::to_string(g.kw) + "s" + std::to_string(g.stride);
}

// ---- forward -----------------------------------------------------------------------------------------------------

// dst = act(conv(src_act(bn(src))) + bias), by tiles or plainly.
class Forward {
 public:
  Forward(const DepthwiseGeometry& g, const Tensor* dst, bool normalises, bool passes)
      : g_(g), dst_(dst), tiled_(depthwise_has_tiles(g, plan::dtype_bytes(dst->dtype))) {
    if (tiled_) plan_ = depthwise_forward_plan(g, plan::dtype_bytes(dst->dtype), {normalises, passes});
  }

  std::string form() const { return cuda::form(g_, tiled_); }
  bool tiled() const { return tiled_; }
  size_t stats_bytes(const BnStats& stats) const { return tiled_ ? merge_tiles().bytes() : stats.scratch_bytes(); }
  // The pixels in front of each tile, where tiles are not the same.
  std::vector<std::byte> tile_starts() const {
    const DepthwiseTiling& t = plan_.tiling;
    if (!tiled_ || same_tiles()) return {};
    std::vector<int32_t> starts{0};
    for (int64_t n = 0; n < g_.n; ++n)
      for (int64_t y = 0; y < g_.oh; y += t.rows)
        for (int64_t x = 0; x < g_.ow; x += t.cols)
          starts.push_back(starts.back() + static_cast<int32_t>(std::min<int64_t>(t.rows, g_.oh - y) *
                                                                std::min<int64_t>(t.cols, g_.ow - x)));
    const auto bytes = std::as_bytes(std::span(starts));
    return {bytes.begin(), bytes.end()};
  }
  size_t pool_bytes() const {
    if (!tiled_) return pool_scratch_bytes(dst_);
    return image_tiles() > 1 ? static_cast<size_t>(image_tiles() * g_.n * g_.c) * sizeof(float) : 0;
  }

  // args: what is convolved and with what; the rest is filled in. Scratch: stats_bytes(), pool_bytes().
  void record(DepthwiseTilesArgs args, const Addresses& at, std::vector<Launch>& launches,
              const BnStats* stats = nullptr, const Tensor* pooled = nullptr, std::byte* scratch = nullptr) const {
    args.g = g_;
    args.dst = at.ptr(dst_);
    if (!tiled_) {
      const DepthwiseArgs plain{g_, args.src, args.weights, args.bias, args.act, args.dst};
      launches.push_back(make_launch("depthwise_plain" + suffix(dst_->dtype),
                                     grid_for(dst_pixels(g_) * g_.c, kDepthwiseThreads), kDepthwiseThreads, 0, plain));
      if (pooled) record_pool(at, dst_, pooled, launches, scratch);
    } else {
      args.t = plan_.tiling;
      auto* floats = reinterpret_cast<float*>(scratch);
      if (stats)
        args.stats = stats->merge_args(at, merge_tiles(), scratch, args.t.rows * args.t.cols,
                                       same_tiles() ? nullptr : reinterpret_cast<const int32_t*>(at.constants));
      if (pooled) {
        args.pool = image_tiles() > 1 ? floats : at.ptr<float>(pooled);
        args.pool_factor = 1.0f / static_cast<float>(g_.oh * g_.ow);
      }
      launches.push_back(
          make_launch("depthwise" + form() + suffix(dst_->dtype), plan_.grid, plan_.threads, plan_.shared_bytes, args));
      if (pooled && image_tiles() > 1)
        launches.push_back(sum_parts(floats, image_tiles(), g_.n * g_.c, at.ptr<float>(pooled)));
    }
    if (stats && !tiled_) stats->record(at, scratch, launches);
  }

 private:
  int64_t image_tiles() const { return static_cast<int64_t>(plan_.tiling.tiles_y) * plan_.tiling.tiles_x; }
  bool same_tiles() const { return g_.oh % plan_.tiling.rows == 0 && g_.ow % plan_.tiling.cols == 0; }
  MergeTiles merge_tiles() const { return {g_.n * image_tiles(), plan_.grid.x, g_.c}; }

  DepthwiseGeometry g_;
  const Tensor* dst_;
  bool tiled_;
  DepthwisePlan plan_{};
};

// ---- backward ----------------------------------------------------------------------------------------------------

// Of plain weights' gradients: 1024 tiles at most.
int64_t tile_pixels(const DepthwiseGeometry& g) { return std::max<int64_t>(256, ceil_div(dst_pixels(g), 1024)); }
int64_t tile_count(const DepthwiseGeometry& g) { return (dst_pixels(g) + tile_pixels(g) - 1) / tile_pixels(g); }

// Either or both gradients, by tiles or plainly. Plainly src is stored already as it is convolved.
class Backward {
 public:
  Backward(const DepthwiseGeometry& g, plan::DType dtype, bool differentiates = false)
      : g_(g), dtype_(dtype), tiled_(depthwise_has_tiles(g, plan::dtype_bytes(dtype))) {
    if (tiled_) plan_ = depthwise_backward_plan(g, plan::dtype_bytes(dtype), differentiates);
  }

  std::string form() const { return cuda::form(g_, tiled_); }
  bool tiled() const { return tiled_; }
  size_t weights_bytes() const {
    return static_cast<size_t>((tiled_ ? parts() : tile_count(g_)) * g_.kh * g_.kw * g_.c) * sizeof(float);
  }
  // Of the sums of diff_src that the gradients of its normalisation are.
  MergeTiles merge_tiles() const { return {parts(), plan_.grid.x, g_.c}; }

  // args: operands and results, weight_parts and sums where there is scratch for them.
  void record(DepthwiseBwdTilesArgs args, float* diff_weights, std::vector<Launch>& launches) const {
    args.g = g_;
    if (!tiled_) return record_plain(args, args.src, diff_weights, launches);
    args.t = plan_.tiling;
    args.block_tiles = plan_.block_tiles;
    const std::string kernel = makes_whole(args) ? "depthwise_bwd_whole" : "depthwise_bwd";
    launches.push_back(
        make_launch(kernel + form() + suffix(dtype_), plan_.grid, plan_.threads, plan_.shared_bytes, args));
    if (diff_weights) launches.push_back(sum_parts(args.weight_parts, parts(), g_.kh * g_.kw * g_.c, diff_weights));
  }
  // `value`: what is convolved, where that is not src itself.
  void record_plain(const DepthwiseBwdTilesArgs& args, const void* value, float* diff_weights,
                    std::vector<Launch>& launches) const {
    if (diff_weights) {
      const auto blocks = blocks_of(g_.c, kBnChannels);
      launches.push_back(
          make_launch("depthwise_bwd_weights_plain" + suffix(dtype_),
                      {blocks, static_cast<uint32_t>(tile_count(g_)), 1}, kDepthwiseThreads, kBnSumsShared,
                      DepthwiseBwdWeightsArgs{g_, value, args.diff_dst, tile_pixels(g_), args.weight_parts}));
      launches.push_back(sum_parts(args.weight_parts, tile_count(g_), g_.kh * g_.kw * g_.c, diff_weights));
    }
    if (!args.diff_src) return;
    launches.push_back(make_launch(
        "depthwise_bwd_data_plain" + suffix(dtype_), grid_for(g_.n * g_.h * g_.w * g_.c, kDepthwiseThreads),
        kDepthwiseThreads, 0,
        DepthwiseBwdDataArgs{g_, args.diff_dst, args.weights, args.src, args.norm, args.src_act, args.diff_src}));
  }

 private:
  int64_t parts() const { return plan_.parts; }
  // What a block of these networks needs of it in training: everything, with SiLU behind both normalisations. There is
  // a kernel for just that, but for one window.
  bool makes_whole(const DepthwiseBwdTilesArgs& args) const {
    if (g_.kw == 5 && g_.stride == 2) return false;
    const bool normalised =
        args.norm.mean && args.src_act == plan::Act::silu && args.behind.dst && args.behind.act == plan::Act::silu;
    return plan::dtype_bytes(dtype_) == 2 && normalised && args.diff_src && args.weight_parts && args.sums.tiles;
  }

  DepthwiseGeometry g_;
  plan::DType dtype_;
  bool tiled_;
  DepthwisePlan plan_{};
};

}  // namespace

StatusOr<KernelPtr> make_depthwise_conv2d(const Op& op) {
  using namespace op::depthwise_conv2d;
  const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *dst = op.out(out_dst);
  const DepthwiseGeometry g = geometry(op, attr_stride, src, dst, weights);
  const Forward forward(g, dst, false, false);
  return make_kernel(
      "depthwise_conv2d" + forward.form(), dst->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        DepthwiseTilesArgs args{};
        args.src = at.ptr(src);
        args.weights = at.ptr<const float>(weights);
        forward.record(args, at, launches);
      },
      0, flops(g));
}

StatusOr<KernelPtr> make_depthwise_conv2d_bias_act(const Op& op) {
  using namespace op::depthwise_conv2d_bias_act;
  const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *bias = op.in(in_bias), *dst = op.out(out_dst),
               *pooled = op.out(out_pooled);
  const DepthwiseGeometry g = geometry(op, attr_stride, src, dst, weights);
  const plan::Act act = op.act(attr_act);
  const Forward forward(g, dst, false, pooled);
  return make_kernel(
      "depthwise_conv2d_bias_act" + forward.form(), dst->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        DepthwiseTilesArgs args{};
        args.src = at.ptr(src);
        args.weights = at.ptr<const float>(weights);
        args.bias = at.ptr<const float>(bias);
        args.act = act;
        forward.record(args, at, launches, nullptr, pooled, at.scratch);
      },
      pooled ? forward.pool_bytes() : 0, flops(g));
}

StatusOr<KernelPtr> make_depthwise_conv2d_bwd_data(const Op& op) {
  using namespace op::depthwise_conv2d_bwd_data;
  const Tensor *diff_dst = op.in(in_diff_dst), *weights = op.in(in_weights), *diff_src = op.out(out_diff_src);
  const DepthwiseGeometry g = geometry(op, attr_stride, diff_src, diff_dst, weights);
  const Backward backward(g, diff_src->dtype);
  return make_kernel(
      "depthwise_conv2d_bwd_data" + backward.form(), diff_src->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        DepthwiseBwdTilesArgs args{};
        args.diff_dst = at.ptr(diff_dst);
        args.weights = at.ptr<const float>(weights);
        args.diff_src = at.ptr(diff_src);
        backward.record(args, nullptr, launches);
      },
      0, flops(g));
}

StatusOr<KernelPtr> make_depthwise_conv2d_bwd_weights(const Op& op) {
  using namespace op::depthwise_conv2d_bwd_weights;
  const Tensor *src = op.in(in_src), *diff_dst = op.in(in_diff_dst), *diff_weights = op.out(out_diff_weights);
  const DepthwiseGeometry g = geometry(op, attr_stride, src, diff_dst, diff_weights);
  const Backward backward(g, src->dtype);
  return make_kernel(
      "depthwise_conv2d_bwd_weights" + backward.form(), src->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        DepthwiseBwdTilesArgs args{};
        args.src = at.ptr(src);
        args.diff_dst = at.ptr(diff_dst);
        args.weight_parts = reinterpret_cast<float*>(at.scratch);
        backward.record(args, at.ptr<float>(diff_weights), launches);
      },
      backward.weights_bytes(), flops(g));
}

StatusOr<KernelPtr> make_depthwise_conv2d_stats(const Op& op) {
  using namespace op::depthwise_conv2d_stats;
  const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *dst = op.out(out_dst);
  const SourceNorm source{src,     op.in(in_src_mean),  op.in(in_src_inv_std), op.in(in_src_scale), op.in(in_src_shift),
                          nullptr, op.act(attr_src_act)};
  const BnStats stats = bn_stats_of(op, dst, out_mean, attr_eps);
  const DepthwiseGeometry g = geometry(op, attr_stride, src, dst, weights);
  const Forward forward(g, dst, static_cast<bool>(source), true);
  const bool stores_source = source && !forward.tiled();
  ScratchLayout layout;
  const size_t source_at = layout.add(stores_source ? src->bytes : 0),
               stats_at = layout.add(forward.stats_bytes(stats));
  auto kernel = make_kernel(
      "depthwise_conv2d_stats" + forward.form(), dst->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        DepthwiseTilesArgs args{};
        args.src = stores_source ? at.scratch + source_at : at.ptr(src);
        args.weights = at.ptr<const float>(weights);
        if (stores_source) source.record_apply(at, at.scratch + source_at, launches);
        if (source && !stores_source) {
          args.norm = source.norm(at);
          args.src_act = source.act;
        }
        forward.record(args, at, launches, &stats, nullptr, at.scratch + stats_at);
      },
      layout.bytes(), flops(g));
  kernel->constants = forward.tile_starts();
  return kernel;
}

StatusOr<KernelPtr> make_depthwise_conv2d_bwd(const Op& op) {
  using namespace op::depthwise_conv2d_bwd;
  const Tensor *src = op.in(in_src), *diff_dst = op.in(in_diff_dst), *weights = op.in(in_weights), *dst = op.in(in_dst);
  const SourceNorm source{src,     op.in(in_src_mean),  op.in(in_src_inv_std), op.in(in_src_scale), op.in(in_src_shift),
                          nullptr, op.act(attr_src_act)};
  // Of the normalisation behind, where diff_dst is the gradient of what follows that.
  const SourceNorm behind_norm{dst,     op.in(in_mean),  op.in(in_inv_std), op.in(in_scale), op.in(in_shift),
                               nullptr, op.act(attr_act)};
  const BnBackward behind{diff_dst,
                          dst,
                          behind_norm.mean,
                          behind_norm.inv_std,
                          behind_norm.scale,
                          behind_norm.shift,
                          op.in(in_gate),
                          op.in(in_diff_pooled),
                          behind_norm.act,
                          0,
                          0};
  const Tensor *behind_scale = op.in(in_diff_scale), *behind_shift = op.in(in_diff_shift);
  const Tensor *diff_src = op.out(out_diff_src), *diff_weights = op.out(out_diff_weights),
               *diff_scale = op.out(out_src_diff_scale), *diff_shift = op.out(out_src_diff_shift);
  const DepthwiseGeometry g = geometry(op, attr_stride, src, diff_dst, weights);
  const Backward backward(g, src->dtype, dst != nullptr);
  // What is stored is the gradient of bn(src) already, so its sums need no activation.
  const BnBackward back{diff_src, src, source.mean, source.inv_std};
  ScratchLayout layout;
  const size_t parts_at = layout.add(backward.weights_bytes());
  if (backward.tiled()) {
    const size_t sums_at = layout.add(diff_scale ? backward.merge_tiles().bytes() : 0);
    return make_kernel(
        "depthwise_conv2d_bwd" + backward.form(), src->dtype,
        [=](const Addresses& at, std::vector<Launch>& launches) {
          DepthwiseBwdTilesArgs args{};
          args.diff_dst = at.ptr(diff_dst);
          if (dst) {
            args.behind = {at.ptr(dst),
                           behind_norm.norm(at),
                           behind.act,
                           at.ptr<const float>(behind_scale),
                           at.ptr<const float>(behind_shift),
                           at.ptr<const float>(behind.gate),
                           at.ptr<const float>(behind.diff_pooled),
                           1.0f / static_cast<float>(dst_pixels(g)),
                           1.0f / static_cast<float>(g.oh * g.ow)};
          }
          args.weights = at.ptr<const float>(weights);
          args.src = at.ptr(src);
          args.norm = source.norm(at);
          args.src_act = source.act;
          args.diff_src = at.ptr(diff_src);
          args.weight_parts = reinterpret_cast<float*>(at.scratch + parts_at);
          if (diff_scale)
            args.sums = back.merge_args(at, backward.merge_tiles(), at.scratch + sums_at, diff_scale, diff_shift);
          backward.record(args, at.ptr<float>(diff_weights), launches);
        },
        layout.bytes(), 2 * flops(g));
  }
  const size_t source_at = layout.add(source ? src->bytes : 0), diff_at = layout.add(dst ? dst->bytes : 0);
  const size_t sums_at = layout.add(diff_scale ? back.reduce_scratch_bytes() : 0);
  return make_kernel(
      "depthwise_conv2d_bwd" + backward.form(), src->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        DepthwiseBwdTilesArgs args{};
        args.g = g;
        args.diff_dst = dst ? at.scratch + diff_at : at.ptr(diff_dst);
        args.weights = at.ptr<const float>(weights);
        args.src = at.ptr(src);
        args.norm = source.norm(at);
        args.src_act = source.act;
        args.diff_src = at.ptr(diff_src);
        args.weight_parts = reinterpret_cast<float*>(at.scratch + parts_at);
        if (source) source.record_apply(at, at.scratch + source_at, launches);
        if (dst) behind.record_apply(at, behind_scale, behind_shift, at.scratch + diff_at, launches);
        backward.record_plain(args, source ? at.scratch + source_at : at.ptr(src), at.ptr<float>(diff_weights),
                              launches);
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
  const Forward forward(g, dst, false, pooled);
  const size_t wide = static_cast<size_t>(expand.n * expand.oc) * plan::dtype_bytes(src->dtype);
  const ConvType type(src->dtype, op.allows_tf32());
  const ConvForm form = over_weights(weights, type, conv_forward_form(expand, type).whole());
  return conv_kernel(
      "expand_depthwise_bias_act" + forward.form(), form, type,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        ConvArgs args{};
        args.g = expand;
        args.src.data = at.ptr(src);
        args.weights = weights_at(at, weights, form, type);
        args.bias = at.ptr<const float>(bias);
        args.act = expand_act;
        args.dst = at.scratch;
        launches.push_back(conv_launch(args, form, type));
        DepthwiseTilesArgs tiles{};
        tiles.src = at.scratch;
        tiles.weights = at.ptr<const float>(taps);
        tiles.bias = at.ptr<const float>(depthwise_bias);
        tiles.act = act;
        forward.record(tiles, at, launches, nullptr, pooled, at.scratch + align256(wide));
      },
      align256(wide) + (pooled ? forward.pool_bytes() : 0), conv_flops(expand) + flops(g));
}

}  // namespace effnet::cuda
