#include "cuda/ops/batch_norm.h"

#include "cuda/ops/drop.h"
#include "cuda/ops/walk.h"

namespace effnet::cuda {
namespace {

using plan::Op;
using plan::Tensor;

int64_t rows_of(const Tensor* t) { return t->n() * t->h() * t->w(); }
int64_t pixels_of(const Tensor* t) { return t->h() * t->w(); }

Norm norm_of(const Addresses& at, const Tensor* mean, const Tensor* inv_std, const Tensor* scale, const Tensor* shift) {
  return {at.ptr<const float>(mean), at.ptr<const float>(inv_std), at.ptr<const float>(scale),
          at.ptr<const float>(shift)};
}

// Walks of reductions are cut for kSumBlocks blocks: where there are twice as many groups of channels, a group has one
// block, which merges with none and needs no counter.
static_assert(2 * kSumBlocks <= kMostMergeColumns);
MergeTiles tiles_of(const Walk& w, int vector) { return {walk_tiles(w), walk_grid(w, vector).y, w.c}; }
// The means of tiles are stored in FP32. Of tiles of few rows a variance is made of their differences, and where the
// mean is large that costs digits.
constexpr int64_t kStatsLeastRows = 64;
Walk stats_walk(const Tensor* src) {
  return make_walk(1, rows_of(src), src->c(), walk_vector(src->dtype, src->c()), kSumBlocks, kStatsLeastRows);
}

constexpr size_t kSumsShared = kLaneScratchBytes + 16;

template <class Args>
Launch by_element(const std::string& kernel, int64_t count, const Args& args) {
  return make_launch(kernel, grid_for(count, kBnThreads), kBnThreads, 0, args);
}
template <class Args>
Launch by_walk(const char* kernel, plan::DType dtype, int vector, size_t shared_bytes, const Args& args) {
  return make_launch(kernel + walk_suffix(dtype, vector), walk_grid(args.walk, vector), kWalkThreads, shared_bytes,
                     args);
}

// Only few images are cut into tiles, so there is a counter for each of them and group of channels.
static_assert(kSumBlocks / 2 <= kBlockCounters);

// Sums by image; `fill` sets all but what every such op has.
struct ImageSums {
  const char* kernel;
  const Tensor* src;
  int count;    // of sums by image and channel
  bool narrow;  // see walk_vector

  int vector() const { return walk_vector(src->dtype, src->c(), narrow); }
  Walk walk() const { return make_walk(src->n(), pixels_of(src), src->c(), vector(), kSumBlocks); }
  Walk uncut_walk() const {
    return make_walk(src->n(), pixels_of(src), src->c(), vector(), kSumBlocks, pixels_of(src));
  }
  size_t scratch_bytes() const {
    const Walk w = walk();
    return w.tiles > 1 ? static_cast<size_t>(walk_tiles(w) * count * w.c) * sizeof(float) : 0;
  }
  template <class Fill>
  void record(const Addresses& at, std::byte* scratch, std::vector<Launch>& launches, Fill fill) const {
    ImageSumsArgs args{};
    args.walk = scratch ? walk() : uncut_walk();
    args.src = at.ptr(src);
    args.value_factor = 1;
    args.tiles = reinterpret_cast<float*>(scratch);
    args.state = at.state;
    fill(args);
    launches.push_back(by_walk(kernel, src->dtype, vector(), kSumsShared, args));
  }
};

template <class Fill>
KernelPtr image_sums(const char* name, const ImageSums& sums, Fill fill) {
  return make_kernel(
      form_name(name, sums.vector() == 1).c_str(), sums.src->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        sums.record(at, at.scratch, launches, [&](ImageSumsArgs& args) { fill(at, args); });
      },
      sums.scratch_bytes());
}

void push_bn_act(const Tensor* src, BnActArgs args, std::vector<Launch>& launches) {
  const bool by_image = args.gate || args.drop.scalars;
  const int vector = walk_vector(src->dtype, src->c());
  args.walk =
      make_walk(by_image ? src->n() : 1, by_image ? pixels_of(src) : rows_of(src), src->c(), vector, kStreamBlocks);
  launches.push_back(by_walk("bn_act", src->dtype, vector, 0, args));
}

KernelPtr bn_act(const char* name, plan::Act act, const Tensor* src, const Tensor* mean, const Tensor* inv_std,
                 const Tensor* scale, const Tensor* shift, const Tensor* gate, const Tensor* residual, DropSpec drop,
                 const Tensor* dst) {
  const std::string form = form_name(name, walk_vector(src->dtype, src->c()) == 1);
  return make_kernel(form.c_str(), dst->dtype, [=](const Addresses& at, std::vector<Launch>& launches) {
    push_bn_act(src,
                {{},
                 at.ptr(src),
                 norm_of(at, mean, inv_std, scale, shift),
                 act,
                 at.ptr<const float>(gate),
                 at.ptr(residual),
                 drop.at(at.scalars),
                 at.ptr(dst)},
                launches);
  });
}

KernelPtr reduce(const char* name, const BnBackward& back, const Tensor* diff_scale, const Tensor* diff_shift) {
  return make_kernel(
      form_name(name, back.vector() == 1).c_str(), back.src->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        back.record_reduce(at, at.scratch, diff_scale, diff_shift, launches);
      },
      back.reduce_scratch_bytes());
}

KernelPtr apply(const char* name, const BnBackward& back, const Tensor* diff_scale, const Tensor* diff_shift,
                const Tensor* diff_src) {
  const std::string form = form_name(name, back.vector() == 1);
  return make_kernel(form.c_str(), back.src->dtype, [=](const Addresses& at, std::vector<Launch>& launches) {
    back.record_apply(at, diff_scale, diff_shift, at.ptr(diff_src), launches);
  });
}

}  // namespace

BnStats bn_stats_of(const Op& op, const Tensor* src, int out_mean, int attr_eps) {
  return {src, op.out(out_mean), op.out(out_mean + 1), op.upd(0), op.upd(1), op.attr(attr_eps), op.attr(attr_eps + 1)};
}

StatsMergeArgs BnStats::merge_args(const Addresses& at, const MergeTiles& tiles, std::byte* scratch, int64_t tile_rows,
                                   const int32_t* tile_starts) const {
  const double rows = static_cast<double>(rows_of(src));
  return {tiles.tiles(scratch),
          tiles.rests(scratch),
          rows_of(src),
          src->c(),
          tile_rows,
          tile_starts,
          1 / rows,
          rows > 1 ? rows / (rows - 1) : 1,
          eps,
          momentum,
          at.ptr<float>(mean),
          at.ptr<float>(inv_std),
          at.ptr<float>(running_mean),
          at.ptr<float>(running_var),
          tiles.tree(at, scratch)};
}

SumsMergeArgs BnBackward::merge_args(const Addresses& at, const MergeTiles& tiles, std::byte* scratch,
                                     const Tensor* diff_scale, const Tensor* diff_shift) const {
  return {tiles.tiles(scratch),         src->c(),
          at.ptr<const float>(inv_std), at.ptr<float>(diff_scale),
          at.ptr<float>(diff_shift),    tiles.tree(at, scratch)};
}

namespace {
MergeTiles stats_tiles(const Tensor* src) { return tiles_of(stats_walk(src), walk_vector(src->dtype, src->c())); }
}  // namespace

size_t BnStats::scratch_bytes() const { return stats_tiles(src).bytes(); }

void BnStats::record(const Addresses& at, std::byte* scratch, std::vector<Launch>& launches) const {
  const Walk w = stats_walk(src);
  launches.push_back(by_walk("bn_tiles", src->dtype, walk_vector(src->dtype, src->c()), kLaneScratchBytes,
                             BnTilesArgs{w, at.ptr(src), merge_args(at, stats_tiles(src), scratch, w.tile_rows)}));
}

namespace {

Upstream upstream_of(const BnBackward& b, const Addresses& at) {
  return {at.ptr(b.diff_dst), at.ptr<const float>(b.gate), at.ptr<const float>(b.diff_pooled),
          DropSpec{b.drop_rate, b.drop_stream}.at(at.scalars), b.act};
}

int64_t images_of(const BnBackward& b) { return b.gate || b.diff_pooled || b.drop_rate > 0 ? b.src->n() : 1; }

Walk reduce_walk(const BnBackward& b) {
  const int64_t images = images_of(b);
  return make_walk(images, rows_of(b.src) / images, b.src->c(), b.vector(), kSumBlocks);
}

}  // namespace

int BnBackward::vector() const { return walk_vector(src->dtype, src->c(), true); }

size_t BnBackward::reduce_scratch_bytes() const { return tiles_of(reduce_walk(*this), vector()).bytes(); }

void BnBackward::record_reduce(const Addresses& at, std::byte* scratch, const Tensor* diff_scale,
                               const Tensor* diff_shift, std::vector<Launch>& launches) const {
  const Walk w = reduce_walk(*this);
  launches.push_back(
      by_walk("bn_bwd_tiles", src->dtype, vector(), kLaneScratchBytes,
              BnBwdTilesArgs{w, upstream_of(*this, at), at.ptr(src), norm_of(at, mean, inv_std, scale, shift),
                             merge_args(at, tiles_of(w, vector()), scratch, diff_scale, diff_shift)}));
}

void BnBackward::record_apply(const Addresses& at, const Tensor* diff_scale, const Tensor* diff_shift, void* diff_src,
                              std::vector<Launch>& launches) const {
  const int64_t images = images_of(*this);
  const BnBwdApplyArgs args{make_walk(images, rows_of(src) / images, src->c(), vector(), kStreamBlocks),
                            upstream_of(*this, at),
                            at.ptr(src),
                            norm_of(at, mean, inv_std, scale, shift),
                            at.ptr<const float>(diff_scale),
                            at.ptr<const float>(diff_shift),
                            1.0f / static_cast<float>(rows_of(src)),
                            diff_src};
  launches.push_back(by_walk("bn_act_bwd_apply", src->dtype, vector(), 0, args));
}

Norm SourceNorm::norm(const Addresses& at) const { return norm_of(at, mean, inv_std, scale, shift); }

void SourceNorm::record_apply(const Addresses& at, void* dst, std::vector<Launch>& launches) const {
  push_bn_act(src, {{}, at.ptr(src), norm(at), act, at.ptr<const float>(gate), nullptr, {}, dst}, launches);
}

namespace {
ImageSums pool_of(const Tensor* src) { return {"image_pool", src, 1, false}; }
ImageSums gradient_sums_of(const Tensor* src) { return {"image_sums", src, 5, true}; }
}  // namespace

size_t SourceNorm::sums_scratch_bytes() const { return gradient_sums_of(src).scratch_bytes(); }

void SourceNorm::record_sums(const Addresses& at, std::byte* scratch, const void* diff, const Tensor* diff_gate,
                             const Tensor* sums, std::vector<Launch>& launches) const {
  gradient_sums_of(src).record(at, scratch, launches, [&](ImageSumsArgs& args) {
    args.norm = norm(at);
    args.act = act;
    args.diff = diff;
    args.value = at.ptr<float>(diff_gate);
    args.sums = at.ptr<float>(sums);
  });
}

size_t pool_scratch_bytes(const Tensor* src) { return pool_of(src).scratch_bytes(); }

void record_pool(const Addresses& at, const Tensor* src, const Tensor* pooled, std::vector<Launch>& launches,
                 std::byte* scratch) {
  pool_of(src).record(at, scratch, launches, [&](ImageSumsArgs& args) {
    args.value = at.ptr<float>(pooled);
    args.value_factor = 1.0f / static_cast<float>(pixels_of(src));
  });
}

StatusOr<KernelPtr> make_bn_stats(const Op& op) {
  using namespace op::bn_stats;
  const BnStats stats = bn_stats_of(op, op.in(in_src), out_mean, attr_eps);
  return make_kernel(
      form_name("bn_stats", walk_vector(stats.src->dtype, stats.src->c()) == 1).c_str(), stats.src->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) { stats.record(at, at.scratch, launches); },
      stats.scratch_bytes());
}

StatusOr<KernelPtr> make_bn_inv_std(const Op& op) {
  using namespace op::bn_inv_std;
  const Tensor *var = op.in(in_var), *inv_std = op.out(out_inv_std);
  const double eps = op.attr(attr_eps);
  return make_kernel("bn_inv_std", plan::DType::f32, [=](const Addresses& at, std::vector<Launch>& launches) {
    const InvStdArgs args{at.ptr<const float>(var), at.ptr<float>(inv_std), var->elements(), eps};
    launches.push_back(by_element("bn_inv_std", args.count, args));
  });
}

StatusOr<KernelPtr> make_bn_apply(const Op& op) {
  using namespace op::bn_apply;
  return bn_act("bn_apply", plan::Act::identity, op.in(in_src), op.in(in_mean), op.in(in_inv_std), op.in(in_scale),
                op.in(in_shift), nullptr, nullptr, {}, op.out(out_dst));
}

StatusOr<KernelPtr> make_bn_act(const Op& op) {
  using namespace op::bn_act;
  return bn_act("bn_act", op.act(attr_act), op.in(in_src), op.in(in_mean), op.in(in_inv_std), op.in(in_scale),
                op.in(in_shift), op.in(in_gate), op.in(in_residual), DropSpec::of(op, attr_drop_rate, attr_rng_stream),
                op.out(out_dst));
}

StatusOr<KernelPtr> make_bn_act_pool(const Op& op) {
  using namespace op::bn_act_pool;
  const Tensor *src = op.in(in_src), *mean = op.in(in_mean), *inv_std = op.in(in_inv_std), *scale = op.in(in_scale),
               *shift = op.in(in_shift), *pooled = op.out(out_pooled), *dst = op.out(out_dst);
  const plan::Act act = op.act(attr_act);
  return image_sums("bn_act_pool", pool_of(src), [=](const Addresses& at, ImageSumsArgs& args) {
    args.norm = norm_of(at, mean, inv_std, scale, shift);
    args.act = act;
    args.value = at.ptr<float>(pooled);
    args.value_factor = 1.0f / static_cast<float>(pixels_of(src));
    args.dst = at.ptr(dst);
  });
}

StatusOr<KernelPtr> make_global_avg_pool(const Op& op) {
  using namespace op::global_avg_pool;
  const Tensor *src = op.in(in_src), *dst = op.out(out_dst);
  return make_kernel(
      form_name("global_avg_pool", pool_of(src).vector() == 1).c_str(), src->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) { record_pool(at, src, dst, launches, at.scratch); },
      pool_scratch_bytes(src));
}

StatusOr<KernelPtr> make_channel_scale_bwd_gate(const Op& op) {
  using namespace op::channel_scale_bwd_gate;
  const Tensor *diff_dst = op.in(in_diff_dst), *src = op.in(in_src), *diff_gate = op.out(out_diff_gate);
  return image_sums("channel_scale_bwd_gate", {"image_products", src, 1, false},
                    [=](const Addresses& at, ImageSumsArgs& args) {
                      args.diff = at.ptr(diff_dst);
                      args.value = at.ptr<float>(diff_gate);
                    });
}

StatusOr<KernelPtr> make_bn_act_bwd_gate(const Op& op) {
  using namespace op::bn_act_bwd_gate;
  const Tensor *diff_dst = op.in(in_diff_dst), *src = op.in(in_src), *mean = op.in(in_mean),
               *inv_std = op.in(in_inv_std), *scale = op.in(in_scale), *shift = op.in(in_shift),
               *diff_gate = op.out(out_diff_gate);
  const plan::Act act = op.act(attr_act);
  return image_sums("bn_act_bwd_gate", {"image_products", src, 1, false},
                    [=](const Addresses& at, ImageSumsArgs& args) {
                      args.norm = norm_of(at, mean, inv_std, scale, shift);
                      args.act = act;
                      args.diff = at.ptr(diff_dst);
                      args.value = at.ptr<float>(diff_gate);
                    });
}

StatusOr<KernelPtr> make_bn_act_bwd_sums(const Op& op) {
  using namespace op::bn_act_bwd_sums;
  const Tensor *diff_dst = op.in(in_diff_dst), *src = op.in(in_src), *mean = op.in(in_mean),
               *inv_std = op.in(in_inv_std), *scale = op.in(in_scale), *shift = op.in(in_shift), *gate = op.in(in_gate);
  const Tensor *diff_gate = op.out(out_diff_gate), *sums = op.out(out_sums), *dst = op.out(out_dst);
  const plan::Act act = op.act(attr_act);
  const DropSpec drop = DropSpec::of(op, attr_drop_rate, attr_rng_stream);
  return image_sums("bn_act_bwd_sums", gradient_sums_of(src), [=](const Addresses& at, ImageSumsArgs& args) {
    args.norm = norm_of(at, mean, inv_std, scale, shift);
    args.act = act;
    args.diff = at.ptr(diff_dst);
    args.drop = drop.at(at.scalars);
    args.gate = at.ptr<const float>(gate);
    args.value = at.ptr<float>(diff_gate);
    args.sums = at.ptr<float>(sums);
    args.dst = at.ptr(dst);
  });
}

StatusOr<KernelPtr> make_bn_act_bwd_merge(const Op& op) {
  using namespace op::bn_act_bwd_merge;
  const Tensor *sums = op.in(in_sums), *gate = op.in(in_gate), *diff_pooled = op.in(in_diff_pooled);
  const Tensor *diff_scale = op.out(out_diff_scale), *diff_shift = op.out(out_diff_shift);
  const int64_t n = gate->dims[0], c = gate->dims[1];
  const double pixels = op.attr(attr_pixels);
  // A launch of its own: the pooled values' gradient comes from ops between the sums and it.
  const MergeTiles images(n, blocks_of(c, kBnChannels), c, /*values=*/0);
  return make_kernel(
      "bn_act_bwd_merge", plan::DType::f32,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        const BnImageMergeArgs args{
            at.ptr<const float>(sums), at.ptr<const float>(gate), at.ptr<const float>(diff_pooled), n, c, 1 / pixels,
            at.ptr<float>(diff_scale), at.ptr<float>(diff_shift), images.tree(at, at.scratch)};
        launches.push_back(make_launch("bn_image_merge",
                                       {blocks_of(c, kBnChannels), static_cast<uint32_t>(images.groups()), 1},
                                       kBnThreads, kBnThreads * kMergeShared, args));
      },
      images.bytes());
}

namespace {

// The operands that all of these ops begin with, and those that ops with an activation have besides.
BnBackward backward_of(const Op& op) {
  using namespace op::bn_bwd_reduce;
  return {.diff_dst = op.in(in_diff_dst), .src = op.in(in_src), .mean = op.in(in_mean), .inv_std = op.in(in_inv_std)};
}
BnBackward act_backward_of(const Op& op, int in_gate, int in_diff_pooled) {
  using namespace op::bn_act_bwd_reduce;
  BnBackward back = backward_of(op);
  back.scale = op.in(in_scale);
  back.shift = op.in(in_shift);
  back.gate = op.in(in_gate);
  back.diff_pooled = op.in(in_diff_pooled);
  back.act = op.act(attr_act);
  back.drop_rate = op.attr(attr_drop_rate);
  back.drop_stream = static_cast<uint32_t>(op.attr_int(attr_rng_stream));
  return back;
}

}  // namespace

StatusOr<KernelPtr> make_bn_bwd_reduce(const Op& op) {
  using namespace op::bn_bwd_reduce;
  return reduce("bn_bwd_reduce", backward_of(op), op.out(out_diff_scale), op.out(out_diff_shift));
}

StatusOr<KernelPtr> make_bn_act_bwd_reduce(const Op& op) {
  using namespace op::bn_act_bwd_reduce;
  return reduce("bn_act_bwd_reduce", act_backward_of(op, in_gate, in_diff_pooled), op.out(out_diff_scale),
                op.out(out_diff_shift));
}

StatusOr<KernelPtr> make_bn_bwd_apply(const Op& op) {
  using namespace op::bn_bwd_apply;
  BnBackward back = backward_of(op);
  back.scale = op.in(in_scale);
  const bool batch = op.attr(attr_batch_stats) == 1;
  return apply("bn_bwd_apply", back, batch ? op.in(in_diff_scale) : nullptr, batch ? op.in(in_diff_shift) : nullptr,
               op.out(out_diff_src));
}

StatusOr<KernelPtr> make_bn_act_bwd_apply(const Op& op) {
  using namespace op::bn_act_bwd_apply;
  const bool batch = op.attr(attr_batch_stats) == 1;
  return apply("bn_act_bwd_apply", act_backward_of(op, in_gate, in_diff_pooled), batch ? op.in(in_diff_scale) : nullptr,
               batch ? op.in(in_diff_shift) : nullptr, op.out(out_diff_src));
}

StatusOr<KernelPtr> make_fold_bn(const Op& op) {
  using namespace op::fold_bn;
  const Tensor *weights = op.in(in_weights), *scale = op.in(in_scale), *shift = op.in(in_shift),
               *running_mean = op.in(in_running_mean), *running_var = op.in(in_running_var);
  const Tensor *folded_weights = op.out(out_folded_weights), *folded_bias = op.out(out_folded_bias);
  const bool depthwise = op.attr(attr_depthwise) == 1;
  const double eps = op.attr(attr_eps);
  return make_kernel("fold_bn", plan::DType::f32, [=](const Addresses& at, std::vector<Launch>& launches) {
    const int64_t count = weights->elements(), channels = scale->elements();
    const FoldArgs args{at.ptr<const float>(weights),
                        at.ptr<const float>(scale),
                        at.ptr<const float>(shift),
                        at.ptr<const float>(running_mean),
                        at.ptr<const float>(running_var),
                        at.ptr<float>(folded_weights),
                        at.ptr<float>(folded_bias),
                        count,
                        channels,
                        depthwise ? 1 : count / channels,
                        eps};
    launches.push_back(by_element("fold_bn", count, args));
  });
}

}  // namespace effnet::cuda
