// Depthwise convolutions by tiles. A thread has a strip of columns and two channels and goes down the rows: each staged
// row is read once and added to the K rows of sums it belongs to, which rotate through registers.
#include "cuda/kernels/depthwise_tile.cuh"
#include "cuda/kernels/merge.cuh"

namespace effnet::cuda {
namespace {

constexpr int kStrip = kDepthwiseStrip;

EFF_DEVICE int modulo(int a, int b) { return (a % b + b) % b; }

// What a thread makes of the results it has stored.
struct Passing {
  float first[2], sum[2], squares[2];  // of deviations from the first value: a large mean costs no digits
};

// Rows of taps that stay in registers; 5x5 would not fit beside the sums, so its others are read again for each row.
template <int K, int S>
constexpr int kTapRows = K == 3 || S == 2 ? 3 : 1;

// Rows are added in order; what is done with a finished one is `finish(row, sums)`.
template <class T, int K, int S, class Finish>
EFF_DEVICE void slide(const T* window, int row_pitch, int pixel_pitch, const float* taps, int rows, Finish& finish) {
  constexpr int kSlots = (K + S - 1) / S, kCols = (kStrip - 1) * S + K;
  const int source_rows = (rows - 1) * S + K;
  float kept[kTapRows<K, S> * K][2];
  EFF_UNROLL
  for (int tap = 0; tap < kTapRows<K, S> * K; ++tap) load_pair(taps + 2 * tap, kept[tap]);
  float sums[kSlots][kStrip][2];
  for (int top = 0;; top += kSlots) {
    EFF_UNROLL
    for (int phase = 0; phase < kSlots * S; ++phase) {
      if (top * S + phase >= source_rows) return;
      float v[kCols][2];
      EFF_UNROLL
      for (int x = 0; x < kCols; ++x) load_pair(window + x * pixel_pitch, v[x]);
      window += row_pitch;
      EFF_UNROLL
      for (int ky = 0; ky < K; ++ky) {
        if (modulo(phase - ky, S) != 0) continue;
        const int slot = modulo((phase - ky + kSlots * S) / S, kSlots);
        const int row = top + (phase - ky + kSlots * S) / S - kSlots;
        if (static_cast<unsigned>(row) >= static_cast<unsigned>(rows)) continue;
        EFF_UNROLL
        for (int kx = 0; kx < K; ++kx) {
          float tap[2];
          if (ky < kTapRows<K, S>) {
            tap[0] = kept[ky * K + kx][0];
            tap[1] = kept[ky * K + kx][1];
          } else {
            load_pair(taps + (ky * K + kx) * 2, tap);
          }
          EFF_UNROLL
          for (int x = 0; x < kStrip; ++x) {
            EFF_UNROLL
            for (int i = 0; i < 2; ++i)
              sums[slot][x][i] = ky + kx == 0 ? v[x * S][i] * tap[i] : fma(v[x * S + kx][i], tap[i], sums[slot][x][i]);
          }
        }
        if (ky == K - 1) finish(row, sums[slot]);
      }
    }
  }
}

// What becomes of a row's sums besides being stored, known when this is compiled where it is one of the two that most
// bytes go through.
enum class Behind { stats, bias_silu, any };

// A thread's rows and what it stores and passes on of them.
template <class T, Behind kBehind>
struct Rows {
  const DepthwiseTilesArgs& a;
  T* dst;  // of the next row
  const float* bias;
  int cols, channels;
  Passing& passing;

  EFF_DEVICE plan::Act act() const { return kBehind == Behind::bias_silu ? plan::Act::silu : a.act; }
  EFF_DEVICE void operator()(int row, const float (&sums)[kStrip][2]) {
    float added[2] = {0.0f, 0.0f};
    if (kBehind == Behind::bias_silu || (kBehind == Behind::any && bias)) load_pair(bias, added);
    EFF_UNROLL
    for (int x = 0; x < kStrip; ++x) {
      float v[2] = {sums[x][0], sums[x][1]};
      EFF_UNROLL
      for (int i = 0; i < 2; ++i) {
        if (kBehind == Behind::stats) continue;
        v[i] = activate<T>(act(), v[i] + added[i]);
      }
      const PairBits<T> bits = pack_pair<T>(v);
      if (x < cols) *reinterpret_cast<PairBits<T>*>(dst + x * channels) = bits;
      unpack_pair<T>(bits, v);
      EFF_UNROLL
      for (int i = 0; i < 2; ++i) {
        if (kBehind == Behind::stats || (kBehind == Behind::any && a.stats.tiles)) {
          if (x == 0 && row == 0) passing.first[i] = v[i];
          const float d = v[i] - passing.first[i];
          if (x < cols) passing.sum[i] += d;
          if (x < cols) passing.squares[i] = fma(d, d, passing.squares[i]);
        } else if (x < cols) {
          passing.sum[i] += v[i];
        }
      }
    }
    dst += a.g.ow * channels;
  }
};

// How many results of a tile each group of threads has: one strip of some rows.
struct GroupCounts {
  const DepthwiseTiling& t;
  int rows, cols;  // of the tile

  EFF_DEVICE int of(int group) const {
    const int row = group / t.strips * t.group_rows, col = group % t.strips * kStrip;
    const int r = rows - row < t.group_rows ? rows - row : t.group_rows, c = cols - col < kStrip ? cols - col : kStrip;
    return r > 0 && c > 0 ? r * c : 0;
  }
};

// Means and squared deviations from them of `count` groups into those of the tile, in order.
EFF_DEVICE void merge_stats(const float* groups, int count, const GroupCounts& counts, int slab, int c, float& mean,
                            float& squares) {
  // From the first group's mean, so that equal means stay what they are.
  const float first = groups[c * 2];
  float sum = 0.0f, total = 0.0f;
  for (int g = 0; g < count; ++g) {
    const float n = static_cast<float>(counts.of(g));
    if (n > 0) sum = fma(n, groups[(g * slab + c) * 2] - first, sum);
    total += n;
  }
  mean = first + sum / total;
  squares = 0.0f;
  for (int g = 0; g < count; ++g) {
    const float n = static_cast<float>(counts.of(g));
    if (n <= 0) continue;
    const float d = groups[(g * slab + c) * 2] - mean;
    squares += fma(n * d, d, groups[(g * slab + c) * 2 + 1]);
  }
}

template <class T, int K, int S>
EFF_DEVICE void depthwise_tiles(const DepthwiseTilesArgs& a) {
  const DepthwiseTiling& t = a.t;
  const int height = static_cast<int>(a.g.h), width = static_cast<int>(a.g.w), channels = static_cast<int>(a.g.c);
  const int oh = static_cast<int>(a.g.oh), ow = static_cast<int>(a.g.ow);
  const int groups = t.strips * t.row_groups;
  Shared shared;
  const size_t staged = static_cast<size_t>(t.staged_rows * t.staged_cols * t.slab) * sizeof(T);
  const bool stats = a.stats.tiles != nullptr, passes = stats || a.pool;
  // Where the window was is what the merge needs.
  char* window_or_merge = shared.take<char>(passes && staged < merge_bytes() ? merge_bytes() : staged);
  T* tile = reinterpret_cast<T*>(window_or_merge);
  float* taps = shared.take<float>(static_cast<size_t>(K * K * t.slab));
  const Operands operands{a.norm.mean ? shared.take<float>(static_cast<size_t>(kDepthwiseNormRows * t.slab)) : nullptr,
                          t.slab};
  float* passed = passes ? shared.take<float>(static_cast<size_t>(groups * t.slab * 2)) : nullptr;

  const int tiles = t.tiles_y * t.tiles_x, c0 = static_cast<int>(block_x()) * t.slab, index = tile_of_block();
  const int n = index / tiles, image_tile = index - n * tiles;
  if (n >= a.g.n) return;
  const int y0 = image_tile / t.tiles_x * t.rows, x0 = image_tile % t.tiles_x * t.cols;
  const int rows = oh - y0 < t.rows ? oh - y0 : t.rows, cols = ow - x0 < t.cols ? ow - x0 : t.cols;

  load_taps<T, K>(taps, a.weights + c0, t.slab, channels);
  const Window window{y0 * S - static_cast<int>(a.g.pad_t),
                      x0 * S - static_cast<int>(a.g.pad_l),
                      t.staged_rows,
                      t.staged_cols,
                      height,
                      width,
                      channels,
                      t.slab};
  const T* src = static_cast<const T*>(a.src) + static_cast<int64_t>(n) * height * width * channels + c0 +
                 static_cast<int>(thread_id()) % (t.slab / kVec<T>)*kVec<T>;
  if (!a.norm.mean) {
    stage(tile, window, Stored<T>{src});
  } else {
    operands.fill_norm(0, a.norm, c0, halves<T>(a.src_act) ? 0.5f : 1.0f);
    EFF_SYNC_BLOCK();
    if (a.src_act == plan::Act::silu)
      stage(tile, window, Activated<T, true>{{src}, operands, a.src_act});
    else
      stage(tile, window, Activated<T, false>{{src}, operands, a.src_act});
  }
  EFF_SYNC_BLOCK();

  const TileThread at(t);
  const int c = c0 + at.channel(), col0 = at.col();
  const int my_rows = rows - at.row() < t.group_rows ? rows - at.row() : t.group_rows;
  Passing passing{};
  if (at.works(t) && my_rows > 0 && col0 < cols) {
    T* dst = static_cast<T*>(a.dst) + ((static_cast<int64_t>(n) * oh + y0 + at.row()) * ow + x0 + col0) * channels + c;
    const T* from = tile + (at.row() * S * t.staged_cols + col0 * S) * t.slab + at.channel();
    const float* bias = a.bias ? a.bias + c : nullptr;
    const auto rows_behind = [&](auto behind) {
      slide<T, K, S>(from, t.staged_cols * t.slab, t.slab, taps + 2 * K * K * at.pair(), my_rows, behind);
    };
    if (stats && !a.bias && a.act == plan::Act::identity)
      rows_behind(Rows<T, Behind::stats>{a, dst, bias, cols - col0, channels, passing});
    else if (a.bias && a.act == plan::Act::silu && !stats)
      rows_behind(Rows<T, Behind::bias_silu>{a, dst, bias, cols - col0, channels, passing});
    else
      rows_behind(Rows<T, Behind::any>{a, dst, bias, cols - col0, channels, passing});
  }
  if (!passed) return;

  const GroupCounts counts{t, rows, cols};
  if (at.works(t)) {
    const int group = static_cast<int>(thread_id()) / (t.slab / 2);
    const float count = static_cast<float>(counts.of(group));
    EFF_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float shift = stats && count > 0 ? passing.sum[i] / count : 0.0f;
      float* to = passed + (group * t.slab + at.channel() + i) * 2;
      to[0] = stats ? passing.first[i] + shift : passing.sum[i];
      to[1] = max_of(0.0f, passing.squares[i] - shift * passing.sum[i]);
    }
  }
  EFF_SYNC_BLOCK();
  for (int i = static_cast<int>(thread_id()); i < t.slab; i += static_cast<int>(block_threads())) {
    if (stats) {
      float mean, squares;
      merge_stats(passed, groups, counts, t.slab, i, mean, squares);
      float* to = a.stats.tiles + static_cast<int64_t>(index) * 2 * channels + c0 + i;
      to[0] = mean;
      to[channels] = squares;
    } else {
      float sum = 0.0f;
      for (int g = 0; g < groups; ++g) sum += passed[(g * t.slab + i) * 2];
      a.pool[(image_tile * a.g.n + n) * channels + c0 + i] = sum * a.pool_factor;
    }
  }
  if (stats)
    merge_tiles(window_or_merge, a.stats.tree, StatsMerge<false>{a.stats}, block_x(), static_cast<uint32_t>(index), c0,
                c0 + t.slab, channels);
}

}  // namespace

template <class T>
EFF_DEVICE void depthwise_k3s1(const DepthwiseTilesArgs& a) {
  depthwise_tiles<T, 3, 1>(a);
}
template <class T>
EFF_DEVICE void depthwise_k3s2(const DepthwiseTilesArgs& a) {
  depthwise_tiles<T, 3, 2>(a);
}
template <class T>
EFF_DEVICE void depthwise_k5s1(const DepthwiseTilesArgs& a) {
  depthwise_tiles<T, 5, 1>(a);
}
template <class T>
EFF_DEVICE void depthwise_k5s2(const DepthwiseTilesArgs& a) {
  depthwise_tiles<T, 5, 2>(a);
}

EFF_KERNEL_OF_TYPES(depthwise_k3s1, DepthwiseTilesArgs, kDepthwiseK3Threads)
EFF_KERNEL_OF_TYPES(depthwise_k3s2, DepthwiseTilesArgs, kDepthwiseK3Threads)
EFF_KERNEL_OF_TYPES(depthwise_k5s1, DepthwiseTilesArgs, kDepthwiseK5Threads)
EFF_KERNEL_OF_TYPES(depthwise_k5s2, DepthwiseTilesArgs, kDepthwiseK5Threads)

}  // namespace effnet::cuda
