// Forward and backward data by Winograd. Groups of tiles, whose transformed inputs stay in the core's L2, go through
// the panels of output channels: 36 matrix products [tiles x terms] * [terms x panel], then the transform of the
// products to outputs. Filters are transformed when they change.
#include "cpu/kernels/winograd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/winograd_conv.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/winograd-inl.h"

#ifndef EFFNET_WINOGRAD_CONV_ARGS_
#define EFFNET_WINOGRAD_CONV_ARGS_
#include <algorithm>
#include <array>
#include <utility>

#include "core/memory.h"
#include "cpu/kernels/common.h"

namespace effnet::cpu {

struct WinogradArgs {
  const float* src;
  float* dst;
  const float* filters;   // transformed: see wino_filters()
  const float* bias;      // or null
  const float* residual;  // like dst, or null
  plan::Act act;
  WinoGrid in, out;
  bool past_caches;           // dst is too large for the caches
  int64_t begin, end, group;  // tiles; a group's are transformed together
  float* scratch;
};

struct WinogradFilterArgs {
  const float* weights;  // [oc][3][3][ic]
  int64_t oc, ic;
  bool backward;
  float* filters;
};

}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

// ---- products ----------------------------------------------------------------------------------------------------

// Steps whose sums are built up in registers before they are added to those of the steps before.
inline constexpr int64_t kWinoSteps = 48;

struct WinoTileArgs {
  const float *a, *b;
  int64_t a_row, steps;
  float* out;
  int64_t out_row;
  const std::byte* ahead;  // memory to fetch meanwhile, ahead_step bytes every second step
  int64_t ahead_step;
};

// out[i][j] = sum over steps of a[i][step] * b[step][j] for MR rows and NV vectors. Unlike gemm_tile() it sums even and
// odd steps apart, and long sums in blocks: the rounding of the sums is most of the algorithm's error, and grows with
// the root of their length. Half as many rows per vector of b cost no time: loads are not what the core runs out of.
// `half`: of the last vector only the lower half counts, and the upper half of the result is 0.
template <int MR, int NV, bool half>
void wino_tile(const WinoTileArgs& t) {
  constexpr int64_t lanes = kLanes;
  constexpr int full = half ? NV - 1 : NV;
  const float *a = t.a, *b = t.b;
  const std::byte* ahead = t.ahead;
  // As in gemm_tile(): few registers for the addresses of many rows.
  const int64_t row = t.a_row;
  int64_t row3 = 3 * row, row5 = 5 * row;
  const float* a7 = a + 7 * row;
  asm("" : "+r"(row3), "+r"(row5), "+r"(a7));
  const int64_t blocks = ceil_div(t.steps, kWinoSteps), block = (t.steps + 2 * blocks - 1) / (2 * blocks) * 2;
  for (int64_t first = 0; first < t.steps; first += block) {
    Vec sum[2][MR][full + 1];
    HalfVec half_sum[2][MR];
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; ++odd) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 2
        for (int j = 0; j < full; ++j) sum[odd][i][j] = zero();
        if constexpr (half) half_sum[odd][i] = hn::Zero(HalfF32());
      }
    }
    const auto one_step = [&](auto odd) HWY_ATTR {
      constexpr int at_step = decltype(odd)::value;
      const float* panel = b + at_step * NV * lanes;
      Vec vb[full + 1];
      HalfVec half_b;
#pragma GCC unroll 2
      for (int j = 0; j < full; ++j) vb[j] = load(panel + j * lanes);
      if constexpr (half) half_b = hn::LoadU(HalfF32(), panel + full * lanes);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const float* base = i < 7 ? a : a7;
        const int64_t at = i % 7 == 0   ? 0
                           : i % 7 == 1 ? row
                           : i % 7 == 2 ? 2 * row
                           : i % 7 == 3 ? row3
                           : i % 7 == 4 ? 4 * row
                           : i % 7 == 5 ? row5
                                        : 2 * row3;
        const Vec va = splat(base[at + at_step]);
#pragma GCC unroll 2
        for (int j = 0; j < full; ++j) sum[at_step][i][j] = hn::MulAdd(va, vb[j], sum[at_step][i][j]);
        if constexpr (half)
          half_sum[at_step][i] = hn::MulAdd(hn::LowerHalf(HalfF32(), va), half_b, half_sum[at_step][i]);
      }
    };
    int64_t left = std::min(block, t.steps - first);
    for (; left >= 2; left -= 2) {
      __builtin_prefetch(ahead, 0, 2);
      ahead += t.ahead_step;
      one_step(std::integral_constant<int, 0>());
      one_step(std::integral_constant<int, 1>());
      a += 2;
      a7 += 2;
      b += 2 * NV * lanes;
    }
    if (left) one_step(std::integral_constant<int, 0>());
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const auto put = [&](int j, Vec part) HWY_ATTR {
        float* to = t.out + i * t.out_row + j * lanes;
        store(first ? hn::Add(load(to), part) : part, to);
      };
#pragma GCC unroll 2
      for (int j = 0; j < full; ++j) put(j, hn::Add(sum[0][i][j], sum[1][i][j]));
      if constexpr (half) put(full, hn::ZeroExtendVector(F32(), hn::Add(half_sum[0][i], half_sum[1][i])));
    }
  }
}

// Rows of a tile that is 1 or 2 vectors wide.
template <int NV>
inline constexpr int kWinoRows = (HWY_TARGET == HWY_AVX3 ? 14 : 6) / NV;
// Half a vector of columns has its own code where that is faster: see kHalfVectors in gemm_tile-inl.h.
inline constexpr bool kWinoHalves = HWY_TARGET == HWY_AVX3;
// Groups are multiples of it.
inline constexpr int64_t kWinoRowBlock = HWY_TARGET == HWY_AVX3 ? 14 : 12;

using WinoTileFunction = void (*)(const WinoTileArgs&);
template <int NV, bool half, size_t... I>
constexpr std::array<WinoTileFunction, sizeof...(I)> wino_tile_functions(std::index_sequence<I...>) {
  return {wino_tile<static_cast<int>(I) + 1, NV, half>...};
}
template <int NV, bool half>
inline constexpr auto kWinoTiles = wino_tile_functions<NV, half>(std::make_index_sequence<kWinoRows<NV>>());

template <int NV, bool half>
HWY_INLINE void wino_product(WinoTileArgs t, int64_t rows, WinoAhead& ahead) {
  for (; rows > 0; rows -= kWinoRows<NV>) {
    t.ahead = ahead.take(t.steps / 2, t.ahead_step);
    kWinoTiles<NV, half>[static_cast<size_t>(std::min<int64_t>(rows, kWinoRows<NV>) - 1)](t);
    t.a += kWinoRows<NV> * t.a_row;
    t.out += kWinoRows<NV> * t.out_row;
  }
}

// ---- filters -----------------------------------------------------------------------------------------------------

using F64 = hn::ScalableTag<double>;

// G, divided by wino_divisor(). In double precision, and the result rounded once: an error here is the same for all
// pixels, so that it would not average out.
struct WinoFilter {
  using V = hn::Vec<F64>;
  static constexpr int kFrom = 3, kTo = 6;
  static HWY_INLINE void apply(const V (&g)[3], V (&u)[6]) {
    const auto constant = [](double v) HWY_ATTR { return hn::Set(F64(), v); };
    const auto both = [&](double point, int at) HWY_ATTR {
      const double scale = 1 / wino_divisor(at);
      const V even = hn::MulAdd(g[2], constant(point * point * scale), hn::Mul(g[0], constant(scale)));
      const V odd = hn::Mul(g[1], constant(point * scale));
      u[at] = hn::Add(even, odd);
      u[at + 1] = hn::Sub(even, odd);
    };
    u[0] = hn::Mul(g[0], constant(1 / wino_divisor(0)));
    both(kWinoPointA, 1);
    both(kWinoPointB, 3);
    u[5] = g[2];
  }
};

// Panels of 2 vectors of output channels (the last may have 1), each [point][term][channel], zeros beyond the last
// channel. Backward data: terms are the output channels of the op.
void wino_filters(const WinogradFilterArgs& args) {
  constexpr int64_t lanes = kLanes, doubles = lanes / 2;
  const int64_t terms = args.backward ? args.oc : args.ic, channels = args.backward ? args.ic : args.oc;
  const int64_t channel_stride = args.backward ? 1 : 9 * args.ic, term_stride = args.backward ? 9 * args.ic : 1;
  const int64_t tap_stride = args.backward ? -args.ic : args.ic;
  float* panel = args.filters;
  for (int64_t first = 0; first < channels; first += 2 * lanes) {
    const int64_t width = channels - first > lanes ? 2 * lanes : lanes;
    for (int64_t k = 0; k < terms; ++k) {
      for (int64_t c = 0; c < width; c += doubles) {
        const int64_t left = std::clamp<int64_t>(channels - first - c, 0, doubles);
        const float* from = args.weights + k * term_stride + (first + c) * channel_stride;
        if (args.backward) from += 8 * args.ic;  // turned by 180 degrees
        HWY_ALIGN double taps[9 * doubles] = {};
        for (int64_t i = 0; i < left; ++i)
          for (int64_t tap = 0; tap < 9; ++tap) taps[tap * doubles + i] = from[i * channel_stride + tap * tap_stride];
        wino_transform<WinoFilter>([&](int i, int j) HWY_ATTR { return hn::Load(F64(), taps + (i * 3 + j) * doubles); },
                                   [&](int i, int j, hn::Vec<F64> v) HWY_ATTR {
                                     hn::StoreU(hn::DemoteTo(HalfF32(), v), HalfF32(),
                                                panel + ((i * 6 + j) * terms + k) * width + c);
                                   });
      }
    }
    panel += kWinoPoints * terms * width;
  }
}

// ---- outputs -----------------------------------------------------------------------------------------------------

// The 4x4 outputs of each tile from products[point][tile][width], clipped to the image; `first` is the panel's first
// channel.
template <plan::Act act>
HWY_INLINE void wino_outputs(const WinogradArgs& args, const float* HWY_RESTRICT products, int64_t width, int64_t point,
                             int64_t begin, int64_t end, int64_t first) {
  constexpr int64_t lanes = kLanes;
  const WinoGrid& grid = args.out;
  const int64_t row = grid.width * grid.channels;
  for (int64_t tile = begin; tile < end; ++tile, products += width) {
    const auto [image, y, x] = grid.place(tile);
    const int64_t rows = std::min(kWinoTile, grid.height - y), columns = std::min(kWinoTile, grid.width - x);
    const int64_t at = ((image * grid.height + y) * grid.width + x) * grid.channels + first;
    for_each_vector(std::min(width, grid.channels - first), [&](int64_t c, size_t n, auto full) HWY_ATTR {
      const Vec shift = args.bias ? load_part(args.bias + first + c, n, full) : zero();
      const auto write = [&](int64_t i, int64_t j, Vec v) HWY_ATTR {
        const int64_t to = at + i * row + j * grid.channels + c;
        v = activate<act>(hn::Add(v, shift));
        if (args.residual) v = hn::Add(v, load_part(args.residual + to, n, full));
        store_part_past(v, args.dst + to, n, full, args.past_caches);
      };
      const auto get = [&](int i, int j) HWY_ATTR { return load(products + c + (i * 6 + j) * point); };
      if (rows == kWinoTile && columns == kWinoTile) {
        wino_transform<WinoOutput<4>>(get, write);
        return;
      }
      HWY_ALIGN float values[16 * lanes];
      wino_transform<WinoOutput<4>>(
          get, [&](int i, int j, Vec v) HWY_ATTR { hn::Store(v, F32(), values + (i * 4 + j) * lanes); });
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) write(i, j, hn::Load(F32(), values + (i * 4 + j) * lanes));
    });
  }
}

// ---- all of it ---------------------------------------------------------------------------------------------------

int64_t wino_lanes() { return kLanes; }
int64_t wino_row_block() { return kWinoRowBlock; }
// Floats of scratch for groups of `group` tiles.
int64_t wino_scratch(int64_t terms, int64_t group) {
  const int64_t width = 2 * kLanes;
  return kWinoPoints * (wino_point_stride(group * whole_vectors(terms)) + wino_point_stride(group * width));
}

void wino_conv(const WinogradArgs& args) {
  constexpr int64_t lanes = kLanes;
  const int64_t terms = args.in.channels, channels = args.out.channels;
  const int64_t in_row = whole_vectors(terms), in_point = wino_point_stride(args.group * in_row);
  float* inputs = args.scratch;
  float* products = inputs + kWinoPoints * in_point;
  for (int64_t begin = args.begin; begin < args.end; begin += args.group) {
    const int64_t end = std::min(args.end, begin + args.group);
    wino_tiles<WinoInput>(args.src, args.in, begin, end, 0, terms, inputs, in_row, in_point);
    WinoAhead ahead(args.src, args.in, end, std::min(args.end, end + args.group), kWinoPatch);
    const float* panel = args.filters;
    for (int64_t first = 0; first < channels; first += 2 * lanes) {
      const int64_t width = channels - first > lanes ? 2 * lanes : lanes, point = wino_point_stride(args.group * width);
      for (int64_t p = 0; p < kWinoPoints; ++p) {
        const WinoTileArgs tile{
            inputs + p * in_point, panel + p * terms * width, in_row, terms, products + p * point, width, nullptr, 0};
        const int64_t rows = end - begin;
        const bool half = kWinoHalves && channels - first <= width - lanes / 2;
        if (width == lanes) {
          half ? wino_product<1, kWinoHalves>(tile, rows, ahead) : wino_product<1, false>(tile, rows, ahead);
        } else {
          half ? wino_product<2, kWinoHalves>(tile, rows, ahead) : wino_product<2, false>(tile, rows, ahead);
        }
      }
      with_act(args.act, [&](auto act) HWY_ATTR {
        wino_outputs<decltype(act)::value>(args, products, width, point, begin, end, first);
      });
      panel += kWinoPoints * terms * width;
    }
  }
  if (args.past_caches) hwy::FlushStream();
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
namespace {

HWY_EXPORT(wino_lanes);
HWY_EXPORT(wino_row_block);
HWY_EXPORT(wino_scratch);
HWY_EXPORT(wino_filters);
HWY_EXPORT(wino_conv);

// What the transformed inputs of a group and its products may take of the core's L2, beside the filters that stream
// through it.
constexpr int64_t kGroupBytes = 450 << 10;
// Multiplications of the products in a shard, about 0.5 ms.
constexpr int64_t kShardProducts = 20'000'000;

class WinogradConv final : public Kernel {
 public:
  WinogradConv(const WinogradOperands& operands, const char* name) : operands_(operands) {
    const plan::Tensor &src = *operands.src, &dst = *operands.dst;
    in_ = {src.dims[1], src.dims[2], src.dims[3], 0, 0, operands.pad_t, operands.pad_l};
    // Turned filters read as many pixels before as the op's read behind.
    if (operands.backward) in_.pad_t = 2 - operands.pad_t, in_.pad_l = 2 - operands.pad_l;
    in_.tiles_y = ceil_div(dst.dims[1], kWinoTile);
    in_.tiles_x = ceil_div(dst.dims[2], kWinoTile);
    out_ = {dst.dims[1], dst.dims[2], dst.dims[3], in_.tiles_y, in_.tiles_x, 0, 0};
    tiles_ = dst.dims[0] * in_.tiles_y * in_.tiles_x;
    const int64_t block = EFF_DISPATCH(wino_row_block)();
    const auto fits = [&](int64_t group) { return 4 * EFF_DISPATCH(wino_scratch)(in_.channels, group) <= kGroupBytes; };
    group_ = fits(2 * block) ? 2 * block : block;
    const int64_t groups = ceil_div(tiles_, group_);
    const int64_t products = kWinoPoints * group_ * in_.channels * out_.channels;
    shard_tiles_ = group_ * std::clamp<int64_t>(kShardProducts / products, 1, std::max<int64_t>(groups / 4, 1));
    name_ = kernel_name(name, src.dtype);
  }
  Status allocate() {
    const int64_t lanes = EFF_DISPATCH(wino_lanes)(), padded = round_up(out_.channels, lanes);
    auto filters = Block::allocate(static_cast<uint64_t>(4 * kWinoPoints * in_.channels * padded), Block::Kind::kernel);
    if (!filters.ok()) return filters.status();
    filters_ = std::move(filters.value());
    return ok_status();
  }

  const char* name() const override { return name_.c_str(); }
  int shards(int) const override { return static_cast<int>(ceil_div(tiles_, shard_tiles_)); }
  size_t worker_scratch_bytes() const override {
    return static_cast<size_t>(4 * EFF_DISPATCH(wino_scratch)(in_.channels, group_));
  }
  size_t persistent_bytes() const override { return filters_.bytes(); }
  // Of the direct convolution: what the op asks for, not what is done for it.
  double flops() const override {
    const plan::Tensor& result = operands_.backward ? *operands_.src : *operands_.dst;
    return 18.0 * static_cast<double>(result.dims[0] * result.dims[1] * result.dims[2]) *
           static_cast<double>(in_.channels * out_.channels);
  }

  void prepare(const ExecContext& ctx) override {
    const plan::Tensor& weights = *operands_.weights;
    EFF_DISPATCH(wino_filters)
    ({ctx.ptr<float>(&weights), weights.dims[0], weights.dims[3], operands_.backward, filters()});
  }

  void run(int, int shard, const ExecContext& ctx) override {
    WinogradArgs args{};
    args.src = ctx.ptr<float>(operands_.src);
    args.dst = ctx.ptr<float>(operands_.dst);
    args.filters = filters();
    args.bias = ctx.ptr<float>(operands_.bias);
    args.residual = ctx.ptr<float>(operands_.residual);
    args.act = operands_.act;
    args.in = in_;
    args.out = out_;
    args.past_caches = whole_lines() && exceeds_caches(operands_.dst);
    args.begin = shard * shard_tiles_;
    args.end = std::min(tiles_, args.begin + shard_tiles_);
    args.group = group_;
    args.scratch = reinterpret_cast<float*>(ctx.worker_scratch);
    EFF_DISPATCH(wino_conv)(args);
  }

 private:
  // Parts of lines past the caches would be slower than whole ones through them.
  bool whole_lines() const { return out_.channels * 4 % 64 == 0; }
  float* filters() const { return reinterpret_cast<float*>(filters_.data()); }

  WinogradOperands operands_;
  WinoGrid in_, out_;
  int64_t tiles_, group_, shard_tiles_;
  Block filters_;
  std::string name_;
};

}  // namespace

bool prefer_winograd(int64_t ic, int64_t oc, int64_t size) { return std::min(ic, oc) >= 8 && size >= 7; }

StatusOr<KernelPtr> make_winograd(const WinogradOperands& operands, const char* name) {
  auto kernel = std::make_unique<WinogradConv>(operands, name);
  EFF_RETURN_IF_ERROR(kernel->allocate());
  return KernelPtr(std::move(kernel));
}

}  // namespace effnet::cpu
#endif
