// Depthwise forward for training: dst = depthwise(src), or depthwise(act(bn(src))), and the batch statistics of dst.
//
// A tile is up to two rows of up to 8 outputs of one vector of channels, all in registers: each source vector is loaded
// once for every output that it feeds, and the statistics are taken before the store. Source rows lie in the ring of
// depthwise_rows.h, where the BN and activation in front of the convolution are done once an element.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/depthwise_stats.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/depthwise_rows-inl.h"
#include "cpu/kernels/stats-inl.h"
#include "cpu/kernels/depthwise.h"
#include "cpu/kernels/stats.h"

#ifndef EFFNET_DEPTHWISE_STATS_ARGS_
#define EFFNET_DEPTHWISE_STATS_ARGS_
namespace effnet::cpu {

struct DepthwiseStatsShape {
  int64_t src_h, src_w, dst_h, dst_w, c;
  int64_t k, stride, pad_t, pad_l;
  bool bf16;

  int64_t window(int64_t rows) const { return (rows - 1) * stride + k; }
  DepthwiseRing ring(int64_t channels) const {
    return DepthwiseRing::make(window(kStepRows), (most_covered_cols(dst_w) - 1) * stride + k, channels);
  }
};

struct DepthwiseStatsArgs {
  const DepthwiseStatsShape* shape;
  DepthwiseRowsShard shard;
  DepthwiseRing ring;
  const void* src;
  const float* weights;
  const DepthwiseNormArgs* norm;  // or nullptr
  void* dst;
  bool stream;    // dst is larger than the caches: write past them where that is possible
  double* stats;  // [2][C]: mean and squared deviations of the shard's results
  float* scratch;
};

// Floats beside the ring for `width` channels.
constexpr int64_t depthwise_stats_floats(int64_t width, int64_t taps) { return width * (3 + 4 + 3 + taps); }

}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

template <class T>
struct StatsTile {
  const float* plane;   // of the block, at the tile's first column
  const int64_t* rows;  // offsets in the plane of the rows of the window
  TapWeights weights;
  T* dst;
  int64_t dst_row, dst_pixel;
  int64_t width;  // columns that exist
  size_t lanes;
  float* sums;  // shift, s1, s2 as in stats-inl.h, [kLanes] each
  bool first;   // the tile chooses the shift
  bool stream;  // past the caches
};

template <class T, int R, int W, bool kWhole>
HWY_INLINE void finish_stats_tile(const StatsTile<T>& tile, Vec (&acc)[R * W]) {
  const auto at = [&](int t) HWY_ATTR { return tile.dst + (t / W) * tile.dst_row + (t % W) * tile.dst_pixel; };
  const auto exists = [&](int t) HWY_ATTR { return kWhole || t % W < tile.width; };
  bool stored = false;
  if constexpr (kWholeLines<T> && kWhole) {
    if (tile.stream) {
      EFF_UNROLL for (int t = 0; t < R * W; ++t) hn::Stream(acc[t], F32(), at(t));
      stored = true;
    }
  }
  if (!stored) {
    EFF_UNROLL for (int t = 0; t < R * W; ++t) {
      if (!exists(t)) continue;
      if (kWhole || tile.lanes == kLanes) {
        store(acc[t], at(t));
      } else {
        store_n(acc[t], at(t), tile.lanes);
      }
    }
  }
  if constexpr (!std::is_same_v<T, float>) {
    EFF_UNROLL for (int t = 0; t < R * W; ++t) acc[t] = round_to<T>(acc[t]);
  }
  float *shifts = tile.sums, *s1s = shifts + kLanes, *s2s = s1s + kLanes;
  Vec shift, s1 = zero(), s2 = zero();
  if (tile.first) {
    shift = acc[0];
    if constexpr (kWhole && R * W >= 8) shift = mean_of_8([&](int i) HWY_ATTR { return acc[i]; });
    store(shift, shifts);
  } else {
    shift = load(shifts);
    s1 = load(s1s);
    s2 = load(s2s);
  }
  EFF_UNROLL for (int t = 0; t < R * W; ++t) {
    if (!exists(t)) continue;
    const Vec d = hn::Sub(acc[t], shift);
    s1 = hn::Add(s1, d);
    s2 = hn::MulAdd(d, d, s2);
  }
  store(s1, s1s);
  store(s2, s2s);
}

template <class T, int K, int S, int R, int W, bool kWhole>
HWY_NOINLINE void stats_tile(const StatsTile<T>& tile) {
  constexpr int kRows = (R - 1) * S + K, kCols = (W - 1) * S + K;
  Vec acc[R * W];
  EFF_UNROLL for (int t = 0; t < R * W; ++t) acc[t] = zero();
  EFF_UNROLL for (int i = 0; i < kRows; ++i) {
    const float* src = fresh(tile.plane + tile.rows[i]);
    Vec w[R * K];
    EFF_UNROLL for (int r = 0; r < R; ++r) {
      if (i - r * S < 0 || i - r * S >= K) continue;
      EFF_UNROLL for (int k = 0; k < K; ++k) {
        w[r * K + k] = load(tile.weights.first + ((i - r * S) * K + k) * tile.weights.tap);
      }
    }
    EFF_UNROLL for (int j = 0; j < kCols; ++j) {
      const Vec v = load(src + j * kLanes);
      EFF_UNROLL for (int r = 0; r < R; ++r) {
        if (i - r * S < 0 || i - r * S >= K) continue;
        EFF_UNROLL for (int t = 0; t < W; ++t) {
          const int k = j - t * S;
          if (k >= 0 && k < K) acc[r * W + t] = hn::MulAdd(v, w[r * K + k], acc[r * W + t]);
        }
      }
    }
  }
  finish_stats_tile<T, R, W, kWhole>(tile, acc);
}

// Two widths of tiles; the last tile of a row may have columns that do not exist. AVX2 has half the registers.
constexpr int kStatsWidths[] = {HWY_TARGET == HWY_AVX3 ? 8 : 4, HWY_TARGET == HWY_AVX3 ? 7 : 3};

// The width that covers `cols` with the fewest columns to spare.
HWY_INLINE int stats_width(int64_t cols) {
  const auto covered = [&](int i) { return (cols + kStatsWidths[i] - 1) / kStatsWidths[i] * kStatsWidths[i]; };
  return covered(1) < covered(0) ? 1 : 0;
}

template <class T>
struct StatsFunctions {
  using Function = void (*)(const StatsTile<T>&);
  Function tile[2][2];  // [rows - 1][whole]
};

template <class T, int K, int S, int W>
StatsFunctions<T> stats_functions() {
  return {{{stats_tile<T, K, S, 1, W, false>, stats_tile<T, K, S, 1, W, true>},
           {stats_tile<T, K, S, 2, W, false>, stats_tile<T, K, S, 2, W, true>}}};
}

template <class T, int K, int S>
StatsFunctions<T> stats_functions(int width) {
  return width == 0 ? stats_functions<T, K, S, kStatsWidths[0]>() : stats_functions<T, K, S, kStatsWidths[1]>();
}

template <class T>
StatsFunctions<T> stats_functions(const DepthwiseStatsShape& s, int width) {
  if (s.k == 3) return s.stride == 1 ? stats_functions<T, 3, 1>(width) : stats_functions<T, 3, 2>(width);
  return s.stride == 1 ? stats_functions<T, 5, 1>(width) : stats_functions<T, 5, 2>(width);
}

// How far the statistics of a block are: rows that are merged, rows in s1 and s2.
struct StatsRows {
  int64_t merged = 0, open = 0;
};

template <class T>
class DepthwiseStatsShard {
 public:
  explicit DepthwiseStatsShard(const DepthwiseStatsArgs& args)
      : args_(args),
        s_(*args.shape),
        width_index_(stats_width(s_.dst_w)),
        functions_(stats_functions<T>(s_, width_index_)) {
    const int64_t width = args.ring.blocks * kMaxLanes;
    sums_ = args.scratch;
    moments_ = reinterpret_cast<double*>(sums_ + 3 * width);
    coefs_ = reinterpret_cast<float*>(moments_ + 2 * width);
    packed_ = coefs_ + 3 * width;
    ring_ = packed_ + s_.k * s_.k * width;
    stream_ = kWholeLines<T> && args.stream && s_.c % kMaxLanes == 0 && reinterpret_cast<uintptr_t>(args.dst) % 64 == 0;
  }

  void run() {
    const DepthwiseRowsShard& shard = args_.shard;
    const RowRing ring(args_.ring, s_.pad_l, s_.src_w, ring_);
    const int64_t step = args_.ring.blocks * kMaxLanes;
    for (int64_t c0 = shard.c0; c0 < shard.c1; c0 += step) {
      const Blocks blocks(c0, std::min(shard.c1, c0 + step));
      pack_tap_weights<T>(blocks, args_.weights, s_.k * s_.k, s_.c, packed_);
      if (!args_.norm) {
        group(ring, blocks, AsStored());
      } else {
        const NormCoefs coefs = make_norm(*args_.norm, blocks, coefs_);
        with_act(args_.norm->act, [&](auto act) HWY_ATTR { group(ring, blocks, Normalised<act()>{coefs}); });
      }
    }
    if (stream_) hwy::FlushStream();
  }

 private:
  template <class F>
  void group(const RowRing& ring, const Blocks& blocks, const F& f) {
    const DepthwiseRowsShard& shard = args_.shard;
    const int64_t all = blocks.count * Blocks::kWidth;
    std::fill(moments_, moments_ + 2 * all, 0.0);
    StatsRows rows;
    for (int64_t n = shard.n0; n < shard.n1; ++n) {
      const T* image = static_cast<const T*>(args_.src) + n * s_.src_h * s_.src_w * s_.c + blocks.first;
      int64_t filled = 0;
      for (int64_t y = shard.row0; y < shard.row1; y += kStepRows) {
        const int64_t end = std::min(shard.row1, y + kStepRows), top = y * s_.stride - s_.pad_t;
        const int64_t bottom = std::min(top + s_.window(end - y), s_.src_h);
        filled = std::max(filled, top);
        PixelsAhead ahead = rows_ahead(image, n, std::max(filled, bottom), end);
        // Memory is waited for where there is arithmetic meanwhile: in the activation, else in the convolution.
        const int64_t pixels = std::max<int64_t>(1, (bottom - filled) * s_.src_w);
        const int64_t lines = args_.norm ? ahead.lines() / pixels : 0;
        for (; filled < bottom; ++filled) {
          ring.fill(blocks, image + filled * s_.src_w * s_.c, s_.c, filled, f, ahead, lines);
        }
        rows = convolve(ring, blocks, n, y, end, rows, ahead, results_ahead(blocks, n, end));
      }
    }
    end_stats(blocks, rows);
  }

  // What the next step copies to the ring, or the first step of the next image.
  PixelsAhead rows_ahead(const T* image, int64_t n, int64_t filled, int64_t y) const {
    const int64_t run = std::min(args_.ring.blocks * kMaxLanes, args_.shard.c1 - args_.shard.c0);
    const auto rows = [&](const T* base, int64_t from, int64_t to) {
      from = std::clamp<int64_t>(from, 0, s_.src_h), to = std::clamp<int64_t>(to, from, s_.src_h);
      return PixelsAhead(base + from * s_.src_w * s_.c, (to - from) * s_.src_w, run, s_.c);
    };
    if (y < args_.shard.row1) {
      const int64_t next = std::min(args_.shard.row1, y + kStepRows) - y;
      return rows(image, filled, y * s_.stride - s_.pad_t + s_.window(next));
    }
    if (n + 1 == args_.shard.n1) return PixelsAhead();
    const int64_t top = args_.shard.row0 * s_.stride - s_.pad_t;
    return rows(image + s_.src_h * s_.src_w * s_.c, top,
                top + s_.window(std::min(kStepRows, args_.shard.row1 - args_.shard.row0)));
  }

  // Where the next step stores.
  PixelsAhead results_ahead(const Blocks& blocks, int64_t n, int64_t y) const {
    if (stream_) return PixelsAhead();
    if (y >= args_.shard.row1) {
      if (++n == args_.shard.n1) return PixelsAhead();
      y = args_.shard.row0;
    }
    const T* dst = static_cast<const T*>(args_.dst) + (n * s_.dst_h + y) * s_.dst_w * s_.c + blocks.first;
    return PixelsAhead(dst, (std::min(args_.shard.row1, y + kStepRows) - y) * s_.dst_w, blocks.width(), s_.c);
  }

  // Rows [y0, y1) of the results: two, or one.
  StatsRows convolve(const RowRing& ring, const Blocks& blocks, int64_t n, int64_t y0, int64_t y1, StatsRows start,
                     PixelsAhead ahead, PixelsAhead results) {
    constexpr int64_t kMostWindow = 16;
    int64_t offsets[kMostWindow];
    const int64_t height = y1 - y0, window = s_.window(height), width = kStatsWidths[width_index_];
    for (int64_t i = 0; i < window; ++i) offsets[i] = ring.offset(y0 * s_.stride - s_.pad_t + i, s_.src_h);
    const int64_t tiles = blocks.count * ceil_div(s_.dst_w, width);
    const int64_t lines = ceil_div(ahead.lines(), tiles), result_lines = ceil_div(results.lines(), tiles);
    StatsRows rows;
    for (int64_t b = 0; b < blocks.count; ++b) {
      rows = start;
      StatsTile<T> tile;
      tile.rows = offsets;
      tile.weights = tap_weights<T>(blocks, b, args_.weights, s_.k * s_.k, s_.c, packed_);
      tile.dst_pixel = s_.c;
      tile.dst_row = s_.dst_w * s_.c;
      tile.lanes = blocks.lanes(b);
      tile.sums = sums_ + b * 3 * Blocks::kWidth;
      tile.stream = stream_;
      T* dst = static_cast<T*>(args_.dst) + (n * s_.dst_h + y0) * s_.dst_w * s_.c + blocks.channel(b);
      for (int64_t x = 0; x < s_.dst_w; x += width) {
        ahead.fetch(lines);
        results.template fetch<true>(result_lines);
        tile.plane = ring.plane(b) + x * s_.stride * Blocks::kWidth;
        tile.dst = dst + x * s_.c;
        tile.width = std::min(width, s_.dst_w - x);
        // The first tile's shift is of results beside the padding, which may be far from the others: it serves for that
        // tile alone.
        const bool second = rows.merged == 0 && rows.open > 0;
        if (second || rows.open + height * tile.width > kStatsTileRows) rows = merge(b, rows);
        tile.first = rows.merged + rows.open == 0;
        rows.open += height * tile.width;
        functions_.tile[height - 1][tile.width == width && tile.lanes == kLanes](tile);
      }
    }
    return rows;
  }

  HWY_INLINE StatsRows merge(int64_t b, StatsRows rows) {
    float* sums = sums_ + b * 3 * Blocks::kWidth;
    double* mean = moments_ + b * 2 * Blocks::kWidth;
    stats_merge_tile(static_cast<double>(rows.merged), static_cast<double>(rows.open), kLanes, sums, sums + kLanes,
                     sums + 2 * kLanes, mean, mean + kLanes);
    stats_next_shift(kLanes, mean, sums);
    store(zero(), sums + kLanes);
    store(zero(), sums + 2 * kLanes);
    return {rows.merged + rows.open, 0};
  }

  void end_stats(const Blocks& blocks, StatsRows rows) {
    for (int64_t b = 0; b < blocks.count; ++b) {
      merge(b, rows);
      const double* mean = moments_ + b * 2 * Blocks::kWidth;
      std::copy_n(mean, blocks.lanes(b), args_.stats + blocks.channel(b));
      std::copy_n(mean + kLanes, blocks.lanes(b), args_.stats + s_.c + blocks.channel(b));
    }
  }

  const DepthwiseStatsArgs& args_;
  const DepthwiseStatsShape& s_;
  int width_index_;
  StatsFunctions<T> functions_;
  float *sums_, *coefs_, *packed_, *ring_;
  double* moments_;
  bool stream_;
};

void depthwise_stats(const DepthwiseStatsArgs& args) {
  if (args.shape->bf16) {
    DepthwiseStatsShard<BFloat16>(args).run();
  } else {
    DepthwiseStatsShard<float>(args).run();
  }
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "cpu/kernels/common.h"

namespace effnet::cpu {
namespace {

HWY_EXPORT(depthwise_stats);

class DepthwiseStats : public Kernel {
 public:
  DepthwiseStats(const plan::Op& op, const DepthwiseConvSpec& conv, const DepthwiseNorm& norm, std::string name)
      : conv_(conv),
        norm_(norm),
        mean_(op.out(op::depthwise_conv2d_stats::out_mean)),
        inv_std_(op.out(op::depthwise_conv2d_stats::out_inv_std)),
        running_mean_(op.upd(op::depthwise_conv2d_stats::upd_running_mean)),
        running_var_(op.upd(op::depthwise_conv2d_stats::upd_running_var)),
        eps_(op.attr(op::depthwise_conv2d_stats::attr_eps)),
        momentum_(op.attr(op::depthwise_conv2d_stats::attr_momentum)),
        name_(std::move(name)),
        shape_{conv.src->h(), conv.src->w(), conv.dst->h(), conv.dst->w(), conv.src->c(),
               conv.kw(),     conv.stride,   conv.pad_t,    conv.pad_l,    conv.bf16()},
        split_(conv.dst->n(), conv.dst->h(), conv.dst->w(), conv.dst->c(), kShards),
        ring_(shape_.ring(split_.group_channels)) {
    for (int64_t p = 0; p < split_.positions(); ++p) {
      const DepthwiseRowsShard s = split_.shard(p * split_.channel_groups());
      position_rows_.push_back((s.n1 - s.n0) * (s.row1 - s.row0) * shape_.dst_w);
    }
  }

  const char* name() const override { return name_.c_str(); }
  int phases() const override { return 2; }
  int shards(int phase) const override {
    return static_cast<int>(phase == 0 ? split_.count() : ceil_div(shape_.c, kStatsMergeChannels));
  }
  size_t worker_scratch_bytes() const override {
    const int64_t width = ring_.blocks * kMaxLanes;
    return static_cast<size_t>(depthwise_stats_floats(width, conv_.taps()) + ring_.floats()) * sizeof(float);
  }
  size_t shared_scratch_bytes() const override {
    return static_cast<size_t>(split_.positions() * shape_.c) * 2 * sizeof(double);
  }
  double flops() const override { return conv_.flops(); }

  void run(int phase, int shard, const ExecContext& ctx) override {
    double* stats = reinterpret_cast<double*>(ctx.shared_scratch);
    if (phase == 1) {
      const int64_t begin = shard * kStatsMergeChannels;
      merge_stats({stats, position_rows_.data(), split_.positions(), shape_.c, begin,
                   std::min(shape_.c, begin + kStatsMergeChannels), eps_, momentum_, ctx.ptr<float>(mean_),
                   ctx.ptr<float>(inv_std_), ctx.ptr<float>(running_mean_), ctx.ptr<float>(running_var_)});
      return;
    }
    const DepthwiseNormArgs norm = norm_args(norm_, ctx);
    DepthwiseStatsArgs args{};
    args.shape = &shape_;
    args.shard = split_.shard(shard);
    args.ring = ring_;
    args.src = ctx.ptr<const void>(conv_.src);
    args.weights = ctx.ptr<const float>(conv_.weights);
    args.norm = norm_ ? &norm : nullptr;
    args.dst = ctx.ptr<void>(conv_.dst);
    args.stream = exceeds_caches(conv_.dst);
    args.stats = stats + split_.position(shard) * 2 * shape_.c;
    args.scratch = reinterpret_cast<float*>(ctx.worker_scratch);
    EFF_DISPATCH(depthwise_stats)(args);
  }

 private:
  static constexpr int64_t kShards = 32;
  DepthwiseConvSpec conv_;
  DepthwiseNorm norm_;
  const plan::Tensor *mean_, *inv_std_, *running_mean_, *running_var_;
  double eps_, momentum_;
  std::string name_;
  DepthwiseStatsShape shape_;
  DepthwiseRowsSplit split_;
  DepthwiseRing ring_;
  std::vector<int64_t> position_rows_;
};

}  // namespace

KernelPtr depthwise_stats_kernel(const plan::Op& op, const DepthwiseConvSpec& conv, const DepthwiseNorm& norm,
                                 std::string name) {
  return std::make_unique<DepthwiseStats>(op, conv, norm, std::move(name));
}

}  // namespace effnet::cpu
#endif
