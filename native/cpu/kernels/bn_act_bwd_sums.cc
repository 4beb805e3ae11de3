// Backward of BN + activation + gate where the gate comes from squeeze-and-excitation: everything that needs diff_dst
// before the gate's own gradient is known, in one pass over src and diff_dst.
//
//   xm = src - mean,  z = scale*inv_std*xm + shift,  d = drop*diff_dst
//   diff_gate[n,c] = sum(d*act(z))
//   sums[n,:,c]    = sum(d*act'(z)), sum(act'(z)), sum(d*act'(z)*xhat), sum(act'(z)*xhat)
//
// over the pixels of image n.
//
// bn_act_bwd_merge then has the reductions of the complete gradient g = (d*gate + diff_pooled/pixels) * act'(z), which
// is linear in gate and diff_pooled:
//
//   diff_shift[c] = sum_n(gate*sums[n,0,c] + diff_pooled/pixels*sums[n,1,c]),   diff_scale with sums 2 and 3
//
// With `dst` the pass also makes the gated activation drop*gate*act(z) again, for whoever needs it in the backward
// part.
//
// A shard is some images, or a band of rows of one image where there are few; bands are added in order. Sums: 4 rows in
// registers, 64 rows in a tile, all FP32; images in double, in order.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/bn_act_bwd_sums.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/bn_pack-inl.h"

#ifndef EFFNET_BN_ACT_BWD_SUMS_ARGS_
#define EFFNET_BN_ACT_BWD_SUMS_ARGS_
#include "cpu/kernels/common.h"
#include "cpu/kernels/drop.h"

namespace effnet::cpu {

inline constexpr int kSumCount = 5;  // diff_gate and the four of `sums`
// Packed arrays: mean, a, shift, gate*drop, then a tile's sums and a band's.
inline constexpr int kSumArrays = 4 + 2 * kSumCount;

struct BnActBwdSumsArgs {
  plan::DType dtype;
  plan::Act act;
  const void *diff_dst, *src;
  const float *mean, *inv_std, *scale, *shift, *gate;
  void* dst;         // or null
  bool past_caches;  // how it is written
  int64_t channels, image_rows;
  int64_t image, row_begin, row_end;  // rows of this image
  float drop;                         // of this image
  float* out[kSumCount];              // C each
  float* scratch;                     // kSumArrays packed arrays
};

struct BnActBwdMergeArgs {
  const float *sums, *gate, *diff_pooled;  // [N,4,C], [N,C], [N,C] or null
  int64_t images, channels, begin, end;
  double pixels;
  float *diff_scale, *diff_shift;
};
}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

// Adds rows to the five arrays of a tile.
template <class T, plan::Act act, bool remake>
HWY_INLINE void add_sums(const BnActBwdSumsArgs& k, const T* x, const T* d, T* y, int64_t rows, int64_t pack,
                         int64_t capacity, float* tile) {
  constexpr bool wide = std::is_same_v<T, BFloat16>;  // f32 waits for memory
  const float *mean = k.scratch, *a = mean + capacity, *shift = a + capacity, *factor = shift + capacity;
  for_each_group<T, 4, wide>(
      rows, k.channels, pack, [&](int64_t at, int64_t c, size_t n, auto full, auto group) HWY_ATTR {
        constexpr int N = decltype(group)::kCount, U = decltype(group)::kColumns;
        Vec xm[N], diff[N], sums[U][kSumCount] = {};
        if constexpr (wide) fetch_group(x + at, group);
        if constexpr (wide) fetch_group(d + at, group);
        for (int i = 0; i < N; ++i) xm[i] = load_part(x + at + group.at(i), n, full);
        for (int i = 0; i < N; ++i) diff[i] = load_part(d + at + group.at(i), n, full);
        for (int i = 0; i < N; ++i) {
          const int64_t column = c + group.column(i);
          Vec value, slope;
          xm[i] = hn::Sub(xm[i], load(mean + column));
          activate_both<act, T>(hn::MulAdd(xm[i], load(a + column), load(shift + column)), value, slope);
          if constexpr (remake) {
            const Vec gated = hn::Mul(value, load(factor + column));
            store_part_past(gated, y + at + group.at(i), n, full, k.past_caches);
          }
          const Vec product = hn::Mul(diff[i], slope);
          auto& sum = sums[i % U];  // gate, dg, g, dgx, gx
          if (i < U) {
            sum[0] = hn::Mul(diff[i], value);
            sum[1] = product;
            sum[2] = slope;
            sum[3] = hn::Mul(product, xm[i]);
            sum[4] = hn::Mul(slope, xm[i]);
          } else {
            sum[0] = hn::MulAdd(diff[i], value, sum[0]);
            sum[1] = hn::Add(sum[1], product);
            sum[2] = hn::Add(sum[2], slope);
            sum[3] = hn::MulAdd(product, xm[i], sum[3]);
            sum[4] = hn::MulAdd(slope, xm[i], sum[4]);
          }
        }
        for (int u = 0; u < U; ++u) {
          for (int s = 0; s < kSumCount; ++s) {
            float* to = tile + s * capacity + c + group.column(u);
            Vec sum = sums[u][s];
            // Beyond a tail of packed rows lie columns of the next ones.
            if constexpr (!decltype(full)::value) sum = hn::IfThenElseZero(hn::FirstN(F32(), n), sum);
            store(hn::Add(load(to), sum), to);
          }
        }
      });
}

template <class T, plan::Act act, bool remake>
void sums_band(const BnActBwdSumsArgs& k) {
  const int64_t C = k.channels, pack = pack_factor(C), capacity = packed_capacity(C), width = pack * C;
  const auto [mean, a, shift] = fill_norm(k.scratch, capacity, C, pack, k.mean, k.inv_std, k.scale, k.shift);
  float *factor = shift + capacity, *tile = factor + capacity, *total = tile + kSumCount * capacity;
  if constexpr (remake) fill_packed(factor, C, pack, [&](int64_t c) { return k.gate[k.image * C + c] * k.drop; });
  std::memset(tile, 0, static_cast<size_t>(2 * kSumCount * capacity) * sizeof(float));
  const auto flush = [&]() HWY_ATTR {
    for (int64_t i = 0; i < kSumCount * capacity; i += kLanes) {
      store(hn::Add(load(total + i), load(tile + i)), total + i);
      store(zero(), tile + i);
    }
  };
  const T* src = static_cast<const T*>(k.src);
  const T* diff_dst = static_cast<const T*>(k.diff_dst);
  T* dst = static_cast<T*>(k.dst);
  const int64_t first = k.image * k.image_rows + k.row_begin;
  const int64_t count = k.row_end - k.row_begin, tile_rows = kSumTileRows * pack;
  for (int64_t row = 0; row < count; row += tile_rows) {
    const int64_t at = (first + row) * C;
    add_sums<T, act, remake>(k, src + at, diff_dst + at, remake ? dst + at : nullptr, std::min(tile_rows, count - row),
                             pack, capacity, tile);
    flush();
  }
  if (k.past_caches) hwy::FlushStream();
  for (int s = 0; s < kSumCount; ++s) {
    const bool with_diff = s == 0 || s == 1 || s == 3, with_xhat = s >= 3;
    for (int64_t c = 0; c < C; ++c) {
      float sum = 0;
      for (int64_t i = c; i < width; i += C) sum += total[s * capacity + i];
      if (with_diff) sum *= k.drop;
      k.out[s][c] = with_xhat ? sum * k.inv_std[c] : sum;
    }
  }
}

template <class T>
void sums_dtype(const BnActBwdSumsArgs& k) {
  with_act(k.act, [&](auto act) HWY_ATTR {
    if (k.dst) {
      sums_band<T, act(), true>(k);
    } else {
      sums_band<T, act(), false>(k);
    }
  });
}

void bn_act_bwd_sums(const BnActBwdSumsArgs& k) {
  if (k.dtype == plan::DType::bf16) {
    sums_dtype<BFloat16>(k);
  } else {
    sums_dtype<float>(k);
  }
}

void bn_act_bwd_merge(const BnActBwdMergeArgs& k) {
  constexpr int64_t kChunk = 256;
  const int64_t C = k.channels;
  const double inv_pixels = 1 / k.pixels;
  for (int64_t first = k.begin; first < k.end; first += kChunk) {
    double shift[kChunk] = {}, scale[kChunk] = {};
    const int64_t count = std::min(kChunk, k.end - first);
    for (int64_t n = 0; n < k.images; ++n) {
      const float *gate = k.gate + n * C + first, *sums = k.sums + 4 * n * C + first;
      for (int64_t c = 0; c < count; ++c) {
        const double pooled = k.diff_pooled ? static_cast<double>(k.diff_pooled[n * C + first + c]) * inv_pixels : 0;
        const double factor = static_cast<double>(gate[c]);
        shift[c] += factor * static_cast<double>(sums[c]) + pooled * static_cast<double>(sums[C + c]);
        scale[c] += factor * static_cast<double>(sums[2 * C + c]) + pooled * static_cast<double>(sums[3 * C + c]);
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      k.diff_shift[first + c] = static_cast<float>(shift[c]);
      k.diff_scale[first + c] = static_cast<float>(scale[c]);
    }
  }
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
namespace {

HWY_EXPORT(bn_act_bwd_sums);
HWY_EXPORT(bn_act_bwd_merge);

class BnActBwdSums : public Kernel {
 public:
  explicit BnActBwdSums(const plan::Op& op)
      : op_(op),
        name_(kernel_name("bn_act_bwd_sums", op.in(op::bn_act_bwd_sums::in_src)->dtype)),
        drop_(Drop::of(op, op::bn_act_bwd_sums::attr_drop_rate, op::bn_act_bwd_sums::attr_rng_stream)) {
    const plan::Tensor& src = *op.in(op::bn_act_bwd_sums::in_src);
    channels_ = src.c();
    rows_ = src.h() * src.w();
    images_ = {src.n(), std::max<int64_t>(1, kShardElements / (rows_ * channels_))};
    bands_ = {rows_, rows_};
    if (src.n() < kFewImages) {
      // Whole tiles of packed rows in every band but the last.
      const int64_t tile = channels_ < kPackBelow ? kSumTileRows * kMaxLanes : kSumTileRows;
      const int64_t wanted = std::max(ceil_div(rows_ * src.n(), kFewImages), kShardElements / channels_);
      bands_.step = std::min(rows_, round_up(wanted, tile));
      if (bands_.count() > 1) images_.step = 1;
    }
  }
  const char* name() const override { return name_.c_str(); }
  int phases() const override { return bands_.count() > 1 ? 2 : 1; }
  int shards(int phase) const override { return images_.count() * (phase == 0 ? bands_.count() : 1); }
  size_t worker_scratch_bytes() const override {
    return kSumArrays * sizeof(float) * static_cast<size_t>(packed_capacity(channels_));
  }
  // Sums of the bands, [N][bands][5][C].
  size_t shared_scratch_bytes() const override {
    if (bands_.count() == 1) return 0;
    return static_cast<size_t>(images_.total * bands_.count() * kSumCount * channels_) * sizeof(float);
  }
  void run(int phase, int shard, const ExecContext& ctx) override {
    if (phase == 1) return add_bands(shard, ctx);
    const int group = shard / bands_.count(), band = shard % bands_.count();
    for (int64_t image = images_.begin(group); image < images_.end(group); ++image) run_band(image, band, ctx);
  }

 private:
  static constexpr int64_t kFewImages = 16;

  // Where sum `s` of an image goes.
  float* place(int64_t image, int s, const ExecContext& ctx) const {
    using namespace op::bn_act_bwd_sums;
    if (s == 0) return ctx.ptr<float>(op_.out(out_diff_gate)) + image * channels_;
    return ctx.ptr<float>(op_.out(out_sums)) + (4 * image + s - 1) * channels_;
  }
  float* band_place(int64_t image, int64_t band, int s, const ExecContext& ctx) const {
    return reinterpret_cast<float*>(ctx.shared_scratch) + ((image * bands_.count() + band) * kSumCount + s) * channels_;
  }
  void run_band(int64_t image, int band, const ExecContext& ctx) const {
    using namespace op::bn_act_bwd_sums;
    BnActBwdSumsArgs k{};
    k.dtype = op_.in(in_src)->dtype;
    k.act = op_.act(attr_act);
    k.diff_dst = ctx.ptr<const void>(op_.in(in_diff_dst));
    k.src = ctx.ptr<const void>(op_.in(in_src));
    k.mean = ctx.ptr<const float>(op_.in(in_mean));
    k.inv_std = ctx.ptr<const float>(op_.in(in_inv_std));
    k.scale = ctx.ptr<const float>(op_.in(in_scale));
    k.shift = ctx.ptr<const float>(op_.in(in_shift));
    k.gate = ctx.ptr<const float>(op_.in(in_gate));
    k.dst = ctx.ptr<void>(op_.out(out_dst));
    k.past_caches = k.dst && exceeds_caches(op_.out(out_dst));
    k.channels = channels_;
    k.image_rows = rows_;
    k.image = image;
    k.row_begin = bands_.begin(band);
    k.row_end = bands_.end(band);
    k.drop = drop_.factor(*ctx.scalars, image);
    for (int s = 0; s < kSumCount; ++s)
      k.out[s] = bands_.count() > 1 ? band_place(image, band, s, ctx) : place(image, s, ctx);
    k.scratch = reinterpret_cast<float*>(ctx.worker_scratch);
    EFF_DISPATCH(bn_act_bwd_sums)(k);
  }
  void add_bands(int64_t image, const ExecContext& ctx) const {
    for (int s = 0; s < kSumCount; ++s) {
      float* sum = place(image, s, ctx);
      const float* first = band_place(image, 0, s, ctx);
      for (int64_t c = 0; c < channels_; ++c) sum[c] = first[c];
      for (int64_t band = 1; band < bands_.count(); ++band) {
        const float* more = band_place(image, band, s, ctx);
        for (int64_t c = 0; c < channels_; ++c) sum[c] += more[c];
      }
    }
  }

  const plan::Op op_;
  std::string name_;
  Drop drop_;
  int64_t channels_, rows_;
  Split images_, bands_;
};

class BnActBwdMerge : public Kernel {
 public:
  explicit BnActBwdMerge(const plan::Op& op) : op_(op), name_(kernel_name("bn_act_bwd_merge", plan::DType::f32)) {
    channels_ = {op.in(op::bn_act_bwd_merge::in_gate)->dims[1], 128};
  }
  const char* name() const override { return name_.c_str(); }
  int shards(int) const override { return channels_.count(); }
  void run(int, int shard, const ExecContext& ctx) override {
    using namespace op::bn_act_bwd_merge;
    EFF_DISPATCH(bn_act_bwd_merge)
    ({ctx.ptr<const float>(op_.in(in_sums)), ctx.ptr<const float>(op_.in(in_gate)),
      ctx.ptr<const float>(op_.in(in_diff_pooled)), op_.in(in_gate)->dims[0], channels_.total, channels_.begin(shard),
      channels_.end(shard), op_.attr(attr_pixels), ctx.ptr<float>(op_.out(out_diff_scale)),
      ctx.ptr<float>(op_.out(out_diff_shift))});
  }

 private:
  const plan::Op op_;
  std::string name_;
  Split channels_;
};

}  // namespace

StatusOr<KernelPtr> make_bn_act_bwd_sums(const plan::Op& op) {
  using namespace op::bn_act_bwd_sums;
  OpCheck check(op);
  const plan::Tensor* src = op.in(in_src);
  check.act(attr_act).drop_rate(attr_drop_rate).activation(src, "src").like(op.in(in_diff_dst), src, "diff_dst");
  if (!check.ok()) return check.status();
  const int64_t n = src->n(), c = src->c();
  for (const int port : {in_mean, in_inv_std, in_scale, in_shift}) check.f32(op.in(port), {c}, "mean to shift");
  check.f32(op.out(out_diff_gate), {n, c}, "diff_gate").f32(op.out(out_sums), {n, 4, c}, "sums");
  check.optional_f32(op.in(in_gate), {n, c}, "gate");
  if (op.out(out_dst)) check.like(op.out(out_dst), src, "dst").that(op.in(in_gate), "dst without gate");
  if (!check.ok()) return check.status();
  return KernelPtr(new BnActBwdSums(op));
}

StatusOr<KernelPtr> make_bn_act_bwd_merge(const plan::Op& op) {
  using namespace op::bn_act_bwd_merge;
  OpCheck check(op);
  const plan::Tensor* gate = op.in(in_gate);
  check.that(gate && gate->rank == 2 && gate->elements() > 0, "gate").that(op.attr(attr_pixels) >= 1, "pixels");
  if (!check.ok()) return check.status();
  const int64_t n = gate->dims[0], c = gate->dims[1];
  check.f32(gate, {n, c}, "gate").f32(op.in(in_sums), {n, 4, c}, "sums");
  check.optional_f32(op.in(in_diff_pooled), {n, c}, "diff_pooled");
  check.f32(op.out(out_diff_scale), {c}, "diff_scale").f32(op.out(out_diff_shift), {c}, "diff_shift");
  if (!check.ok()) return check.status();
  return KernelPtr(new BnActBwdMerge(op));
}

}  // namespace effnet::cpu
#endif
