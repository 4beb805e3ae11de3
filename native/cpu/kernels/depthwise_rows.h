// Depthwise convolutions of training, 3x3 and 5x5 at stride 1 and 2: what their two kernels (depthwise_stats.cc,
// depthwise_bwd.cc) share.
//
// Both go through the rows of an image in order, two at a time. A step first copies the source rows that it is the
// first to need to a ring in the worker's scratch (depthwise_rows-inl.h), then computes with what lies there, and
// fetches the rows of the next step into the caches meanwhile: tensors are read from memory once, as one stream.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/math.h"
#include "cpu/kernel.h"
#include "cpu/kernels/lanes.h"
#include "plan/format.h"
#include "plan/op_ports.h"

namespace effnet::cpu {

// Rows of a step: those of a tile of the forward pass.
inline constexpr int64_t kStepRows = 2;

// Columns that tiles of the better of two widths cover, `cols` or a few more.
inline int64_t covered_cols(int64_t cols, int64_t width, int64_t other) {
  const auto covered = [&](int64_t w) { return round_up(cols, w); };
  return std::min(covered(width), covered(other));
}
// On either target, whose tiles differ: 8 or 7, and 4 or 3 columns.
inline int64_t most_covered_cols(int64_t cols) { return std::max(covered_cols(cols, 8, 7), covered_cols(cols, 4, 3)); }

// The forward convolution that an op belongs to. The five attributes stand at the same places in depthwise_conv2d, its
// gradients and its variants with statistics or epilogue.
struct DepthwiseConvSpec {
  const plan::Tensor *src, *dst, *weights;
  int64_t stride, pad_t, pad_l;

  int64_t kh() const { return weights->dims[0]; }
  int64_t kw() const { return weights->dims[1]; }
  int64_t taps() const { return kh() * kw(); }
  bool bf16() const { return src->dtype == plan::DType::bf16; }
  double flops() const { return 2.0 * static_cast<double>(taps()) * static_cast<double>(dst->elements()); }
  // Whether the kernels of training take it.
  bool by_rows() const { return kh() == kw() && (kw() == 3 || kw() == 5) && (stride == 1 || stride == 2); }
};

// BN and activation in front of the convolution, whose source is then act(bn(src)), rounded to the type of src. Absent:
// mean is null.
struct DepthwiseNorm {
  const plan::Tensor *mean = nullptr, *inv_std = nullptr, *scale = nullptr, *shift = nullptr;
  plan::Act act = plan::Act::identity;
  explicit operator bool() const { return mean != nullptr; }
};

// The same with the memory.
struct DepthwiseNormArgs {
  const float *mean, *inv_std, *scale, *shift;
  plan::Act act;
};

// One shard: images [n0, n1), rows [row0, row1) of each, channels [c0, c1); c0 is a multiple of kMaxLanes.
struct DepthwiseRowsShard {
  int64_t n0, n1, row0, row1, c0, c1;
};

// How images of `rows` rows are cut into about `pieces` shards: by images; few large ones by rows, few small ones by
// channels. Sums over positions (all but the channels) are what a kernel must add up.
struct DepthwiseRowsSplit {
  DepthwiseRowsSplit() = default;
  DepthwiseRowsSplit(int64_t images_, int64_t rows_, int64_t cols, int64_t channels_, int64_t pieces)
      : images(images_), rows(rows_), channels(channels_) {
    group_images = ceil_div(images, std::min(images, pieces));
    const int64_t rest = ceil_div(pieces, ceil_div(images, group_images));
    constexpr int64_t kLeastRows = 8, kLeastChannels = 64, kSmallCols = 32;
    int64_t bands = cols > kSmallCols ? std::clamp<int64_t>(rows / kLeastRows, 1, rest) : 1;
    band_rows = round_up(ceil_div(rows, bands), 2);
    const int64_t groups = std::clamp<int64_t>(channels / kLeastChannels, 1, std::max<int64_t>(1, rest / bands));
    group_channels = round_up(ceil_div(channels, groups), kMaxLanes);
  }
  int64_t image_groups() const { return ceil_div(images, group_images); }
  int64_t bands() const { return ceil_div(rows, band_rows); }
  int64_t channel_groups() const { return ceil_div(channels, group_channels); }
  int64_t positions() const { return image_groups() * bands(); }
  int64_t count() const { return positions() * channel_groups(); }
  int64_t position(int64_t shard) const { return shard / channel_groups(); }
  DepthwiseRowsShard shard(int64_t i) const {
    const int64_t group = i % channel_groups(), p = position(i), band = p % bands(), image = p / bands();
    return {image * group_images,   std::min(images, (image + 1) * group_images),
            band * band_rows,       std::min(rows, (band + 1) * band_rows),
            group * group_channels, std::min(channels, (group + 1) * group_channels)};
  }
  int64_t images = 0, rows = 0, channels = 0, group_images = 1, band_rows = 1, group_channels = 1;
};

// A ring of rows for some channel blocks (of kMaxLanes): a plane of `rows` + 1 rows of `cols` for each block, the last
// row all zero.
struct DepthwiseRing {
  int64_t rows, cols, blocks;

  // Floats from block to block. An odd number of cache lines above a multiple of a page, or the lines that a pixel's
  // channels go to would share their place in the cache.
  int64_t plane() const {
    constexpr int64_t kPage = 1024;
    return round_up((rows + 1) * cols * kMaxLanes, kPage) + 3 * kMaxLanes;
  }
  int64_t floats() const { return blocks * plane(); }
  // As many of `channels` at once as keep the ring within half of an L2 cache. All of them are best: then pixels are
  // read whole.
  static DepthwiseRing make(int64_t rows, int64_t cols, int64_t channels) {
    constexpr int64_t kBytes = 512 << 10;
    DepthwiseRing ring{rows, cols, 1};
    const int64_t all = ceil_div(channels, kMaxLanes);
    const int64_t most = std::max<int64_t>(1, kBytes / (ring.plane() * static_cast<int64_t>(sizeof(float))));
    const int64_t groups = ceil_div(all, most);
    ring.blocks = ceil_div(all, groups);
    return ring;
  }
};

inline DepthwiseNormArgs norm_args(const DepthwiseNorm& norm, const ExecContext& ctx) {
  return {ctx.ptr<const float>(norm.mean), ctx.ptr<const float>(norm.inv_std), ctx.ptr<const float>(norm.scale),
          ctx.ptr<const float>(norm.shift), norm.act};
}

// The kernels of depthwise_conv2d_stats and depthwise_conv2d_bwd, for convolutions that are by_rows(). The op is
// checked.
KernelPtr depthwise_stats_kernel(const plan::Op& op, const DepthwiseConvSpec& conv, const DepthwiseNorm& norm,
                                 std::string name);
KernelPtr depthwise_bwd_kernel(const plan::Op& op, const DepthwiseConvSpec& conv, const DepthwiseNorm& norm,
                               std::string name);

}  // namespace effnet::cpu
