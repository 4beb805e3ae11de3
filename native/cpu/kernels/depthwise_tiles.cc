// Depthwise forward, and backward data at stride 1, straight from the source: 3x3 and 5x5, stride 1 and 2, shards of at
// least one whole vector of channels (depthwise_conv.cc has the rest).
//
// A tile is two rows of up to 8 outputs of one vector of channels, all in registers: each source vector is loaded once
// for every output that it feeds (3x3 at stride 1: 2.5 loads for 9 multiply-adds), and what follows the sum (bias,
// activation, mean) happens before the store. Tiles at the border know which rows and columns of their
// window exist and leave out the others.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/depthwise_tiles.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/depthwise_ring-inl.h"
#include "cpu/kernels/depthwise.h"

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

// What follows the sum.
enum class Finish { silu, any };

template <class T>
struct Tile {
  const T* src;        // channel block of pixel (0, 0)
  int64_t origin;      // element offset of the window's first pixel, which may lie outside the image
  int64_t row, pixel;  // elements from row to row and from pixel to pixel
  int64_t i0, i1;      // rows of the window that exist
  int64_t j0, j1;      // columns that do
  const float* weights;
  int64_t tap;        // floats from tap to tap; negative where weights are mirrored
  const float* bias;  // of the block, or nullptr
  T* dst;
  int64_t dst_row, dst_pixel;
  float* sums;  // [kLanes] or nullptr: the stored values are added
  plan::Act act;
  bool stream;  // past the caches; dst is aligned
};

// Rare activations: one copy of the code for all tiles.
template <class T>
HWY_NOINLINE void activate_buffer(plan::Act act, float* HWY_RESTRICT values, int64_t count) {
  with_act(act, [&](auto a) HWY_ATTR {
    for (int64_t i = 0; i < count; ++i) {
      store(activate<decltype(a)::value, T>(load(values + i * kLanes)), values + i * kLanes);
    }
  });
}

template <class T, Finish F, int R, int W>
HWY_INLINE void finish_tile(const Tile<T>& tile, Vec (&acc)[R * W]) {
  if constexpr (F == Finish::silu) {
    EFF_UNROLL for (int t = 0; t < R * W; ++t) acc[t] = activate<plan::Act::silu, T>(acc[t]);
  } else if (F == Finish::any && HWY_UNLIKELY(tile.act != plan::Act::identity)) {
    float buffer[R * W * kLanes];
    EFF_UNROLL for (int t = 0; t < R * W; ++t) store(acc[t], buffer + t * kLanes);
    activate_buffer<T>(tile.act, buffer, R * W);
    EFF_UNROLL for (int t = 0; t < R * W; ++t) acc[t] = load(buffer + t * kLanes);
  }
  const auto at = [&](int t) HWY_ATTR { return tile.dst + (t / W) * tile.dst_row + (t % W) * tile.dst_pixel; };
  bool stored = false;
  if constexpr (kWholeLines<T>) {
    if (tile.stream) {
      EFF_UNROLL for (int t = 0; t < R * W; ++t) hn::Stream(acc[t], F32(), at(t));
      stored = true;
    }
  }
  if (!stored) {
    EFF_UNROLL for (int t = 0; t < R * W; ++t) store(acc[t], at(t));
  }
  if (tile.sums) {
    Vec even = zero(), odd = zero();
    EFF_UNROLL for (int t = 0; t < R * W; ++t) {
      Vec& sum = t % 2 ? odd : even;
      sum = hn::Add(sum, round_to<T>(acc[t]));
    }
    store(hn::Add(load(tile.sums), hn::Add(even, odd)), tile.sums);
  }
}

template <class T, int K, int S, Finish F, int R, int W, bool kEdge>
HWY_NOINLINE void conv_tile(const Tile<T>& tile) {
  constexpr int kRows = (R - 1) * S + K, kCols = (W - 1) * S + K;
  Vec acc[R * W];
  const Vec start = tile.bias ? load(tile.bias) : zero();
  EFF_UNROLL for (int t = 0; t < R * W; ++t) acc[t] = start;
  EFF_UNROLL for (int i = 0; i < kRows; ++i) {
    if (kEdge && (i < tile.i0 || i >= tile.i1)) continue;
    const T* src = tile.src + (tile.origin + i * tile.row);
    Vec w[R * K];
    EFF_UNROLL for (int r = 0; r < R; ++r) {
      if (i - r * S < 0 || i - r * S >= K) continue;
      EFF_UNROLL for (int k = 0; k < K; ++k) w[r * K + k] = load(tile.weights + ((i - r * S) * K + k) * tile.tap);
    }
    EFF_UNROLL for (int j = 0; j < kCols; ++j) {
      if (kEdge && (j < tile.j0 || j >= tile.j1)) continue;
      const Vec v = load(src + j * tile.pixel);
      EFF_UNROLL for (int r = 0; r < R; ++r) {
        if (i - r * S < 0 || i - r * S >= K) continue;
        EFF_UNROLL for (int t = 0; t < W; ++t) {
          const int k = j - t * S;
          if (k >= 0 && k < K) acc[r * W + t] = hn::MulAdd(v, w[r * K + k], acc[r * W + t]);
        }
      }
    }
  }
  finish_tile<T, F, R, W>(tile, acc);
}

// The widths of tiles: two that cover every row of 42 pixels and more, and all that EfficientNet has at 224 px, and two
// for what is left. AVX2 has half the registers.
constexpr int kWidths[] = {kAvx512 ? 8 : 4, kAvx512 ? 7 : 3, kAvx512 ? 4 : 2, 1};

template <class T>
struct TileFunctions {
  using Function = void (*)(const Tile<T>&);
  Function inner[2];    // two rows, nothing missing; the two wide ones
  Function edge[2][4];  // [rows - 1][width]
};

template <class T, int K, int S, Finish F>
TileFunctions<T> tile_functions() {
  constexpr int A = kWidths[0], B = kWidths[1], C = kWidths[2], D = kWidths[3];
  return {{conv_tile<T, K, S, F, 2, A, false>, conv_tile<T, K, S, F, 2, B, false>},
          {{conv_tile<T, K, S, F, 1, A, true>, conv_tile<T, K, S, F, 1, B, true>, conv_tile<T, K, S, F, 1, C, true>,
            conv_tile<T, K, S, F, 1, D, true>},
           {conv_tile<T, K, S, F, 2, A, true>, conv_tile<T, K, S, F, 2, B, true>, conv_tile<T, K, S, F, 2, C, true>,
            conv_tile<T, K, S, F, 2, D, true>}}};
}

template <class T, Finish F>
TileFunctions<T> tile_functions(const DepthwisePass& pass) {
  if (pass.kw == 3) return pass.stride == 1 ? tile_functions<T, 3, 1, F>() : tile_functions<T, 3, 2, F>();
  return pass.stride == 1 ? tile_functions<T, 5, 1, F>() : tile_functions<T, 5, 2, F>();
}

// A row of outputs as tiles.
struct RowSplit {
  explicit RowSplit(int64_t cols) {
    for (int64_t second = 0; second < kWidths[0]; ++second) {
      const int64_t rest = cols - second * kWidths[1];
      if (rest < 0 || rest % kWidths[0]) continue;
      count[0] = rest / kWidths[0];
      count[1] = second;
      return;
    }
    count[0] = cols / kWidths[0];
    count[2] = cols % kWidths[0] / kWidths[2];
    count[3] = cols % kWidths[0] % kWidths[2];
  }
  // f(first column, index of the width)
  template <class Fn>
  void each(Fn&& f) const {
    int64_t x = 0;
    for (int width = 0; width < 4; ++width)
      for (int64_t i = 0; i < count[width]; ++i, x += kWidths[width]) f(x, width);
  }
  int64_t count[4] = {};
};

template <class T, Finish F>
class TileShard {
 public:
  TileShard(const DepthwiseConvArgs& args, const DepthwiseShard& shard)
      : args_(args), pass_(*args.pass), shard_(shard), functions_(tile_functions<T, F>(pass_)), split_(pass_.dst_w) {
    blocks_ = ceil_div(shard.c1 - shard.c0, kWidth);
    sums_ = args.scratch;
    packed_ = sums_ + blocks_ * kWidth;
    stream_ = args.stream && pass_.c % kWidth == 0 && reinterpret_cast<uintptr_t>(args.dst) % 64 == 0;
    if (args.pooled)
      for (int64_t b = 0; b < blocks_; ++b) store(zero(), sums_ + b * kWidth);
    if constexpr (!std::is_same_v<T, float>) pack_weights();
  }

  void run() {
    // Wide images come from memory: whole pixels are read, in order. Small ones are in the caches: then the weights of
    // a block stay where they are.
    if (pass_.dst_w > 32) {
      each_row([&](int64_t y, int64_t rows) {
        split_.each([&](int64_t x, int width) {
          for (int64_t b = 0; b < blocks_; ++b) tile(y, rows, x, width, b);
        });
      });
    } else {
      for (int64_t b = 0; b < blocks_; ++b) {
        each_row(
            [&](int64_t y, int64_t rows) { split_.each([&](int64_t x, int width) { tile(y, rows, x, width, b); }); });
      }
    }
    if (stream_) hwy::FlushStream();
    if (!args_.pooled) return;
    for (int64_t b = 0; b < blocks_; ++b) {
      store(hn::Mul(load(sums_ + b * kWidth), splat(args_.pool_scale)), args_.pooled + channel(b));
    }
  }

 private:
  static constexpr int64_t kWidth = kLanes;

  // The last block ends with the shard: a few channels are computed twice where it is not a multiple of the vector.
  int64_t channel(int64_t block) const { return std::min(shard_.c0 + block * kWidth, shard_.c1 - kWidth); }

  template <class Fn>
  void each_row(Fn&& f) const {
    for (int64_t y = shard_.row0; y < shard_.row1; y += 2) f(y, std::min<int64_t>(2, shard_.row1 - y));
  }

  void pack_weights() {
    const int64_t taps = pass_.kh * pass_.kw;
    for (int64_t b = 0; b < blocks_; ++b) {
      for (int64_t i = 0; i < taps; ++i) {
        const int64_t from = pass_.mirrored ? taps - 1 - i : i;
        store(round_to<T>(load(args_.weights + from * pass_.c + channel(b))), packed_ + (b * taps + i) * kWidth);
      }
    }
  }

  HWY_INLINE void tile(int64_t y, int64_t rows, int64_t x, int width, int64_t block) const {
    const int64_t c = pass_.c, taps = pass_.kh * pass_.kw, c0 = channel(block), stride = pass_.stride;
    const int64_t top = y * stride - pass_.pad_t, left = x * stride - pass_.pad_l;
    const int64_t window_h = (rows - 1) * stride + pass_.kh, window_w = (kWidths[width] - 1) * stride + pass_.kw;
    Tile<T> t;
    const DepthwiseBand& band = args_.band;
    t.src = static_cast<const T*>(args_.src);
    t.src += band.used ? c0 - band.first_channel : shard_.image * pass_.src_h * pass_.src_w * c + c0;
    t.pixel = band.used ? band.channels : c;
    t.row = pass_.src_w * t.pixel;
    t.origin = (top - (band.used ? band.first_row : 0)) * t.row + left * t.pixel;
    t.i0 = std::max<int64_t>(0, -top);
    t.i1 = std::min(window_h, pass_.src_h - top);
    t.j0 = std::max<int64_t>(0, -left);
    t.j1 = std::min(window_w, pass_.src_w - left);
    if constexpr (std::is_same_v<T, float>) {
      t.weights = args_.weights + c0 + (pass_.mirrored ? (taps - 1) * c : 0);
      t.tap = pass_.mirrored ? -c : c;
    } else {
      t.weights = packed_ + block * taps * kWidth;
      t.tap = kWidth;
    }
    t.bias = args_.bias ? args_.bias + c0 : nullptr;
    t.dst_row = pass_.dst_w * c;
    t.dst_pixel = c;
    t.dst = static_cast<T*>(args_.dst) + ((shard_.image * pass_.dst_h + y) * pass_.dst_w + x) * c + c0;
    t.sums = args_.pooled ? sums_ + block * kWidth : nullptr;
    t.act = args_.act;
    t.stream = stream_;
    const bool whole = t.i0 == 0 && t.j0 == 0 && t.i1 == window_h && t.j1 == window_w;
    (whole && rows == 2 && width < 2 ? functions_.inner[width] : functions_.edge[rows - 1][width])(t);
  }

  const DepthwiseConvArgs& args_;
  const DepthwisePass& pass_;
  const DepthwiseShard& shard_;
  TileFunctions<T> functions_;
  RowSplit split_;
  int64_t blocks_;
  float *sums_, *packed_;
  bool stream_ = false;
};

template <class T>
void tile_shard(const DepthwiseConvArgs& args, const DepthwiseShard& shard) {
  if (args.act == plan::Act::silu) {
    TileShard<T, Finish::silu>(args, shard).run();
  } else {
    TileShard<T, Finish::any>(args, shard).run();
  }
}

void conv_depthwise_tiles_target(const DepthwiseConvArgs& args, const DepthwiseShard& shard) {
  if (args.pass->bf16) {
    tile_shard<BFloat16>(args, shard);
  } else {
    tile_shard<float>(args, shard);
  }
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
HWY_EXPORT(conv_depthwise_tiles_target);

void conv_depthwise_tiles(const DepthwiseConvArgs& args, const DepthwiseShard& shard) {
  EFF_DISPATCH(conv_depthwise_tiles_target)(args, shard);
}

}  // namespace effnet::cpu
#endif
