// The transforms of Winograd's algorithm (winograd.h), compiled per target: vectors run over channels, a tile is an
// array of vectors. Every transform is made of rows first, then of columns, each by the same one-dimensional function.
#if defined(EFFNET_WINOGRAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EFFNET_WINOGRAD_INL_H_
#undef EFFNET_WINOGRAD_INL_H_
#else
#define EFFNET_WINOGRAD_INL_H_
#endif

#include "cpu/kernels/bn_pack-inl.h"
#include "cpu/kernels/simd-inl.h"

#ifndef EFFNET_WINOGRAD_TILES_
#define EFFNET_WINOGRAD_TILES_
namespace effnet::cpu {

// The points are 0, +-a, +-b, infinity, in this order; their powers and products are exact in FP32.
inline constexpr double kWinoPointA = 11.0 / 16, kWinoPointB = 1.5;

// What a filter's values are divided by at a point: the derivative there of the product of all (x - point).
inline constexpr double wino_divisor(int point) {
  constexpr double a2 = kWinoPointA * kWinoPointA, b2 = kWinoPointB * kWinoPointB;
  return point == 0 ? a2 * b2 : point < 3 ? 2 * a2 * (a2 - b2) : point < 5 ? 2 * b2 * (b2 - a2) : 1;
}

inline constexpr int64_t kWinoTile = 4, kWinoPatch = 6, kWinoPoints = 36;

// The tiles of a tensor's images, counted along rows, then down, then by image; and where a tile's patch begins.
struct WinoGrid {
  int64_t height, width, channels;  // of the tensor that is read or written through this grid
  int64_t tiles_y, tiles_x;
  int64_t pad_t, pad_l;  // pixels by which patches begin before their tile
  struct Place {
    int64_t image, y, x;  // of the first pixel; may be negative
  };
  Place place(int64_t tile) const {
    const int64_t row = tile / tiles_x;
    return {row / tiles_y, row % tiles_y * kWinoTile - pad_t, tile % tiles_x * kWinoTile - pad_l};
  }
};

// Where the next tiles' pixels lie, to be fetched into L2 while the products of the present ones are computed: a tile's
// rows are too many streams for the CPU's own prefetchers. Only the last 4 rows of a patch are new, the others were
// read with the tiles above.
class WinoAhead {
 public:
  WinoAhead(const float* src, const WinoGrid& grid, int64_t begin, int64_t end, int64_t side)
      : src_(src), grid_(grid), tile_(begin), end_(end), side_(side), row_(side - kWinoTile) {
    next_run();
  }
  // The address of the next `lines` lines and their distance, 0 when there are none left. Lines past the end of a run
  // are of no use and do no harm.
  const std::byte* take(int64_t lines, int64_t& step) {
    if (at_ >= run_end_) next_run();
    const std::byte* taken = at_;
    step = at_ < run_end_ ? 64 : 0;
    at_ += lines * step;
    return taken;
  }

 private:
  void next_run() {
    while (tile_ < end_) {
      const auto [image, y, x] = grid_.place(tile_);
      const int64_t tiles = std::min(end_ - tile_, grid_.tiles_x - tile_ % grid_.tiles_x), row = y + row_;
      const int64_t first = std::max<int64_t>(x, 0), last = std::min(x + (tiles - 1) * kWinoTile + side_, grid_.width);
      if (++row_ == side_) {
        row_ = side_ - kWinoTile;
        tile_ += tiles;
      }
      if (row < 0 || row >= grid_.height || first >= last) continue;
      const float* run = src_ + ((image * grid_.height + row) * grid_.width + first) * grid_.channels;
      at_ = reinterpret_cast<const std::byte*>(run);
      run_end_ = reinterpret_cast<const std::byte*>(run + (last - first) * grid_.channels);
      return;
    }
    at_ = run_end_ = reinterpret_cast<const std::byte*>(src_);
  }

  const float* src_;
  const WinoGrid& grid_;
  int64_t tile_, end_, side_, row_;
  const std::byte *at_ = nullptr, *run_end_ = nullptr;
};

}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

inline constexpr float kWinoA = static_cast<float>(kWinoPointA), kWinoB = static_cast<float>(kWinoPointB);
inline constexpr float kWinoA2 = kWinoA * kWinoA, kWinoB2 = kWinoB * kWinoB;
inline constexpr float kWinoA3 = kWinoA2 * kWinoA, kWinoB3 = kWinoB2 * kWinoB;

// B^T: six inputs.
struct WinoInput {
  using V = Vec;
  static constexpr int kFrom = 6, kTo = 6;
  static HWY_INLINE void apply(const Vec (&d)[6], Vec (&v)[6]) {
    const Vec a2 = splat(kWinoA2), b2 = splat(kWinoB2), a2b2 = splat(kWinoA2 * kWinoB2);
    const Vec even_a = hn::NegMulAdd(b2, d[2], d[4]), odd_a = hn::NegMulAdd(b2, d[1], d[3]);
    const Vec even_b = hn::NegMulAdd(a2, d[2], d[4]), odd_b = hn::NegMulAdd(a2, d[1], d[3]);
    v[0] = hn::MulAdd(a2b2, d[0], hn::NegMulAdd(b2, d[2], even_b));
    v[1] = hn::MulAdd(splat(kWinoA), odd_a, even_a);
    v[2] = hn::NegMulAdd(splat(kWinoA), odd_a, even_a);
    v[3] = hn::MulAdd(splat(kWinoB), odd_b, even_b);
    v[4] = hn::NegMulAdd(splat(kWinoB), odd_b, even_b);
    v[5] = hn::MulAdd(a2b2, d[1], hn::NegMulAdd(splat(kWinoA2 + kWinoB2), d[3], d[5]));
  }
};

// G for filters of 4 taps, not yet divided by wino_divisor().
struct WinoGradient {
  using V = Vec;
  static constexpr int kFrom = 4, kTo = 6;
  static HWY_INLINE void apply(const Vec (&g)[4], Vec (&u)[6]) {
    const auto both = [&](float p, float p2, Vec& plus, Vec& minus) HWY_ATTR {
      const Vec even = hn::MulAdd(splat(p2), g[2], g[0]), odd = hn::MulAdd(splat(p2), g[3], g[1]);
      plus = hn::MulAdd(splat(p), odd, even);
      minus = hn::NegMulAdd(splat(p), odd, even);
    };
    u[0] = g[0];
    both(kWinoA, kWinoA2, u[1], u[2]);
    both(kWinoB, kWinoB2, u[3], u[4]);
    u[5] = g[3];
  }
};

// A^T: 3 or 4 outputs.
template <int Outputs>
struct WinoOutput {
  using V = Vec;
  static constexpr int kFrom = 6, kTo = Outputs;
  static HWY_INLINE void apply(const Vec (&m)[6], Vec (&y)[Outputs]) {
    const Vec even_a = hn::Add(m[1], m[2]), odd_a = hn::Sub(m[1], m[2]);
    const Vec even_b = hn::Add(m[3], m[4]), odd_b = hn::Sub(m[3], m[4]);
    y[0] = hn::Add(m[0], hn::Add(even_a, even_b));
    y[1] = hn::MulAdd(splat(kWinoA), odd_a, hn::Mul(splat(kWinoB), odd_b));
    y[2] = hn::MulAdd(splat(kWinoB2), even_b, Outputs == 3 ? m[5] : hn::Mul(splat(kWinoA2), even_a));
    if constexpr (Outputs == 3) y[2] = hn::MulAdd(splat(kWinoA2), even_a, y[2]);
    if constexpr (Outputs == 4) y[3] = hn::MulAdd(splat(kWinoA3), odd_a, hn::MulAdd(splat(kWinoB3), odd_b, m[5]));
  }
};

// get(row, column) -> V for a kFrom x kFrom tile, put(row, column, V) of the kTo x kTo result.
template <class Transform, class Get, class Put>
HWY_INLINE void wino_transform(Get&& get, Put&& put) {
  constexpr int from = Transform::kFrom, to = Transform::kTo;
  using V = typename Transform::V;
  V rows[from][to];
#pragma GCC unroll 6
  for (int i = 0; i < from; ++i) {
    V in[from];
#pragma GCC unroll 6
    for (int j = 0; j < from; ++j) in[j] = get(i, j);
    Transform::apply(in, rows[i]);
  }
#pragma GCC unroll 6
  for (int j = 0; j < to; ++j) {
    V in[from], out[to];
#pragma GCC unroll 6
    for (int i = 0; i < from; ++i) in[i] = rows[i][j];
    Transform::apply(in, out);
#pragma GCC unroll 6
    for (int i = 0; i < to; ++i) put(i, j, out[i]);
  }
}

// Transforms tiles [begin, end) of channels [first, first + count) of `src` into dst[point][tile][channel]: rows of
// `dst_row` floats, whole vectors (zeros beyond the last channel), points `dst_point` floats apart. A tile is
// Transform::kFrom pixels wide; pixels outside of the image are zeros.
template <class Transform>
HWY_INLINE void wino_tiles(const float* HWY_RESTRICT src, const WinoGrid& grid, int64_t begin, int64_t end,
                           int64_t first, int64_t count, float* HWY_RESTRICT dst, int64_t dst_row, int64_t dst_point) {
  constexpr int64_t side = Transform::kFrom, lanes = kLanes;
  for (int64_t tile = begin; tile < end; ++tile, dst += dst_row) {
    const auto [image, y, x] = grid.place(tile);
    const bool inside = y >= 0 && x >= 0 && y + side <= grid.height && x + side <= grid.width;
    const int64_t row = grid.width * grid.channels;
    const float* at = src + (image * grid.height + y) * row + x * grid.channels + first;
    for_each_vector(count, [&](int64_t c, size_t n, auto full) HWY_ATTR {
      const auto put = [&](int i, int j, Vec v) HWY_ATTR { store(v, dst + c + (i * 6 + j) * dst_point); };
      if (inside) {
        wino_transform<Transform>(
            [&](int i, int j) HWY_ATTR { return load_part(at + i * row + j * grid.channels + c, n, full); }, put);
        return;
      }
      HWY_ALIGN float patch[side * side * lanes];
      for (int64_t i = 0; i < side; ++i) {
        for (int64_t j = 0; j < side; ++j) {
          const bool there = y + i >= 0 && y + i < grid.height && x + j >= 0 && x + j < grid.width;
          hn::Store(there ? load_part(at + i * row + j * grid.channels + c, n, full) : zero(), F32(),
                    patch + (i * side + j) * lanes);
        }
      }
      wino_transform<Transform>([&](int i, int j) HWY_ATTR { return hn::Load(F32(), patch + (i * side + j) * lanes); },
                                put);
    });
  }
}

// Floats between points for `floats` at each: an odd number of lines, so that the 36 streams of a transform do not meet
// in a few sets of the caches.
inline int64_t wino_point_stride(int64_t floats) { return ((floats + 15) / 16 | 1) * 16; }

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
