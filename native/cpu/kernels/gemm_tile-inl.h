// The register tile of our matrix products, compiled per target: out[i][j] (+)= sum over steps of a(i, step) *
// b[step][j].
//
// A step is one 32-bit word of `a`, spread over a vector, times kWidth vectors of `b`: one FP32 value and one product,
// or two bf16 values and two products summed by the CPU's dot-product instruction. Every sum runs over the steps in
// order in one accumulator: an element's bits depend on its operands alone, not on the tile, the batch or the thread.
// The tile sizes keep all accumulators in registers; with them the loop runs at the core's peak.
#if defined(EFFNET_GEMM_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EFFNET_GEMM_TILE_INL_H_
#undef EFFNET_GEMM_TILE_INL_H_
#else
#define EFFNET_GEMM_TILE_INL_H_
#endif

#include <array>
#include <utility>

#include "cpu/kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

// Rows of a tile that is 1, 2 or 3 vectors wide: 32 registers on AVX-512, 16 on AVX2.
inline constexpr int kTileVectors = 3;
template <int NV>
inline constexpr int kTileRows = HWY_TARGET == HWY_AVX3 ? (NV == 3 ? 7 : 14)
                                                        : (NV == 1   ? 12
                                                           : NV == 2 ? 6
                                                                     : 4);
// Where a double-width FMA costs two (AVX-512 on Zen 4) half a vector of columns is worth its own code.
inline constexpr bool kHalfVectors = HWY_TARGET == HWY_AVX3;
// A block of rows that every width divides or nearly divides.
inline constexpr int kRowBlock = HWY_TARGET == HWY_AVX3 ? 14 : 12;

struct TileArgs {
  const std::byte* a;
  int64_t a_row, a_step;  // bytes from row to row, from step to step
  const std::byte* b;
  int64_t b_step;  // bytes from step to step
  int64_t steps;
  float* out;
  int64_t out_row;   // floats
  bool accumulate;   // add to out instead of replacing it
  bool past_caches;  // out is written without being read first; aligned, and not accumulate
  // Two streams of memory to fetch meanwhile, so many bytes a step: the rows of a tile are too many streams for the
  // CPU's own prefetchers, and a store that has to wait for its line holds up those behind it. Any address will do,
  // nothing is read; but one that is mapped, and what is fetched to be written is taken away from the other cores.
  const std::byte *ahead, *ahead2;
  int64_t ahead_step = 0, ahead2_step = 0;
};

// What a step multiplies: Word::multiply_add(spread word of a, vector of b, sum).
struct F32Word {
  template <class V>
  static HWY_INLINE void multiply_add(const V& a, const V& b, V& sum) {
    sum = hn::MulAdd(a, b, sum);
  }
};

struct Bf16Pair {
  template <class V>
  static HWY_INLINE void multiply_add(const V& a, const V& b, V& sum) {
#if HWY_TARGET == HWY_AVX3
    // As assembly: the target is AVX-512 without BF16; callers ask kHasBf16Convert first.
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum.raw) : "v"(b.raw), "v"(a.raw));
#endif
  }
};

enum class FetchAhead {
  rows,    // what the next rows of `a` are, and the lines that their results will be written to
  blocks,  // both to be read, into L2: the next block must not drive this one out of L1
  panels,  // what the next rows of `a` are, and of `b` as much as a step reads
};
template <FetchAhead kind, int NV>
HWY_INLINE void fetch_ahead(const std::byte* ahead, const std::byte* ahead2) {
  if constexpr (kind == FetchAhead::rows) {
    __builtin_prefetch(ahead);
    __builtin_prefetch(ahead2, 1);
  } else if constexpr (kind == FetchAhead::panels) {
    constexpr int kLine = 64, kVectorBytes = static_cast<int>(kLanes * sizeof(float));
    __builtin_prefetch(ahead);
#pragma GCC unroll 4
    for (int at = 0; at < NV * kVectorBytes; at += kLine) __builtin_prefetch(ahead2 + at);
  } else {
    __builtin_prefetch(ahead, 0, 2);
    __builtin_prefetch(ahead2, 0, 2);
  }
}

HWY_INLINE Vec spread_word(const std::byte* a) {
  float word;
  std::memcpy(&word, a, sizeof word);
  return splat(word);
}

// `half`: of the last of the NV vectors only the lower half counts; the upper half of the result is 0.
template <class Word, FetchAhead kAhead, int MR, int NV, bool half>
void gemm_tile(const TileArgs& t) {
  constexpr int kFull = half ? NV - 1 : NV;
  Vec sum[MR][kFull + 1];
  HalfVec half_sum[MR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kFull; ++j) sum[i][j] = zero();
    if constexpr (half) half_sum[i] = hn::Zero(HalfF32());
  }
  // Two pointers and three multiples of the row stride address 14 rows without a register for each; the empty asm keeps
  // the compiler from seeing that they are related, which would make it carry 14 pointers.
  const int64_t row = t.a_row;
  int64_t row3 = 3 * row, row5 = 5 * row;
  const std::byte* a0 = t.a;
  const std::byte* a7 = t.a + 7 * row;
  asm("" : "+r"(row3), "+r"(row5), "+r"(a7));
  const std::byte* b = t.b;
  const std::byte *ahead = t.ahead, *ahead2 = t.ahead2;
  for (int64_t step = 0; step < t.steps; ++step) {
    fetch_ahead<kAhead, NV>(ahead, ahead2);
    ahead += t.ahead_step;
    ahead2 += t.ahead2_step;
    Vec vb[kFull + 1];
    HalfVec half_b;
#pragma GCC unroll 4
    for (int j = 0; j < kFull; ++j) vb[j] = load(reinterpret_cast<const float*>(b) + j * kLanes);
    if constexpr (half) half_b = hn::LoadU(HalfF32(), reinterpret_cast<const float*>(b) + kFull * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const std::byte* base = i < 7 ? a0 : a7;
      const int64_t at = i % 7 == 0   ? 0
                         : i % 7 == 1 ? row
                         : i % 7 == 2 ? 2 * row
                         : i % 7 == 3 ? row3
                         : i % 7 == 4 ? 4 * row
                         : i % 7 == 5 ? row5
                                      : 2 * row3;
      const Vec va = spread_word(base + at);
#pragma GCC unroll 4
      for (int j = 0; j < kFull; ++j) Word::multiply_add(va, vb[j], sum[i][j]);
      if constexpr (half) Word::multiply_add(hn::LowerHalf(HalfF32(), va), half_b, half_sum[i]);
    }
    a0 += t.a_step;
    a7 += t.a_step;
    b += t.b_step;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
    if constexpr (half) sum[i][kFull] = hn::ZeroExtendVector(F32(), half_sum[i]);
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      float* out = t.out + i * t.out_row + j * static_cast<int64_t>(kLanes);
      if (t.past_caches) {
        hn::Stream(sum[i][j], F32(), out);
      } else {
        store(t.accumulate ? hn::Add(load(out), sum[i][j]) : sum[i][j], out);
      }
    }
  }
}

using TileFunction = void (*)(const TileArgs&);

template <class Word, FetchAhead kAhead, int NV, bool half, size_t... I>
constexpr std::array<TileFunction, sizeof...(I)> tile_functions(std::index_sequence<I...>) {
  return {gemm_tile<Word, kAhead, static_cast<int>(I) + 1, NV, half>...};
}
// kTiles<Word, kAhead, NV, half>[rows - 1]
template <class Word, FetchAhead kAhead, int NV, bool half>
inline constexpr auto kTiles = tile_functions<Word, kAhead, NV, half>(std::make_index_sequence<kTileRows<NV>>());

// Any number of rows as tiles of equal height: 16 are 8 and 8, for 2 after 14 would not fill their loads with products.
struct TileHeights {
  TileHeights(int64_t rows, int vectors) : rows(rows), count(ceil_div(rows, most(vectors))) {}
  int64_t begin(int64_t i) const { return rows * i / count; }
  static constexpr int64_t most(int vectors) {
    return vectors == 1 ? kTileRows<1> : vectors == 2 ? kTileRows<2> : kTileRows<3>;
  }
  int64_t rows, count;
};

// The tile of `rows` rows and `vectors` (1 to kTileVectors) vectors of columns; `half`: the last one is at most half
// full.
template <class Word, FetchAhead kAhead>
HWY_INLINE void run_tile(const TileArgs& t, int64_t rows, int vectors, bool half) {
  const auto index = static_cast<size_t>(rows - 1);
  if (kHalfVectors && half) {
    if (vectors == 1) return kTiles<Word, kAhead, 1, kHalfVectors>[index](t);
    if (vectors == 2) return kTiles<Word, kAhead, 2, kHalfVectors>[index](t);
    return kTiles<Word, kAhead, 3, kHalfVectors>[index](t);
  }
  if (vectors == 1) return kTiles<Word, kAhead, 1, false>[index](t);
  if (vectors == 2) return kTiles<Word, kAhead, 2, false>[index](t);
  kTiles<Word, kAhead, 3, false>[index](t);
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
