// What the tiled depthwise kernels share: pairs of channels, and staging of an image's window in shared memory. The
// window's pixels outside the image are zero: padding is of what is convolved, after normalisation and activation.
#pragma once

#include "cuda/device/vector.h"
#include "cuda/kernels/activation.cuh"
#include "cuda/kernels/depthwise.h"
#include "cuda/kernels/norm_rows.cuh"

namespace effnet::cuda {

// ---- two neighbouring channels in one access ---------------------------------------------------------------------

struct Bits32 {
  uint32_t word[1];
};
template <class T>
struct PairOf {
  using Bits = Bits32;
};
template <>
struct PairOf<float> {
  using Bits = Bits64;
};
template <class T>
using PairBits = typename PairOf<T>::Bits;

template <class T>
EFF_DEVICE PairBits<T> load_pair_bits(const T* p) {
  return *reinterpret_cast<const PairBits<T>*>(p);
}
template <class T>
EFF_DEVICE void unpack_pair(const PairBits<T>& bits, float (&v)[2]) {
  if constexpr (sizeof(T) == 4) {
    v[0] = bits_to_float(bits.word[0]);
    v[1] = bits_to_float(bits.word[1]);
  } else {
    unpack<T>(bits.word[0], v[0], v[1]);
  }
}
template <class T>
EFF_DEVICE PairBits<T> pack_pair(const float (&v)[2]) {
  if constexpr (sizeof(T) == 4)
    return {float_to_bits(v[0]), float_to_bits(v[1])};
  else
    return {pack<T>(v[0], v[1])};
}
template <class T>
EFF_DEVICE void load_pair(const T* p, float (&v)[2]) {
  unpack_pair<T>(load_pair_bits(p), v);
}
// `v` becomes what a load gives.
template <class T>
EFF_DEVICE void store_pair(T* p, float (&v)[2]) {
  const PairBits<T> bits = pack_pair<T>(v);
  *reinterpret_cast<PairBits<T>*>(p) = bits;
  unpack_pair<T>(bits, v);
}

// Two channels of a vector: 0 for its first two.
template <class T>
EFF_DEVICE PairBits<T> pair_of(const Bits128& vec, int pair) {
  if constexpr (sizeof(T) == 4)
    return {vec.word[2 * pair], vec.word[2 * pair + 1]};
  else
    return {vec.word[pair]};
}
template <class T>
EFF_DEVICE void set_pair(Bits128& vec, int pair, const PairBits<T>& bits) {
  if constexpr (sizeof(T) == 4) {
    vec.word[2 * pair] = bits.word[0];
    vec.word[2 * pair + 1] = bits.word[1];
  } else {
    vec.word[pair] = bits.word[0];
  }
}

// ---- operands of a block's channels, in shared memory ------------------------------------------------------------

// Rows of `slab` floats. Two channels' of a row are read at a time: all in registers would leave none for loads on
// their way.
struct Operands {
  float* rows;
  int slab;

  EFF_DEVICE void fill_norm(int row, const Norm& norm, int64_t c, float share) const {
    fill_norm_rows(rows + row * slab, slab, norm, c, share);
  }
};

// A normalisation of two channels.
struct PairNorm {
  float mean[2], factor[2], shift[2];

  // The operands from row `row` on; `c`: first of the two in the slab.
  EFF_DEVICE PairNorm(const Operands& operands, int row, int c) {
    load_pair(operands.rows + row * operands.slab + c, mean);
    load_pair(operands.rows + (row + 1) * operands.slab + c, factor);
    load_pair(operands.rows + (row + 2) * operands.slab + c, shift);
  }
  EFF_DEVICE float operator()(float x, int i) const { return fma(x - mean[i], factor[i], shift[i]); }
};

// ---- sources of a window: what is fetched of a vector, and what is staged of it ----------------------------------

// A source changes a batch of fetched vectors in place: `raw[j].src` becomes what is staged. `lane`: the vector's first
// channel in the slab.

template <class T>
struct Stored {
  struct Raw {
    Bits128 src;
  };
  static constexpr bool kKeepsZero = true;  // what was not fetched, and is 0, stays so
  const T* src;                             // the thread's first channel of the image

  EFF_DEVICE Raw fetch(int at) const { return {load_bits(reinterpret_cast<const Bits128*>(src + at))}; }
  template <int N>
  EFF_DEVICE void change(Raw (&)[N], int) const {}
};

// act(bn(src)). kSilu: the activation is known to be it, so that no branch is in the loop.
template <class T, bool kSilu>
struct Activated {
  using Raw = typename Stored<T>::Raw;
  static constexpr bool kKeepsZero = false;
  Stored<T> stored;
  Operands operands;  // of the normalisation, or of half of it (`halves`)
  plan::Act act;

  EFF_DEVICE Raw fetch(int at) const { return stored.fetch(at); }
  template <int N>
  EFF_DEVICE void change(Raw (&raw)[N], int lane) const {
    EFF_UNROLL
    for (int pair = 0; pair < kVec<T> / 2; ++pair) {
      const PairNorm norm(operands, 0, lane + 2 * pair);
      EFF_UNROLL
      for (int j = 0; j < N; ++j) {
        float v[2];
        unpack_pair<T>(pair_of<T>(raw[j].src, pair), v);
        EFF_UNROLL
        for (int i = 0; i < 2; ++i) {
          const float x = norm(v[i], i);
          if constexpr (kSilu && halves<T>(plan::Act::silu))
            v[i] = silu_of_half(x);
          else
            v[i] = activate<T>(kSilu ? plan::Act::silu : act, x);
        }
        set_pair<T>(raw[j].src, pair, pack_pair<T>(v));
      }
    }
  }
};

// Where a block's window lies, and what of it is the image.
struct Window {
  int h, w;        // of its first pixel, which may be outside
  int rows, cols;  // of the window
  int image_rows, image_cols, channels, slab;
};

// All threads of a block; a thread's vector of channels is thread_id() % (slab / kVec<T>), as its source expects.
template <class T, class Source>
EFF_DEVICE void stage(T* tile, const Window& w, const Source& source) {
  using Raw = typename Source::Raw;
  constexpr int kBatch = 64 / static_cast<int>(sizeof(Raw));  // 64 bytes on their way for a thread
  const int vecs = w.slab / kVec<T>, step = static_cast<int>(block_threads()) / vecs, pixels = w.rows * w.cols;
  const int first = static_cast<int>(thread_id()) / vecs, lane = static_cast<int>(thread_id()) % vecs * kVec<T>;
  if (first >= step) return;
  const int row_step = step / w.cols, col_step = step - row_step * w.cols;
  int row = first / w.cols, col = first - row * w.cols;
  T* to = tile + first * w.slab + lane;
  for (int pixel = first; pixel < pixels; pixel += kBatch * step, to += kBatch * step * w.slab) {
    Raw raw[kBatch] = {};
    bool inside[kBatch];
    EFF_UNROLL
    for (int j = 0; j < kBatch; ++j) {
      const int h = w.h + row, x = w.w + col;
      inside[j] = row < w.rows && static_cast<unsigned>(h) < static_cast<unsigned>(w.image_rows) &&
                  static_cast<unsigned>(x) < static_cast<unsigned>(w.image_cols);
      if (inside[j]) raw[j] = source.fetch((h * w.image_cols + x) * w.channels);
      row += row_step;
      col += col_step;
      if (col >= w.cols) {
        col -= w.cols;
        ++row;
      }
    }
    source.change(raw, lane);
    EFF_UNROLL
    for (int j = 0; j < kBatch; ++j) {
      if (pixel + j * step >= pixels) continue;
      *reinterpret_cast<Bits128*>(to + j * step * w.slab) = Source::kKeepsZero || inside[j] ? raw[j].src : Bits128{};
    }
  }
}

// ---- taps, in shared memory: [pair][tap][2], so that a thread's lie at fixed distances ---------------------------

template <class T, int K>
EFF_DEVICE void load_taps(float* taps, const float* weights, int slab, int channels, float share = 1.0f) {
  for (int i = static_cast<int>(thread_id()); i < K * K * slab; i += static_cast<int>(block_threads())) {
    const int tap = i / slab, c = i - tap * slab;
    taps[(c / 2 * K * K + tap) * 2 + c % 2] = weights ? round_to<T>(weights[tap * channels + c]) * share : 0.0f;
  }
}

// ---- where a thread computes -------------------------------------------------------------------------------------

EFF_DEVICE int tile_of_block() {
  return static_cast<int>(block_y()) + static_cast<int>(block_z()) * kDepthwiseGridRows;
}

// In one register: windows of 5 leave few.
class TileThread {
 public:
  EFF_DEVICE explicit TileThread(const DepthwiseTiling& t) {
    const uint32_t pairs = static_cast<uint32_t>(t.slab) / 2, strips = static_cast<uint32_t>(t.strips);
    const uint32_t group = thread_id() / pairs, row_group = group / strips;
    const uint32_t strip = group - row_group * strips, pair = thread_id() - group * pairs;
    packed_ = pair | strip << 8 | row_group * static_cast<uint32_t>(t.group_rows) << 16;
  }
  // Its first channel in the slab, its strip's first column and its first row in the tile.
  EFF_DEVICE int pair() const { return static_cast<int>(packed_ & 0xff); }
  EFF_DEVICE int channel() const { return 2 * pair(); }
  EFF_DEVICE int col() const { return static_cast<int>(packed_ >> 8 & 0xff) * kDepthwiseStrip; }
  EFF_DEVICE int row() const { return static_cast<int>(packed_ >> 16); }
  // Whether there is a row for it.
  EFF_DEVICE bool works(const DepthwiseTiling& t) const { return row() < t.rows; }

 private:
  uint32_t packed_;
};

}  // namespace effnet::cuda
