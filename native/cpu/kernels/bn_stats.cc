// Statistics of batch normalisation: mean and 1/sqrt(variance + eps) by channel, and the running averages.
//
// Tiles of 64 rows: sums of (x - k) and (x - k)^2 in FP32, k near the mean (of 8 rows, then of all so far), so that
// nothing cancels when a mean is large against its deviation; a constant channel has variance 0 exactly. Tiles and then
// shards are merged in order by Chan's formula in double (about one operation in fifteen). Relative error of the
// variance below 3e-7 at mean/deviation 0, 3 and 100. Reads src once.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/bn_stats.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/bn_pack-inl.h"
#include "cpu/kernels/stats-inl.h"

#ifndef EFFNET_BN_STATS_ARGS_
#define EFFNET_BN_STATS_ARGS_
#include <cmath>
#include <vector>

#include "cpu/kernels/common.h"
#include "cpu/kernels/stats.h"

namespace effnet::cpu {

struct BnStatsArgs {
  plan::DType dtype;
  const void* src;
  int64_t channels, row_begin, row_end;
  double* partial;  // of this shard: means[C], squared deviations[C]
  std::byte* scratch;
};

// Arrays of a shard: shift and the two sums of a tile (float), mean and squared deviations so far (double). They lie on
// pages of their own: in one page with each other they cost the source half of its bandwidth (seen on Zen 4, whose
// prefetchers learn by page).
inline int64_t bn_stats_capacity(int64_t channels) { return packed_capacity(channels) + 2048; }
inline size_t bn_stats_scratch(int64_t channels) {
  return static_cast<size_t>(bn_stats_capacity(channels)) * (3 * 4 + 2 * 8);
}

}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

template <class T>
class BnStatsShard {
 public:
  BnStatsShard(int64_t channels, std::byte* scratch) : channels_(channels) {
    const int64_t capacity = bn_stats_capacity(channels);
    mean_ = reinterpret_cast<double*>(scratch);
    m2_ = mean_ + capacity;
    shift_ = reinterpret_cast<float*>(m2_ + capacity);
    s1_ = shift_ + capacity;
    s2_ = s1_ + capacity;
  }

  // Statistics of `rows` rows of `width` columns into mean_ and m2_.
  HWY_INLINE void columns(const T* src, int64_t rows, int64_t width) {
    constexpr int64_t kTile = kStatsTileRows;
    for (int64_t c = 0; c < width; ++c) mean_[c] = m2_[c] = 0;
    for (int64_t first = 0; first < rows; first += kTile) {
      const int64_t count = std::min(kTile, rows - first);
      const T* x = src + first * width;
      tile(x, first == 0, count, width);
      stats_merge_tile(static_cast<double>(first), static_cast<double>(count), width, shift_, s1_, s2_, mean_, m2_);
    }
  }

  HWY_INLINE void run(const T* src, int64_t rows, double* partial) {
    const int64_t C = channels_, pack = pack_factor(C), packed = rows / pack, rest = rows - packed * pack;
    double *mean = partial, *m2 = partial + C;
    double total = 0;
    for (int64_t c = 0; c < C; ++c) mean[c] = m2[c] = 0;
    if (packed > 0) {
      columns(src, packed, pack * C);
      for (int64_t i = 0; i < pack; ++i) {
        for (int64_t c = 0; c < C; ++c) {
          chan_merge(total, static_cast<double>(packed), mean_[i * C + c], m2_[i * C + c], mean[c], m2[c]);
        }
        total += static_cast<double>(packed);
      }
    }
    if (rest > 0) {
      columns(src + packed * pack * C, rest, C);
      for (int64_t c = 0; c < C; ++c) chan_merge(total, static_cast<double>(rest), mean_[c], m2_[c], mean[c], m2[c]);
    }
  }

 private:
  HWY_INLINE void row(const T* x, int64_t width) {
    for_each_vector(width, [&](int64_t c, size_t n, auto full) HWY_ATTR {
      const Vec d = hn::Sub(load_part(x + c, n, full), load(shift_ + c));
      store(hn::Add(load(s1_ + c), d), s1_ + c);
      store(hn::MulAdd(d, d, load(s2_ + c)), s2_ + c);
    });
  }

  // The shift of a tile is any value near its mean: of the first tile the mean of 8 rows, then the mean so far. Both
  // are exact for a constant channel (a sum of 8 equal numbers in a tree rounds nowhere).
  HWY_INLINE void start_tile(const T* x, bool first, int64_t count, int64_t width) {
    if (!first) stats_next_shift(width, mean_, shift_);
    for_each_vector(width, [&](int64_t c, size_t n, auto full) HWY_ATTR {
      store(zero(), s1_ + c);
      store(zero(), s2_ + c);
      if (!first) return;
      const auto row = [&](int64_t r) HWY_ATTR { return load_part(x + r * width + c, n, full); };
      store(count < 8 ? row(0) : mean_of_8(row), shift_ + c);
    });
  }

  HWY_INLINE void tile(const T* x, bool first, int64_t count, int64_t width) {
    start_tile(x, first, count, width);
    for (int64_t r = 0; r < count; ++r) row(x + r * width, width);
  }

  const int64_t channels_;
  double *mean_, *m2_;
  float *shift_, *s1_, *s2_;
};

template <class T>
void stats_range(const BnStatsArgs& k) {
  BnStatsShard<T>(k.channels, k.scratch)
      .run(static_cast<const T*>(k.src) + k.row_begin * k.channels, k.row_end - k.row_begin, k.partial);
}

void bn_stats(const BnStatsArgs& k) {
  if (k.dtype == plan::DType::bf16) {
    stats_range<BFloat16>(k);
  } else {
    stats_range<float>(k);
  }
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
namespace {

HWY_EXPORT(bn_stats);

class BnStats : public Kernel {
 public:
  explicit BnStats(const plan::Op& op) : name_(kernel_name("bn_stats", op.in(op::bn_stats::in_src)->dtype)) {
    using namespace op::bn_stats;
    src_ = op.in(in_src);
    mean_ = op.out(out_mean);
    inv_std_ = op.out(out_inv_std);
    running_mean_ = op.upd(upd_running_mean);
    running_var_ = op.upd(upd_running_var);
    eps_ = op.attr(attr_eps);
    momentum_ = op.attr(attr_momentum);
    channels_ = src_->c();
    // Whole tiles of packed rows in every shard but the last.
    const int64_t tile = channels_ < kPackBelow ? kStatsTileRows * kMaxLanes : kStatsTileRows;
    rows_ = split_rows(src_->elements() / channels_, channels_, 128, tile);
    for (int i = 0; i < rows_.count(); ++i) shard_rows_.push_back(rows_.end(i) - rows_.begin(i));
    merge_ = {channels_, kStatsMergeChannels};
  }
  const char* name() const override { return name_.c_str(); }
  int phases() const override { return 2; }
  int shards(int phase) const override { return phase == 0 ? rows_.count() : merge_.count(); }
  size_t worker_scratch_bytes() const override { return bn_stats_scratch(channels_); }
  size_t shared_scratch_bytes() const override {
    return static_cast<size_t>(rows_.count()) * 2 * sizeof(double) * static_cast<size_t>(channels_);
  }
  void run(int phase, int shard, const ExecContext& ctx) override {
    double* partials = reinterpret_cast<double*>(ctx.shared_scratch);
    if (phase == 0) {
      EFF_DISPATCH(bn_stats)
      ({src_->dtype, ctx.ptr<const void>(src_), channels_, rows_.begin(shard), rows_.end(shard),
        partials + 2 * shard * channels_, ctx.worker_scratch});
    } else {
      merge_stats({partials, shard_rows_.data(), rows_.count(), channels_, merge_.begin(shard), merge_.end(shard), eps_,
                   momentum_, ctx.ptr<float>(mean_), ctx.ptr<float>(inv_std_), ctx.ptr<float>(running_mean_),
                   ctx.ptr<float>(running_var_)});
    }
  }

 private:
  std::string name_;
  const plan::Tensor *src_, *mean_, *inv_std_, *running_mean_, *running_var_;
  double eps_, momentum_;
  int64_t channels_;
  Split rows_, merge_;
  std::vector<int64_t> shard_rows_;
};

// A few hundred values: scalar double, correctly rounded.
class BnInvStd : public Kernel {
 public:
  explicit BnInvStd(const plan::Op& op)
      : var_(op.in(op::bn_inv_std::in_var)),
        inv_std_(op.out(op::bn_inv_std::out_inv_std)),
        eps_(op.attr(op::bn_inv_std::attr_eps)) {}
  const char* name() const override { return "bn_inv_std_f32:scalar"; }
  int shards(int) const override { return 1; }
  void run(int, int, const ExecContext& ctx) override {
    const float* var = ctx.ptr<const float>(var_);
    float* inv_std = ctx.ptr<float>(inv_std_);
    for (int64_t c = 0; c < var_->elements(); ++c) {
      inv_std[c] = static_cast<float>(1.0 / std::sqrt(static_cast<double>(var[c]) + eps_));
    }
  }

 private:
  const plan::Tensor *var_, *inv_std_;
  double eps_;
};

}  // namespace

Status check_bn_stats(const plan::Op& op) {
  using namespace op::bn_stats;
  OpCheck check(op);
  check.activation(op.in(in_src), "src");
  if (!check.ok()) return check.status();
  const int64_t c = op.in(in_src)->c();
  check.f32(op.out(out_mean), {c}, "mean").f32(op.out(out_inv_std), {c}, "inv_std");
  check.f32(op.upd(upd_running_mean), {c}, "running_mean").f32(op.upd(upd_running_var), {c}, "running_var");
  check.that(op.attr(attr_eps) > 0, "eps must be positive");
  return check.status();
}

StatusOr<KernelPtr> make_bn_stats(const plan::Op& op) {
  EFF_RETURN_IF_ERROR(check_bn_stats(op));
  return KernelPtr(new BnStats(op));
}

StatusOr<KernelPtr> make_bn_inv_std(const plan::Op& op) {
  using namespace op::bn_inv_std;
  OpCheck check(op);
  check.that(op.in(in_var) && op.in(in_var)->dtype == plan::DType::f32, "var")
      .like(op.out(out_inv_std), op.in(in_var), "inv_std");
  check.that(op.attr(attr_eps) > 0, "eps must be positive");
  if (!check.ok()) return check.status();
  return KernelPtr(new BnInvStd(op));
}

}  // namespace effnet::cpu
#endif
