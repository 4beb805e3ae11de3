// Depthwise forward and backward data, vector code. A tile is up to kTile neighbouring outputs of one row, in
// registers; for each row of taps its weights are loaded once, and each source vector once for all outputs that it
// feeds. 3x3 at stride 1: 9 multiply-adds, 1.3 source loads per tap row and output, 1 load and 1 store to fill the
// ring.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/depthwise_conv.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/depthwise_ring-inl.h"
#include "cpu/kernels/depthwise.h"

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

// The rows that make one output row: ring rows and, for each, its row of packed weights. Order = order of summation.
struct Taps {
  const float* const* rows;
  const float* const* weights;
  int64_t count;
};

struct RowOut {
  float* first;    // of output column 0
  int64_t stride;  // floats from column to column
};

// ---- stride of the pass moves the source: forward, and backward data at stride 1 --------------------------------

template <int K, int S, int T>
HWY_INLINE void down_tile(const Taps& taps, int64_t x, Vec start, RowOut out) {
  Vec acc[T];
  EFF_UNROLL for (int t = 0; t < T; ++t) acc[t] = start;
  for (int64_t r = 0; r < taps.count; ++r) {
    const float* src = fresh(taps.rows[r] + x * S * kLanes);
    const float* weights = taps.weights[r];
    Vec w[K];
    EFF_UNROLL for (int k = 0; k < K; ++k) w[k] = load(weights + k * kLanes);
    EFF_UNROLL for (int j = 0; j < (T - 1) * S + K; ++j) {
      const Vec v = load(src + j * kLanes);
      EFF_UNROLL for (int t = 0; t < T; ++t) {
        const int k = j - t * S;
        if (k >= 0 && k < K) acc[t] = hn::MulAdd(v, w[k], acc[t]);
      }
    }
  }
  EFF_UNROLL for (int t = 0; t < T; ++t) store(acc[t], out.first + (x + t) * out.stride);
}

// Tiles as equal as can be: 14 = 7 + 7.
template <int K, int S>
void down_row(const DepthwisePass&, const Taps& taps, int64_t cols, Vec start, RowOut out) {
  constexpr int64_t kTile = 8;
  int64_t tiles = ceil_div(cols, kTile);
  for (int64_t x = 0; x < cols; --tiles) {
    const int64_t width = ceil_div(cols - x, tiles);
    switch (width) {
      case 8:
        down_tile<K, S, 8>(taps, x, start, out);
        break;
      case 7:
        down_tile<K, S, 7>(taps, x, start, out);
        break;
      case 6:
        down_tile<K, S, 6>(taps, x, start, out);
        break;
      case 5:
        down_tile<K, S, 5>(taps, x, start, out);
        break;
      case 4:
        down_tile<K, S, 4>(taps, x, start, out);
        break;
      case 3:
        down_tile<K, S, 3>(taps, x, start, out);
        break;
      case 2:
        down_tile<K, S, 2>(taps, x, start, out);
        break;
      default:
        down_tile<K, S, 1>(taps, x, start, out);
        break;
    }
    x += width;
  }
}

// Any kernel width and stride.
template <int T>
HWY_INLINE void down_tile_any(const DepthwisePass& pass, const Taps& taps, int64_t x, Vec start, RowOut out) {
  Vec acc[T];
  EFF_UNROLL for (int t = 0; t < T; ++t) acc[t] = start;
  const int64_t step = pass.stride * static_cast<int64_t>(kLanes);
  for (int64_t r = 0; r < taps.count; ++r) {
    const float* HWY_RESTRICT src = taps.rows[r] + x * step;
    for (int64_t k = 0; k < pass.kw; ++k) {
      const Vec w = load(taps.weights[r] + k * kLanes);
      EFF_UNROLL for (int t = 0; t < T; ++t) { acc[t] = hn::MulAdd(load(src + t * step + k * kLanes), w, acc[t]); }
    }
  }
  EFF_UNROLL for (int t = 0; t < T; ++t) store(acc[t], out.first + (x + t) * out.stride);
}

void down_row_any(const DepthwisePass& pass, const Taps& taps, int64_t cols, Vec start, RowOut out) {
  int64_t x = 0;
  for (; x + 8 <= cols; x += 8) down_tile_any<8>(pass, taps, x, start, out);
  for (; x + 2 <= cols; x += 2) down_tile_any<2>(pass, taps, x, start, out);
  for (; x < cols; ++x) down_tile_any<1>(pass, taps, x, start, out);
}

// ---- transposed: backward data at stride 2 and above ------------------------------------------------------------
//
// With a = x + pad_l, q = a / S, p = a mod S: output x takes source column q - m times tap p + m*S. A tile is T groups
// of S neighbouring outputs; ring column 0 is source column q0 - (M - 1), M = ceil(K / S), q0 = the first group.

template <int K, int S, int T>
HWY_INLINE void up_tile(const Taps& taps, int64_t group, RowOut out) {
  constexpr int M = ceil_div(K, S);
  Vec acc[T * S];
  EFF_UNROLL for (int t = 0; t < T * S; ++t) acc[t] = zero();
  for (int64_t r = 0; r < taps.count; ++r) {
    const float* src = fresh(taps.rows[r] + group * kLanes);
    const float* weights = taps.weights[r];
    Vec w[K];
    EFF_UNROLL for (int k = 0; k < K; ++k) w[k] = load(weights + k * kLanes);
    EFF_UNROLL for (int j = 0; j < T + M - 1; ++j) {
      const Vec v = load(src + j * kLanes);
      EFF_UNROLL for (int t = 0; t < T * S; ++t) {
        const int m = t / S + (M - 1) - j, k = t % S + m * S;
        if (m >= 0 && k < K) acc[t] = hn::MulAdd(v, w[k], acc[t]);
      }
    }
  }
  EFF_UNROLL for (int t = 0; t < T * S; ++t) store(acc[t], out.first + (group * S + t) * out.stride);
}

template <int K, int S>
void up_row(const DepthwisePass&, const Taps& taps, int64_t groups, Vec, RowOut out) {
  constexpr int64_t kTile = 4;
  int64_t tiles = ceil_div(groups, kTile);
  for (int64_t g = 0; g < groups; --tiles) {
    const int64_t width = ceil_div(groups - g, tiles);
    switch (width) {
      case 4:
        up_tile<K, S, 4>(taps, g, out);
        break;
      case 3:
        up_tile<K, S, 3>(taps, g, out);
        break;
      case 2:
        up_tile<K, S, 2>(taps, g, out);
        break;
      default:
        up_tile<K, S, 1>(taps, g, out);
        break;
    }
    g += width;
  }
}

template <int T>
HWY_INLINE void up_tile_any(const DepthwisePass& pass, const Taps& taps, int64_t group, int64_t p, RowOut out) {
  const int64_t last = ceil_div(pass.kw, pass.stride) - 1;
  Vec acc[T];
  EFF_UNROLL for (int t = 0; t < T; ++t) { acc[t] = zero(); }
  for (int64_t r = 0; r < taps.count; ++r) {
    const float* HWY_RESTRICT src = taps.rows[r] + (group + last) * static_cast<int64_t>(kLanes);
    for (int64_t k = p; k < pass.kw; k += pass.stride, src -= kLanes) {
      const Vec w = load(taps.weights[r] + k * kLanes);
      EFF_UNROLL for (int t = 0; t < T; ++t) { acc[t] = hn::MulAdd(load(src + t * kLanes), w, acc[t]); }
    }
  }
  EFF_UNROLL for (int t = 0; t < T; ++t) store(acc[t], out.first + ((group + t) * pass.stride + p) * out.stride);
}

void up_row_any(const DepthwisePass& pass, const Taps& taps, int64_t groups, Vec, RowOut out) {
  for (int64_t p = 0; p < pass.stride; ++p) {
    int64_t g = 0;
    for (; g + 4 <= groups; g += 4) up_tile_any<4>(pass, taps, g, p, out);
    for (; g < groups; ++g) up_tile_any<1>(pass, taps, g, p, out);
  }
}

using RowFunction = void (*)(const DepthwisePass&, const Taps&, int64_t cols, Vec start, RowOut);

RowFunction row_function(const DepthwisePass& pass) {
  if (pass.transposed) {
    if (pass.stride == 2 && pass.kw == 3) return up_row<3, 2>;
    if (pass.stride == 2 && pass.kw == 5) return up_row<5, 2>;
    return up_row_any;
  }
  if (pass.stride == 1 && pass.kw == 3) return down_row<3, 1>;
  if (pass.stride == 1 && pass.kw == 5) return down_row<5, 1>;
  if (pass.stride == 2 && pass.kw == 3) return down_row<3, 2>;
  if (pass.stride == 2 && pass.kw == 5) return down_row<5, 2>;
  return down_row_any;
}

// ---- what happens to a finished row -----------------------------------------------------------------------------

// Adds the stored values to sum[kLanes].
template <class T, plan::Act act, bool pool>
void finish_row(const float* HWY_RESTRICT row, T* HWY_RESTRICT dst, int64_t cols, int64_t c, size_t lanes,
                float* HWY_RESTRICT sum) {
  Vec total = zero();
  for (int64_t x = 0; x < cols; ++x) {
    const Vec v = activate<act, T>(load(row + x * kLanes));
    if (lanes == kLanes) {
      store(v, dst + x * c);
    } else {
      store_n(v, dst + x * c, lanes);
    }
    if constexpr (pool) total = hn::Add(total, round_to<T>(v));
  }
  if constexpr (pool) store(hn::Add(load(sum), total), sum);
}

template <class T>
using FinishFunction = void (*)(const float*, T*, int64_t, int64_t, size_t, float*);

template <class T>
FinishFunction<T> finish_function(plan::Act act, bool pool) {
  return with_act(act, [pool](auto a) -> FinishFunction<T> {
    return pool ? finish_row<T, decltype(a)::value, true> : finish_row<T, decltype(a)::value, false>;
  });
}

// ---- a shard ----------------------------------------------------------------------------------------------------

template <class T>
void pack_weights(const DepthwisePass& pass, const float* weights, size_t lanes, float* packed) {
  const int64_t taps = pass.kh * pass.kw;
  for (int64_t i = 0; i < taps; ++i) {
    const int64_t from = pass.mirrored ? taps - 1 - i : i;
    store(round_to<T>(load_n(weights + from * pass.c, lanes)), packed + i * kLanes);
  }
}

// The source rows of output row y in the order of their taps; returns how many. `first_tap` + i * `tap_step` is the
// weight row of rows y_first + i * y_step.
struct RowRange {
  int64_t first, step, tap, tap_step, count;
};

RowRange source_rows(const DepthwisePass& pass, int64_t y) {
  if (!pass.transposed) {
    const int64_t top = y * pass.stride - pass.pad_t;
    const int64_t i0 = std::max<int64_t>(0, -top), i1 = std::min(pass.kh, pass.src_h - top);
    return {top + i0, 1, i0, 1, std::max<int64_t>(0, i1 - i0)};
  }
  // Taps a % S + m * S meet rows a / S - m; counted downwards so that rows ascend.
  const int64_t a = y + pass.pad_t, q = a / pass.stride, p = a % pass.stride;
  if (p >= pass.kh) return {0, 1, 0, 1, 0};
  const int64_t m1 = std::min(ceil_div(pass.kh - p, pass.stride), q + 1);
  const int64_t m0 = std::max<int64_t>(0, q - pass.src_h + 1);
  if (m1 <= m0) return {0, 1, 0, 1, 0};
  return {q - (m1 - 1), 1, p + (m1 - 1) * pass.stride, -pass.stride, m1 - m0};
}

template <class T>
void conv_shard(const DepthwiseConvArgs& args, const DepthwiseShard& shard) {
  const DepthwisePass& pass = *args.pass;
  constexpr int64_t kWidth = kLanes;
  const int64_t c = pass.c, taps = pass.kh * pass.kw, ring_rows = pass.ring_rows(), ring_cols = pass.ring_cols();
  const int64_t most_blocks = pass.blocks_at_once() * (kMaxLanes / kWidth);
  const int64_t q0 = pass.pad_l / pass.stride;  // transposed: the group of output column 0
  const int64_t left = pass.transposed ? ceil_div(pass.kw, pass.stride) - 1 - q0 : pass.pad_l;
  const int64_t skip = pass.transposed ? pass.pad_l - q0 * pass.stride : 0;  // columns before output column 0
  const int64_t cols = pass.transposed ? pass.out_cols() / pass.stride : pass.dst_w;
  float* packed = args.scratch;
  float* sums = packed + most_blocks * taps * kWidth;
  float* row_buffer = sums + most_blocks * kWidth;
  float* ring_memory = row_buffer + pass.out_cols() * kWidth;
  const float** pointers = reinterpret_cast<const float**>(ring_memory + most_blocks * ring_rows * ring_cols * kWidth);
  Ring ring(ring_memory, most_blocks, ring_rows, ring_cols, left, pass.src_w);
  const RowFunction convolve = row_function(pass);
  const FinishFunction<T> finish = finish_function<T>(args.act, args.pooled != nullptr);
  // Nothing left to do after the sum: tiles of whole blocks go straight to dst.
  const bool direct = std::is_same_v<T, float> && args.act == plan::Act::identity && !args.pooled && !pass.transposed;

  for (int64_t c0 = shard.c0; c0 < shard.c1; c0 += most_blocks * kWidth) {
    const int64_t channels = std::min(most_blocks * kWidth, shard.c1 - c0);
    const int64_t blocks = ceil_div(channels, kWidth);
    const auto lanes = [&](int64_t b) { return static_cast<size_t>(std::min(kWidth, channels - b * kWidth)); };
    const SourceImage<T> src{static_cast<const T*>(args.src) + shard.image * pass.src_h * pass.src_w * c + c0,
                             pass.src_h,
                             pass.src_w,
                             c,
                             channels / kWidth,
                             static_cast<size_t>(channels % kWidth)};
    T* dst = static_cast<T*>(args.dst) + shard.image * pass.dst_h * pass.dst_w * c + c0;
    for (int64_t b = 0; b < blocks; ++b) {
      pack_weights<T>(pass, args.weights + c0 + b * kWidth, lanes(b), packed + b * taps * kWidth);
      store(zero(), sums + b * kWidth);
    }
    int64_t filled = 0;  // rows below this one are in the ring or no longer needed
    for (int64_t y = shard.row0; y < shard.row1; ++y) {
      const RowRange range = source_rows(pass, y);
      filled = std::max(filled, range.first);
      for (; filled < range.first + range.count; ++filled) ring.fill(src, filled);
      for (int64_t b = 0; b < blocks; ++b) {
        for (int64_t i = 0; i < range.count; ++i) {
          pointers[i] = ring.row(b, range.first + i);
          pointers[pass.kh + i] = packed + (b * taps + (range.tap + i * range.tap_step) * pass.kw) * kWidth;
        }
        const Taps row_taps{pointers, pointers + pass.kh, range.count};
        const Vec start = args.bias ? load_n(args.bias + c0 + b * kWidth, lanes(b)) : zero();
        T* dst_row = dst + y * pass.dst_w * c + b * kWidth;
        if constexpr (std::is_same_v<T, float>) {
          if (direct && lanes(b) == kLanes) {
            convolve(pass, row_taps, cols, start, {dst_row, c});
            continue;
          }
        }
        convolve(pass, row_taps, cols, start, {row_buffer, kWidth});
        finish(row_buffer + skip * kWidth, dst_row, pass.dst_w, c, lanes(b), sums + b * kWidth);
      }
    }
    if (!args.pooled) continue;
    for (int64_t b = 0; b < blocks; ++b) {
      store_n(hn::Mul(load(sums + b * kWidth), splat(args.pool_scale)), args.pooled + c0 + b * kWidth, lanes(b));
    }
  }
}

void conv_depthwise_target(const DepthwiseConvArgs& args, const DepthwiseShard& shard) {
  if (args.pass->bf16) {
    conv_shard<BFloat16>(args, shard);
  } else {
    conv_shard<float>(args, shard);
  }
}

void sum_rows_target(const float* rows, int64_t count, int64_t stride, float scale, float* dst, int64_t c) {
  for (int64_t c0 = 0; c0 < c; c0 += kLanes) {
    const size_t lanes = std::min<size_t>(kLanes, static_cast<size_t>(c - c0));
    Vec sum = load_n(rows + c0, lanes);
    for (int64_t i = 1; i < count; ++i) sum = hn::Add(sum, load_n(rows + i * stride + c0, lanes));
    store_n(hn::Mul(sum, splat(scale)), dst + c0, lanes);
  }
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
HWY_EXPORT(conv_depthwise_target);
HWY_EXPORT(sum_rows_target);

void conv_depthwise(const DepthwiseConvArgs& args, const DepthwiseShard& shard) {
  EFF_DISPATCH(conv_depthwise_target)(args, shard);
}
void sum_rows(const float* rows, int64_t count, int64_t stride, float scale, float* dst, int64_t c) {
  EFF_DISPATCH(sum_rows_target)(rows, count, stride, scale, dst, c);
}

}  // namespace effnet::cpu
#endif
