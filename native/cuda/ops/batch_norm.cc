#include "cuda/ops/batch_norm.h"

#include "cuda/ops/drop.h"

namespace effnet::cuda {
namespace {

using plan::Op;
using plan::Tensor;

int64_t rows_of(const Tensor* t) { return t->n() * t->h() * t->w(); }
int64_t pixels_of(const Tensor* t) { return t->h() * t->w(); }
uint32_t blocks_of(int64_t count, int64_t step) { return static_cast<uint32_t>((count + step - 1) / step); }

Norm norm_of(const Addresses& at, const Tensor* mean, const Tensor* inv_std, const Tensor* scale, const Tensor* shift) {
  return {at.ptr<const float>(mean), at.ptr<const float>(inv_std), at.ptr<const float>(scale),
          at.ptr<const float>(shift)};
}

// Where the scratch of the merge begins, behind the tiles.
size_t merge_at(int64_t tiles, int64_t channels) {
  return align256(static_cast<size_t>(tiles * 2 * channels) * sizeof(float));
}

size_t tiles_bytes(const Tensor* src) {
  const int64_t rows = rows_of(src), tiles = blocks_of(rows, bn_tile_rows(rows));
  return merge_at(tiles, src->c()) + bn_merge_scratch_bytes(tiles, src->c());
}

template <class Args>
Launch by_element(const std::string& kernel, int64_t count, const Args& args) {
  return make_launch(kernel, grid_for(count, kBnThreads), kBnThreads, 0, args);
}
template <class Args>
Launch by_channel(const std::string& kernel, int64_t channels, const Args& args) {
  return make_launch(kernel, {blocks_of(channels, kBnThreads), 1, 1}, kBnThreads, 0, args);
}
template <class Args>
Launch by_tiles(const std::string& kernel, int64_t channels, int64_t rows, int64_t tile_rows, const Args& args) {
  return make_launch(kernel, {blocks_of(channels, kBnChannels), blocks_of(rows, tile_rows), 1}, kBnThreads,
                     kBnSumsShared, args);
}
// Images beyond 32768 go to z: y has 16 bits.
Launch by_image(const ImageSumsArgs& args, plan::DType dtype) {
  const int64_t y = std::min<int64_t>(args.n, 32768);
  return make_launch("image_sums" + suffix(dtype),
                     {blocks_of(args.c, kBnChannels), static_cast<uint32_t>(y), blocks_of(args.n, 32768)}, kBnThreads,
                     kBnSumsShared, args);
}

ImageSumsArgs image_sums(const Addresses& at, const Tensor* src) {
  ImageSumsArgs args{};
  args.src = at.ptr(src);
  args.n = src->n();
  args.pixels = pixels_of(src);
  args.c = src->c();
  args.value_factor = 1;
  return args;
}

KernelPtr bn_act(const char* name, const BnActArgs& fixed, const Tensor* src, const Tensor* mean, const Tensor* inv_std,
                 const Tensor* scale, const Tensor* shift, const Tensor* gate, const Tensor* residual, DropSpec drop,
                 const Tensor* dst) {
  return make_kernel(name, dst->dtype, [=](const Addresses& at, std::vector<Launch>& launches) {
    BnActArgs args = fixed;
    args.src = at.ptr(src);
    args.norm = norm_of(at, mean, inv_std, scale, shift);
    args.gate = at.ptr<const float>(gate);
    args.residual = at.ptr(residual);
    args.drop = drop.at(at.scalars);
    args.dst = at.ptr(dst);
    args.count = dst->elements();
    args.pixels = pixels_of(dst);
    args.c = dst->c();
    launches.push_back(by_element("bn_act" + suffix(dst->dtype), args.count, args));
  });
}

KernelPtr reduce(const char* name, const BnBackward& back, const Tensor* diff_scale, const Tensor* diff_shift) {
  return make_kernel(
      name, back.src->dtype,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        back.record_reduce(at, at.scratch, diff_scale, diff_shift, launches);
      },
      back.reduce_scratch_bytes());
}

KernelPtr apply(const char* name, const BnBackward& back, const Tensor* diff_scale, const Tensor* diff_shift,
                const Tensor* diff_src) {
  return make_kernel(name, back.src->dtype, [=](const Addresses& at, std::vector<Launch>& launches) {
    back.record_apply(at, diff_scale, diff_shift, at.ptr(diff_src), launches);
  });
}

}  // namespace

int64_t bn_tile_rows(int64_t rows) { return std::max<int64_t>(256, (rows + 1023) / 1024); }

namespace {

// Tiles that one block of a merge adds up, and into how many parts that cuts them.
constexpr int64_t kPartTiles = 128, kMostParts = 512;

MergeParts merge_parts(int64_t tiles, int64_t channels, std::byte* scratch) {
  int64_t part_tiles = std::max<int64_t>(kPartTiles, blocks_of(tiles, kMostParts));
  if (blocks_of(channels, 32) > kBlockCounters) part_tiles = tiles;
  return {reinterpret_cast<double*>(scratch), part_tiles, blocks_of(tiles, part_tiles)};
}

template <class Args>
Launch merge_launch(const char* kernel, int64_t channels, const Args& args) {
  return make_launch(kernel, {blocks_of(channels, 32), static_cast<uint32_t>(args.parts.parts_count), 1}, kBnThreads,
                     kMergeLaunchShared, args);
}

}  // namespace

size_t bn_merge_scratch_bytes(int64_t tiles, int64_t channels) {
  return static_cast<size_t>(merge_parts(tiles, channels, nullptr).parts_count * 2 * channels) * sizeof(double);
}

BnMergeArgs BnStats::merge_args(const Addresses& at, const float* tiles, int64_t tile_count, int64_t tile_rows,
                                const int32_t* tile_counts) const {
  const double rows = static_cast<double>(rows_of(src));
  return {tiles,
          rows_of(src),
          src->c(),
          tile_count,
          tile_rows,
          tile_counts,
          1 / rows,
          rows > 1 ? rows / (rows - 1) : 1,
          eps,
          momentum,
          at.ptr<float>(mean),
          at.ptr<float>(inv_std),
          at.ptr<float>(running_mean),
          at.ptr<float>(running_var),
          at.state};
}

void BnStats::record_merge(const BnMergeArgs& args, std::byte* scratch, std::vector<Launch>& launches) {
  launches.push_back(
      merge_launch("bn_merge", args.c, BnMergeLaunchArgs{args, merge_parts(args.tile_count, args.c, scratch)}));
}

BnSumsMergeArgs BnBackward::merge_args(const Addresses& at, const float* tiles, int64_t tile_count,
                                       const Tensor* diff_scale, const Tensor* diff_shift) const {
  return {
      tiles, src->c(), tile_count, at.ptr<const float>(inv_std), at.ptr<float>(diff_scale), at.ptr<float>(diff_shift)};
}

void BnBackward::record_merge(const Addresses& at, const BnSumsMergeArgs& args, std::byte* scratch,
                              std::vector<Launch>& launches) {
  launches.push_back(merge_launch(
      "bn_bwd_merge", args.c, BnSumsMergeLaunchArgs{args, merge_parts(args.tile_count, args.c, scratch), at.state}));
}

size_t BnStats::scratch_bytes() const { return tiles_bytes(src); }

void BnStats::record(const Addresses& at, std::byte* scratch, std::vector<Launch>& launches) const {
  const int64_t rows = rows_of(src), c = src->c(), tile_rows = bn_tile_rows(rows), tiles = blocks_of(rows, tile_rows);
  auto* values = reinterpret_cast<float*>(scratch);
  launches.push_back(by_tiles("bn_tiles" + suffix(src->dtype), c, rows, tile_rows,
                              BnTilesArgs{at.ptr(src), rows, c, tile_rows, values}));
  record_merge(merge_args(at, values, tiles, tile_rows), scratch + merge_at(tiles, c), launches);
}

size_t BnBackward::reduce_scratch_bytes() const { return tiles_bytes(src); }

static Upstream upstream_of(const BnBackward& b, const Addresses& at) {
  return {at.ptr(b.diff_dst), at.ptr<const float>(b.gate), at.ptr<const float>(b.diff_pooled),
          DropSpec{b.drop_rate, b.drop_stream}.at(at.scalars), b.act};
}

void BnBackward::record_reduce(const Addresses& at, std::byte* scratch, const Tensor* diff_scale,
                               const Tensor* diff_shift, std::vector<Launch>& launches) const {
  const int64_t rows = rows_of(src), c = src->c(), tile_rows = bn_tile_rows(rows), tiles = blocks_of(rows, tile_rows);
  auto* values = reinterpret_cast<float*>(scratch);
  launches.push_back(
      by_tiles("bn_bwd_tiles" + suffix(src->dtype), c, rows, tile_rows,
               BnBwdTilesArgs{upstream_of(*this, at), at.ptr(src), norm_of(at, mean, inv_std, scale, shift), rows,
                              pixels_of(src), c, tile_rows, values}));
  record_merge(at, merge_args(at, values, tiles, diff_scale, diff_shift), scratch + merge_at(tiles, c), launches);
}

void BnBackward::record_apply(const Addresses& at, const Tensor* diff_scale, const Tensor* diff_shift, void* diff_src,
                              std::vector<Launch>& launches) const {
  const BnBwdApplyArgs args{upstream_of(*this, at),
                            at.ptr(src),
                            norm_of(at, mean, inv_std, scale, shift),
                            at.ptr<const float>(diff_scale),
                            at.ptr<const float>(diff_shift),
                            diff_src,
                            src->elements(),
                            rows_of(src),
                            pixels_of(src),
                            src->c()};
  launches.push_back(by_element("bn_act_bwd_apply" + suffix(src->dtype), args.count, args));
}

Norm SourceNorm::norm(const Addresses& at) const { return norm_of(at, mean, inv_std, scale, shift); }

void SourceNorm::record_apply(const Addresses& at, void* dst, std::vector<Launch>& launches) const {
  BnActArgs args{};
  args.src = at.ptr(src);
  args.norm = norm(at);
  args.act = act;
  args.gate = at.ptr<const float>(gate);
  args.dst = dst;
  args.count = src->elements();
  args.pixels = pixels_of(src);
  args.c = src->c();
  launches.push_back(by_element("bn_act" + suffix(src->dtype), args.count, args));
}

void SourceNorm::record_sums(const Addresses& at, const void* diff, const Tensor* diff_gate, const Tensor* sums,
                             std::vector<Launch>& launches) const {
  ImageSumsArgs args = image_sums(at, src);
  args.norm = norm(at);
  args.act = act;
  args.diff = diff;
  args.value = at.ptr<float>(diff_gate);
  args.sums = at.ptr<float>(sums);
  launches.push_back(by_image(args, src->dtype));
}

void record_pool(const Addresses& at, const Tensor* src, const Tensor* pooled, std::vector<Launch>& launches) {
  ImageSumsArgs args = image_sums(at, src);
  args.value = at.ptr<float>(pooled);
  args.value_factor = 1.0f / static_cast<float>(pixels_of(src));
  launches.push_back(by_image(args, src->dtype));
}

StatusOr<KernelPtr> make_bn_stats(const Op& op) {
  using namespace op::bn_stats;
  const BnStats stats{op.in(in_src),           op.out(out_mean),  op.out(out_inv_std),   op.upd(upd_running_mean),
                      op.upd(upd_running_var), op.attr(attr_eps), op.attr(attr_momentum)};
  return make_kernel(
      "bn_stats", stats.src->dtype,
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
  return bn_act("bn_apply", {}, op.in(in_src), op.in(in_mean), op.in(in_inv_std), op.in(in_scale), op.in(in_shift),
                nullptr, nullptr, {}, op.out(out_dst));
}

StatusOr<KernelPtr> make_bn_act(const Op& op) {
  using namespace op::bn_act;
  BnActArgs fixed{};
  fixed.act = op.act(attr_act);
  return bn_act("bn_act", fixed, op.in(in_src), op.in(in_mean), op.in(in_inv_std), op.in(in_scale), op.in(in_shift),
                op.in(in_gate), op.in(in_residual), DropSpec::of(op, attr_drop_rate, attr_rng_stream), op.out(out_dst));
}

StatusOr<KernelPtr> make_bn_act_pool(const Op& op) {
  using namespace op::bn_act_pool;
  const Tensor *src = op.in(in_src), *mean = op.in(in_mean), *inv_std = op.in(in_inv_std), *scale = op.in(in_scale),
               *shift = op.in(in_shift), *pooled = op.out(out_pooled), *dst = op.out(out_dst);
  const plan::Act act = op.act(attr_act);
  return make_kernel("bn_act_pool", src->dtype, [=](const Addresses& at, std::vector<Launch>& launches) {
    ImageSumsArgs args = image_sums(at, src);
    args.norm = norm_of(at, mean, inv_std, scale, shift);
    args.act = act;
    args.value = at.ptr<float>(pooled);
    args.value_factor = 1.0f / static_cast<float>(args.pixels);
    args.dst = at.ptr(dst);
    launches.push_back(by_image(args, src->dtype));
  });
}

StatusOr<KernelPtr> make_global_avg_pool(const Op& op) {
  using namespace op::global_avg_pool;
  const Tensor *src = op.in(in_src), *dst = op.out(out_dst);
  return make_kernel("global_avg_pool", src->dtype,
                     [=](const Addresses& at, std::vector<Launch>& launches) { record_pool(at, src, dst, launches); });
}

StatusOr<KernelPtr> make_channel_scale_bwd_gate(const Op& op) {
  using namespace op::channel_scale_bwd_gate;
  const Tensor *diff_dst = op.in(in_diff_dst), *src = op.in(in_src), *diff_gate = op.out(out_diff_gate);
  return make_kernel("channel_scale_bwd_gate", src->dtype, [=](const Addresses& at, std::vector<Launch>& launches) {
    ImageSumsArgs args = image_sums(at, src);
    args.diff = at.ptr(diff_dst);
    args.value = at.ptr<float>(diff_gate);
    launches.push_back(by_image(args, src->dtype));
  });
}

StatusOr<KernelPtr> make_bn_act_bwd_gate(const Op& op) {
  using namespace op::bn_act_bwd_gate;
  const Tensor *diff_dst = op.in(in_diff_dst), *src = op.in(in_src), *mean = op.in(in_mean),
               *inv_std = op.in(in_inv_std), *scale = op.in(in_scale), *shift = op.in(in_shift),
               *diff_gate = op.out(out_diff_gate);
  const plan::Act act = op.act(attr_act);
  return make_kernel("bn_act_bwd_gate", src->dtype, [=](const Addresses& at, std::vector<Launch>& launches) {
    ImageSumsArgs args = image_sums(at, src);
    args.norm = norm_of(at, mean, inv_std, scale, shift);
    args.act = act;
    args.diff = at.ptr(diff_dst);
    args.value = at.ptr<float>(diff_gate);
    launches.push_back(by_image(args, src->dtype));
  });
}

StatusOr<KernelPtr> make_bn_act_bwd_sums(const Op& op) {
  using namespace op::bn_act_bwd_sums;
  const Tensor *diff_dst = op.in(in_diff_dst), *src = op.in(in_src), *mean = op.in(in_mean),
               *inv_std = op.in(in_inv_std), *scale = op.in(in_scale), *shift = op.in(in_shift), *gate = op.in(in_gate);
  const Tensor *diff_gate = op.out(out_diff_gate), *sums = op.out(out_sums), *dst = op.out(out_dst);
  const plan::Act act = op.act(attr_act);
  const DropSpec drop = DropSpec::of(op, attr_drop_rate, attr_rng_stream);
  return make_kernel("bn_act_bwd_sums", src->dtype, [=](const Addresses& at, std::vector<Launch>& launches) {
    ImageSumsArgs args = image_sums(at, src);
    args.norm = norm_of(at, mean, inv_std, scale, shift);
    args.act = act;
    args.diff = at.ptr(diff_dst);
    args.drop = drop.at(at.scalars);
    args.gate = at.ptr<const float>(gate);
    args.value = at.ptr<float>(diff_gate);
    args.sums = at.ptr<float>(sums);
    args.dst = at.ptr(dst);
    launches.push_back(by_image(args, src->dtype));
  });
}

StatusOr<KernelPtr> make_bn_act_bwd_merge(const Op& op) {
  using namespace op::bn_act_bwd_merge;
  const Tensor *sums = op.in(in_sums), *gate = op.in(in_gate), *diff_pooled = op.in(in_diff_pooled);
  const Tensor *diff_scale = op.out(out_diff_scale), *diff_shift = op.out(out_diff_shift);
  const double pixels = op.attr(attr_pixels);
  return make_kernel("bn_act_bwd_merge", plan::DType::f32, [=](const Addresses& at, std::vector<Launch>& launches) {
    const BnImageMergeArgs args{at.ptr<const float>(sums),
                                at.ptr<const float>(gate),
                                at.ptr<const float>(diff_pooled),
                                gate->dims[0],
                                gate->dims[1],
                                pixels,
                                at.ptr<float>(diff_scale),
                                at.ptr<float>(diff_shift)};
    launches.push_back(by_channel("bn_image_merge", args.c, args));
  });
}

StatusOr<KernelPtr> make_bn_bwd_reduce(const Op& op) {
  using namespace op::bn_bwd_reduce;
  const BnBackward back{op.in(in_diff_dst),
                        op.in(in_src),
                        op.in(in_mean),
                        op.in(in_inv_std),
                        nullptr,
                        nullptr,
                        nullptr,
                        nullptr,
                        {},
                        0,
                        0};
  return reduce("bn_bwd_reduce", back, op.out(out_diff_scale), op.out(out_diff_shift));
}

StatusOr<KernelPtr> make_bn_act_bwd_reduce(const Op& op) {
  using namespace op::bn_act_bwd_reduce;
  const BnBackward back{op.in(in_diff_dst),
                        op.in(in_src),
                        op.in(in_mean),
                        op.in(in_inv_std),
                        op.in(in_scale),
                        op.in(in_shift),
                        op.in(in_gate),
                        op.in(in_diff_pooled),
                        op.act(attr_act),
                        op.attr(attr_drop_rate),
                        static_cast<uint32_t>(op.attr_int(attr_rng_stream))};
  return reduce("bn_act_bwd_reduce", back, op.out(out_diff_scale), op.out(out_diff_shift));
}

StatusOr<KernelPtr> make_bn_bwd_apply(const Op& op) {
  using namespace op::bn_bwd_apply;
  const BnBackward back{op.in(in_diff_dst),
                        op.in(in_src),
                        op.in(in_mean),
                        op.in(in_inv_std),
                        op.in(in_scale),
                        nullptr,
                        nullptr,
                        nullptr,
                        {},
                        0,
                        0};
  const bool batch = op.attr(attr_batch_stats) == 1;
  return apply("bn_bwd_apply", back, batch ? op.in(in_diff_scale) : nullptr, batch ? op.in(in_diff_shift) : nullptr,
               op.out(out_diff_src));
}

StatusOr<KernelPtr> make_bn_act_bwd_apply(const Op& op) {
  using namespace op::bn_act_bwd_apply;
  const BnBackward back{op.in(in_diff_dst),
                        op.in(in_src),
                        op.in(in_mean),
                        op.in(in_inv_std),
                        op.in(in_scale),
                        op.in(in_shift),
                        op.in(in_gate),
                        op.in(in_diff_pooled),
                        op.act(attr_act),
                        op.attr(attr_drop_rate),
                        static_cast<uint32_t>(op.attr_int(attr_rng_stream))};
  const bool batch = op.attr(attr_batch_stats) == 1;
  return apply("bn_act_bwd_apply", back, batch ? op.in(in_diff_scale) : nullptr, batch ? op.in(in_diff_shift) : nullptr,
               op.out(out_diff_src));
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
