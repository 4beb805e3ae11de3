// Both gradients of a 1x1 convolution whose result is normalised, from one read of its operands: of a tile of pixels
// the gradient of the result is made in shared memory and multiplied by the weights, for that of the source, and by the
// source, for that of the weights, whose sums stay in registers over all tiles of a block.
#pragma once

#include "cuda/kernels/bn_gradient.cuh"
#include "cuda/kernels/conv_loaders.cuh"
#include "cuda/kernels/conv_once_tile.h"
#include "cuda/kernels/drop.cuh"
#include "cuda/kernels/gemm_engine.cuh"
#include "cuda/kernels/merge.cuh"
#include "cuda/kernels/walk.cuh"

namespace effnet::cuda {

// A result of kRows x kColumns in units of 16 x kWidth, dealt to the warps in turn.
template <class T, int kRows, int kColumns, int kWidth>
struct Units {
  static constexpr int kDown = kRows / 16, kCount = kDown * (kColumns / kWidth), kOfWarp = (kCount + 7) / 8;
  static_assert(kColumns % kWidth == 0 && kWidth % 16 == 0);

  static EFF_DEVICE bool exists(int unit) { return kCount % 8 == 0 || unit < kCount; }
  static EFF_DEVICE int row(int unit) { return unit % kDown * 16; }
  static EFF_DEVICE int column(int unit) { return unit / kDown * kWidth; }

  // sums += rows of A x columns of B over kTerms.
  template <class A, class B, int kTerms>
  static EFF_DEVICE void multiply(float (&sums)[kWidth / 8][4], const T* a, const T* b, int unit) {
    EFF_UNROLL
    for (int k = 0; k < kTerms; k += A::kStep) {
      uint32_t fa[4];
      A::load_a(fa, a, row(unit), k);
      EFF_UNROLL
      for (int j = 0; j < kWidth / 8; j += 2) {
        uint32_t fb[4];
        B::load_b(fb, b, column(unit) + 8 * j, k);
        mma<T>(sums[j], fa, {fb[0], fb[1]});
        mma<T>(sums[j + 1], fa, {fb[2], fb[3]});
      }
    }
  }
};

// The width of units at which a warp keeps the fewest sums, and of such the widest, which loads least.
template <int kRows, int kColumns>
constexpr int unit_width() {
  int best = 16, least = 1 << 30;
  for (const int width : {48, 32, 16}) {
    if (kColumns % width != 0) continue;
    const int units = kRows / 16 * (kColumns / width), sums = (units + 7) / 8 * width;
    if (sums < least) {
      least = sums;
      best = width;
    }
  }
  return best;
}

// A tile of rows of channels, of which a thread has a vector of every kGroups-th row.
template <int kColumns, int kVector>
struct RowWalk {
  static constexpr int kAcross = kColumns / kVector, kGroups = static_cast<int>(kOnceThreads) / kAcross;
  int group, column;

  EFF_DEVICE RowWalk()
      : group(static_cast<int>(thread_id()) / kAcross), column(static_cast<int>(thread_id()) % kAcross * kVector) {}
  template <class F>
  EFF_DEVICE void each(int rows, F f) const {
    if (group >= kGroups) return;
    EFF_UNROLL_BY(1)
    for (int row = group; row < rows; row += kGroups) f(row);
  }
};

template <class T, class Shape, OnceSource kSource>
class ConvOnce {
 public:
  EFF_DEVICE explicit ConvOnce(const ConvBwdOnceArgs& args) : a(args) {
    Shared shared;
    stages_ = shared.take<T>(Shape::kStages * Shape::kStage);
    weights_ = shared.take<T>(Shape::kOc * Shape::kPitchSrc);
    terms_ = shared.take<float>(4 * Shape::kOc);
    if constexpr (kNormed) {
      slab_ = shared.take<float>(Shape::kSlab);
      norm_ = shared.take<float>(4 * Shape::kIc);
      scratch_ = shared.take<float>(Shape::kGroups * Shape::kIc);
    } else {
      static_assert(Shape::kSlabInDst);
    }
    // A block has all channels of a stored source.
    first_channel_ = kNormed ? static_cast<int>(block_x()) * static_cast<int>(a.slice) : 0;
    const int left = static_cast<int>(a.ic) - first_channel_;
    channels_ = kNormed && left > static_cast<int>(a.slice) ? static_cast<int>(a.slice) : left;
  }

  EFF_DEVICE void run() {
    const int group = static_cast<int>(block_y()), blocks = static_cast<int>(a.blocks_an_image);
    const int part = group % blocks, a_block = static_cast<int>(a.tiles_a_block) * Shape::kM;
    const int image0 = group / blocks * static_cast<int>(a.images_a_block),
              end = image0 + static_cast<int>(a.images_a_block);
    const int last_image = end < static_cast<int>(a.images) ? end : static_cast<int>(a.images);
    const int first_row = part * a_block, pixels = static_cast<int>(a.image_pixels);
    const int last_row = first_row + a_block < pixels ? first_row + a_block : pixels;
    load_weights();
    load_terms();
    load({image0, first_row}, last_row, 0);
    copies_commit();
    clear();
    EFF_SYNC_BLOCK();  // the terms
    int into = 0;
    for (Tile tile{image0, first_row}; tile.image < last_image;) {
      const int rows = last_row - tile.row < Shape::kM ? last_row - tile.row : Shape::kM;
      const Tile next =
          tile.row + Shape::kM < last_row ? Tile{tile.image, tile.row + Shape::kM} : Tile{tile.image + 1, first_row};
      T* stage = stages_ + into * Shape::kStage;
      into ^= 1;
      if (next.image < last_image) load(next, last_row, into);
      copies_commit();
      if (tile.row == first_row) begin_image(tile.image);
      copies_wait<1>();
      make_diff(stage, rows, kNormed ? drop_ : drop_factor(a.drop, tile.image));
      EFF_SYNC_BLOCK();
      float* slab = slab_;
      if constexpr (!kNormed) slab = reinterpret_cast<float*>(stage + Shape::kM * Shape::kPitchDst);
      multiply_by_weights(stage, slab);
      EFF_SYNC_BLOCK();
      T* src = stage + 2 * Shape::kM * Shape::kPitchDst;
      if constexpr (kNormed) {
        store_diff_src(tile, rows, slab, src);
      } else {
        T* kept = reinterpret_cast<T*>(slab + Shape::kSlab);
        store_whole_diff_src(tile, rows, slab, kept);
        if (a.end.src) {
          EFF_SYNC_BLOCK();
          add_end_sums(rows, kept);
        }
      }
      if constexpr (kNormed) EFF_SYNC_BLOCK();  // the source is what was convolved now
      EFF_UNROLL
      for (int i = 0; i < OfWeights::kOfWarp; ++i) {
        const int unit = warp() + 8 * i;
        if (OfWeights::exists(unit))
          OfWeights::template multiply<DiffByPixel, SrcByPixel, Shape::kM>(products_[i], stage, src, unit);
      }
      if constexpr (kSource == OnceSource::gated) {
        if (next.image != tile.image) store_image_sums(tile.image, first_row / a_block);
      }
      EFF_SYNC_BLOCK();
      tile = next;
    }
    if constexpr (kSource == OnceSource::normed) {
      float* tile = a.sums.tiles + int64_t{block_y()} * 2 * a.ic;
      store_sums<2>(tile, tile + a.ic);
    }
    if constexpr (!kNormed) {
      if (a.end.src) store_end_sums(a.sums.tiles + int64_t{block_y()} * 2 * a.ic);
    }
    store_products();
    if constexpr (kSource != OnceSource::gated) {
      static_assert(kOnceThreads * kMergeShared <= Shape::kStages * Shape::kStage * sizeof(T));
      if (kNormed || a.end.src)
        merge_tiles(stages_, a.sums.tree, SumsMerge({a.sums}), block_x(), block_y(), first_channel_,
                    first_channel_ + channels_, a.ic);
    }
  }

 private:
  static constexpr bool kNormed = kSource != OnceSource::stored;
  static constexpr int kWidth = unit_width<Shape::kOc, Shape::kIc>();
  static constexpr int kSums = kSource == OnceSource::gated ? 5 : kNormed ? 2 : 0;
  static constexpr int kMostEndThreads =
      2 * Shape::kOc < static_cast<int>(kOnceThreads) ? 2 * Shape::kOc : kOnceThreads;
  static constexpr int kEndThreads = kMostEndThreads / Shape::kIc * Shape::kIc;
  using OfSrc = Units<T, Shape::kM, Shape::kIc, 16>;
  using OfWeights = Units<T, Shape::kOc, Shape::kIc, kWidth>;
  using DiffByChannel = Fragments<T, Layout::by_rows, Shape::kPitchDst>;
  using WeightsByChannel = Fragments<T, Layout::by_depth, Shape::kPitchSrc>;
  using DiffByPixel = Fragments<T, Layout::by_depth, Shape::kPitchDst>;
  using SrcByPixel = Fragments<T, Layout::by_depth, Shape::kPitchSrc>;

  static EFF_DEVICE int warp() { return static_cast<int>(thread_id()) / 32; }
  struct Tile {
    int image, row;
  };
  EFF_DEVICE int64_t pixel_of(const Tile& tile) const { return tile.image * a.image_pixels + tile.row; }

  EFF_DEVICE void clear() {
    EFF_UNROLL
    for (int i = 0; i < OfWeights::kOfWarp; ++i) {
      EFF_UNROLL
      for (int j = 0; j < kWidth / 8; ++j) {
        EFF_UNROLL
        for (int r = 0; r < 4; ++r) products_[i][j][r] = 0.0f;
      }
    }
    clear_sums();
    const int t = static_cast<int>(thread_id());
    if (!kNormed && t < kEndThreads) end_sums(t)[0] = end_sums(t)[1] = 0.0f;
  }

  EFF_DEVICE void load_weights() {
    const T* from = static_cast<const T*>(a.weights) + first_channel_;
    const RowWalk<Shape::kIc, Shape::kVector> walk;
    walk.each(Shape::kOc, [&](int o) {
      const bool valid = o < static_cast<int>(a.oc) && walk.column < channels_;
      copy_async(weights_ + o * Shape::kPitchSrc + walk.column, valid ? from + o * a.ic + walk.column : from, valid);
    });
  }
  // Of a channel of the result mean, factor, slope and constant (BnGradient).
  EFF_DEVICE void load_terms() {
    const int c = static_cast<int>(thread_id());
    if (c >= Shape::kOc) return;
    float mean = 0.0f, factor = 0.0f;
    BnGradient of;
    if (c < static_cast<int>(a.oc)) {
      mean = a.norm.mean[c];
      factor = a.norm.scale[c] * a.norm.inv_std[c];
      if (a.diff_scale) of = {factor, a.norm.inv_std[c], a.diff_scale[c], a.diff_shift[c], a.inv_rows};
    }
    terms_[c] = mean;
    terms_[Shape::kOc + c] = factor;
    terms_[2 * Shape::kOc + c] = of.slope;
    terms_[3 * Shape::kOc + c] = of.constant;
  }
  // Pixels behind the last one of an image and channels behind the last one are 0.
  EFF_DEVICE void load(const Tile& tile, int last_row, int into) {
    T* stage = stages_ + into * Shape::kStage;
    const int64_t pixel = pixel_of(tile);
    const int rows = last_row - tile.row, oc = static_cast<int>(a.oc), ic = static_cast<int>(a.ic);
    const T* diff = static_cast<const T*>(a.diff_dst) + pixel * a.oc;
    const T* dst = static_cast<const T*>(a.dst) + pixel * a.oc;
    const RowWalk<Shape::kOc, Shape::kVector> of_dst;
    of_dst.each(Shape::kM, [&](int row) {
      const bool valid = row < rows && of_dst.column < oc;
      const int at = valid ? row * oc + of_dst.column : 0;
      T* to = stage + row * Shape::kPitchDst + of_dst.column;
      copy_async(to, diff + at, valid);
      copy_async(to + Shape::kM * Shape::kPitchDst, dst + at, valid);
    });
    const T* src = static_cast<const T*>(a.src.data) + pixel * a.ic + first_channel_;
    const RowWalk<Shape::kIc, Shape::kVector> of_src;
    of_src.each(Shape::kM, [&](int row) {
      const bool valid = row < rows && of_src.column < channels_;
      copy_async(stage + 2 * Shape::kM * Shape::kPitchDst + row * Shape::kPitchSrc + of_src.column,
                 src + (valid ? row * ic + of_src.column : 0), valid);
    });
  }
  // What is constant in an image. Read behind the barriers of its first tile.
  EFF_DEVICE void begin_image(int image) {
    drop_ = drop_factor(kNormed ? a.drop : a.end.drop, image);
    if constexpr (kNormed) {
      const int t = static_cast<int>(thread_id()), c = first_channel_ + t;
      if (t >= Shape::kIc) return;
      const bool exists = t < channels_;
      norm_[t] = exists ? a.src.norm.mean[c] : 0.0f;
      norm_[Shape::kIc + t] = exists ? a.src.norm.inv_std[c] * a.src.norm.scale[c] : 0.0f;
      norm_[2 * Shape::kIc + t] = exists ? a.src.norm.shift[c] : 0.0f;
      if constexpr (kSource == OnceSource::gated)
        norm_[3 * Shape::kIc + t] = exists ? a.src.gate[image * a.ic + c] : 0.0f;
    }
  }

  // In place, each thread what it has copied itself; 0 for rows behind the last one.
  EFF_DEVICE void make_diff(T* stage, int rows, float drop) {
    constexpr int kFour = Shape::kOc;
    const RowWalk<Shape::kOc, Shape::kVector> walk;
    EFF_UNROLL
    for (int i = 0; i < Shape::kVector; i += 4) {
      const int c = walk.column + i;
      float mean[4], factor[4], slope[4], constant[4];
      load_floats(terms_ + c, mean);
      load_floats(terms_ + kFour + c, factor);
      load_floats(terms_ + 2 * kFour + c, slope);
      load_floats(terms_ + 3 * kFour + c, constant);
      EFF_UNROLL
      for (int j = 0; j < 4; ++j) factor[j] *= drop;
      walk.each(rows, [&](int row) {
        T* at = stage + row * Shape::kPitchDst + c;
        float diff[4], dst[4];
        load_four(at, diff);
        load_four(at + Shape::kM * Shape::kPitchDst, dst);
        EFF_UNROLL
        for (int j = 0; j < 4; ++j) diff[j] = fma(factor[j], diff[j], fma(dst[j] - mean[j], slope[j], constant[j]));
        store_four(at, diff);
      });
    }
  }

  EFF_DEVICE void multiply_by_weights(const T* diff, float* slab) {
    const int lane = static_cast<int>(thread_id()) % 32;
    EFF_UNROLL_BY(1)
    for (int unit = warp(); unit < OfSrc::kCount; unit += 8) {
      float sums[2][4] = {};
      OfSrc::template multiply<DiffByChannel, WeightsByChannel, Shape::kOc>(sums, diff, weights_, unit);
      EFF_UNROLL
      for (int j = 0; j < 2; ++j) {
        float* at =
            slab + (OfSrc::row(unit) + lane / 4) * Shape::kPitchSrc + OfSrc::column(unit) + 8 * j + lane % 4 * 2;
        store_pair(at, sums[j][0], sums[j][1]);
        store_pair(at + 8 * Shape::kPitchSrc, sums[j][2], sums[j][3]);
      }
    }
  }
  static EFF_DEVICE void store_pair(float* at, float v0, float v1) {
    *reinterpret_cast<Bits64*>(at) = {float_to_bits(v0), float_to_bits(v1)};
  }

  // Of a stored source. Its gradient stays in the slab as it was stored, beside the source of BlockEnd. What of
  // BlockEnd lies in memory is not asked for before: no register is free for it, and the next tile is on its way by
  // now.
  EFF_DEVICE void store_whole_diff_src(const Tile& tile, int rows, const float* slab, T* kept) {
    constexpr int V = Shape::kVector;
    const int64_t first = pixel_of(tile) * a.ic;
    const T* addend = a.end.addend ? static_cast<const T*>(a.end.addend) + first : nullptr;
    const T* x = a.end.src ? static_cast<const T*>(a.end.src) + first : nullptr;
    T* to = static_cast<T*>(a.diff_src) + first;
    const RowWalk<Shape::kIc, V> walk;
    if (walk.column >= channels_) return;
    walk.each(rows, [&](int row) {
      const int at = row * static_cast<int>(a.ic) + walk.column;
      Packed<T, V> more;
      Bits128 of_x;
      if (addend) more = Packed<T, V>::load(addend + at);
      if (x) of_x = load_bits(reinterpret_cast<const Bits128*>(x + at));
      float diff[V];
      load_floats(slab + row * Shape::kPitchSrc + walk.column, diff);
      if (addend) {
        float term[V];
        more.unpack_to(term);
        EFF_UNROLL
        for (int j = 0; j < V; ++j) diff[j] += term[j];
      }
      const Bits128 stored = pack<T>(diff);
      store_bits(reinterpret_cast<Bits128*>(to + at), stored);
      if (!x) return;
      Bits128* at_row = reinterpret_cast<Bits128*>(kept + row * Shape::kIc + walk.column);
      at_row[0] = stored;
      at_row[Shape::kM * Shape::kIc / V] = of_x;
    });
  }
  // Two sums of a thread, in the gaps between the rows of weights: no register is free for them, nor other memory.
  EFF_DEVICE float* end_sums(int thread) const {
    return reinterpret_cast<float*>(weights_ + thread / 2 * Shape::kPitchSrc + Shape::kIc + thread % 2 * 4);
  }
  // A thread has every kEndThreads-th value of the tile, all of one channel.
  EFF_DEVICE void add_end_sums(int rows, const T* kept) {
    const int t = static_cast<int>(thread_id()), c = t % Shape::kIc;
    if (c >= channels_ || t >= kEndThreads) return;
    const float mean = a.end.mean[c];
    float product = end_sums(t)[0], sum = end_sums(t)[1];
    EFF_UNROLL_BY(1)
    for (int i = t; i < rows * Shape::kIc; i += kEndThreads) {
      const float g = to_float(kept[i]) * drop_;
      product = fma(g, to_float(kept[Shape::kM * Shape::kIc + i]) - mean, product);
      sum += g;
    }
    end_sums(t)[0] = product;
    end_sums(t)[1] = sum;
  }

  // Of another source.
  EFF_DEVICE void store_diff_src(const Tile& tile, int rows, const float* slab, T* src) {
    T* to = static_cast<T*>(a.diff_src) + pixel_of(tile) * a.ic + first_channel_;
    const int ic = static_cast<int>(a.ic);
    const RowWalk<Shape::kIc, 4> walk;
    if (walk.column >= channels_) return;
    // A thread has so few rows of a tile that the constants are not worth the registers that would keep them.
    walk.each(rows, [&](int row) {
      float x[4], diff[4], stored[4], mean[4], factor[4], shift[4];
      load_floats(norm_ + walk.column, mean);
      load_floats(norm_ + Shape::kIc + walk.column, factor);
      load_floats(norm_ + 2 * Shape::kIc + walk.column, shift);
      T* at = src + row * Shape::kPitchSrc + walk.column;
      load_four(at, x);
      load_floats(slab + row * Shape::kPitchSrc + walk.column, diff);
      EFF_UNROLL
      for (int j = 0; j < 4; ++j) {
        const float centred = x[j] - mean[j];
        float value, slope;
        activate_both<T>(a.src.act, fma(centred, factor[j], shift[j]), value, slope);
        if constexpr (kSource == OnceSource::normed) {
          stored[j] = round_to<T>(diff[j] * slope);
          sums_[0][j] = fma(stored[j], centred, sums_[0][j]);
          sums_[1][j] += stored[j];
        } else {
          stored[j] = round_to<T>(diff[j]);
          const float ds = stored[j] * slope;
          sums_[0][j] = fma(stored[j], value, sums_[0][j]);
          sums_[1][j] += ds;
          sums_[2][j] += slope;
          sums_[3][j] = fma(ds, centred, sums_[3][j]);
          sums_[4][j] = fma(slope, centred, sums_[4][j]);
        }
        x[j] = value;
      }
      if constexpr (kSource == OnceSource::gated) {
        float gate[4];
        load_floats(norm_ + 3 * Shape::kIc + walk.column, gate);
        EFF_UNROLL
        for (int j = 0; j < 4; ++j) x[j] *= gate[j];
      }
      store_four(at, x);
      Packed<T, 4>::store(to + row * ic + walk.column, stored);
    });
  }

  EFF_DEVICE void clear_sums() {
    EFF_UNROLL
    for (int k = 0; k < kSums; ++k) {
      EFF_UNROLL
      for (int j = 0; j < 4; ++j) sums_[k][j] = 0.0f;
    }
  }
  // Of an image, or of the block's share of it.
  EFF_DEVICE void store_image_sums(int image, int part) {
    float* parts = a.image_parts + (image * a.blocks_an_image + part) * 5 * a.ic;
    if (a.blocks_an_image == 1)
      store_sums<5>(a.value + image * a.ic, a.image_sums + image * 4 * a.ic);
    else
      store_sums<5>(parts, parts + a.ic);
  }
  // Of the block: the first by channel to `first`, into [kCount - 1][ic] the others; and begins them anew.
  template <int kCount>
  EFF_DEVICE void store_sums(float* first, float* others) {
    const RowWalk<Shape::kIc, 4> walk;
    const int t = static_cast<int>(thread_id());
    EFF_UNROLL
    for (int k = 0; k < kCount; ++k) {
      if (walk.group < Shape::kGroups) store_floats(scratch_ + walk.group * Shape::kIc + walk.column, sums_[k]);
      EFF_SYNC_BLOCK();
      if (t < channels_) {
        float sum = 0.0f;
        for (int group = 0; group < Shape::kGroups; ++group) sum += scratch_[group * Shape::kIc + t];
        if (kCount == 5 && k >= 3) sum *= a.src.norm.inv_std[first_channel_ + t];
        (k == 0 ? first : others + (k - 1) * a.ic)[first_channel_ + t] = sum;
      }
      EFF_SYNC_BLOCK();
    }
    clear_sums();
  }

  // Behind the barrier of the last tile.
  EFF_DEVICE void store_end_sums(float* to) const {
    const int t = static_cast<int>(thread_id());
    if (t >= channels_) return;
    float product = 0.0f, sum = 0.0f;
    for (int i = t; i < kEndThreads; i += Shape::kIc) {
      product += end_sums(i)[0];
      sum += end_sums(i)[1];
    }
    to[t] = product;
    to[a.ic + t] = sum;
  }

  EFF_DEVICE void store_products() const {
    float* parts = a.parts + static_cast<int64_t>(block_y()) * a.oc * a.ic + first_channel_;
    const int lane = static_cast<int>(thread_id()) % 32;
    EFF_UNROLL
    for (int i = 0; i < OfWeights::kOfWarp; ++i) {
      const int unit = warp() + 8 * i;
      if (!OfWeights::exists(unit)) continue;
      EFF_UNROLL
      for (int j = 0; j < kWidth / 8; ++j) {
        EFF_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int o = OfWeights::row(unit) + lane / 4 + 8 * half;
          const int c = OfWeights::column(unit) + 8 * j + lane % 4 * 2;
          if (o < static_cast<int>(a.oc) && c < channels_)
            store_bits(reinterpret_cast<Bits64*>(parts + o * static_cast<int>(a.ic) + c),
                       {{float_to_bits(products_[i][j][2 * half]), float_to_bits(products_[i][j][2 * half + 1])}});
        }
      }
    }
  }

  const ConvBwdOnceArgs& a;
  T *stages_, *weights_;
  float *slab_ = nullptr, *terms_, *norm_ = nullptr, *scratch_ = nullptr;
  int first_channel_, channels_;
  float drop_ = 1.0f;  // of the image: for its dst; of a stored source, whose dst is seldom dropped, for BlockEnd
  float products_[OfWeights::kOfWarp][kWidth / 8][4];
  float sums_[kSums > 0 ? kSums : 1][4];
};

template <class T, int kM, int kOc, int kIc, OnceSource kSource>
EFF_DEVICE void conv_once(const ConvBwdOnceArgs& a) {
  ConvOnce<T, OnceShape<sizeof(T), kM, kOc, kIc>, kSource>(a).run();
}

}  // namespace effnet::cuda
