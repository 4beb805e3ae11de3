// Weight gradients of 1x1 convolutions: diff_weights[o][i] = sum over rows of diff_dst[row][o] * src[row][i].
//
// One operand (`wide`) runs along the vectors, the other (`tall`) gives the rows of the register tiles. Blocks of rows
// of the wide operand are packed into L2 in panels, and every tile of the block adds its sums to a partial gradient.
// The rows are cut into groups whose partials are added in order, the tall operand into bands; both fixed by shape.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/pointwise_bwd_weights.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/bn_pack-inl.h"
#include "cpu/kernels/gemm_tile-inl.h"

#ifndef EFFNET_POINTWISE_BWD_WEIGHTS_ARGS_
#define EFFNET_POINTWISE_BWD_WEIGHTS_ARGS_
#include <algorithm>

#include "cpu/kernels/common.h"
#include "cpu/kernels/dense_rows.h"
#include "cpu/kernels/pointwise_conv.h"

namespace effnet::cpu {

struct RowProductArgs {
  const void *tall, *wide;  // [rows][tall_channels], [rows][wide_channels]
  int64_t tall_channels, wide_channels;
  int64_t row_begin, row_end, tall_begin, tall_end;
  int64_t block_rows;  // rows that are packed together, even
  float* sums;         // [tall_channels][padded wide_channels]; rows tall_begin .. tall_end are written
  std::byte* scratch;
};

}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

inline int64_t pad_lanes(int64_t channels) {
  constexpr int64_t lanes = kLanes;
  return (channels + lanes - 1) / lanes * lanes;
}

// Columns [first, first + lanes) of the rows that make one step, as the words of a vector; zeros beyond the end.
HWY_INLINE Vec step_words(const float* row, int64_t, bool, int64_t left) {
  constexpr int64_t lanes = kLanes;
  return left >= lanes ? load(row) : load_n(row, static_cast<size_t>(left));
}
HWY_INLINE Vec step_words(const BFloat16* row, int64_t channels, bool pair, int64_t left) {
  constexpr int64_t lanes = kLanes;
  const U32 du;
  const auto bits = [&](const BFloat16* p) HWY_ATTR {
    return hn::BitCast(du, left >= lanes ? load(p) : load_n(p, static_cast<size_t>(left)));  // in the upper halves
  };
  const auto low = hn::ShiftRight<16>(bits(row));
  return hn::BitCast(F32(), pair ? hn::Or(low, bits(row + channels)) : low);
}

// Columns [first, first + width) of `rows` rows into dst[step][padded width].
template <class T>
HWY_INLINE void pack_steps(const T* src, int64_t channels, int64_t rows, int64_t width, float* dst, int64_t dst_width) {
  constexpr int64_t per_step = std::is_same_v<T, BFloat16> ? 2 : 1, lanes = kLanes;
  for (int64_t r = 0; r < rows; r += per_step, dst += dst_width) {
    for (int64_t c = 0; c < dst_width; c += lanes)
      store(step_words(src + r * channels + c, channels, r + 1 < rows, width - c), dst + c);
  }
}

// The panels of a block: 2 vectors wide, the last one 1 or 3.
struct Panels {
  explicit Panels(int64_t padded) : vectors(padded / static_cast<int64_t>(kLanes)) {}
  int64_t count() const { return std::max<int64_t>(vectors / 2, 1); }
  int wide(int64_t i) const { return static_cast<int>(i + 1 < count() ? 2 : vectors - 2 * i); }
  int64_t vectors;
};

// All rows of the wide operand into panels [step][panel width], one behind another; reads memory in order, and fetches
// the tall operand's rows on the way.
template <class T>
HWY_INLINE void pack_panels(const T* wide, int64_t channels, int64_t rows, const Panels& panels, float* dst,
                            const std::byte* tall, int64_t tall_row) {
  constexpr int64_t per_step = std::is_same_v<T, BFloat16> ? 2 : 1, lanes = kLanes;
  const int64_t steps = (rows + per_step - 1) / per_step;
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t r = step * per_step;
    const T* row = wide + r * channels;
    for (int64_t at = 0; at < per_step * tall_row; at += 64) __builtin_prefetch(tall + r * tall_row + at);
    float* panel = dst;
    for (int64_t i = 0; i < panels.count(); ++i) {
      const int64_t vectors = panels.wide(i), first = 2 * i * lanes;
      for (int64_t v = 0; v < vectors; ++v) {
        const int64_t c = first + v * lanes;
        store(step_words(row + c, channels, r + 1 < rows, channels - c), panel + (step * vectors + v) * lanes);
      }
      panel += steps * vectors * lanes;
    }
  }
}

template <class T, class Word>
void row_product(const RowProductArgs& args) {
  constexpr int64_t per_step = std::is_same_v<T, BFloat16> ? 2 : 1, lanes = kLanes;
  const int64_t padded = pad_lanes(args.wide_channels), band = args.tall_end - args.tall_begin;
  const Panels panels(padded);
  float* packed = reinterpret_cast<float*>(args.scratch);
  float* tall_steps = packed + (args.block_rows / per_step) * padded;
  for (int64_t row = args.row_begin; row < args.row_end; row += args.block_rows) {
    const int64_t rows = std::min(args.block_rows, args.row_end - row), steps = (rows + per_step - 1) / per_step;
    const T* tall = static_cast<const T*>(args.tall) + row * args.tall_channels + args.tall_begin;
    const T* wide = static_cast<const T*>(args.wide) + row * args.wide_channels;
    pack_panels(wide, args.wide_channels, rows, panels, packed, reinterpret_cast<const std::byte*>(tall),
                args.tall_channels * static_cast<int64_t>(sizeof(T)));
    TileArgs tile{};
    tile.a = reinterpret_cast<const std::byte*>(tall);
    tile.a_row = 4;
    tile.a_step = args.tall_channels * 4;
    tile.steps = steps;
    tile.out_row = padded;
    tile.accumulate = row != args.row_begin;
    if constexpr (per_step == 2) {
      pack_steps(tall, args.tall_channels, rows, band, tall_steps, pad_lanes(band));
      tile.a = reinterpret_cast<const std::byte*>(tall_steps);
      tile.a_step = pad_lanes(band) * 4;
    }
    const float* panel = packed;
    for (int64_t i = 0; i < panels.count(); ++i) {
      const int64_t width = panels.wide(i) * lanes;
      tile.b = reinterpret_cast<const std::byte*>(panel);
      tile.b_step = width * 4;
      tile.out = args.sums + args.tall_begin * padded + 2 * i * lanes;
      gemm_column<Word>(tile, band, panels.wide(i), 2 * (2 * i * lanes + width - args.wide_channels) >= lanes);
      panel += steps * width;
    }
  }
}

void row_product_f32(const RowProductArgs& args) { row_product<float, F32Word>(args); }
void row_product_bf16(const RowProductArgs& args) { row_product<BFloat16, Bf16Pair>(args); }

int64_t padded_width(int64_t channels) { return pad_lanes(channels); }

void add_row_products(const float* HWY_RESTRICT parts, int64_t part, int64_t count, int64_t width,
                      float* HWY_RESTRICT dst) {
  for_each_vector(width, [&](int64_t c, size_t n, auto full) HWY_ATTR {
    Vec sum = load(parts + c);
    for (int64_t p = 1; p < count; ++p) sum = hn::Add(sum, load(parts + p * part + c));
    store_part(sum, dst + c, n, full);
  });
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
namespace {

HWY_EXPORT(row_product_f32);
HWY_EXPORT(row_product_bf16);
HWY_EXPORT(padded_width);
HWY_EXPORT(add_row_products);

// What a block of rows of both operands may take of the core's L2.
constexpr int64_t kBlockBytes = 512 << 10;

class PointwiseWeightsGradient final : public Kernel {
 public:
  PointwiseWeightsGradient(const plan::Tensor* src, const plan::Tensor* diff_dst, const plan::Tensor* diff_weights)
      : tall_(diff_dst), wide_(src), diff_weights_(diff_weights) {
    // The sums come out as [tall][wide]; the other way round they have to be transposed, worth it only where it saves
    // many lanes of zeros.
    const auto filled = [](const plan::Tensor* t) {
      return static_cast<double>(t->dims[3]) / static_cast<double>(EFF_DISPATCH(padded_width)(t->dims[3]));
    };
    transposed_ = filled(diff_dst) > filled(src) * 1.1;
    if (transposed_) std::swap(tall_, wide_);
    rows_ = src->dims[0] * src->dims[1] * src->dims[2];
    padded_ = EFF_DISPATCH(padded_width)(wide());
    const int64_t operand_bytes = plan::dtype_bytes(src->dtype) * rows_ * (tall() + wide());
    block_rows_ =
        std::clamp<int64_t>(kBlockBytes / (plan::dtype_bytes(src->dtype) * (tall() + wide())), 32, 512) / 2 * 2;
    groups_ = std::clamp<int64_t>(operand_bytes / (2 * part_floats() * 4), 1, 8);
    groups_ = std::min(groups_, (rows_ + block_rows_ - 1) / block_rows_);
    const auto wanted = std::clamp<int64_t>(static_cast<int64_t>(flops() / 64e6), 8, 32);
    bands_ = std::min((wanted + groups_ - 1) / groups_, (tall() + kBandTile - 1) / kBandTile);
    name_ = kernel_name("pointwise_bwd_weights", src->dtype);
  }

  const char* name() const override { return name_.c_str(); }
  int phases() const override { return 2; }
  int shards(int phase) const override {
    return static_cast<int>(phase == 0 ? groups_ * bands_ : (tall() + kSumRows - 1) / kSumRows);
  }
  size_t worker_scratch_bytes() const override {
    return static_cast<size_t>(4 * block_rows_ * (padded_ + EFF_DISPATCH(padded_width)(tall())));
  }
  size_t shared_scratch_bytes() const override { return static_cast<size_t>(groups_ * part_floats() * 4); }
  double flops() const override { return 2.0 * static_cast<double>(rows_) * static_cast<double>(tall() * wide()); }

  void run(int phase, int shard, const ExecContext& ctx) override {
    float* parts = reinterpret_cast<float*>(ctx.shared_scratch);
    if (phase == 1)
      return add_parts_of(parts, shard * kSumRows, std::min<int64_t>((shard + 1) * kSumRows, tall()), ctx);
    const int64_t group = shard / bands_, band = shard % bands_, tiles = (tall() + kBandTile - 1) / kBandTile;
    RowProductArgs args{};
    args.tall = ctx.ptr<std::byte>(tall_);
    args.wide = ctx.ptr<std::byte>(wide_);
    args.tall_channels = tall();
    args.wide_channels = wide();
    args.row_begin = rows_ * group / groups_;
    args.row_end = rows_ * (group + 1) / groups_;
    args.tall_begin = std::min(tiles * band / bands_ * kBandTile, tall());
    args.tall_end = std::min(tiles * (band + 1) / bands_ * kBandTile, tall());
    args.block_rows = block_rows_;
    args.sums = parts + group * part_floats();
    args.scratch = ctx.worker_scratch;
    if (tall_->dtype == plan::DType::bf16) return EFF_DISPATCH(row_product_bf16)(args);
    EFF_DISPATCH(row_product_f32)(args);
  }

 private:
  static constexpr int64_t kBandTile = 14, kSumRows = 16;
  int64_t tall() const { return tall_->dims[3]; }
  int64_t wide() const { return wide_->dims[3]; }
  int64_t part_floats() const { return tall() * padded_; }

  void add_parts_of(float* parts, int64_t begin, int64_t end, const ExecContext& ctx) const {
    float* diff_weights = ctx.ptr<float>(diff_weights_);
    for (int64_t i = begin; i < end; ++i) {
      float* part = parts + i * padded_;
      float* dst = transposed_ ? part : diff_weights + i * wide();
      EFF_DISPATCH(add_row_products)(part, part_floats(), groups_, wide(), dst);
    }
    if (!transposed_) return;
    for (int64_t j = 0; j < wide(); ++j)
      for (int64_t i = begin; i < end; ++i) diff_weights[j * tall() + i] = parts[i * padded_ + j];
  }

  const plan::Tensor *tall_, *wide_, *diff_weights_;
  bool transposed_;
  int64_t rows_, padded_, block_rows_, groups_, bands_;
  std::string name_;
};

}  // namespace

StatusOr<KernelPtr> make_pointwise_bwd_weights(const plan::Tensor* src, const plan::Tensor* diff_dst,
                                               const plan::Tensor* diff_weights) {
  return KernelPtr(std::make_unique<PointwiseWeightsGradient>(src, diff_dst, diff_weights));
}

}  // namespace effnet::cpu
#endif
