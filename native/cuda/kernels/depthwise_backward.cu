// Both gradients of depthwise convolutions by tiles of src. A thread has a strip of columns of src and two channels:
// what it reads of the staged diff_dst for diff_src are the other factors of its share of the weights' gradient, which
// it keeps in registers over all its tiles.
//
// Rows and columns count from the padding, q = h + pad_t and u = w + pad_l: then dst row (q - ky) / stride sees src row
// q with tap ky, and a tile starts at multiples of the stride, so that taps follow from positions in the tile.
#include "cuda/kernels/depthwise_tile.cuh"

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
          const float g =
              fma(v[i], factor[i], term[i]) * activation_slope<T>(kSilu ? plan::Act::silu : act, norm(y[i], i));
          v[i] = fma(norm.factor[i], g, fma(y[i] - norm.mean[i], slope[i], constant[i]));
        }
        set_pair<T>(raw[j].src, pair, pack_pair<T>(v));
      }
    }
  }
};

// A thread's sums over a tile.
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

template <class T, int K, int S>
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
        scratch(shared.take<float>((staged_bytes() > sums_bytes() ? staged_bytes() : sums_bytes()) / sizeof(float))),
        tile(reinterpret_cast<T*>(scratch)) {}

  EFF_DEVICE void run() {
    load_taps<T, K>(taps, a.weights ? a.weights + c0 : nullptr, t.slab, channels);
    if (a.norm.mean) operands.fill_norm(0, a.norm, c0);
    if (a.behind.dst) fill_behind();
    const int tiles = t.tiles_y * t.tiles_x, first = tile_of_block() * a.block_tiles;
    const int all = static_cast<int>(a.g.n) * tiles;
    if (first >= all) return;
    const int last = first + a.block_tiles < all ? first + a.block_tiles : all;
    for (int i = first; i < last; ++i) {
      Gradients<K> gradients;
      take_tile(i / tiles, i % tiles, gradients);
      if (a.weight_parts) {
        EFF_UNROLL
        for (int ky = 0; ky < K; ++ky) add_up<K>(gradients.weights + ky * K, ky * K, i == first);
      }
      if (a.norm_parts) add_up<2>(gradients.norm, K * K, i == first);
    }
    EFF_SYNC_BLOCK();
    if (a.weight_parts) give_totals(a.weight_parts, 0, K * K);
    if (a.norm_parts) give_totals(a.norm_parts, K * K, 2);
  }

 private:
  EFF_DEVICE size_t staged_bytes() const {
    return static_cast<size_t>(t.staged_rows * t.staged_cols * t.slab) * sizeof(T);
  }
  EFF_DEVICE size_t sums_bytes() const {
    return static_cast<size_t>(t.strips * t.row_groups * t.slab * K) * sizeof(float);
  }

  // Adds what the groups of threads have of N values a channel, in order, to row `row` of the totals and on.
  template <int N>
  EFF_DEVICE void add_up(const float (*values)[2], int row, bool begins) const {
    const int groups = t.strips * t.row_groups, group = static_cast<int>(thread_id()) / (t.slab / 2);
    EFF_SYNC_BLOCK();  // what was staged, or the values before, may still be read
    if (at.works(t)) {
      EFF_UNROLL
      for (int k = 0; k < N; ++k) {
        EFF_UNROLL
        for (int i = 0; i < 2; ++i) scratch[(k * groups + group) * t.slab + at.channel() + i] = values[k][i];
      }
    }
    EFF_SYNC_BLOCK();
    for (int i = static_cast<int>(thread_id()); i < N * t.slab; i += static_cast<int>(block_threads())) {
      const int k = i / t.slab, c = i - k * t.slab;
      float sum = 0.0f;
      for (int g = 0; g < groups; ++g) sum += scratch[(k * groups + g) * t.slab + c];
      float& total = totals[(row + k) * t.slab + c];
      total = begins ? sum : total + sum;
    }
  }
  EFF_DEVICE void give_totals(float* parts, int row, int rows) const {
    float* to = parts + static_cast<int64_t>(tile_of_block()) * rows * channels + c0;
    for (int i = static_cast<int>(thread_id()); i < rows * t.slab; i += static_cast<int>(block_threads()))
      to[i / t.slab * channels + i % t.slab] = totals[row * t.slab + i];
  }

  EFF_DEVICE void fill_behind() const {
    const DepthwiseBehind& b = a.behind;
    operands.fill_norm(kBehindNorm, b.norm, c0);
    for (int i = static_cast<int>(thread_id()); i < t.slab; i += static_cast<int>(block_threads())) {
      const float factor = b.norm.scale[c0 + i] * b.norm.inv_std[c0 + i];
      const bool batch = b.diff_scale != nullptr;
      operands.rows[kSlope * t.slab + i] =
          batch ? b.diff_scale[c0 + i] * (-factor * b.norm.inv_std[c0 + i] * b.inv_rows) : 0.0f;
      operands.rows[kConstant * t.slab + i] = batch ? b.diff_shift[c0 + i] * (-factor * b.inv_rows) : 0.0f;
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
    if (!a.behind.dst) return stage(tile, window, Stored<T>{diff});
    const T* dst = static_cast<const T*>(a.behind.dst) + first;
    if (a.behind.act == plan::Act::silu)
      stage(tile, window, Differentiated<T, true>{diff, dst, operands, a.behind.act});
    else
      stage(tile, window, Differentiated<T, false>{diff, dst, operands, a.behind.act});
  }

  EFF_DEVICE void take_tile(int n, int image_tile, Gradients<K>& gradients) {
    // Both multiples of the stride, and from where on there are pixels of src.
    const int q0 = static_cast<int>(a.g.pad_t) / S * S + image_tile / t.tiles_x * t.rows;
    const int u0 = static_cast<int>(a.g.pad_l) / S * S + image_tile % t.tiles_x * t.cols;
    constexpr int kHalo = (K - 1) / S;
    EFF_SYNC_BLOCK();  // the tile before may still be read
    if (a.behind.dst) {
      fill_image(n);
      EFF_SYNC_BLOCK();
    }
    stage_diff(n, q0 / S - kHalo, u0 / S - kHalo);
    EFF_SYNC_BLOCK();
    if (!at.works(t)) return;
    const int w = u0 + at.col() - static_cast<int>(a.g.pad_l);
    const int cols = t.cols - at.col() < width - w ? t.cols - at.col() : width - w;
    const int64_t image = (static_cast<int64_t>(n) * height * width + w) * channels + c0 + at.channel();
    const int rows = t.rows - at.row() < t.group_rows ? t.rows - at.row() : t.group_rows;
    const int h0 = q0 + at.row() - static_cast<int>(a.g.pad_t);
    const T* diff = tile + ((at.row() / S + kHalo) * t.staged_cols + at.col() / S) * t.slab + at.channel();
    for (int h = h0; h < h0 + rows; h += S, diff += t.staged_cols * t.slab) {
      take_row<0>(diff, h, w < 0, cols, image, gradients);
      if constexpr (S == 2) take_row<1>(diff, h + 1, w < 0, cols, image, gradients);
    }
  }

  template <int kPhase>
  EFF_DEVICE void take_row(const T* diff, int h, bool before, int cols, int64_t image, Gradients<K>& gradients) const {
    if ((S > 1 && h < 0) || h >= height) return;
    const int64_t first = image + static_cast<int64_t>(h * width) * channels;
    PairBits<T> raw[kStrip];
    float x[kStrip][2], diff_src[kStrip][2];
    EFF_UNROLL
    for (int j = 0; j < kStrip; ++j) {
      raw[j] = {};
      if (a.src && inside(j, before, cols))
        raw[j] = load_pair_bits(static_cast<const T*>(a.src) + first + j * channels);
    }
    if (!a.norm.mean) {
      EFF_UNROLL
      for (int j = 0; j < kStrip; ++j) unpack_pair<T>(raw[j], x[j]);
    } else if (a.src_act == plan::Act::silu) {
      activate_strip(plan::Act::silu, raw, before, cols, x);
    } else {
      activate_strip(a.src_act, raw, before, cols, x);
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
      if (!inside(j, before, cols)) continue;
      store_pair(static_cast<T*>(a.diff_src) + first + j * channels, diff_src[j]);
      if (!a.norm_parts) continue;
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

  // Whether a strip has pixel j: there are `cols` from its first one on, which may come before the image's.
  EFF_DEVICE static bool inside(int j, bool before, int cols) { return j < cols && (S == 1 || j > 0 || !before); }

  // `x` as a stored tensor would have it, and 0 where there is no pixel.
  EFF_DEVICE void activate_strip(plan::Act act, const PairBits<T> (&raw)[kStrip], bool before, int cols,
                                 float (&x)[kStrip][2]) const {
    const PairNorm norm(operands, 0, at.channel());
    EFF_UNROLL
    for (int j = 0; j < kStrip; ++j) {
      float v[2];
      unpack_pair<T>(raw[j], v);
      EFF_UNROLL
      for (int i = 0; i < 2; ++i)
        x[j][i] = inside(j, before, cols) ? round_to<T>(activate<T>(act, norm(v[i], i))) : 0.0f;
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
  float *const totals, *const scratch;  // scratch: where the tile was, once it has been read
  T* const tile;
};

template <class T, int K, int S>
EFF_DEVICE void depthwise_bwd(const DepthwiseBwdTilesArgs& a) {
  Shared shared;
  Backward<T, K, S>(a, shared).run();
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

}  // namespace effnet::cuda
