// Depthwise convolution kernels: checks, the split into shards, and the ops' kernels around the vector code.
#include "cpu/kernels/depthwise.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "cpu/kernel.h"
#include "cpu/kernels/common.h"
#include "cpu/kernels/depthwise_rows.h"
#include "plan/op_ports.h"

namespace effnet::cpu {

namespace {
// Channel blocks that a ring holds side by side. Wide images come from memory: then whole pixels are read, in order,
// and the ring lives in L2. Small ones are in the caches, and the ring is kept within L1.
int64_t ring_blocks(int64_t src_w, int64_t block_vectors, int64_t c) {
  constexpr int64_t kWideColumns = 48, kWideBytes = 192 << 10, kSmallBytes = 24 << 10;
  const int64_t bytes = block_vectors * kMaxLanes * static_cast<int64_t>(sizeof(float));
  return std::clamp<int64_t>((src_w < kWideColumns ? kSmallBytes : kWideBytes) / bytes, 1, ceil_div(c, kMaxLanes));
}
}  // namespace

int64_t DepthwisePass::out_cols() const {
  if (!transposed) return dst_w;
  const int64_t first = pad_l / stride, last = (dst_w - 1 + pad_l) / stride;
  return (last - first + 1) * stride;
}

int64_t DepthwisePass::ring_cols() const {
  if (!transposed) return (dst_w - 1) * stride + kw;
  return out_cols() / stride + ceil_div(kw, stride) - 1;
}

int64_t DepthwisePass::blocks_at_once() const { return ring_blocks(src_w, ring_rows() * ring_cols(), c); }

int64_t DepthwisePass::scratch_floats() const {
  int64_t vectors = blocks_at_once() * (kh * kw + 1 + ring_rows() * ring_cols()) + out_cols();
  if (has_tiles()) vectors = std::max(vectors, (ceil_div(c, kMaxLanes) + 1) * (kh * kw + 1));
  return vectors * kMaxLanes + 4 * kh;  // 2 * kh pointers
}

int64_t DepthwiseGrad::rows_at_once() const {
  constexpr int64_t kRingFloats = 6144;  // 24 KB: the ring and the rows of diff_dst stay in a 48 KB L1
  const int64_t rows = kRingFloats / (ring_cols() * kMaxLanes);
  return std::clamp<int64_t>((rows - kh) / stride + 1, 1, std::min<int64_t>(out_h, 8));
}

int64_t DepthwiseGrad::blocks_at_once() const { return ring_blocks(w, ring_rows() * ring_cols(), c); }

int64_t DepthwiseGrad::scratch_floats() const {
  const int64_t vectors =
      blocks_at_once() * (kh * kw + ring_rows() * ring_cols()) + ring_cols() + rows_at_once() * out_w;
  return vectors * kMaxLanes + 2 * ring_rows();
}

namespace {

// Microseconds of one core for work of `flops` and `bytes`; only sizes shards, so a factor of two does not matter.
double estimate_us(double flops, double bytes) { return flops / 90e3 + bytes / 40e3; }

// How `units` units of work are cut into at most `most` equal pieces: returns the units of a piece. At batch 1 a layer
// has few pieces, so their number must suit two and four threads; `extra` is what a piece costs besides its units.
int64_t balanced_step(int64_t units, int64_t most, double extra) {
  int64_t best = units;
  double best_cost = 1e300;
  for (int64_t pieces = 1; pieces <= std::min(most, units); ++pieces) {
    const int64_t step = ceil_div(units, pieces), count = ceil_div(units, step);
    const double cost =
        static_cast<double>(2 * ceil_div(count, 2) + 4 * ceil_div(count, 4)) * (static_cast<double>(step) + extra);
    if (cost > best_cost) continue;
    best_cost = cost;
    best = step;
  }
  return best;
}

// Channels in groups of kMaxLanes at least.
struct ChannelSplit {
  int64_t c = 0, step = 0, groups = 1;
  ChannelSplit() = default;
  ChannelSplit(int64_t channels, int64_t most) : c(channels) {
    constexpr int64_t unit = kMaxLanes;
    const int64_t units = std::max<int64_t>(1, c / unit);
    step = balanced_step(units, std::max<int64_t>(most, 1), 0) * unit;
    groups = ceil_div(units * unit, step);
  }
  int64_t count() const { return groups; }
  int64_t begin(int64_t i) const { return i * step; }
  int64_t end(int64_t i) const { return i + 1 == groups ? c : (i + 1) * step; }
};

// The shards of a pass: every image is cut alike, so the cut does not depend on the batch. Small images are cut by
// channels, which costs nothing; large ones by rows, which keeps memory accesses together.
struct ConvSplit {
  explicit ConvSplit(const DepthwisePass& pass) : images(pass.n) {
    const double pixels = static_cast<double>(pass.dst_h * pass.dst_w), c = static_cast<double>(pass.c);
    const double taps =
        static_cast<double>(pass.kh * pass.kw) / static_cast<double>(pass.transposed ? pass.stride * pass.stride : 1);
    const double bytes = (pass.bf16 ? 2 : 4) * (pixels + static_cast<double>(pass.src_h * pass.src_w)) * c;
    constexpr double kShardUs = 10;
    const int64_t pieces = std::max<int64_t>(2, std::lround(estimate_us(2 * taps * pixels * c, bytes) / kShardUs));
    // Tiles are two rows high, and a band reads kh - stride rows of its neighbour.
    const int64_t pairs = ceil_div(pass.dst_h, 2), most_bands = std::max<int64_t>(1, pairs / 4);
    const auto cut_rows = [&](int64_t most) {
      band_rows = 2 * balanced_step(pairs, std::clamp<int64_t>(most, 1, most_bands), 0.5);
      bands = ceil_div(pass.dst_h, band_rows);
    };
    if (pass.dst_w <= 32) {
      channels = ChannelSplit(pass.c, pieces);
      cut_rows(pieces / channels.count());
    } else {
      cut_rows(pieces);
      channels = ChannelSplit(pass.c, pieces / bands);
    }
    rows = pass.dst_h;
  }
  int64_t count() const { return images * bands * channels.count(); }
  int64_t band(int64_t shard) const { return shard / channels.count() % bands; }
  DepthwiseShard shard(int64_t i) const {
    const int64_t group = i % channels.count(), b = band(i), image = i / channels.count() / bands;
    return {image, b * band_rows, std::min(rows, (b + 1) * band_rows), channels.begin(group), channels.end(group)};
  }
  int64_t images, rows = 0, bands = 1, band_rows = 0;
  ChannelSplit channels;
};

std::string variant_name(const char* base, int64_t kh, int64_t kw, int64_t stride, plan::DType dtype) {
  char text[64];
  if (kh == kw && (kw == 3 || kw == 5) && stride <= 2) {
    std::snprintf(text, sizeof text, "%s_k%ds%d", base, static_cast<int>(kw), static_cast<int>(stride));
  } else {
    std::snprintf(text, sizeof text, "%s_any", base);
  }
  return kernel_name(text, dtype);
}

// ---- forward, with and without an epilogue, and backward data ---------------------------------------------------

void run_pass(const DepthwiseConvArgs& args, const DepthwiseShard& shard) {
  if (args.pass->has_tiles() && shard.c1 - shard.c0 >= kMaxLanes) {
    conv_depthwise_tiles(args, shard);
  } else {
    conv_depthwise(args, shard);
  }
}

class DepthwiseConv : public Kernel {
 public:
  DepthwiseConv(std::string name, const DepthwisePass& pass, double flops)
      : name_(std::move(name)), pass_(pass), split_(pass), flops_(flops) {}

  const plan::Tensor *src = nullptr, *weights = nullptr, *bias = nullptr, *dst = nullptr, *pooled = nullptr;
  plan::Act act = plan::Act::identity;

  const char* name() const override { return name_.c_str(); }
  // With row bands each band leaves its sums in the shared scratch, and a second phase adds them.
  int phases() const override { return banded_pool() ? 2 : 1; }
  int shards(int phase) const override { return static_cast<int>(phase == 0 ? split_.count() : pass_.n); }
  size_t worker_scratch_bytes() const override { return static_cast<size_t>(pass_.scratch_floats()) * sizeof(float); }
  size_t shared_scratch_bytes() const override {
    return banded_pool() ? static_cast<size_t>(pass_.n * split_.bands * pass_.c) * sizeof(float) : 0;
  }
  double flops() const override { return flops_; }

  void run(int phase, int shard, const ExecContext& ctx) override {
    const float scale = 1.0f / static_cast<float>(pass_.dst_h * pass_.dst_w);
    float* partial = reinterpret_cast<float*>(ctx.shared_scratch);
    if (phase == 1) {
      sum_rows(partial + shard * split_.bands * pass_.c, split_.bands, pass_.c, scale,
               ctx.ptr<float>(pooled) + shard * pass_.c, pass_.c);
      return;
    }
    const DepthwiseShard part = split_.shard(shard);
    DepthwiseConvArgs args{};
    args.pass = &pass_;
    args.src = ctx.ptr<std::byte>(src);
    args.weights = ctx.ptr<float>(weights);
    args.bias = ctx.ptr<float>(bias);
    args.act = act;
    args.dst = ctx.ptr<std::byte>(dst);
    args.scratch = reinterpret_cast<float*>(ctx.worker_scratch);
    if (banded_pool()) {
      args.pooled = partial + (part.image * split_.bands + split_.band(shard)) * pass_.c;
      args.pool_scale = 1;
    } else if (pooled) {
      args.pooled = ctx.ptr<float>(pooled) + part.image * pass_.c;
      args.pool_scale = scale;
    }
    args.stream = exceeds_caches(dst);
    run_pass(args, part);
  }

 private:
  bool banded_pool() const { return pooled && split_.bands > 1; }
  std::string name_;
  DepthwisePass pass_;
  ConvSplit split_;
  double flops_;
};

// ---- backward weights -------------------------------------------------------------------------------------------

// At most kGradShards shards. Small images: by channels as far as whole stretches of memory go, which needs no sums
// over shards; then, and large images from the first, by images; then by rows.
struct GradSplit {
  static constexpr int64_t kGradShards = 16;

  explicit GradSplit(const DepthwiseGrad& g) : images(g.n), rows(g.out_h) {
    const double pixels = static_cast<double>(g.n * g.out_h * g.out_w), c = static_cast<double>(g.c);
    const double bytes = (g.bf16 ? 2 : 4) * (pixels + static_cast<double>(g.n * g.h * g.w)) * c;
    const double us = estimate_us(2 * static_cast<double>(g.kh * g.kw) * pixels * c, bytes);
    constexpr double kShardUs = 20;
    const int64_t pieces = std::clamp<int64_t>(std::lround(us / kShardUs), 1, kGradShards);
    channels = ChannelSplit(g.c, g.out_w > 32 ? 1 : std::min(pieces, ceil_div(g.c, 4 * kMaxLanes)));
    const int64_t positions = std::max<int64_t>(1, pieces / channels.count());
    const int64_t groups = std::min(positions, images);
    group_images = ceil_div(images, groups);
    image_groups = ceil_div(images, group_images);
    const int64_t most_bands = std::max<int64_t>(1, rows / 8);
    const int64_t bands_wanted = std::min(std::max<int64_t>(1, positions / image_groups), most_bands);
    band_rows = ceil_div(rows, bands_wanted);
    bands = ceil_div(rows, band_rows);
  }
  int64_t positions() const { return image_groups * bands; }
  int64_t count() const { return positions() * channels.count(); }
  int64_t position(int64_t shard) const { return shard / channels.count(); }
  DepthwiseGradShard shard(int64_t i) const {
    const int64_t channel_group = i % channels.count(), p = position(i), band = p % bands, group = p / bands;
    return {group * group_images,
            std::min(images, (group + 1) * group_images),
            band * band_rows,
            std::min(rows, (band + 1) * band_rows),
            channels.begin(channel_group),
            channels.end(channel_group)};
  }
  int64_t images, rows, group_images = 1, image_groups = 1, band_rows = 1, bands = 1;
  ChannelSplit channels;
};

class DepthwiseBwdWeights : public Kernel {
 public:
  DepthwiseBwdWeights(const plan::Op& op, const DepthwiseGrad& grad, double flops)
      : src_(op.in(op::depthwise_conv2d_bwd_weights::in_src)),
        diff_dst_(op.in(op::depthwise_conv2d_bwd_weights::in_diff_dst)),
        diff_weights_(op.out(op::depthwise_conv2d_bwd_weights::out_diff_weights)),
        name_(variant_name("dwconv_bwd_weights", grad.kh, grad.kw, grad.stride, src_->dtype)),
        grad_(grad),
        split_(grad),
        flops_(flops) {}

  const char* name() const override { return name_.c_str(); }
  int phases() const override { return split_.positions() > 1 ? 2 : 1; }
  // The second phase adds the sums of all positions, a tap row of weights a shard.
  int shards(int phase) const override { return static_cast<int>(phase == 0 ? split_.count() : grad_.kh); }
  size_t worker_scratch_bytes() const override { return static_cast<size_t>(grad_.scratch_floats()) * sizeof(float); }
  size_t shared_scratch_bytes() const override {
    return phases() > 1 ? static_cast<size_t>(split_.positions() * weight_count()) * sizeof(float) : 0;
  }
  double flops() const override { return flops_; }

  void run(int phase, int shard, const ExecContext& ctx) override {
    float* diff_weights = ctx.ptr<float>(diff_weights_);
    float* partial = reinterpret_cast<float*>(ctx.shared_scratch);
    if (phase == 1) {
      const int64_t width = grad_.kw * grad_.c, offset = shard * width;
      sum_rows(partial + offset, split_.positions(), weight_count(), 1, diff_weights + offset, width);
      return;
    }
    DepthwiseGradArgs args{};
    args.grad = &grad_;
    args.src = ctx.ptr<std::byte>(src_);
    args.diff_dst = ctx.ptr<std::byte>(diff_dst_);
    args.diff_weights = phases() > 1 ? partial + split_.position(shard) * weight_count() : diff_weights;
    args.scratch = reinterpret_cast<float*>(ctx.worker_scratch);
    grad_depthwise(args, split_.shard(shard));
  }

 private:
  int64_t weight_count() const { return grad_.kh * grad_.kw * grad_.c; }
  const plan::Tensor *src_, *diff_dst_, *diff_weights_;
  std::string name_;
  DepthwiseGrad grad_;
  GradSplit split_;
  double flops_;
};

// ---- what an op means -------------------------------------------------------------------------------------------

using Conv = DepthwiseConvSpec;

StatusOr<Conv> read_conv(const plan::Op& op, const plan::Tensor* src, const plan::Tensor* dst,
                         const plan::Tensor* weights) {
  using namespace op::depthwise_conv2d;
  constexpr int64_t kMost = 1 << 16;
  OpCheck check(op);
  check.activation(src, "src").activation(dst, "dst");
  if (!check.ok()) return check.status();
  check.that(src->rank == 4 && dst->rank == 4 && src->dtype == dst->dtype, "src and dst")
      .f32(weights, {weights ? weights->dims[0] : 0, weights ? weights->dims[1] : 0, src->c()}, "weights");
  for (int i : {attr_stride, attr_pad_t, attr_pad_l, attr_pad_b, attr_pad_r}) {
    check.that(op.attr(i) >= 0 && op.attr(i) < kMost && op.attr(i) == std::floor(op.attr(i)), "stride or padding");
  }
  if (!check.ok()) return check.status();
  const Conv conv{src, dst, weights, op.attr_int(attr_stride), op.attr_int(attr_pad_t), op.attr_int(attr_pad_l)};
  check.that(conv.stride >= 1 && conv.kh() >= 1 && conv.kw() >= 1 && conv.kh() < kMost && conv.kw() < kMost,
             "stride or kernel size");
  if (!check.ok()) return check.status();
  const int64_t room_h = src->h() + conv.pad_t + op.attr_int(attr_pad_b) - conv.kh();
  const int64_t room_w = src->w() + conv.pad_l + op.attr_int(attr_pad_r) - conv.kw();
  check.that(room_h >= 0 && room_w >= 0 && dst->n() == src->n() && dst->c() == src->c() &&
                 dst->h() == room_h / conv.stride + 1 && dst->w() == room_w / conv.stride + 1,
             "shape of dst");
  if (!check.ok()) return check.status();
  return conv;
}

// All four operands of a BN, or none.
OpCheck& check_norm(OpCheck& check, const DepthwiseNorm& norm, double act, int64_t channels) {
  const bool any = norm.mean || norm.inv_std || norm.scale || norm.shift;
  check.that(!any || (norm.mean && norm.inv_std && norm.scale && norm.shift), "BN of src");
  check.that(any || act == static_cast<double>(plan::Act::identity), "src_act without the BN of src");
  for (const plan::Tensor* t : {norm.mean, norm.inv_std, norm.scale, norm.shift})
    check.optional_f32(t, {channels}, "BN of src");
  return check;
}

DepthwisePass forward_pass(const Conv& conv) {
  return {conv.src->n(), conv.src->h(), conv.src->w(), conv.dst->h(), conv.dst->w(), conv.src->c(), conv.kh(),
          conv.kw(),     conv.stride,   conv.pad_t,    conv.pad_l,    false,         false,         conv.bf16()};
}

DepthwisePass backward_pass(const Conv& conv) {
  DepthwisePass pass = forward_pass(conv);
  std::swap(pass.src_h, pass.dst_h);
  std::swap(pass.src_w, pass.dst_w);
  if (conv.stride == 1) {
    pass.mirrored = true;
    pass.pad_t = conv.kh() - 1 - conv.pad_t;
    pass.pad_l = conv.kw() - 1 - conv.pad_l;
  } else {
    pass.transposed = true;
  }
  return pass;
}

DepthwiseGrad weights_grad(const Conv& conv) {
  return {conv.src->n(), conv.src->h(), conv.src->w(), conv.dst->h(), conv.dst->w(), conv.src->c(),
          conv.kh(),     conv.kw(),     conv.stride,   conv.pad_t,    conv.pad_l,    conv.bf16()};
}

}  // namespace

StatusOr<KernelPtr> make_depthwise_conv2d(const plan::Op& op) {
  using namespace op::depthwise_conv2d;
  auto conv = read_conv(op, op.in(in_src), op.out(out_dst), op.in(in_weights));
  if (!conv.ok()) return conv.status();
  const Conv& c = conv.value();
  auto kernel = std::make_unique<DepthwiseConv>(variant_name("dwconv_fwd", c.kh(), c.kw(), c.stride, c.src->dtype),
                                                forward_pass(c), c.flops());
  kernel->src = c.src;
  kernel->weights = c.weights;
  kernel->dst = c.dst;
  return KernelPtr(std::move(kernel));
}

StatusOr<KernelPtr> make_depthwise_conv2d_stats(const plan::Op& op) {
  using namespace op::depthwise_conv2d_stats;
  auto conv = read_conv(op, op.in(in_src), op.out(out_dst), op.in(in_weights));
  if (!conv.ok()) return conv.status();
  const Conv& c = conv.value();
  const int64_t channels = c.src->c();
  OpCheck check(op);
  check.f32(op.out(out_mean), {channels}, "mean").f32(op.out(out_inv_std), {channels}, "inv_std");
  check.f32(op.upd(upd_running_mean), {channels}, "running_mean");
  check.f32(op.upd(upd_running_var), {channels}, "running_var");
  check.that(op.attr(attr_eps) > 0, "eps must be positive");
  check.that(c.by_rows(), "statistics need 3x3 or 5x5 at stride 1 or 2");
  DepthwiseNorm norm{op.in(in_src_mean), op.in(in_src_inv_std), op.in(in_src_scale), op.in(in_src_shift)};
  check_norm(check, norm, op.attr(attr_src_act), channels).act(attr_src_act);
  if (!check.ok()) return check.status();
  norm.act = op.act(attr_src_act);
  const char* base = norm ? "dwconv_fwd_norm_stats" : "dwconv_fwd_stats";
  return depthwise_stats_kernel(op, c, norm, variant_name(base, c.kh(), c.kw(), c.stride, c.src->dtype));
}

StatusOr<KernelPtr> make_depthwise_conv2d_bias_act(const plan::Op& op) {
  using namespace op::depthwise_conv2d_bias_act;
  auto conv = read_conv(op, op.in(in_src), op.out(out_dst), op.in(in_weights));
  if (!conv.ok()) return conv.status();
  const Conv& c = conv.value();
  OpCheck check(op);
  check.f32(op.in(in_bias), {c.src->c()}, "bias").act(attr_act);
  check.optional_f32(op.out(out_pooled), {c.dst->n(), c.dst->c()}, "pooled");
  if (!check.ok()) return check.status();
  const char* base = op.out(out_pooled) ? "dwconv_fwd_bias_act_pool" : "dwconv_fwd_bias_act";
  auto kernel = std::make_unique<DepthwiseConv>(variant_name(base, c.kh(), c.kw(), c.stride, c.src->dtype),
                                                forward_pass(c), c.flops());
  kernel->src = c.src;
  kernel->weights = c.weights;
  kernel->bias = op.in(in_bias);
  kernel->dst = c.dst;
  kernel->pooled = op.out(out_pooled);
  kernel->act = op.act(attr_act);
  return KernelPtr(std::move(kernel));
}

StatusOr<KernelPtr> make_depthwise_conv2d_bwd_data(const plan::Op& op) {
  using namespace op::depthwise_conv2d_bwd_data;
  auto conv = read_conv(op, op.out(out_diff_src), op.in(in_diff_dst), op.in(in_weights));
  if (!conv.ok()) return conv.status();
  const Conv& c = conv.value();
  auto kernel = std::make_unique<DepthwiseConv>(variant_name("dwconv_bwd_data", c.kh(), c.kw(), c.stride, c.src->dtype),
                                                backward_pass(c), c.flops());
  kernel->src = c.dst;
  kernel->weights = c.weights;
  kernel->dst = c.src;
  return KernelPtr(std::move(kernel));
}

StatusOr<KernelPtr> make_depthwise_conv2d_bwd_weights(const plan::Op& op) {
  using namespace op::depthwise_conv2d_bwd_weights;
  auto conv = read_conv(op, op.in(in_src), op.in(in_diff_dst), op.out(out_diff_weights));
  if (!conv.ok()) return conv.status();
  const Conv& c = conv.value();
  return KernelPtr(std::make_unique<DepthwiseBwdWeights>(op, weights_grad(c), c.flops()));
}

StatusOr<KernelPtr> make_depthwise_conv2d_bwd(const plan::Op& op) {
  using namespace op::depthwise_conv2d_bwd;
  if (op.in(in_dst)) return for_gpus("has the gradient of the normalisation behind a convolution in it");
  auto conv = read_conv(op, op.in(in_src), op.in(in_diff_dst), op.out(out_diff_weights));
  if (!conv.ok()) return conv.status();
  const Conv& c = conv.value();
  const int64_t channels = c.src->c();
  OpCheck check(op);
  check.like(op.out(out_diff_src), c.src, "diff_src");
  check.f32(op.in(in_weights), {c.kh(), c.kw(), channels}, "weights");
  DepthwiseNorm norm{op.in(in_src_mean), op.in(in_src_inv_std), op.in(in_src_scale), op.in(in_src_shift)};
  check_norm(check, norm, op.attr(attr_src_act), channels).act(attr_src_act);
  const plan::Tensor *diff_scale = op.out(out_src_diff_scale), *diff_shift = op.out(out_src_diff_shift);
  check.that(!diff_scale == !norm.mean && !diff_shift == !norm.mean, "sums of the BN of src");
  check.optional_f32(diff_scale, {channels}, "src_diff_scale").optional_f32(diff_shift, {channels}, "src_diff_shift");
  check.that(c.by_rows(), "both gradients at once need 3x3 or 5x5 at stride 1 or 2");
  if (!check.ok()) return check.status();
  norm.act = op.act(attr_src_act);
  const char* base = norm ? "dwconv_bwd_norm" : "dwconv_bwd";
  return depthwise_bwd_kernel(op, c, norm, variant_name(base, c.kh(), c.kw(), c.stride, c.src->dtype));
}

}  // namespace effnet::cpu
