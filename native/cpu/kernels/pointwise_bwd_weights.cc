// Weight gradients of 1x1 convolutions: diff_weights[o][i] = sum over rows of diff_dst[row][o] * src[row][i].
//
// One operand (`wide`) runs along the vectors, the other (`tall`) gives the rows of the register tiles. Every tile of a
// block of rows adds its sums to a partial gradient while the next block is fetched into L2. FP32 is read where it is
// (where a vector would read on beyond the tensor its last block is packed); pairs of rows of bf16 are first packed,
// the wide operand in panels. The rows are cut into groups whose partials are added in order, the tall operand into
// bands; both fixed by shape.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/pointwise_bwd_weights.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/bn_pack-inl.h"
#include "cpu/kernels/gemm_tile-inl.h"
#include "cpu/kernels/panels.h"

#ifndef EFFNET_POINTWISE_BWD_WEIGHTS_ARGS_
#define EFFNET_POINTWISE_BWD_WEIGHTS_ARGS_
#include <algorithm>

#include "core/memory.h"
#include "cpu/kernels/bn_grad_rows.h"
#include "cpu/kernels/common.h"
#include "cpu/kernels/dense_rows.h"
#include "cpu/kernels/pointwise_conv.h"

namespace effnet::cpu {

struct RowProductArgs {
  const void *tall, *wide;  // [rows][tall_channels], [rows][wide_channels]
  int64_t tall_channels, wide_channels;
  int64_t row_begin, row_end, tall_begin, tall_end;
  int64_t rows;        // of the wide operand, from its first on, that may be read
  int64_t block_rows;  // even
  float* sums;         // [tall_channels][padded wide_channels]; rows tall_begin .. tall_end are written
  std::byte* scratch;
  bool accumulate = false;  // add to the sums from the first block on
  // What to fetch during the one block there is, instead of the next rows of the operands: the first by one stream,
  // then the others by the other. No tensor of theirs where there are none.
  struct Region {
    const void* begin;
    int64_t bytes;
  };
  Region fetch[3] = {};
};

}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

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

// All rows of the wide operand into panels [step][panel width], one behind another; reads memory in order.
template <class T>
HWY_INLINE void pack_panels(const T* wide, int64_t channels, int64_t rows, const Panels& panels, float* dst) {
  constexpr int64_t per_step = std::is_same_v<T, BFloat16> ? 2 : 1, lanes = kLanes;
  const int64_t steps = ceil_div(rows, per_step);
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t r = step * per_step;
    const T* row = wide + r * channels;
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

// How many cycles a row takes where a vector is multiplied, and one loaded, in one.
double row_cycles(int64_t tall, int64_t wide) {
  constexpr int64_t lanes = kLanes;
  const Panels panels(whole_vectors(wide) / lanes);
  double cycles = 0;
  for (int64_t i = 0; i < panels.count(); ++i) {
    const int64_t vectors = panels.wide(i);
    const TileHeights tiles(tall, panels.wide(i));
    const bool half = kHalfVectors && 2 * ((2 * i + vectors) * lanes - wide) >= lanes;
    const double products = static_cast<double>(tall) * (static_cast<double>(vectors) - (half ? 0.5 : 0.0));
    const auto loads = static_cast<double>(tall + tiles.count * (vectors + 2));
    cycles += std::max(products, loads) + 0.05 * loads;
  }
  return cycles;
}

// The regions of RowProductArgs::fetch, spread evenly over the steps of a block.
class FetchRegions {
 public:
  FetchRegions(const RowProductArgs& args, int64_t steps) : regions_(args.fetch) {
    const auto spread = [&](int64_t bytes) { return std::min<int64_t>(ceil_div(bytes, steps), 64); };
    step_ = spread(regions_[0].bytes);
    step2_ = spread(regions_[1].bytes + regions_[2].bytes);
  }
  void next(TileArgs& tile, int64_t steps) {
    tile.ahead = static_cast<const std::byte*>(regions_[0].begin) + at_;
    tile.ahead_step = step_;
    at_ += steps * step_;
    const bool third = at2_ >= regions_[1].bytes;
    tile.ahead2 = static_cast<const std::byte*>(regions_[third ? 2 : 1].begin) + at2_ - (third ? regions_[1].bytes : 0);
    tile.ahead2_step = step2_;
    at2_ += steps * step2_;
  }

 private:
  const RowProductArgs::Region* regions_;
  int64_t step_, step2_, at_ = 0, at2_ = 0;
};

template <class T, class Word>
void row_product(const RowProductArgs& args) {
  constexpr int64_t per_step = std::is_same_v<T, BFloat16> ? 2 : 1, lanes = kLanes;
  const int64_t padded = whole_vectors(args.wide_channels), band = args.tall_end - args.tall_begin;
  const int64_t tall_row = args.tall_channels * static_cast<int64_t>(sizeof(T));
  const int64_t wide_row = args.wide_channels * static_cast<int64_t>(sizeof(T));
  const Panels panels(padded / lanes);
  const bool half = kHalfVectors && 2 * (padded - args.wide_channels) >= lanes;
  // The last vector of a row reads on into the rows behind it, of which the tensor's last ones have too few.
  const int64_t beyond = padded - (half ? lanes / 2 : 0) - args.wide_channels;
  float* packed = reinterpret_cast<float*>(args.scratch);
  float* tall_steps = packed + (args.block_rows / per_step) * padded;
  int64_t passes = 0, wide_passes = 0;  // tiles of a block; those whose second stream is free for the wide operand
  for (int64_t i = 0; i < panels.count(); ++i) {
    passes += TileHeights(band, panels.wide(i)).count;
    if (i >= per_step) wide_passes += TileHeights(band, panels.wide(i)).count;
  }
  const bool both = per_step * wide_row > 64 * passes;
  const int64_t slots = both ? passes + wide_passes : passes;
  const int64_t ahead_step = std::min<int64_t>(ceil_div(per_step * wide_row, slots), 64);
  for (int64_t row = args.row_begin; row < args.row_end; row += args.block_rows) {
    const int64_t rows = std::min(args.block_rows, args.row_end - row), steps = ceil_div(rows, per_step);
    const T* tall = static_cast<const T*>(args.tall) + row * args.tall_channels + args.tall_begin;
    const T* wide = static_cast<const T*>(args.wide) + row * args.wide_channels;
    const bool in_place = per_step == 1 && (args.rows - row - rows) * args.wide_channels >= beyond;
    if (!in_place) pack_panels(wide, args.wide_channels, rows, panels, packed);
    TileArgs tile{};
    const std::byte* a = reinterpret_cast<const std::byte*>(tall);
    tile.a_row = 4;
    tile.a_step = args.tall_channels * 4;
    tile.steps = steps;
    tile.out_row = padded;
    tile.accumulate = args.accumulate || row != args.row_begin;
    if constexpr (per_step == 2) {
      pack_steps(tall, args.tall_channels, rows, band, tall_steps, whole_vectors(band));
      a = reinterpret_cast<const std::byte*>(tall_steps);
      tile.a_step = whole_vectors(band) * 4;
    }
    const std::byte* next_wide = reinterpret_cast<const std::byte*>(wide) + rows * wide_row;
    const std::byte* next_tall = reinterpret_cast<const std::byte*>(tall) + rows * tall_row;
    const float* panel = packed;
    FetchRegions fetch(args, passes * steps);
    for (int64_t i = 0; i < panels.count(); ++i) {
      const int64_t width = panels.wide(i) * lanes;
      tile.b =
          reinterpret_cast<const std::byte*>(in_place ? reinterpret_cast<const float*>(wide) + 2 * i * lanes : panel);
      tile.b_step = (in_place ? args.wide_channels : width) * 4;
      const TileHeights tiles(band, panels.wide(i));
      for (int64_t j = 0; j < tiles.count; ++j) {
        tile.a = a + tiles.begin(j) * 4;
        tile.out = args.sums + (args.tall_begin + tiles.begin(j)) * padded + 2 * i * lanes;
        if (args.fetch[0].begin) {
          fetch.next(tile, steps);
          run_tile<Word, FetchAhead::blocks>(tile, tiles.begin(j + 1) - tiles.begin(j), panels.wide(i),
                                             half && i + 1 == panels.count());
          continue;
        }
        tile.ahead = next_wide;
        tile.ahead_step = ahead_step;
        next_wide += steps * ahead_step;
        if (i < per_step) {  // the tile's own columns of the tall operand: every line of a row is some tile's
          tile.ahead2 = next_tall + i * tall_row + tiles.begin(j) * static_cast<int64_t>(sizeof(T));
          tile.ahead2_step = per_step * tall_row;
        } else {
          tile.ahead2 = next_wide;
          tile.ahead2_step = both ? ahead_step : 0;
          next_wide += steps * tile.ahead2_step;
        }
        run_tile<Word, FetchAhead::blocks>(tile, tiles.begin(j + 1) - tiles.begin(j), panels.wide(i),
                                           half && i + 1 == panels.count());
      }
      panel += steps * width;
    }
  }
}

void row_product_f32(const RowProductArgs& args) { row_product<float, F32Word>(args); }
void row_product_bf16(const RowProductArgs& args) { row_product<BFloat16, Bf16Pair>(args); }

int64_t padded_width(int64_t channels) { return whole_vectors(channels); }

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
HWY_EXPORT(row_cycles);
HWY_EXPORT(add_row_products);

// What a block of rows of both operands may take of the core's L2, where the next one and the sums are as well.
constexpr int64_t kBlockBytes = 256 << 10;

class PointwiseWeightsGradient : public Kernel {
 public:
  PointwiseWeightsGradient(const plan::Tensor* src, const plan::Tensor* diff_dst, const plan::Tensor* diff_weights)
      : tall_(diff_dst), wide_(src), diff_weights_(diff_weights) {
    rows_ = src->dims[0] * src->dims[1] * src->dims[2];
    // The sums come out as [tall][wide]; the other way round they have to be transposed in the end.
    const auto cycles = EFF_DISPATCH(row_cycles);
    const int64_t ic = src->dims[3], oc = diff_dst->dims[3];
    const double transposing = 2.0 * static_cast<double>(ic * oc) / static_cast<double>(rows_);
    transposed_ = cycles(ic, oc) + transposing < cycles(oc, ic);
    if (transposed_) std::swap(tall_, wide_);
    padded_ = EFF_DISPATCH(padded_width)(wide());
    const int64_t operand_bytes = plan::dtype_bytes(src->dtype) * rows_ * (tall() + wide());
    block_rows_ =
        std::clamp<int64_t>(kBlockBytes / (plan::dtype_bytes(src->dtype) * (tall() + wide())), 32, 512) / 2 * 2;
    // Groups read every row once; bands read the wide operand again, so they come where rows are few for the size of
    // the partial gradients.
    const auto wanted = std::clamp<int64_t>(static_cast<int64_t>(flops() / 64e6), 8, 32);
    groups_ = std::clamp<int64_t>(operand_bytes / (2 * part_floats() * 4), 1, wanted);
    groups_ = std::min(groups_, ceil_div(rows_, block_rows_));
    bands_ = std::min(ceil_div(wanted, groups_), ceil_div(tall(), kBandTile));
    name_ = kernel_name("pointwise_bwd_weights", src->dtype);
  }

  const char* name() const override { return name_.c_str(); }
  int phases() const override { return 2; }
  int shards(int phase) const override {
    return static_cast<int>(phase == 0 ? groups_ * bands_ : ceil_div(tall(), kSumRows));
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
    const int64_t group = shard / bands_, band = shard % bands_, tiles = ceil_div(tall(), kBandTile);
    RowProductArgs args{};
    args.tall = ctx.ptr<std::byte>(tall_);
    args.wide = ctx.ptr<std::byte>(wide_);
    args.tall_channels = tall();
    args.wide_channels = wide();
    args.rows = rows_;
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

 protected:
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

// Both gradients from blocks of rows of the convolution's gradient, which are made in L2 by bn_grad_rows().
class PointwiseBackward final : public PointwiseWeightsGradient {
 public:
  explicit PointwiseBackward(const PointwiseBwdOperands& o)
      : PointwiseWeightsGradient(o.src, o.dst, o.diff_weights), o_(o) {
    weights_ = {plan::DType::f32, oc(), ic()};
    // Besides the rows lie the sums, the weights and the next rows in L2.
    const int64_t block = dense_row_block();
    block_rows_ = std::max<int64_t>(kRowBytes / (4 * (ic() + oc())) / block, 2) * block;
    groups_ = std::clamp<int64_t>(4 * rows_ * (ic() + oc()) / (2 * part_floats() * 4), 1, 32);
    groups_ = std::min(groups_, ceil_div(rows_, block_rows_));
    bands_ = 1;
    name_ = kernel_name("pointwise_bwd", plan::DType::f32);
    dy_bytes_ = align64(static_cast<size_t>(block_rows_ * oc() + 16) * 4);  // the last vector of a row may read on
    coef_bytes_ = align64(bn_grad_coef_floats(oc()) * 4);
  }
  Status allocate() {
    auto packed = Block::allocate(weights_.bytes(), Block::Kind::kernel);
    if (!packed.ok()) return packed.status();
    packed_ = std::move(packed.value());
    return ok_status();
  }

  size_t worker_scratch_bytes() const override {
    return dy_bytes_ + coef_bytes_ + dense_scratch_bytes(weights_, 0) +
           PointwiseWeightsGradient::worker_scratch_bytes();
  }
  size_t persistent_bytes() const override { return packed_.bytes(); }
  double flops() const override { return 2 * PointwiseWeightsGradient::flops(); }
  void prepare(const ExecContext& ctx) override { weights_.pack(ctx.ptr<float>(o_.weights), true, packed_.data()); }

  void run(int phase, int shard, const ExecContext& ctx) override {
    if (phase == 1) return PointwiseWeightsGradient::run(phase, shard, ctx);
    std::byte* scratch = ctx.worker_scratch;
    float* dy = reinterpret_cast<float*>(scratch);
    const float* src = ctx.ptr<float>(o_.src);
    const int64_t end = rows_ * (shard + 1) / groups_;

    BnGradRowsArgs bn{};
    bn.diff_dst = ctx.ptr<float>(o_.diff_dst);
    bn.src = ctx.ptr<float>(o_.dst);
    bn.diff_src = dy;
    bn.channels = oc();
    bn.image_rows = o_.dst->dims[1] * o_.dst->dims[2];
    bn.total_rows = rows_;
    bn.act = o_.act;
    bn.drop = o_.drop;
    bn.scalars = ctx.scalars;
    bn.mean = ctx.ptr<float>(o_.mean);
    bn.inv_std = ctx.ptr<float>(o_.inv_std);
    bn.scale = ctx.ptr<float>(o_.scale);
    bn.shift = ctx.ptr<float>(o_.shift);
    bn.diff_scale = ctx.ptr<float>(o_.diff_scale);
    bn.diff_shift = ctx.ptr<float>(o_.diff_shift);
    bn.coefs = reinterpret_cast<float*>(scratch + dy_bytes_);
    bn_grad_coefs(bn);

    DenseRowsArgs data{};
    data.weights = weights_;
    data.packed = packed_.data();
    data.src = dy;
    data.dst_row = ic();
    data.past_caches = exceeds_caches(o_.diff_src);
    data.image_rows = rows_;
    data.panel_end = weights_.panels();
    data.scratch = scratch + dy_bytes_ + coef_bytes_;

    RowProductArgs sums{};
    sums.tall_channels = tall();
    sums.wide_channels = wide();
    sums.tall_end = tall();
    sums.block_rows = block_rows_;
    sums.sums = reinterpret_cast<float*>(ctx.shared_scratch) + shard * part_floats();
    sums.scratch = scratch + dy_bytes_ + coef_bytes_ + dense_scratch_bytes(weights_, 0);

    for (int64_t row = rows_ * shard / groups_; row < end; row += block_rows_) {
      const int64_t rows = std::min(block_rows_, end - row), next = row + rows;
      bn.row_begin = row;
      bn.row_end = next;
      bn_grad_rows(bn);

      const float* x = src + row * ic();
      sums.tall = transposed_ ? x : dy;
      sums.wide = transposed_ ? dy : x;
      sums.row_end = rows;
      // Behind dy there is room for a vector.
      sums.rows = transposed_ ? rows + 16 : rows_ - row;
      const int64_t ahead = std::min(block_rows_, std::max<int64_t>(end - next, 1));
      sums.fetch[0] = {bn.src + next * oc(), 4 * ahead * oc()};
      sums.fetch[1] = {bn.diff_dst + next * oc(), 4 * ahead * oc()};
      sums.fetch[2] = {src + next * ic(), 4 * ahead * ic()};
      // The largest takes a stream for itself.
      if (ic() > oc()) std::swap(sums.fetch[0], sums.fetch[2]);
      EFF_DISPATCH(row_product_f32)(sums);
      sums.accumulate = true;

      data.dst = ctx.ptr<float>(o_.diff_src) + row * ic();
      data.row_end = rows;
      dense_rows(data);
    }
  }

 private:
  static constexpr int64_t kRowBytes = 160 << 10;
  int64_t ic() const { return o_.src->dims[3]; }
  int64_t oc() const { return o_.dst->dims[3]; }

  PointwiseBwdOperands o_;
  DenseWeights weights_{};
  Block packed_;
  size_t dy_bytes_, coef_bytes_;
};

}  // namespace

StatusOr<KernelPtr> make_pointwise_bwd(const PointwiseBwdOperands& operands) {
  auto kernel = std::make_unique<PointwiseBackward>(operands);
  EFF_RETURN_IF_ERROR(kernel->allocate());
  return KernelPtr(std::move(kernel));
}

StatusOr<KernelPtr> make_pointwise_bwd_weights(const plan::Tensor* src, const plan::Tensor* diff_dst,
                                               const plan::Tensor* diff_weights) {
  return KernelPtr(std::make_unique<PointwiseWeightsGradient>(src, diff_dst, diff_weights));
}

}  // namespace effnet::cpu
#endif
