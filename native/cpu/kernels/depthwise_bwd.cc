// Both gradients of a depthwise convolution in one pass over src, diff_dst and diff_src; and the reductions of the BN
// in front of it, where its source is act(bn(src)).
//
// Source pixel (y, x) has a part in diff_dst pixels ((y + pad - i) / stride, (x + pad - j) / stride), where these are
// whole:
//   diff_src[y, x]     = sum over taps of weights[i, j] * diff_dst[...]
//   diff_weights[i, j] = sum over pixels of src[y, x] * diff_dst[...]
// so a vector of diff_dst, loaded once from the ring of depthwise_rows.h, serves both. A tile is up to 8 neighbouring
// source pixels of one vector of channels: their values and their sums are in registers, and so are a row of taps and
// its sums.
//
// With BN the value of a pixel is act(bn(src)), and what is stored is g = diff * act'(bn(src)), the gradient with
// respect to bn(src); diff_shift = sum(g), diff_scale = inv_std * sum(g * (src - mean)), of g as stored.
//
// Sums: tiles of some hundred pixels, then a shard, in FP32; shards in order, those of the BN in double.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/depthwise_bwd.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/depthwise_rows-inl.h"
#include "cpu/kernels/depthwise.h"
#include "cpu/kernels/stats.h"

#ifndef EFFNET_DEPTHWISE_BWD_ARGS_
#define EFFNET_DEPTHWISE_BWD_ARGS_
namespace effnet::cpu {

// Columns of a row that are worked on together: what is known of them between the steps of the work stays in L1.
inline constexpr int64_t kMostChunk = 32;

struct DepthwiseBwdShape {
  int64_t src_h, src_w, dst_h, dst_w, c;
  int64_t k, stride, pad_t, pad_l;
  bool bf16;

  int64_t taps() const { return k * k; }
  int64_t reach() const { return ceil_div(k, stride); }  // rows of diff_dst that a source row has a part in
  int64_t first_group() const { return pad_l / stride; }
  int64_t skip() const { return pad_l - first_group() * stride; }  // columns before the first source column
  int64_t cols() const { return skip() + src_w; }
  int64_t most_cols() const {
    return stride == 1 ? std::max(covered_cols(cols(), 8, 7), covered_cols(cols(), 4, 4)) : covered_cols(cols(), 8, 8);
  }
  int64_t ring_rows() const { return (kStepRows + stride - 2) / stride + reach(); }
  DepthwiseRing ring(int64_t channels) const {
    return DepthwiseRing::make(ring_rows(), most_cols() / stride + reach() - 1, channels);
  }
  // Of one channel: sums of the taps, of g and of g * (src - mean).
  int64_t sums() const { return taps() + 2; }
  // Floats beside the ring for `width` channels.
  int64_t scratch_floats(int64_t width) const { return width * (2 * sums() + taps() + 3) + 3 * kMostChunk * kMaxLanes; }
};

struct DepthwiseBwdArgs {
  const DepthwiseBwdShape* shape;
  DepthwiseRowsShard shard;  // rows of src
  DepthwiseRing ring;
  const void *src, *diff_dst;
  const float* weights;
  const DepthwiseNormArgs* norm;  // or nullptr
  void* diff_src;
  bool stream;          // diff_src is larger than the caches
  float* diff_weights;  // [k, k, C]: the shard's sums
  float* norm_sums;     // with norm: [2][C], sum(g * (src - mean)) and sum(g) of the shard
  float* scratch;
};

}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

struct TapRow {
  int64_t offset;  // of its row of diff_dst in a plane
  int64_t tap;     // its first tap
};

struct BwdTile {
  const float* plane;  // of the block, at the tile's first column
  const TapRow* rows;
  int64_t count;
  TapWeights weights;
  const float* values;  // [cols][kLanes]
  float* diffs;         // [cols][kLanes]
  float* sums;          // [taps][kLanes], added to
};

// W columns, the first of which is of phase 0: column t takes taps t mod S + m * S.
template <int K, int S, int W>
HWY_NOINLINE void bwd_tile(const BwdTile& tile) {
  constexpr int M = ceil_div(K, S), kCols = W / S + M - 1;
  Vec value[W], diff[W];
  EFF_UNROLL for (int t = 0; t < W; ++t) {
    value[t] = load(tile.values + t * kLanes);
    diff[t] = zero();
  }
  for (int64_t r = 0; r < tile.count; ++r) {
    const TapRow row = tile.rows[r];
    const float* from = fresh(tile.plane + row.offset);
    const float* weights = tile.weights.first + row.tap * tile.weights.tap;
    float* sums = tile.sums + row.tap * static_cast<int64_t>(kLanes);
    Vec w[K], sum[K];
    EFF_UNROLL for (int k = 0; k < K; ++k) {
      w[k] = load(weights + k * tile.weights.tap);
      sum[k] = load(sums + k * kLanes);
    }
    EFF_UNROLL for (int j = 0; j < kCols; ++j) {
      const Vec v = load(from + j * kLanes);
      EFF_UNROLL for (int t = 0; t < W; ++t) {
        const int m = t / S + (M - 1) - j, k = t % S + m * S;
        if (m < 0 || k < 0 || k >= K) continue;
        diff[t] = hn::MulAdd(v, w[k], diff[t]);
        sum[k] = hn::MulAdd(v, value[t], sum[k]);
      }
    }
    EFF_UNROLL for (int k = 0; k < K; ++k) store(sum[k], sums + k * kLanes);
  }
  EFF_UNROLL for (int t = 0; t < W; ++t) store(diff[t], tile.diffs + t * kLanes);
}

// Widths of tiles, whole groups of S columns; columns beyond the source have value 0 and their results are dropped.
// AVX2 has half the registers.
using BwdFunction = void (*)(const BwdTile&);
struct BwdFunctions {
  int64_t width;
  BwdFunction tile;
};

template <int K, int S, int W>
void narrower(int64_t cols, BwdFunctions& best) {
  const auto covered = [&](int64_t width) { return round_up(cols, width); };
  if (!best.tile || covered(W) < covered(best.width)) best = {W, bwd_tile<K, S, W>};
}

template <int K, int S>
BwdFunctions bwd_functions(int64_t cols) {
  BwdFunctions best{0, nullptr};
  if constexpr (kAvx512) {
    narrower<K, S, 8>(cols, best);
    if constexpr (S == 1) narrower<K, S, 7>(cols, best);
  } else {
    narrower<K, S, 4>(cols, best);
  }
  return best;
}

BwdFunctions bwd_functions(const DepthwiseBwdShape& s) {
  if (s.k == 3) return s.stride == 1 ? bwd_functions<3, 1>(s.cols()) : bwd_functions<3, 2>(s.cols());
  return s.stride == 1 ? bwd_functions<5, 1>(s.cols()) : bwd_functions<5, 2>(s.cols());
}

// Source pixels of one row and block, before and after the tiles. `coefs`: at the block's first channel.
template <class T>
struct PixelRow {
  const T* src;
  T* diff_src;
  int64_t count, c;
  size_t lanes;
  NormCoefs coefs;
  float *values, *slopes, *diffs;  // [count][kLanes]
  float* sums;                     // of g, of g * (src - mean): [kLanes] each
  bool stream;
};

template <class T, class Full>
void copy_values(const PixelRow<T>& row, Full full) {
  for (int64_t x = 0; x < row.count; ++x) {
    store(load_part(row.src + x * row.c, row.lanes, full), row.values + x * kLanes);
  }
}

template <class T, class Full>
void store_diffs(const PixelRow<T>& row, Full full) {
  for (int64_t x = 0; x < row.count; ++x) {
    const Vec v = load(row.diffs + x * kLanes);
    if constexpr (!Full::value) {
      store_n(v, row.diff_src + x * row.c, row.lanes);
    } else {
      if constexpr (kWholeLines<T>) {
        if (row.stream) {
          hn::Stream(v, F32(), row.diff_src + x * row.c);
          continue;
        }
      }
      store(v, row.diff_src + x * row.c);
    }
  }
}

template <class T, plan::Act act, class Full>
void activate_values(const PixelRow<T>& row, Full full) {
  const Vec mean = load(row.coefs.mean), a = load(row.coefs.a), shift = load(row.coefs.shift);
  for (int64_t x = 0; x < row.count; ++x) {
    const Vec raw = load_part(row.src + x * row.c, row.lanes, full);
    Vec value, slope;
    activate_both<act, T>(hn::MulAdd(hn::Sub(raw, mean), a, shift), value, slope);
    store(round_to<T>(value), row.values + x * kLanes);
    store(slope, row.slopes + x * kLanes);
  }
}

template <class T, class Full>
void store_normalised_diffs(const PixelRow<T>& row, Full full) {
  const Vec mean = load(row.coefs.mean);
  Vec sum_g = zero(), sum_gx = zero();
  for (int64_t x = 0; x < row.count; ++x) {
    const Vec xm = hn::Sub(load_part(row.src + x * row.c, row.lanes, full), mean);
    const Vec g = round_to<T>(hn::Mul(load(row.diffs + x * kLanes), load(row.slopes + x * kLanes)));
    sum_g = hn::Add(sum_g, g);
    sum_gx = hn::MulAdd(g, xm, sum_gx);
    if constexpr (!Full::value) {
      store_n(g, row.diff_src + x * row.c, row.lanes);
    } else {
      if constexpr (kWholeLines<T>) {
        if (row.stream) {
          hn::Stream(g, F32(), row.diff_src + x * row.c);
          continue;
        }
      }
      store(g, row.diff_src + x * row.c);
    }
  }
  store(hn::Add(load(row.sums), sum_g), row.sums);
  store(hn::Add(load(row.sums + kLanes), sum_gx), row.sums + kLanes);
}

template <class T>
using PixelFunction = void (*)(const PixelRow<T>&);

template <class T>
struct PixelFunctions {
  PixelFunction<T> before[2], after[2];  // [all lanes]
};

template <class T>
PixelFunctions<T> pixel_functions(const DepthwiseNormArgs* norm) {
  using No = std::false_type;
  using Yes = std::true_type;
  if (!norm) {
    return {{[](const PixelRow<T>& r) { copy_values(r, No()); }, [](const PixelRow<T>& r) { copy_values(r, Yes()); }},
            {[](const PixelRow<T>& r) { store_diffs(r, No()); }, [](const PixelRow<T>& r) { store_diffs(r, Yes()); }}};
  }
  return with_act(norm->act, [](auto act) -> PixelFunctions<T> {
    constexpr plan::Act kAct = decltype(act)::value;
    return {{[](const PixelRow<T>& r) { activate_values<T, kAct>(r, No()); },
             [](const PixelRow<T>& r) { activate_values<T, kAct>(r, Yes()); }},
            {[](const PixelRow<T>& r) { store_normalised_diffs(r, No()); },
             [](const PixelRow<T>& r) { store_normalised_diffs(r, Yes()); }}};
  });
}

constexpr int64_t kChunkTiles = 4;

template <class T>
class BwdShard {
 public:
  explicit BwdShard(const DepthwiseBwdArgs& args)
      : args_(args), s_(*args.shape), functions_(bwd_functions(s_)), pixels_(pixel_functions<T>(args.norm)) {
    const int64_t width = args.ring.blocks * kMaxLanes, row = kMostChunk * kMaxLanes;
    total_ = args.scratch;
    sums_ = total_ + s_.sums() * width;
    packed_ = sums_ + s_.sums() * width;
    coefs_ = packed_ + s_.taps() * width;
    values_ = coefs_ + 3 * width;
    slopes_ = values_ + row;
    diffs_ = slopes_ + row;
    ring_ = diffs_ + row;
    stream_ =
        kWholeLines<T> && args.stream && s_.c % kMaxLanes == 0 && reinterpret_cast<uintptr_t>(args.diff_src) % 64 == 0;
  }

  void run() {
    const DepthwiseRowsShard& shard = args_.shard;
    const RowRing ring(args_.ring, s_.reach() - 1 - s_.first_group(), s_.dst_w, ring_);
    const int64_t step = args_.ring.blocks * kMaxLanes;
    for (int64_t c0 = shard.c0; c0 < shard.c1; c0 += step) {
      const Blocks blocks(c0, std::min(shard.c1, c0 + step));
      pack_tap_weights<T>(blocks, args_.weights, s_.taps(), s_.c, packed_);
      NormCoefs coefs{};
      if (args_.norm) coefs = make_norm(*args_.norm, blocks, coefs_);
      group(ring, blocks, coefs);
    }
    if (stream_) hwy::FlushStream();
  }

 private:
  // Rows of diff_dst that source rows [y0, y1) have a part in, from the first to the one behind the last.
  int64_t first_row(int64_t y0) const { return (y0 + s_.pad_t) / s_.stride - (s_.reach() - 1); }
  int64_t end_row(int64_t y1) const { return (y1 - 1 + s_.pad_t) / s_.stride + 1; }
  int64_t clamp_row(int64_t y) const { return std::clamp<int64_t>(y, 0, s_.dst_h); }

  void group(const RowRing& ring, const Blocks& blocks, const NormCoefs& coefs) {
    const DepthwiseRowsShard& shard = args_.shard;
    const int64_t c = s_.c, width = blocks.count * Blocks::kWidth;
    std::fill(total_, total_ + s_.sums() * width, 0.0f);
    std::fill(sums_, sums_ + s_.sums() * width, 0.0f);
    int64_t pixels = 0;
    for (int64_t n = shard.n0; n < shard.n1; ++n) {
      const T* src = static_cast<const T*>(args_.src) + n * s_.src_h * s_.src_w * c + blocks.first;
      const T* diff = static_cast<const T*>(args_.diff_dst) + n * s_.dst_h * s_.dst_w * c + blocks.first;
      int64_t filled = 0;
      PixelsAhead none;
      for (int64_t y = shard.row0; y < shard.row1; y += kStepRows) {
        const int64_t end = std::min(shard.row1, y + kStepRows);
        filled = std::max(filled, clamp_row(first_row(y)));
        for (; filled < clamp_row(end_row(end)); ++filled) {
          ring.fill(blocks, diff + filled * s_.dst_w * c, c, filled, AsStored(), none, 0);
        }
        const bool more = end < shard.row1, next_image = !more && n + 1 < shard.n1;
        const int64_t y1 = more ? end : shard.row0, y2 = std::min(shard.row1, y1 + kStepRows);
        PixelsAhead ahead_src, ahead_diff, ahead_results;
        if (more || next_image) {
          const int64_t run = blocks.width();
          const int64_t from = std::max(more ? filled : 0, clamp_row(first_row(y1))), to = clamp_row(end_row(y2));
          const T* src1 = src + (next_image ? s_.src_h * s_.src_w * c : 0);
          const T* diff1 = diff + (next_image ? s_.dst_h * s_.dst_w * c : 0);
          ahead_src = PixelsAhead(src1 + y1 * s_.src_w * c, (y2 - y1) * s_.src_w, run, c);
          if (!stream_) {
            T* results = static_cast<T*>(args_.diff_src) + (src1 - static_cast<const T*>(args_.src));
            ahead_results = PixelsAhead(results + y1 * s_.src_w * c, (y2 - y1) * s_.src_w, run, c);
          }
          ahead_diff = PixelsAhead(diff1 + from * s_.dst_w * c, (to - from) * s_.dst_w, run, c);
        }
        pixels += (end - y) * s_.src_w;
        const bool last = pixels >= kTilePixels || (!more && !next_image);
        rows(ring, blocks, coefs, n, y, end, last, ahead_src, ahead_diff, ahead_results);
        if (last) pixels = 0;
      }
    }
    for (int64_t b = 0; b < blocks.count; ++b) {
      const float* total = total_ + b * s_.sums() * Blocks::kWidth;
      const int64_t channel = blocks.channel(b);
      const size_t lanes = blocks.lanes(b);
      for (int64_t i = 0; i < s_.taps(); ++i)
        store_n(load(total + i * kLanes), args_.diff_weights + i * c + channel, lanes);
      if (!args_.norm) continue;
      store_n(load(total + s_.taps() * kLanes), args_.norm_sums + c + channel, lanes);
      store_n(load(total + (s_.taps() + 1) * kLanes), args_.norm_sums + channel, lanes);
    }
  }

  // The rows of diff_dst that source row y meets, each with its row of taps.
  int64_t tap_rows(const RowRing& ring, int64_t y, TapRow* rows) const {
    const int64_t a = y + s_.pad_t, q = a / s_.stride, phase = a % s_.stride;
    int64_t count = 0;
    for (int64_t i = phase, r = q; i < s_.k; i += s_.stride, --r) {
      if (r >= 0 && r < s_.dst_h) rows[count++] = {ring.offset(r, s_.dst_h), i * s_.k};
    }
    return count;
  }

  // `last`: the sums of the tile of pixels are added to those of the shard.
  void rows(const RowRing& ring, const Blocks& blocks, const NormCoefs& coefs, int64_t n, int64_t y0, int64_t y1,
            bool last, PixelsAhead ahead_src, PixelsAhead ahead_diff, PixelsAhead ahead_results) {
    constexpr int64_t kMostTapRows = 5;
    TapRow tap_rows_of[kStepRows][kMostTapRows];
    int64_t tap_row_count[kStepRows];
    for (int64_t y = y0; y < y1; ++y) tap_row_count[y - y0] = tap_rows(ring, y, tap_rows_of[y - y0]);
    const int64_t c = s_.c, skip = s_.skip(), taps = s_.taps(), pieces = blocks.count * (y1 - y0);
    const int64_t tiles = ceil_div(s_.cols(), functions_.width);
    const int64_t chunk = kChunkTiles * functions_.width;
    const int64_t src_lines = ceil_div(ahead_src.lines(), pieces * tiles);
    const int64_t diff_lines = ceil_div(ahead_diff.lines(), pieces * tiles);
    const int64_t result_lines = ceil_div(ahead_results.lines(), pieces * tiles);
    // Chunk by chunk, so that a line that two blocks share (bf16) or that is read twice is still in L1.
    for (int64_t x0 = 0; x0 < s_.cols(); x0 += chunk) {
      // Columns of the chunk, and those of them that are pixels.
      const int64_t x1 = std::min(x0 + chunk, tiles * functions_.width);
      const int64_t begin = std::max(x0, skip), end = std::min(x1, s_.cols());
      for (int64_t x = x0; x < begin; ++x) store(zero(), values_ + (x - x0) * kLanes);
      for (int64_t x = end; x < x1; ++x) store(zero(), values_ + (x - x0) * kLanes);
      PixelRow<T> row;
      row.count = end - begin;
      row.c = c;
      row.values = values_ + (begin - x0) * kLanes;
      row.slopes = slopes_ + (begin - x0) * kLanes;
      row.diffs = diffs_ + (begin - x0) * kLanes;
      row.stream = stream_;
      for (int64_t b = 0; b < blocks.count; ++b) {
        const size_t lanes = blocks.lanes(b);
        const int64_t at = b * Blocks::kWidth;
        BwdTile tile;
        tile.weights = tap_weights<T>(blocks, b, args_.weights, taps, c, packed_);
        tile.sums = sums_ + at * s_.sums();
        row.lanes = lanes;
        row.coefs = args_.norm ? NormCoefs{coefs.mean + at, coefs.a + at, coefs.shift + at} : NormCoefs{};
        row.sums = tile.sums + taps * kLanes;
        for (int64_t y = y0; y < y1; ++y) {
          const int64_t first = ((n * s_.src_h + y) * s_.src_w + begin - skip) * c + blocks.channel(b);
          row.src = static_cast<const T*>(args_.src) + first;
          row.diff_src = static_cast<T*>(args_.diff_src) + first;
          pixels_.before[lanes == kLanes](row);
          tile.rows = tap_rows_of[y - y0];
          tile.count = tap_row_count[y - y0];
          for (int64_t x = x0; x < x1; x += functions_.width) {
            ahead_src.fetch(src_lines);
            ahead_diff.fetch(diff_lines);
            ahead_results.template fetch<true>(result_lines);
            tile.plane = ring.plane(b) + x / s_.stride * Blocks::kWidth;
            tile.values = values_ + (x - x0) * kLanes;
            tile.diffs = diffs_ + (x - x0) * kLanes;
            functions_.tile(tile);
          }
          pixels_.after[lanes == kLanes](row);
        }
      }
    }
    if (!last) return;
    for (int64_t i = 0; i < blocks.count * s_.sums() * Blocks::kWidth; i += Blocks::kWidth) {
      store(hn::Add(load(total_ + i), load(sums_ + i)), total_ + i);
      store(zero(), sums_ + i);
    }
  }

  static constexpr int64_t kTilePixels = 256;
  static_assert(kChunkTiles * 8 <= kMostChunk);
  const DepthwiseBwdArgs& args_;
  const DepthwiseBwdShape& s_;
  BwdFunctions functions_;
  PixelFunctions<T> pixels_;
  float *total_, *sums_, *packed_, *coefs_, *values_, *slopes_, *diffs_, *ring_;
  bool stream_;
};

void depthwise_bwd(const DepthwiseBwdArgs& args) {
  if (args.shape->bf16) {
    BwdShard<BFloat16>(args).run();
  } else {
    BwdShard<float>(args).run();
  }
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "cpu/kernels/common.h"

namespace effnet::cpu {
namespace {

HWY_EXPORT(depthwise_bwd);

class DepthwiseBwd : public Kernel {
 public:
  DepthwiseBwd(const plan::Op& op, const DepthwiseConvSpec& conv, const DepthwiseNorm& norm, std::string name)
      : conv_(conv),
        norm_(norm),
        diff_src_(op.out(op::depthwise_conv2d_bwd::out_diff_src)),
        diff_weights_(op.out(op::depthwise_conv2d_bwd::out_diff_weights)),
        weights_(op.in(op::depthwise_conv2d_bwd::in_weights)),
        diff_scale_(op.out(op::depthwise_conv2d_bwd::out_src_diff_scale)),
        diff_shift_(op.out(op::depthwise_conv2d_bwd::out_src_diff_shift)),
        name_(std::move(name)),
        shape_{conv.src->h(), conv.src->w(), conv.dst->h(), conv.dst->w(), conv.src->c(),
               conv.kw(),     conv.stride,   conv.pad_t,    conv.pad_l,    conv.bf16()},
        split_(conv.src->n(), conv.src->h(), conv.src->w(), conv.src->c(), kShards),
        ring_(shape_.ring(split_.group_channels)),
        merge_{shape_.c, kStatsMergeChannels} {}

  const char* name() const override { return name_.c_str(); }
  int phases() const override { return 2; }
  // The second phase adds the sums of all positions: a tap row of weights a shard, then those of the BN.
  int shards(int phase) const override {
    return static_cast<int>(phase == 0 ? split_.count() : shape_.k + (diff_scale_ ? merge_.count() : 0));
  }
  size_t worker_scratch_bytes() const override {
    return static_cast<size_t>(shape_.scratch_floats(ring_.blocks * kMaxLanes) + ring_.floats()) * sizeof(float);
  }
  size_t shared_scratch_bytes() const override {
    return static_cast<size_t>(split_.positions() * shape_.sums() * shape_.c) * sizeof(float);
  }
  double flops() const override { return 2 * conv_.flops(); }

  void run(int phase, int shard, const ExecContext& ctx) override {
    const int64_t c = shape_.c, weights = shape_.taps() * c;
    float* partial = reinterpret_cast<float*>(ctx.shared_scratch);
    float* norm_partial = partial + split_.positions() * weights;
    const int k = static_cast<int>(shape_.k);
    if (phase == 1 && shard >= k) {
      merge_bn_sums({norm_partial, split_.positions(), c, merge_.begin(shard - k), merge_.end(shard - k),
                     ctx.ptr<const float>(norm_.inv_std), ctx.ptr<float>(diff_scale_), ctx.ptr<float>(diff_shift_)});
      return;
    }
    if (phase == 1) {
      const int64_t width = shape_.k * c, offset = shard * width;
      sum_rows(partial + offset, split_.positions(), weights, 1, ctx.ptr<float>(diff_weights_) + offset, width);
      return;
    }
    const DepthwiseNormArgs norm = norm_args(norm_, ctx);
    const int64_t position = split_.position(shard);
    DepthwiseBwdArgs args{};
    args.shape = &shape_;
    args.shard = split_.shard(shard);
    args.ring = ring_;
    args.src = ctx.ptr<const void>(conv_.src);
    args.diff_dst = ctx.ptr<const void>(conv_.dst);
    args.weights = ctx.ptr<const float>(weights_);
    args.norm = norm_ ? &norm : nullptr;
    args.diff_src = ctx.ptr<void>(diff_src_);
    args.stream = exceeds_caches(diff_src_);
    args.diff_weights = partial + position * weights;
    args.norm_sums = norm_partial + position * 2 * c;
    args.scratch = reinterpret_cast<float*>(ctx.worker_scratch);
    EFF_DISPATCH(depthwise_bwd)(args);
  }

 private:
  static constexpr int64_t kShards = 16;
  DepthwiseConvSpec conv_;
  DepthwiseNorm norm_;
  const plan::Tensor *diff_src_, *diff_weights_, *weights_, *diff_scale_, *diff_shift_;
  std::string name_;
  DepthwiseBwdShape shape_;
  DepthwiseRowsSplit split_;
  DepthwiseRing ring_;
  Split merge_;
};

}  // namespace

KernelPtr depthwise_bwd_kernel(const plan::Op& op, const DepthwiseConvSpec& conv, const DepthwiseNorm& norm,
                               std::string name) {
  return std::make_unique<DepthwiseBwd>(op, conv, norm, std::move(name));
}

}  // namespace effnet::cpu
#endif
