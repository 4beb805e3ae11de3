// Both gradients of depthwise convolutions by tiles of src. A thread has a strip of columns of src and two channels:
// what it reads of the staged diff_dst for diff_src are the other factors of its share of the weights' gradient, which
// it keeps in registers over all tiles of its block.
//
// Rows and columns count from the padding, q = h + pad_t and u = w + pad_l: then dst row (q - ky) / stride sees src row
// q with tap ky, and a tile starts at multiples of the stride, so that taps follow from positions in the tile.
#include "cuda/kernels/bn_gradient.cuh"
#include "cuda/kernels/depthwise_tile.cuh"
#include "cuda/kernels/merge.cuh"

namespace effnet::cuda {
namespace {

constexpr int kStrip = kDepthwiseStrip;

// Rows of operands: bn(src)'s, then those of what diff_dst is made of, the last two of an image.
enum BehindRow {
  kBehindNorm = kDepthwiseNormRows,
  kSlope = kBehindNorm + kDepthwiseNormRows,
  kConstant,
  kFactor,
  kTerm
};
static_assert(kTerm + 1 == kDepthwiseOperandRows);

// diff_dst from the gradient `diff` of what follows act(bn(dst)):
// bn's factor * (diff * factor + term) * act'(bn(dst)) + (dst - mean) * slope + constant.
template <class T, bool kSilu>
struct Differentiated {
  struct Raw {
    Bits128 src, dst;
  };
  static constexpr bool kKeepsZero = false;
  const T *diff, *dst;
  Operands operands;
  plan::Act act;

  EFF_DEVICE Raw fetch(int at) const {
    return {load_bits(reinterpret_cast<const Bits128*>(diff + at)),
            load_bits(reinterpret_cast<const Bits128*>(dst + at))};
  }
  template <int N>
  EFF_DEVICE void change(Raw (&raw)[N], int lane) const {
    EFF_UNROLL
    for (int pair = 0; pair < kVec<T> / 2; ++pair) {
      const float* rows = operands.rows + lane + 2 * pair;
      const PairNorm norm(operands, kBehindNorm, lane + 2 * pair);
      float slope[2], constant[2], factor[2], term[2];
      load_pair(rows + kSlope * operands.slab, slope);
      load_pair(rows + kConstant * operands.slab, constant);
      load_pair(rows + kFactor * operands.slab, factor);
      load_pair(rows + kTerm * operands.slab, term);
      EFF_UNROLL
      for (int j = 0; j < N; ++j) {
        float v[2], y[2];
        unpack_pair<T>(pair_of<T>(raw[j].src, pair), v);
        unpack_pair<T>(pair_of<T>(raw[j].dst, pair), y);
        EFF_UNROLL
        for (int i = 0; i < 2; ++i) {
          float g = fma(v[i], factor[i], term[i]);
          if constexpr (kSilu && halves<T>(plan::Act::silu)) {
            const float h = norm(y[i], i);  // half of bn's factor makes up for what the slope is doubled
            g = fma(g, slope_of_half(h, tanh_fast(h)), g);
          } else {
            g *= activation_slope<T>(kSilu ? plan::Act::silu : act, norm(y[i], i));
          }
          v[i] = fma(norm.factor[i], g, fma(y[i] - norm.mean[i], slope[i], constant[i]));
        }
        set_pair<T>(raw[j].src, pair, pack_pair<T>(v));
      }
    }
  }
};

// A thread's sums.
template <int K>
struct Gradients {
  float weights[K * K][2] = {};
  float norm[2][2] = {};  // of diff_src * (src - mean), diff_src
};

// A row of src, `kPhase` behind a multiple of the stride: `diff` is the strip's first staged vector of the dst row that
// tap kPhase sees it from, rows before it are what later taps see it from.
template <class T, int K, int S, int kPhase>
EFF_DEVICE void add_row(const T* diff, int row_pitch, int pixel_pitch, const float* taps, const float (&x)[kStrip][2],
                        float (&diff_src)[kStrip][2], Gradients<K>& gradients) {
  constexpr int kHalo = (K - 1) / S, kCols = kHalo + kStrip / S;
  EFF_UNROLL
  for (int ky = kPhase; ky < K; ky += S) {
    float d[kCols][2];
    EFF_UNROLL
    for (int i = 0; i < kCols; ++i) load_pair(diff + i * pixel_pitch, d[i]);
    diff -= row_pitch;
    EFF_UNROLL
    for (int kx = 0; kx < K; ++kx) {
      float tap[2];
      load_pair(taps + (ky * K + kx) * 2, tap);
      EFF_UNROLL
      for (int j = kx % S; j < kStrip; j += S) {
        EFF_UNROLL
        for (int i = 0; i < 2; ++i) {
          const float v = d[kHalo + (j - kx) / S][i];
          diff_src[j][i] = fma(v, tap[i], diff_src[j][i]);
          gradients.weights[ky * K + kx][i] = fma(v, x[j][i], gradients.weights[ky * K + kx][i]);
        }
      }
    }
  }
}

// kWhole: everything is made, and both normalisations have SiLU behind them (ops/depthwise.cc, makes_whole).
template <class T, int K, int S, bool kWhole>
class Backward {
 public:
  EFF_DEVICE Backward(const DepthwiseBwdTilesArgs& args, Shared& shared)
      : a(args),
        t(args.t),
        at(args.t),
        height(static_cast<int>(args.g.h)),
        width(static_cast<int>(args.g.w)),
        channels(static_cast<int>(args.g.c)),
        c0(static_cast<int>(block_x()) * args.t.slab),
        taps(shared.take<float>(static_cast<size_t>(K * K * t.slab))),
        operands{shared.take<float>(static_cast<size_t>(kDepthwiseOperandRows * t.slab)), t.slab},
        totals(shared.take<float>(static_cast<size_t>((K * K + 2) * t.slab))),
        scratch(shared.take<float>(scratch_bytes() / sizeof(float))),
        tile(reinterpret_cast<T*>(scratch)) {}

  EFF_DEVICE void run() {
    // Half the taps make up for what the slope is doubled.
    constexpr float kShare = kWhole ? 0.5f : 1.0f;
    load_taps<T, K>(taps, a.weights ? a.weights + c0 : nullptr, t.slab, channels, kShare);
    if (a.norm.mean) operands.fill_norm(0, a.norm, c0, kShare);
    if (a.behind.dst) fill_behind();
    const int tiles = t.tiles_y * t.tiles_x, first = tile_of_block() * a.block_tiles;
    const int all = static_cast<int>(a.g.n) * tiles;
    if (first >= all) return;
    const int last = first + a.block_tiles < all ? first + a.block_tiles : all;
    Gradients<K> gradients;
    for (int i = first; i < last; ++i) {
      const int n = i / tiles;
      stage_tile(n, i - n * tiles);
      if constexpr (!kKeeps) gradients = {};
      if (at.works(t)) take_tile(n, i - n * tiles, gradients);
      if constexpr (!kKeeps) add_up_all(gradients, i == first);
    }
    if constexpr (kKeeps) add_up_all(gradients, true);
    EFF_SYNC_BLOCK();
    if (a.weight_parts) give_totals(a.weight_parts, 0, K * K);
    if (!a.sums.tiles) return;
    give_totals(a.sums.tiles, K * K, 2);
    merge_tiles(scratch, a.sums.tree, SumsMerge({a.sums}), block_x(), static_cast<uint32_t>(tile_of_block()), c0,
                c0 + t.slab, channels);
  }

 private:
  static constexpr int kHalo = (K - 1) / S;
  // Whether there are registers for sums that outlast a tile.
  static constexpr bool kKeeps = kWhole && K == 3;

  EFF_DEVICE size_t staged_bytes() const {
    return static_cast<size_t>(t.staged_rows * t.staged_cols * t.slab) * sizeof(T);
  }
  EFF_DEVICE size_t sums_bytes() const {
    return static_cast<size_t>(t.strips * t.row_groups * t.slab * K) * sizeof(float);
  }
  EFF_DEVICE size_t scratch_bytes() const {
    const size_t bytes = staged_bytes() > sums_bytes() ? staged_bytes() : sums_bytes();
    return bytes > merge_bytes() ? bytes : merge_bytes();
  }

  EFF_DEVICE void add_up_all(const Gradients<K>& gradients, bool begins) const {
    if (a.weight_parts) {
      EFF_UNROLL
      for (int ky = 0; ky < K; ++ky) add_up<K>(gradients.weights + ky * K, ky * K, begins);
    }
    if (a.sums.tiles) add_up<2>(gradients.norm, K * K, begins);
  }
  // Adds what the groups of threads have of N values a channel, in order, to row `row` of the totals and on.
  template <int N>
  EFF_DEVICE void add_up(const float (*values)[2], int row, bool begins) const {
    const int groups = t.strips * t.row_groups, group = static_cast<int>(thread_id()) / (t.slab / 2);
    EFF_SYNC_BLOCK();  // what was staged, or the values before, may still be read
    if (at.works(t)) {
      EFF_UNROLL
      for (int k = 0; k < N; ++k) {
        float pair[2] = {values[k][0], values[k][1]};
        store_pair(scratch + (k * groups + group) * t.slab + at.channel(), pair);
      }
    }
    EFF_SYNC_BLOCK();
    if (!at.works(t)) return;
    EFF_UNROLL_BY(1)
    for (int k = group; k < N; k += groups) {
      float sum[2] = {0.0f, 0.0f}, v[2];
      EFF_UNROLL_BY(2)
      for (int g = 0; g < groups; ++g) {
        load_pair(scratch + (k * groups + g) * t.slab + at.channel(), v);
        sum[0] += v[0];
        sum[1] += v[1];
      }
      float* total = totals + (row + k) * t.slab + at.channel();
      load_pair(total, v);
      EFF_UNROLL
      for (int i = 0; i < 2; ++i) sum[i] = begins ? sum[i] : v[i] + sum[i];
      store_pair(total, sum);
    }
  }
  EFF_DEVICE void give_totals(float* parts, int row, int rows) const {
    float* to = parts + static_cast<int64_t>(tile_of_block()) * rows * channels + c0;
    for (int i = static_cast<int>(thread_id()); i < rows * t.slab; i += static_cast<int>(block_threads()))
      to[i / t.slab * channels + i % t.slab] = totals[row * t.slab + i];
  }

  EFF_DEVICE void fill_behind() const {
    const DepthwiseBehind& b = a.behind;
    operands.fill_norm(kBehindNorm, b.norm, c0, halves<T>(b.act) ? 0.5f : 1.0f);
    for (int i = static_cast<int>(thread_id()); i < t.slab; i += static_cast<int>(block_threads())) {
      const float factor = b.norm.scale[c0 + i] * b.norm.inv_std[c0 + i];
      BnGradient of;
      if (b.diff_scale) of = {factor, b.norm.inv_std[c0 + i], b.diff_scale[c0 + i], b.diff_shift[c0 + i], b.inv_rows};
      operands.rows[kSlope * t.slab + i] = of.slope;
      operands.rows[kConstant * t.slab + i] = of.constant;
    }
  }
  EFF_DEVICE void fill_image(int n) const {
    const DepthwiseBehind& b = a.behind;
    for (int i = static_cast<int>(thread_id()); i < t.slab; i += static_cast<int>(block_threads())) {
      const int64_t at = n * a.g.c + c0 + i;
      operands.rows[kFactor * t.slab + i] = b.gate ? b.gate[at] : 1.0f;
      operands.rows[kTerm * t.slab + i] = b.diff_pooled ? b.diff_pooled[at] * b.inv_pixels : 0.0f;
    }
  }

  // What tap 0 of a tile's first rows and columns sees of diff_dst comes first.
  EFF_DEVICE void stage_diff(int n, int h, int w) const {
    const Window window{
        h, w, t.staged_rows, t.staged_cols, static_cast<int>(a.g.oh), static_cast<int>(a.g.ow), channels, t.slab};
    const int64_t first = static_cast<int64_t>(n) * window.image_rows * window.image_cols * channels + c0 +
                          static_cast<int>(thread_id()) % (t.slab / kVec<T>)*kVec<T>;
    const T* diff = static_cast<const T*>(a.diff_dst) + first;
    if (!kWhole && !a.behind.dst) return stage(tile, window, Stored<T>{diff});
    const T* dst = static_cast<const T*>(a.behind.dst) + first;
    if (kWhole || a.behind.act == plan::Act::silu)
      stage(tile, window, Differentiated<T, true>{diff, dst, operands, a.behind.act});
    else
      stage(tile, window, Differentiated<T, false>{diff, dst, operands, a.behind.act});
  }

  // Of a tile, both multiples of the stride, and from where on there are pixels of src.
  EFF_DEVICE int first_row(int image_tile) const {
    return static_cast<int>(a.g.pad_t) / S * S + image_tile / t.tiles_x * t.rows;
  }
  EFF_DEVICE int first_col(int image_tile) const {
    return static_cast<int>(a.g.pad_l) / S * S + image_tile % t.tiles_x * t.cols;
  }

  EFF_DEVICE void stage_tile(int n, int image_tile) const {
    EFF_SYNC_BLOCK();  // the tile before may still be read
    if (a.behind.dst) {
      fill_image(n);
      EFF_SYNC_BLOCK();
    }
    stage_diff(n, first_row(image_tile) / S - kHalo, first_col(image_tile) / S - kHalo);
    EFF_SYNC_BLOCK();
  }

  EFF_DEVICE void take_tile(int n, int image_tile, Gradients<K>& gradients) const {
    const int w = first_col(image_tile) + at.col() - static_cast<int>(a.g.pad_l);
    const int cols = t.cols - at.col() < width - w ? t.cols - at.col() : width - w;
    const int64_t image = (static_cast<int64_t>(n) * height * width + w) * channels + c0 + at.channel();
    const uint32_t there = pixels_of(cols, w < 0);
    const int rows = t.rows - at.row() < t.group_rows ? t.rows - at.row() : t.group_rows;
    const int h0 = first_row(image_tile) + at.row() - static_cast<int>(a.g.pad_t);
    const T* diff = tile + ((at.row() / S + kHalo) * t.staged_cols + at.col() / S) * t.slab + at.channel();
    for (int h = h0; h < h0 + rows; h += S, diff += t.staged_cols * t.slab) {
      if constexpr (kWhole) {
        take_whole_row<0>(diff, h, there, image, gradients);
        if constexpr (S == 2) take_whole_row<1>(diff, h + 1, there, image, gradients);
      } else {
        take_row<0>(diff, h, there, image, gradients);
        if constexpr (S == 2) take_row<1>(diff, h + 1, there, image, gradients);
      }
    }
  }

  template <int kPhase>
  EFF_DEVICE void take_whole_row(const T* diff, int h, uint32_t there, int64_t image, Gradients<K>& gradients) const {
    // Most make the slopes again behind the sums: 8 registers less while the window is added up.
    constexpr bool kKeepsSlopes = K == 3 && S == 2;
    if ((S > 1 && h < 0) || h >= height) return;
    const int64_t first = image + static_cast<int64_t>(h * width) * channels;
    const T* src = static_cast<const T*>(a.src) + first;
    T* to = static_cast<T*>(a.diff_src) + first;
    PairBits<T> raw[kStrip] = {};
    EFF_UNROLL
    for (int j = 0; j < kStrip; ++j)
      if (inside(j, there)) raw[j] = load_pair_bits(src + j * channels);
    float x[kStrip][2], slopes[kKeepsSlopes ? kStrip : 1][2], diff_src[kStrip][2] = {};
    const PairNorm norm(operands, 0, at.channel());  // half of it
    EFF_UNROLL
    for (int j = 0; j < kStrip; ++j) {
      float v[2];
      unpack_pair<T>(raw[j], v);
      EFF_UNROLL
      for (int i = 0; i < 2; ++i) {
        const float half = norm(v[i], i), tanh = tanh_fast(half);
        if constexpr (kKeepsSlopes) slopes[j][i] = slope_of_half(half, tanh);
        v[i] = fma(half, tanh, half);
      }
      unpack_pair<T>(pack_pair<T>(v), x[j]);
      EFF_UNROLL
      for (int i = 0; i < 2; ++i)
        if (!inside(j, there)) x[j][i] = 0.0f;
    }
    add_row<T, K, S, kPhase>(diff, t.staged_cols * t.slab, t.slab, taps + 2 * K * K * at.pair(), x, diff_src,
                             gradients);
    EFF_UNROLL
    for (int j = 0; j < kStrip; ++j) {
      float v[2];
      unpack_pair<T>(raw[j], v);
      EFF_UNROLL
      for (int i = 0; i < 2; ++i) {
        float slope;
        if constexpr (kKeepsSlopes) {
          slope = slopes[j][i];
        } else {
          const float half = norm(v[i], i);
          slope = slope_of_half(half, tanh_fast(half));
        }
        diff_src[j][i] = fma(diff_src[j][i], slope, diff_src[j][i]);
      }
      const PairBits<T> bits = pack_pair<T>(diff_src[j]);
      unpack_pair<T>(bits, diff_src[j]);
      if (inside(j, there)) *reinterpret_cast<PairBits<T>*>(to + j * channels) = bits;
      EFF_UNROLL
      for (int i = 0; i < 2; ++i) {
        if (inside(j, there)) gradients.norm[0][i] = fma(diff_src[j][i], v[i] - norm.mean[i], gradients.norm[0][i]);
        if (inside(j, there)) gradients.norm[1][i] += diff_src[j][i];
      }
    }
  }

  template <int kPhase>
  EFF_DEVICE void take_row(const T* diff, int h, uint32_t there, int64_t image, Gradients<K>& gradients) const {
    if ((S > 1 && h < 0) || h >= height) return;
    const int64_t first = image + static_cast<int64_t>(h * width) * channels;
    PairBits<T> raw[kStrip];
    float x[kStrip][2], diff_src[kStrip][2];
    EFF_UNROLL
    for (int j = 0; j < kStrip; ++j) {
      raw[j] = {};
      if (a.src && inside(j, there)) raw[j] = load_pair_bits(static_cast<const T*>(a.src) + first + j * channels);
    }
    if (!a.norm.mean) {
      EFF_UNROLL
      for (int j = 0; j < kStrip; ++j) unpack_pair<T>(raw[j], x[j]);
    } else if (a.src_act == plan::Act::silu) {
      activate_strip(plan::Act::silu, raw, there, x);
    } else {
      activate_strip(a.src_act, raw, there, x);
    }
    EFF_UNROLL
    for (int j = 0; j < kStrip; ++j) diff_src[j][0] = diff_src[j][1] = 0.0f;
    add_row<T, K, S, kPhase>(diff, t.staged_cols * t.slab, t.slab, taps + 2 * K * K * at.pair(), x, diff_src,
                             gradients);
    if (!a.diff_src) return;
    if (a.norm.mean && a.src_act == plan::Act::silu)
      through_activation(plan::Act::silu, raw, diff_src);
    else if (a.norm.mean)
      through_activation(a.src_act, raw, diff_src);
    EFF_UNROLL
    for (int j = 0; j < kStrip; ++j) {
      if (!inside(j, there)) continue;
      store_pair(static_cast<T*>(a.diff_src) + first + j * channels, diff_src[j]);
      if (!a.sums.tiles) continue;
      float mean[2], v[2];
      load_pair(operands.rows + at.channel(), mean);
      unpack_pair<T>(raw[j], v);
      EFF_UNROLL
      for (int i = 0; i < 2; ++i) {
        gradients.norm[0][i] = fma(diff_src[j][i], v[i] - mean[i], gradients.norm[0][i]);
        gradients.norm[1][i] += diff_src[j][i];
      }
    }
  }

  // Which pixels a strip has, a bit each: there are `cols` from its first one on, which may come before the image's.
  EFF_DEVICE static uint32_t pixels_of(int cols, bool before) {
    const uint32_t all = (1u << (cols < 0 ? 0 : cols < kStrip ? cols : kStrip)) - 1;
    return S > 1 && before ? all & ~1u : all;
  }
  EFF_DEVICE static bool inside(int j, uint32_t there) { return (there & 1u << j) != 0; }

  // `x` as a stored tensor would have it, and 0 where there is no pixel.
  EFF_DEVICE void activate_strip(plan::Act act, const PairBits<T> (&raw)[kStrip], uint32_t there,
                                 float (&x)[kStrip][2]) const {
    const PairNorm norm(operands, 0, at.channel());
    EFF_UNROLL
    for (int j = 0; j < kStrip; ++j) {
      float v[2];
      unpack_pair<T>(raw[j], v);
      EFF_UNROLL
      for (int i = 0; i < 2; ++i) x[j][i] = inside(j, there) ? round_to<T>(activate<T>(act, norm(v[i], i))) : 0.0f;
    }
  }

  // The slopes are made here and not with the values: 8 registers less while the window is added up.
  EFF_DEVICE void through_activation(plan::Act act, const PairBits<T> (&raw)[kStrip],
                                     float (&diff_src)[kStrip][2]) const {
    const PairNorm norm(operands, 0, at.channel());
    EFF_UNROLL
    for (int j = 0; j < kStrip; ++j) {
      float v[2];
      unpack_pair<T>(raw[j], v);
      EFF_UNROLL
      for (int i = 0; i < 2; ++i) diff_src[j][i] *= activation_slope<T>(act, norm(v[i], i));
    }
  }

  const DepthwiseBwdTilesArgs& a;
  const DepthwiseTiling& t;
  const TileThread at;
  const int height, width, channels, c0;
  float* const taps;
  const Operands operands;
  float *const totals, *const scratch;  // scratch: where the tile was, once it has been read; and for the merge
  T* const tile;
};

template <class T, int K, int S, bool kWhole = false>
EFF_DEVICE void depthwise_bwd(const DepthwiseBwdTilesArgs& a) {
  Shared shared;
  Backward<T, K, S, kWhole>(a, shared).run();
}

}  // namespace

template <class T>
EFF_DEVICE void depthwise_bwd_k3s1(const DepthwiseBwdTilesArgs& a) {
  depthwise_bwd<T, 3, 1>(a);
}
template <class T>
EFF_DEVICE void depthwise_bwd_k3s2(const DepthwiseBwdTilesArgs& a) {
  depthwise_bwd<T, 3, 2>(a);
}
template <class T>
EFF_DEVICE void depthwise_bwd_k5s1(const DepthwiseBwdTilesArgs& a) {
  depthwise_bwd<T, 5, 1>(a);
}
template <class T>
EFF_DEVICE void depthwise_bwd_k5s2(const DepthwiseBwdTilesArgs& a) {
  depthwise_bwd<T, 5, 2>(a);
}

EFF_KERNEL_OF_TYPES(depthwise_bwd_k3s1, DepthwiseBwdTilesArgs, kDepthwiseK3Threads)
EFF_KERNEL_OF_TYPES(depthwise_bwd_k3s2, DepthwiseBwdTilesArgs, kDepthwiseK3Threads)
EFF_KERNEL_OF_TYPES(depthwise_bwd_k5s1, DepthwiseBwdTilesArgs, kDepthwiseK5Threads)
EFF_KERNEL_OF_TYPES(depthwise_bwd_k5s2, DepthwiseBwdTilesArgs, kDepthwiseK5Threads)

// Windows of 5 with stride 2 would need more registers than there are.
#define EFF_WHOLE(name, T, K, S, threads) \
  EFF_KERNEL(name, DepthwiseBwdTilesArgs, threads) { depthwise_bwd<T, K, S, true>(a); }
EFF_WHOLE(depthwise_bwd_whole_k3s1_bf16, Bf16, 3, 1, kDepthwiseK3Threads)
EFF_WHOLE(depthwise_bwd_whole_k3s1_f16, F16, 3, 1, kDepthwiseK3Threads)
EFF_WHOLE(depthwise_bwd_whole_k3s2_bf16, Bf16, 3, 2, kDepthwiseK3Threads)
EFF_WHOLE(depthwise_bwd_whole_k3s2_f16, F16, 3, 2, kDepthwiseK3Threads)
EFF_WHOLE(depthwise_bwd_whole_k5s1_bf16, Bf16, 5, 1, kDepthwiseK5Threads)
EFF_WHOLE(depthwise_bwd_whole_k5s1_f16, F16, 5, 1, kDepthwiseK5Threads)

}  // namespace effnet::cuda
