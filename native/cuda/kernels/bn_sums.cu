// Reductions of batch normalisation, forward and backward: FP32 within a thread and a tile of rows, double between
// tiles.
#include "cuda/kernels/bn_terms.cuh"
#include "cuda/kernels/merge.cuh"

namespace effnet::cuda {

// Merges what the blocks of a walk have left.
template <int V, class Merge>
EFF_DEVICE void merge_walk(float* scratch, const Walk& w, const MergeTree& tree, const Merge& merge) {
  static_assert(kWalkThreads * kMergeShared <= kLaneScratchBytes);
  const int64_t channels = static_cast<int64_t>(w.vectors) * V, first = block_y() * channels;
  const int64_t last = first + channels < w.c ? first + channels : w.c;
  merge_tiles(scratch, tree, merge, block_y(), block_x(), first, last, w.c);
}

// ---- statistics --------------------------------------------------------------------------------------------------

template <class T, int V>
EFF_DEVICE void bn_tiles(const BnTilesArgs& a) {
  Shared shared;
  float* scratch = shared.take<float>(kLaneScratch);
  const Walk& w = a.walk;
  const Place p = place_of<V>(w);
  const T* src = static_cast<const T*>(a.src);
  // Deviations from the mean of a thread's first rows: a large mean costs no digits then, and a first row that lies far
  // off few.
  constexpr int kFirst = 4;
  float shift[V], sums[V], squares[V];
  fill(shift, 0.0f);
  fill(sums, 0.0f);
  fill(squares, 0.0f);
  float count = 0.0f;
  if (p.works && p.row + p.lane < p.rows_last) {
    const int64_t left = p.rows_last - p.row - p.lane, step = w.lanes * w.c;
    const T* at = src + (p.row + p.lane) * w.c + p.channel;
    float first = 0.0f;
    EFF_UNROLL
    for (int k = 0; k < kFirst; ++k) {
      if (k * w.lanes >= left) continue;
      float x[V];
      Packed<T, V>::load(at + k * step).unpack_to(x);
      EFF_UNROLL
      for (int i = 0; i < V; ++i) shift[i] += x[i];
      first += 1.0f;
    }
    EFF_UNROLL
    for (int i = 0; i < V; ++i) shift[i] /= first;
    count = static_cast<float>((static_cast<int32_t>(left) + w.lanes - 1) / w.lanes);
  }
  for_each_row<4, V, T>(w, p, 0, src, nullptr, [&](const float(&x)[V], const float(&)[V], int64_t) {
    EFF_UNROLL
    for (int i = 0; i < V; ++i) {
      const float d = x[i] - shift[i];
      sums[i] += d;
      squares[i] = fma(d, d, squares[i]);
    }
  });
  // As deviations from the shift of lane 0, which all lanes can add up; the squares then from the tile's mean.
  const float rows = static_cast<float>(p.rows_last - p.row), inv_rows = 1.0f / rows;
  float common[V], total[V];
  from_lane_0(scratch, p, shift, common);
  EFF_UNROLL
  for (int i = 0; i < V; ++i) total[i] = fma(count, shift[i] - common[i], sums[i]);
  sum_over_lanes(scratch, w, p, total);
  EFF_UNROLL
  for (int i = 0; i < V; ++i) total[i] = fma(total[i], inv_rows, common[i]);
  from_lane_0(scratch, p, total, common);
  EFF_UNROLL
  for (int i = 0; i < V; ++i) {
    const float d = shift[i] - common[i];
    squares[i] = fma(d, fma(count, d, 2.0f * sums[i]), squares[i]);
  }
  sum_over_lanes(scratch, w, p, squares);
  if (p.lane == 0 && p.works) {
    EFF_UNROLL
    for (int i = 0; i < V; ++i) squares[i] = squares[i] < 0.0f ? 0.0f : squares[i];
    float* tile = a.merge.tiles + static_cast<int64_t>(block_x()) * 2 * w.c + p.channel;
    store_channels(tile, common);
    store_channels(tile + w.c, squares);
  }
  merge_walk<V>(scratch, w, a.merge.tree, StatsMerge<false>{a.merge});
}

// ---- sums of the backward part -----------------------------------------------------------------------------------

template <class T, int V>
EFF_DEVICE void bn_bwd_tiles(const BnBwdTilesArgs& a) {
  constexpr int kRows = sizeof(T) == 2 ? 4 : 2;
  Shared shared;
  float* scratch = shared.take<float>(kLaneScratch);
  const Walk& w = a.walk;
  const Place p = place_of<V>(w);
  const NormOf<V> norm(a.norm, p);
  const T *src = static_cast<const T*>(a.src), *diff = static_cast<const T*>(a.upstream.diff);
  float sums[2 * V];  // g * (src - mean), g
  fill(sums, 0.0f);
  with_act(a.norm.shift ? a.upstream.act : plan::Act::identity, [&](auto act) {
    UpstreamOf<V> upstream;
    for (int64_t image = p.image; image < p.images_last; ++image) {
      upstream.set(a.upstream, w, p, image);
      for_each_row<kRows, V>(w, p, image, src, diff, [&](const float(&x)[V], const float(&d)[V], int64_t) {
        EFF_UNROLL
        for (int i = 0; i < V; ++i) {
          const float g = fma(d[i], upstream.factor[i], upstream.term[i]) * activation_slope<T>(act, norm(x[i], i));
          sums[i] = fma(g, x[i] - norm.mean[i], sums[i]);
          sums[V + i] += g;
        }
      });
    }
  });
  sum_over_lanes(scratch, w, p, sums);
  if (p.lane == 0 && p.works) {
    float products[V], plain[V];
    EFF_UNROLL
    for (int i = 0; i < V; ++i) {
      products[i] = sums[i];
      plain[i] = sums[V + i];
    }
    float* tile = a.merge.tiles + static_cast<int64_t>(block_x()) * 2 * w.c + p.channel;
    store_channels(tile, products);
    store_channels(tile + w.c, plain);
  }
  merge_walk<V>(scratch, w, a.merge.tree, SumsMerge({a.merge}));
}

// Of images, whose sums another launch left.
struct ImageSumsOfBn {
  const BnImageMergeArgs& a;
  EFF_DEVICE Two tile(int32_t n, int64_t c) const {
    const float* sums = a.sums + int64_t{n} * 4 * a.c + c;
    const double gate = a.gate[n * a.c + c], pooled = a.diff_pooled ? a.diff_pooled[n * a.c + c] * a.inv_pixels : 0;
    return {fma(gate, static_cast<double>(sums[2 * a.c]), pooled * sums[3 * a.c]),
            fma(gate, static_cast<double>(sums[0]), pooled * sums[a.c])};
  }
  EFF_DEVICE void store(int64_t c, const Two& total) const {
    a.diff_scale[c] = static_cast<float>(total.x);
    a.diff_shift[c] = static_cast<float>(total.y);
  }
};

EFF_MERGING_KERNEL(bn_image_merge, BnImageMergeArgs, kBnThreads, 5) {
  Shared shared;
  const int64_t first = int64_t{block_x()} * kBnChannels, last = first + kBnChannels < a.c ? first + kBnChannels : a.c;
  merge_group(shared.take<char>(merge_bytes()), a.tree, PlainMerge<ImageSumsOfBn>({a}), block_x(),
              static_cast<int32_t>(block_y()), first, last, a.c);
}

EFF_KERNEL_OF_WALKS(bn_tiles, BnTilesArgs)
EFF_KERNEL_OF_NARROW_WALKS(bn_bwd_tiles, BnBwdTilesArgs)

}  // namespace effnet::cuda
