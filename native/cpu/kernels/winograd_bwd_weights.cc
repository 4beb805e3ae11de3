// Backward weights by Winograd: for every point the product [output channels x tiles] * [tiles x input channels] of the
// transformed tiles, summed over all tiles, then 36 sums to 3x3 gradients. Groups of tiles have sums of their own,
// which are added in order; bands of output channels keep what a shard works on in the core's L2.
#include "cpu/kernels/winograd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/winograd_bwd_weights.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/gemm_tile-inl.h"
#include "cpu/kernels/winograd-inl.h"

#ifndef EFFNET_WINOGRAD_BWD_WEIGHTS_ARGS_
#define EFFNET_WINOGRAD_BWD_WEIGHTS_ARGS_
#include <algorithm>

#include "cpu/kernels/common.h"

namespace effnet::cpu {

struct WinogradSumsArgs {
  const float *src, *diff_dst;
  WinoGrid in, out;
  int64_t begin, end, block;  // tiles; `block` of them are transformed together
  int64_t band;               // channels of diff_dst that are transformed together
  float* sums;                // [point][output channel][padded input channel]
  float* scratch;
};

struct WinogradMergeArgs {
  const float* sums;  // of the first group, others `part` floats apart
  int64_t part, parts, oc, ic;
  int64_t begin, end;   // output channels
  float* diff_weights;  // [oc][3][3][ic]
};

}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

int64_t wino_row(int64_t channels) { return whole_vectors(channels); }

// Floats of scratch for blocks of `block` tiles.
int64_t wino_sums_scratch(int64_t ic, int64_t band, int64_t block) {
  return kWinoPoints * (wino_point_stride(block * whole_vectors(ic)) + wino_point_stride(block * whole_vectors(band)));
}

void wino_sums(const WinogradSumsArgs& args) {
  constexpr int64_t lanes = kLanes;
  const int64_t ic = args.in.channels, oc = args.out.channels;
  const int64_t in_row = whole_vectors(ic), in_point = wino_point_stride(args.block * in_row);
  const int64_t diff_row = whole_vectors(args.band), diff_point = wino_point_stride(args.block * diff_row);
  float* inputs = args.scratch;
  float* diffs = inputs + kWinoPoints * in_point;
  for (int64_t begin = args.begin; begin < args.end; begin += args.block) {
    const int64_t end = std::min(args.end, begin + args.block), next = std::min(args.end, end + args.block);
    WinoAhead ahead_diff(args.diff_dst, args.out, end, next, kWinoTile), ahead_src(args.src, args.in, end, next, 6);
    wino_tiles<WinoInput>(args.src, args.in, begin, end, 0, ic, inputs, in_row, in_point);
    for (int64_t first = 0; first < oc; first += args.band) {
      const int64_t band = std::min(args.band, oc - first);
      wino_tiles<WinoGradient>(args.diff_dst, args.out, begin, end, first, band, diffs, diff_row, diff_point);
      for (int64_t p = 0; p < kWinoPoints; ++p) {
        TileArgs tile{};
        tile.a_row = 4;
        tile.a_step = diff_row * 4;
        tile.b_step = in_row * 4;
        tile.steps = end - begin;
        tile.out_row = in_row;
        tile.accumulate = begin != args.begin;
        for (int64_t c = 0; c < in_row;) {
          const int64_t left = (in_row - c) / lanes;
          const int vectors = static_cast<int>(left == 3 ? 3 : std::min<int64_t>(left, 2));
          const bool half = ic - c <= vectors * lanes - lanes / 2;
          tile.b = reinterpret_cast<const std::byte*>(inputs + p * in_point + c);
          const TileHeights tiles(band, vectors);
          for (int64_t i = 0; i < tiles.count; ++i) {
            const int64_t r = tiles.begin(i);
            tile.a = reinterpret_cast<const std::byte*>(diffs + p * diff_point + r);
            tile.out = args.sums + (p * oc + first + r) * in_row + c;
            tile.ahead = ahead_src.take(tile.steps, tile.ahead_step);
            tile.ahead2 = ahead_diff.take(tile.steps, tile.ahead2_step);
            run_tile<F32Word, FetchAhead::blocks>(tile, tiles.begin(i + 1) - r, vectors, half);
          }
          c += vectors * lanes;
        }
      }
    }
  }
}

void wino_merge(const WinogradMergeArgs& args) {
  const int64_t row = whole_vectors(args.ic);
  for (int64_t o = args.begin; o < args.end; ++o) {
    float* dst = args.diff_weights + o * 9 * args.ic;
    for_each_vector(args.ic, [&](int64_t c, size_t n, auto full) HWY_ATTR {
      wino_transform<WinoOutput<3>>(
          [&](int i, int j) HWY_ATTR {
            const float* at = args.sums + ((i * 6 + j) * args.oc + o) * row + c;
            Vec sum = load(at);
            for (int64_t part = 1; part < args.parts; ++part) sum = hn::Add(sum, load(at + part * args.part));
            return hn::Mul(sum, splat(static_cast<float>(1 / (wino_divisor(i) * wino_divisor(j)))));
          },
          [&](int i, int j, Vec v) HWY_ATTR { store_part(v, dst + (i * 3 + j) * args.ic + c, n, full); });
    });
  }
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
namespace {

HWY_EXPORT(wino_row);
HWY_EXPORT(wino_sums_scratch);
HWY_EXPORT(wino_sums);
HWY_EXPORT(wino_merge);

// Sums of all groups together.
constexpr int64_t kSumsBytes = int64_t{12} << 20;
constexpr int64_t kMostGroups = 8;
// Tiles that are transformed together, if their inputs take no more of the core's L2 than this; and how many of their
// gradients fit beside them, in tiles times channels.
constexpr int64_t kBlockTiles = 28;
constexpr int64_t kInputBytes = 576 << 10;
constexpr int64_t kBandProducts = 192 * kBlockTiles;

class WinogradWeightsGradient final : public Kernel {
 public:
  WinogradWeightsGradient(const plan::Tensor* src, const plan::Tensor* diff_dst, const plan::Tensor* diff_weights,
                          int64_t pad_t, int64_t pad_l)
      : src_(src), diff_dst_(diff_dst), diff_weights_(diff_weights) {
    out_ = {diff_dst->dims[1], diff_dst->dims[2], diff_dst->dims[3], 0, 0, 0, 0};
    out_.tiles_y = ceil_div(out_.height, kWinoTile);
    out_.tiles_x = ceil_div(out_.width, kWinoTile);
    in_ = {src->dims[1], src->dims[2], src->dims[3], out_.tiles_y, out_.tiles_x, pad_t, pad_l};
    tiles_ = src->dims[0] * out_.tiles_y * out_.tiles_x;
    part_ = kWinoPoints * out_.channels * EFF_DISPATCH(wino_row)(in_.channels);
    // Wide sources leave room for fewer tiles at a time.
    block_ = 4 * kWinoPoints * kBlockTiles * EFF_DISPATCH(wino_row)(in_.channels) <= kInputBytes ? kBlockTiles
                                                                                                 : kBlockTiles / 2;
    band_ = std::min(out_.channels, kBandProducts / block_);
    groups_ = std::clamp<int64_t>(kSumsBytes / (4 * part_), 1, kMostGroups);
    groups_ = std::min(groups_, (tiles_ + 2 * block_ - 1) / (2 * block_));
    name_ = kernel_name("winograd_bwd_weights", src->dtype);
  }

  const char* name() const override { return name_.c_str(); }
  int phases() const override { return 2; }
  int shards(int phase) const override {
    return static_cast<int>(phase == 0 ? groups_ : ceil_div(out_.channels, kMergeChannels));
  }
  size_t worker_scratch_bytes() const override {
    return static_cast<size_t>(4 * EFF_DISPATCH(wino_sums_scratch)(in_.channels, band_, block_));
  }
  size_t shared_scratch_bytes() const override { return static_cast<size_t>(4 * groups_ * part_); }
  // Of the direct convolution: what the op asks for, not what is done for it.
  double flops() const override {
    return 18.0 * static_cast<double>(src_->dims[0] * out_.height * out_.width) *
           static_cast<double>(in_.channels * out_.channels);
  }

  void run(int phase, int shard, const ExecContext& ctx) override {
    float* sums = reinterpret_cast<float*>(ctx.shared_scratch);
    if (phase == 1) {
      const int64_t begin = shard * kMergeChannels, end = std::min(begin + kMergeChannels, out_.channels);
      return EFF_DISPATCH(wino_merge)(
          {sums, part_, groups_, out_.channels, in_.channels, begin, end, ctx.ptr<float>(diff_weights_)});
    }
    WinogradSumsArgs args{};
    args.src = ctx.ptr<float>(src_);
    args.diff_dst = ctx.ptr<float>(diff_dst_);
    args.in = in_;
    args.out = out_;
    args.begin = tiles_ * shard / groups_;
    args.end = tiles_ * (shard + 1) / groups_;
    args.block = block_;
    args.band = band_;
    args.sums = sums + shard * part_;
    args.scratch = reinterpret_cast<float*>(ctx.worker_scratch);
    EFF_DISPATCH(wino_sums)(args);
  }

 private:
  static constexpr int64_t kMergeChannels = 8;

  const plan::Tensor *src_, *diff_dst_, *diff_weights_;
  WinoGrid in_, out_;
  int64_t tiles_, part_, block_, groups_, band_;
  std::string name_;
};

}  // namespace

StatusOr<KernelPtr> make_winograd_bwd_weights(const plan::Tensor* src, const plan::Tensor* diff_dst,
                                              const plan::Tensor* diff_weights, int64_t pad_t, int64_t pad_l) {
  return KernelPtr(std::make_unique<WinogradWeightsGradient>(src, diff_dst, diff_weights, pad_t, pad_l));
}

}  // namespace effnet::cpu
#endif
