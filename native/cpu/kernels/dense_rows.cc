#include "cpu/kernels/dense_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/dense_rows.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/bn_pack-inl.h"
#include "cpu/kernels/gemm_tile-inl.h"
#include "cpu/kernels/panels.h"
#include "cpu/kernels/stats-inl.h"

#ifndef EFFNET_DENSE_PANELS_
#define EFFNET_DENSE_PANELS_
#include <algorithm>
#include <optional>

#include "cpu/kernels/common.h"
#include "cpu/kernels/stats.h"

namespace effnet::cpu {

inline int64_t steps_of(plan::DType dtype, int64_t terms) { return dtype == plan::DType::bf16 ? terms / 2 : terms; }

}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

int64_t lane_count() { return kLanes; }
int64_t row_block() { return kRowBlock; }

// dst[r][c] = act(sum[r][c] + bias[c]) + residual[r][c]
template <plan::Act act, class T>
void finish_rows(const float* HWY_RESTRICT sum, int64_t sum_row, const float* HWY_RESTRICT bias,
                 const T* HWY_RESTRICT residual, T* HWY_RESTRICT dst, int64_t dst_row, int64_t rows, int64_t width,
                 bool past_caches) {
  for_each_vector(width, [&](int64_t c, size_t n, auto full) HWY_ATTR {
    const Vec shift = bias ? load_part(bias + c, n, full) : zero();
    for (int64_t r = 0; r < rows; ++r) {
      Vec value = activate<act, T>(hn::Add(load(sum + r * sum_row + c), shift));
      if (residual) value = hn::Add(value, load_part(residual + r * dst_row + c, n, full));
      store_part_past(value, dst + r * dst_row + c, n, full, past_caches);
    }
  });
}

// Statistics of the rows of a shard, for its panels' channels; blocks of rows join to tiles of stats-inl.h.
class RowStats {
 public:
  RowStats(double* stats, float* scratch, int64_t padded, int64_t begin, int64_t end)
      : mean_(stats), m2_(stats + padded), shift_(scratch), s1_(scratch + padded), s2_(scratch + 2 * padded) {
    begin_ = begin;
    width_ = end - begin;
    for (double* array : {mean_, m2_}) std::fill_n(array + begin, width_, 0.0);
    clear();
  }

  // dst[r][c] = sum[r][c] for channels from `first` on.
  template <class T>
  void store_rows(const float* HWY_RESTRICT sum, int64_t sum_row, T* HWY_RESTRICT dst, int64_t dst_row, int64_t rows,
                  int64_t width, int64_t first, bool past_caches) {
    float *shifts = shift_ + first, *s1 = s1_ + first, *s2 = s2_ + first;
    for_each_vector(width, [&](int64_t c, size_t n, auto full) HWY_ATTR {
      const auto stored = [&](int64_t r) HWY_ATTR { return round_to<T>(load(sum + r * sum_row + c)); };
      if (total_ + in_tile_ == 0) {
        store(rows < 8 ? stored(0) : mean_of_8(stored), shifts + c);
      }
      const Vec shift = load(shifts + c);
      // Two sums of each, for one would wait for itself.
      Vec sum1[2] = {load(s1 + c), zero()}, sum2[2] = {load(s2 + c), zero()};
      const auto add = [&](int64_t r, int i) HWY_ATTR {
        const Vec value = stored(r);
        store_part_past(value, dst + r * dst_row + c, n, full, past_caches);
        const Vec d = hn::Sub(value, shift);
        sum1[i] = hn::Add(sum1[i], d);
        sum2[i] = hn::MulAdd(d, d, sum2[i]);
      };
      int64_t r = 0;
      for (; r + 2 <= rows; r += 2) {
        add(r, 0);
        add(r + 1, 1);
      }
      if (r < rows) add(r, 0);
      store(hn::Add(sum1[0], sum1[1]), s1 + c);
      store(hn::Add(sum2[0], sum2[1]), s2 + c);
    });
  }

  // After all panels of `rows` rows.
  void end_block(int64_t rows, bool last) {
    in_tile_ += rows;
    if (!last && in_tile_ + kRowBlock <= kStatsTileRows) return;
    const int64_t b = begin_;
    stats_merge_tile(static_cast<double>(total_), static_cast<double>(in_tile_), width_, shift_ + b, s1_ + b, s2_ + b,
                     mean_ + b, m2_ + b);
    stats_next_shift(width_, mean_ + b, shift_ + b);
    clear();
    total_ += in_tile_;
    in_tile_ = 0;
  }

 private:
  void clear() {
    for (float* array : {s1_, s2_}) std::fill_n(array + begin_, width_, 0.0f);
  }
  double *mean_, *m2_;
  float *shift_, *s1_, *s2_;
  int64_t begin_, width_, total_ = 0, in_tile_ = 0;
};

// Rows [begin, end) times the gate.
template <class T>
void multiply_gate(const DenseRowsArgs& args, int64_t begin, int64_t end, T* HWY_RESTRICT to) {
  const int64_t terms = args.weights.terms;
  for (int64_t row = begin; row < end; ++row, to += terms) {
    const float* gate = args.gate + row / args.image_rows * terms;
    const T* from = static_cast<const T*>(args.src) + row * terms;
    for_each_vector(terms, [&](int64_t c, size_t n, auto full) HWY_ATTR {
      store_part(hn::Mul(load_part(from + c, n, full), load_part(gate + c, n, full)), to + c, n, full);
    });
  }
}

template <class T, class Word>
void panels_of(const DenseRowsArgs& args) {
  constexpr int64_t lanes = kLanes, size = sizeof(T), kLine = 64;
  // So many steps ahead the weights are fetched: about a microsecond, longer than memory takes.
  constexpr int64_t kStepsAhead = 32;
  // The next panel, too, where this one leaves it room near the core; larger ones would drive each other out.
  constexpr int64_t kNextPanelBytes = 48 << 10;
  const DenseWeights& w = args.weights;
  const int64_t vectors = whole_vectors(w.channels) / static_cast<int64_t>(kLanes), steps = steps_of(w.dtype, w.terms);
  auto* sums = static_cast<float*>(args.scratch);
  const int64_t all_rows = args.row_end - args.row_begin;
  const T* src = static_cast<const T*>(args.src) + args.row_begin * w.terms;
  if (args.gate) {
    T* gated = reinterpret_cast<T*>(sums + kRowBlock * kTileVectors * lanes);
    if (!args.gated_before) multiply_gate(args, args.row_begin, args.row_end, gated);
    src = gated;
  }
  for (int64_t index = args.panel_begin; index < args.panel_end; ++index) {
    const int wide = Panels(vectors).wide(index);
    const int64_t first = 2 * index * lanes, width = std::min<int64_t>(wide * lanes, w.channels - first);
    const TileHeights tiles(all_rows, wide);
    const bool half = 2 * (wide * lanes - width) >= lanes;
    const float* bias = args.bias ? args.bias + first : nullptr;
    TileArgs tile{};
    tile.a_row = w.terms * size;
    tile.a_step = 4;
    tile.b = static_cast<const std::byte*>(args.packed) + 2 * index * steps * lanes * 4;
    tile.b_step = wide * lanes * 4;
    tile.steps = steps;
    tile.out = sums;
    tile.out_row = wide * lanes;
    for (int64_t i = 0; i < tiles.count; ++i) {
      const int64_t row = args.row_begin + tiles.begin(i), rows = tiles.begin(i + 1) - tiles.begin(i);
      const int64_t at = row * args.dst_row + first - 2 * args.panel_begin * lanes;
      T* dst = static_cast<T*>(args.dst) + at;
      tile.a = reinterpret_cast<const std::byte*>(src + tiles.begin(i) * w.terms);
      // Rows stay for the next panel. The first tile fetches its own weights, the others a part each of the next panel,
      // so that memory is asked for evenly; after a shard's last panel that often is the thread's next shard.
      tile.ahead = tile.a + rows * tile.a_row;
      tile.ahead_step = index == args.panel_begin ? ceil_div(rows * tile.a_row, steps) : 0;
      if (i == 0) {
        tile.ahead2 = tile.b + kStepsAhead * tile.b_step;
        tile.ahead2_step = tile.b_step;
      } else if (steps * tile.b_step <= kNextPanelBytes) {
        tile.ahead2_step = (tile.b_step + tiles.count - 2) / (tiles.count - 1);
        tile.ahead2 = tile.b + steps * (tile.b_step + (i - 1) * tile.ahead2_step);
      } else {
        tile.ahead2 = tile.b;
        tile.ahead2_step = 0;
      }
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width * size; c += kLine)
          __builtin_prefetch(reinterpret_cast<std::byte*>(dst + r * args.dst_row) + c, 1);
      run_tile<Word, FetchAhead::panels>(tile, rows, wide, half);
      const T* residual = args.residual ? static_cast<const T*>(args.residual) + at : nullptr;
      with_act(args.act, [&](auto act) HWY_ATTR {
        finish_rows<decltype(act)::value>(sums, tile.out_row, bias, residual, dst, args.dst_row, rows, width, false);
      });
    }
  }
}

template <class T, class Word>
void rows_of(const DenseRowsArgs& args) {
  if (args.by_panels) return panels_of<T, Word>(args);
  constexpr int64_t lanes = kLanes;
  const DenseWeights& w = args.weights;
  const int64_t vectors = whole_vectors(w.channels) / static_cast<int64_t>(kLanes), steps = steps_of(w.dtype, w.terms);
  const int64_t vector_bytes = steps * lanes * 4;
  auto* sums = static_cast<float*>(args.scratch);
  float* scratch = sums + kRowBlock * kTileVectors * lanes;
  std::optional<RowStats> stats;
  if (args.stats) {
    const int64_t end = args.panel_end == Panels(vectors).count() ? vectors * lanes : 2 * args.panel_end * lanes;
    stats.emplace(args.stats, scratch, vectors * lanes, 2 * args.panel_begin * lanes, end);
    scratch += 3 * vectors * lanes;
  }
  T* gated = reinterpret_cast<T*>(scratch);
  const bool plain =
      std::is_same_v<T, float> && !args.bias && args.act == plan::Act::identity && !args.residual && !args.stats;
  // The steps of a block fetch what the next one reads, and the lines it writes to unless they go past the caches.
  int64_t block_steps = 0;
  for (int64_t index = args.panel_begin; index < args.panel_end; ++index)
    block_steps += TileHeights(kRowBlock, Panels(vectors).wide(index)).count * steps;
  const auto spread = [&](int64_t width) {
    return ceil_div(kRowBlock * width * static_cast<int64_t>(sizeof(T)), block_steps);
  };
  const int64_t src_step = spread(w.terms), dst_step = spread(args.dst_row);
  // A line that is fetched to be written is taken away from the other cores: only what this shard will write, whole.
  const bool own_rows = !args.past_caches && args.panel_begin == 0 && args.panel_end == Panels(vectors).count();
  for (int64_t row = args.row_begin; row < args.row_end; row += kRowBlock) {
    const int64_t rows = std::min<int64_t>(kRowBlock, args.row_end - row);
    const T* src = static_cast<const T*>(args.src) + row * w.terms;
    if (args.gate) {
      multiply_gate(args, row, row + rows, gated);
      src = gated;
    }
    const std::byte* next_src =
        static_cast<const std::byte*>(args.src) + (row + rows) * w.terms * static_cast<int64_t>(sizeof(T));
    const bool fetch_dst = own_rows && row + rows < args.row_end;
    const std::byte* next_dst = fetch_dst ? static_cast<const std::byte*>(args.dst) +
                                                (row + rows) * args.dst_row * static_cast<int64_t>(sizeof(T))
                                          : reinterpret_cast<const std::byte*>(sums);
    for (int64_t index = args.panel_begin; index < args.panel_end; ++index) {
      const int wide = Panels(vectors).wide(index);
      const int64_t first = 2 * index * lanes;
      const int64_t width = std::min<int64_t>(wide * lanes, w.channels - first);
      const int64_t at = row * args.dst_row + first - 2 * args.panel_begin * lanes;
      T* dst = static_cast<T*>(args.dst) + at;
      const bool direct = plain && width == wide * lanes;
      TileArgs tile{};
      tile.a = reinterpret_cast<const std::byte*>(src);
      tile.a_row = w.terms * static_cast<int64_t>(sizeof(T));
      tile.a_step = 4;
      tile.b = static_cast<const std::byte*>(args.packed) + 2 * index * vector_bytes;
      tile.b_step = wide * lanes * 4;
      tile.steps = steps;
      tile.out = direct ? reinterpret_cast<float*>(dst) : sums;
      tile.out_row = direct ? args.dst_row : wide * lanes;
      tile.ahead_step = src_step;
      tile.ahead2_step = fetch_dst ? dst_step : 0;
      constexpr size_t kVectorBytes = kLanes * sizeof(float);
      tile.past_caches = direct && args.past_caches && reinterpret_cast<uintptr_t>(dst) % kVectorBytes == 0 &&
                         static_cast<size_t>(args.dst_row) * sizeof(float) % kVectorBytes == 0;
      const bool half = 2 * (wide * lanes - width) >= lanes;
      const std::byte* a = tile.a;
      float* out = tile.out;
      const TileHeights tiles(rows, wide);
      for (int64_t i = 0; i < tiles.count; ++i) {
        tile.a = a + tiles.begin(i) * tile.a_row;
        tile.out = out + tiles.begin(i) * tile.out_row;
        tile.ahead = next_src;
        tile.ahead2 = next_dst;
        run_tile<Word, FetchAhead::rows>(tile, tiles.begin(i + 1) - tiles.begin(i), wide, half);
        next_src += steps * src_step;
        next_dst += steps * tile.ahead2_step;
      }
      if (direct) continue;
      if (stats) {
        stats->store_rows(sums, tile.out_row, dst, args.dst_row, rows, width, first, args.past_caches);
        continue;
      }
      const float* bias = args.bias ? args.bias + first : nullptr;
      const T* residual = args.residual ? static_cast<const T*>(args.residual) + at : nullptr;
      with_act(args.act, [&](auto act) HWY_ATTR {
        finish_rows<decltype(act)::value>(sums, tile.out_row, bias, residual, dst, args.dst_row, rows, width,
                                          args.past_caches);
      });
    }
    if (stats) stats->end_block(rows, row + rows == args.row_end);
  }
  if (args.past_caches) hwy::FlushStream();
}

void rows_f32(const DenseRowsArgs& args) { rows_of<float, F32Word>(args); }
void rows_bf16(const DenseRowsArgs& args) { rows_of<BFloat16, Bf16Pair>(args); }

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {

HWY_EXPORT(lane_count);
HWY_EXPORT(row_block);
HWY_EXPORT(rows_f32);
HWY_EXPORT(rows_bf16);

size_t DenseWeights::bytes() const {
  const int64_t lanes = EFF_DISPATCH(lane_count)();
  return static_cast<size_t>(ceil_div(channels, lanes) * steps_of(dtype, terms) * lanes * 4);
}

int64_t DenseWeights::padded_channels() const {
  const int64_t lanes = EFF_DISPATCH(lane_count)();
  return ceil_div(channels, lanes) * lanes;
}

int64_t DenseWeights::panels() const { return Panels(ceil_div(channels, EFF_DISPATCH(lane_count)())).count(); }

void DenseWeights::pack(const float* weights, bool transposed, void* packed) const {
  const int64_t lanes = EFF_DISPATCH(lane_count)(), vectors = ceil_div(channels, lanes);
  const int64_t pair = dtype == plan::DType::bf16 ? 2 : 1;
  const int64_t channel_stride = transposed ? 1 : terms, term_stride = transposed ? channels : 1;
  const auto put = [&](int64_t at, float value) {
    if (pair == 2) {
      static_cast<BFloat16*>(packed)[at] = to_bf16(value);
    } else {
      static_cast<float*>(packed)[at] = value;
    }
  };
  // Blocks of terms keep both sides of the transposition in L1.
  constexpr int64_t kBlock = 64;
  int64_t panel_at = 0;
  for (int64_t index = 0; index < Panels(vectors).count(); ++index) {
    const int64_t columns = Panels(vectors).wide(index) * lanes, first = 2 * index * lanes;
    for (int64_t begin = 0; begin < terms; begin += kBlock) {
      const int64_t end = std::min(terms, begin + kBlock);
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t channel = first + j;
        const float* from = weights + channel * channel_stride;
        for (int64_t k = begin; k < end; ++k)
          put(panel_at + (k / pair * columns + j) * pair + k % pair, channel < channels ? from[k * term_stride] : 0.0f);
      }
    }
    panel_at += columns * terms;
  }
}

int64_t DenseWeights::first_channel(int64_t panel) const {
  return panel == panels() ? channels : 2 * panel * EFF_DISPATCH(lane_count)();
}

bool has_dense_rows(plan::DType dtype, int64_t terms) {
  if (dtype == plan::DType::f32) return true;
  return dtype == plan::DType::bf16 && terms % 2 == 0 && kHasBf16Convert && EFF_DISPATCH(lane_count)() == 16;
}

size_t dense_scratch_bytes(const DenseWeights& weights, int64_t gated_rows, bool stats) {
  const int64_t lanes = EFF_DISPATCH(lane_count)(), rows = EFF_DISPATCH(row_block)();
  const int64_t gated_bytes = gated_rows * weights.terms * 4;
  const int64_t stats_bytes = stats ? 3 * weights.padded_channels() * 4 : 0;
  return align64(static_cast<size_t>(rows * 3 * lanes * 4 + gated_bytes + stats_bytes));
}

int64_t dense_row_block() { return EFF_DISPATCH(row_block)(); }

void dense_rows(const DenseRowsArgs& args) {
  if (args.weights.dtype == plan::DType::bf16) return EFF_DISPATCH(rows_bf16)(args);
  EFF_DISPATCH(rows_f32)(args);
}

}  // namespace effnet::cpu
#endif
