// Batch normalisation with activation, gate, stochastic depth and pooling, backward.
//
//   xm = src - mean,  z = xm*a + shift (a = scale*inv_std),  g = (diff_dst*gate*drop + diff_pooled/(H*W)) * act'(z)
//   reduce:  diff_scale = inv_std * sum(g*xm),  diff_shift = sum(g)
//   apply:   diff_src = a*g + p*xm + q,  p = -a*inv_std*diff_scale/M,  q = -a*diff_shift/M   (p = q = 0 without batch
//   statistics)
//
// z is computed again from src: nothing but src is saved for the backward pass. Each op reads src and diff_dst once.
// Sums: groups in registers, kSumTileRows rows in a tile, tiles in a shard, all FP32; shards in double, in order.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/bn_act_bwd.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/bn_pack-inl.h"

#ifndef EFFNET_BN_ACT_BWD_ARGS_
#define EFFNET_BN_ACT_BWD_ARGS_
#include "cpu/kernels/common.h"
#include "cpu/kernels/drop.h"
#include "cpu/kernels/stats.h"

namespace effnet::cpu {

struct BnActBwdArgs {
  plan::DType dtype;
  plan::Act act;
  const void *diff_dst, *src;
  const float *mean, *inv_std, *scale, *shift;
  const float *gate, *diff_pooled;
  const float *diff_scale, *diff_shift;  // apply: null without batch statistics
  void* diff_src;                        // apply
  bool past_caches;                      // apply: how diff_src is written
  float* partial;                        // reduce: 2*C sums of this shard
  int64_t channels, image_rows, total_rows;
  int64_t pool_rows;  // H*W
  int64_t row_begin, row_end;
  Drop drop;
  const StepScalars* scalars;
  float* scratch;  // kBnActBwdArrays packed arrays
};
inline constexpr int kBnActBwdArrays = 9;

}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

struct BwdCoefs : NormCoefs {
  float *factor, *pooled;  // of the image at hand
  float *p, *q;            // apply
  bool has_factor, has_pooled;
};

// `plain`: neither gate, drop nor pooling, so that the upstream gradient is diff_dst itself.
template <bool plain>
struct BwdVectors {
  Vec mean, a, shift, factor, pooled;
  HWY_INLINE BwdVectors(const BwdCoefs& k, int64_t c) {
    mean = load(k.mean + c);
    a = load(k.a + c);
    shift = load(k.shift + c);
    factor = !plain && k.has_factor ? load(k.factor + c) : splat(1.0f);
    pooled = !plain && k.has_pooled ? load(k.pooled + c) : zero();
  }
  template <plan::Act act, class T>
  HWY_INLINE Vec grad(Vec diff_dst, Vec xm) const {
    const Vec upstream = plain ? diff_dst : hn::MulAdd(diff_dst, factor, pooled);
    if constexpr (act == plan::Act::identity) return upstream;
    return hn::Mul(upstream, activate_grad<act, T>(hn::MulAdd(xm, a, shift)));
  }
};

BwdCoefs make_coefs(const BnActBwdArgs& k, int64_t pack) {
  const int64_t C = k.channels, capacity = packed_capacity(C);
  float* s = k.scratch + 3 * capacity;
  return {fill_norm(k.scratch, capacity, C, pack, k.mean, k.inv_std, k.scale, k.shift),
          s,
          s + capacity,
          s + 2 * capacity,
          s + 3 * capacity,
          k.gate || k.drop.rate > 0,
          k.diff_pooled != nullptr};
}

// Calls f(row, rows) for the runs of rows of one image, with the image's coefficients in place.
template <class F>
HWY_INLINE void for_each_image(const BnActBwdArgs& k, const BwdCoefs& coefs, int64_t pack, F&& f) {
  const int64_t C = k.channels;
  const float inv_rows = 1.0f / static_cast<float>(k.pool_rows);
  for (int64_t row = k.row_begin; row < k.row_end;) {
    const int64_t image = row / k.image_rows, end = std::min(k.row_end, (image + 1) * k.image_rows);
    if (coefs.has_factor) {
      const float drop = k.drop.factor(*k.scalars, image);
      fill_packed(coefs.factor, C, pack, [&](int64_t c) { return k.gate ? k.gate[image * C + c] * drop : drop; });
    }
    if (coefs.has_pooled) {
      fill_packed(coefs.pooled, C, pack, [&](int64_t c) { return k.diff_pooled[image * C + c] * inv_rows; });
    }
    f(row, end - row);
    row = end;
  }
}

template <class T, plan::Act act, bool plain>
void reduce_range(const BnActBwdArgs& k) {
  const int64_t C = k.channels, pack = pack_factor(C), capacity = packed_capacity(C), width = pack * C;
  const BwdCoefs coefs = make_coefs(k, pack);
  float *tile_g = coefs.p, *tile_gx = coefs.q;
  float *sum_g = k.scratch + 7 * capacity, *sum_gx = sum_g + capacity;
  for (float* array : {tile_g, tile_gx, sum_g, sum_gx})
    std::memset(array, 0, static_cast<size_t>(capacity) * sizeof(float));

  const auto flush = [&]() HWY_ATTR {
    for (int64_t c = 0; c < width; c += kLanes) {
      store(hn::Add(load(sum_g + c), load(tile_g + c)), sum_g + c);
      store(hn::Add(load(sum_gx + c), load(tile_gx + c)), sum_gx + c);
      store(zero(), tile_g + c);
      store(zero(), tile_gx + c);
    }
  };

  const T* src = static_cast<const T*>(k.src);
  const T* diff_dst = static_cast<const T*>(k.diff_dst);
  const int64_t tile_rows = kSumTileRows * pack;
  for_each_image(k, coefs, pack, [&](int64_t first, int64_t count) HWY_ATTR {
    for (int64_t row = first; row < first + count; row += tile_rows) {
      const int64_t rows = std::min(tile_rows, first + count - row);
      for_each_group<T, 4>(rows, C, pack, [&](int64_t at, int64_t c, size_t n, auto full, auto group) HWY_ATTR {
        constexpr int N = decltype(group)::kCount, U = decltype(group)::kColumns;
        at += row * C;
        Vec xm[N], g[N];
        for (int i = 0; i < N; ++i) xm[i] = load_part(src + at + group.at(i), n, full);
        for (int i = 0; i < N; ++i) g[i] = load_part(diff_dst + at + group.at(i), n, full);
        Vec sum_of_g[U] = {}, sum_of_gx[U] = {};
        for (int i = 0; i < N; ++i) {
          const BwdVectors<plain> v(coefs, c + group.column(i));
          xm[i] = hn::Sub(xm[i], v.mean);
          g[i] = v.template grad<act, T>(g[i], xm[i]);
          // Beyond a tail of packed rows lie columns of the next ones.
          if constexpr (!decltype(full)::value) g[i] = hn::IfThenElseZero(hn::FirstN(F32(), n), g[i]);
          sum_of_g[i % U] = i < U ? g[i] : hn::Add(sum_of_g[i % U], g[i]);
          sum_of_gx[i % U] = i < U ? hn::Mul(g[i], xm[i]) : hn::MulAdd(g[i], xm[i], sum_of_gx[i % U]);
        }
        for (int u = 0; u < U; ++u) {
          const int64_t column = c + group.column(u);
          store(hn::Add(load(tile_g + column), sum_of_g[u]), tile_g + column);
          store(hn::Add(load(tile_gx + column), sum_of_gx[u]), tile_gx + column);
        }
      });
      flush();
    }
  });
  flush();
  for (int64_t c = 0; c < C; ++c) {
    float g = 0, gx = 0;
    for (int64_t i = c; i < width; i += C) {
      g += sum_g[i];
      gx += sum_gx[i];
    }
    k.partial[c] = gx;
    k.partial[C + c] = g;
  }
}

template <class T, plan::Act act, bool batch_stats, bool plain>
void apply_range(const BnActBwdArgs& k) {
  const int64_t C = k.channels, pack = pack_factor(C);
  const BwdCoefs coefs = make_coefs(k, pack);
  if constexpr (batch_stats)
    fill_grad(coefs, coefs.p, coefs.q, C, pack, k.total_rows, k.inv_std, k.diff_scale, k.diff_shift);
  const T* src = static_cast<const T*>(k.src);
  const T* diff_dst = static_cast<const T*>(k.diff_dst);
  T* diff_src = static_cast<T*>(k.diff_src);
  for_each_image(k, coefs, pack, [&](int64_t first, int64_t count) HWY_ATTR {
    for_each_group<T, 2>(count, C, pack, [&](int64_t at, int64_t c, size_t n, auto full, auto group) HWY_ATTR {
      constexpr int N = decltype(group)::kCount;
      at += first * C;
      Vec xm[N], g[N];
      for (int i = 0; i < N; ++i) xm[i] = load_part(src + at + group.at(i), n, full);
      for (int i = 0; i < N; ++i) g[i] = load_part(diff_dst + at + group.at(i), n, full);
      for (int i = 0; i < N; ++i) {
        const int64_t column = c + group.column(i);
        const BwdVectors<plain> v(coefs, column);
        xm[i] = hn::Sub(xm[i], v.mean);
        g[i] = v.template grad<act, T>(g[i], xm[i]);
        if constexpr (batch_stats) {
          g[i] = hn::MulAdd(v.a, g[i], hn::MulAdd(load(coefs.p + column), xm[i], load(coefs.q + column)));
        } else {
          g[i] = hn::Mul(v.a, g[i]);
        }
      }
      for (int i = 0; i < N; ++i) store_part_past(g[i], diff_src + at + group.at(i), n, full, k.past_caches);
    });
  });
  if (k.past_caches) hwy::FlushStream();
}

// Calls f with `flag` as a compile-time constant; with false where the code would not pay for its size.
template <bool worth, class F>
HWY_INLINE void with_flag(bool flag, F&& f) {
  if constexpr (worth) {
    if (flag) return f(std::true_type());
  }
  f(std::false_type());
}

bool is_plain(const BnActBwdArgs& k) { return !k.gate && !k.diff_pooled && k.drop.rate == 0; }
constexpr bool plain_pays(plan::Act act) { return act == plan::Act::silu || act == plan::Act::identity; }

template <class T>
void reduce_dtype(const BnActBwdArgs& k) {
  with_act(k.act, [&](auto act) HWY_ATTR {
    with_flag<plain_pays(act())>(is_plain(k), [&](auto plain) HWY_ATTR { reduce_range<T, act(), plain()>(k); });
  });
}

template <class T>
void apply_dtype(const BnActBwdArgs& k) {
  with_act(k.act, [&](auto act) HWY_ATTR {
    with_flag<plain_pays(act())>(is_plain(k), [&](auto plain) HWY_ATTR {
      with_flag<true>(k.diff_scale != nullptr,
                      [&](auto stats) HWY_ATTR { apply_range<T, act(), stats(), plain()>(k); });
    });
  });
}

void bn_act_bwd_reduce(const BnActBwdArgs& k) {
  if (k.dtype == plan::DType::bf16) {
    reduce_dtype<BFloat16>(k);
  } else {
    reduce_dtype<float>(k);
  }
}

void bn_act_bwd_apply(const BnActBwdArgs& k) {
  if (k.dtype == plan::DType::bf16) {
    apply_dtype<BFloat16>(k);
  } else {
    apply_dtype<float>(k);
  }
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
namespace {

HWY_EXPORT(bn_act_bwd_reduce);
HWY_EXPORT(bn_act_bwd_apply);

struct BwdPorts {
  const plan::Tensor *diff_dst, *src, *mean, *inv_std, *scale, *shift, *gate, *diff_pooled;
  plan::Act act = plan::Act::identity;
  Drop drop;
};

class BnBwdBase : public Kernel {
 public:
  BnBwdBase(const char* base, const BwdPorts& ports, int64_t min_rows)
      : p_(ports), name_(kernel_name(base, ports.src->dtype)) {
    const plan::Tensor& src = *p_.src;
    channels_ = src.c();
    rows_ = src.elements() / channels_;
    pool_rows_ = src.h() * src.w();
    image_rows_ = p_.gate || p_.diff_pooled || p_.drop.rate > 0 ? pool_rows_ : rows_;
    split_ = split_rows(rows_, channels_, min_rows);
  }
  const char* name() const override { return name_.c_str(); }
  size_t worker_scratch_bytes() const override {
    return kBnActBwdArrays * sizeof(float) * static_cast<size_t>(packed_capacity(channels_));
  }

 protected:
  BnActBwdArgs args(int shard, const ExecContext& ctx) const {
    BnActBwdArgs k{};
    k.dtype = p_.src->dtype;
    k.act = p_.act;
    k.diff_dst = ctx.ptr<const void>(p_.diff_dst);
    k.src = ctx.ptr<const void>(p_.src);
    k.mean = ctx.ptr<const float>(p_.mean);
    k.inv_std = ctx.ptr<const float>(p_.inv_std);
    k.scale = ctx.ptr<const float>(p_.scale);
    k.shift = ctx.ptr<const float>(p_.shift);
    k.gate = ctx.ptr<const float>(p_.gate);
    k.diff_pooled = ctx.ptr<const float>(p_.diff_pooled);
    k.channels = channels_;
    k.image_rows = image_rows_;
    k.total_rows = rows_;
    k.pool_rows = pool_rows_;
    k.row_begin = split_.begin(shard);
    k.row_end = split_.end(shard);
    k.drop = p_.drop;
    k.scalars = ctx.scalars;
    k.scratch = reinterpret_cast<float*>(ctx.worker_scratch);
    return k;
  }

  BwdPorts p_;
  std::string name_;
  int64_t channels_, rows_, image_rows_, pool_rows_;
  Split split_;
};

class BnBwdReduce : public BnBwdBase {
 public:
  BnBwdReduce(const char* base, const BwdPorts& ports, const plan::Tensor* diff_scale, const plan::Tensor* diff_shift)
      : BnBwdBase(base, ports, 32),
        diff_scale_(diff_scale),
        diff_shift_(diff_shift),
        merge_{channels_, kStatsMergeChannels} {}
  int phases() const override { return 2; }
  int shards(int phase) const override { return phase == 0 ? split_.count() : merge_.count(); }
  size_t shared_scratch_bytes() const override {
    return static_cast<size_t>(split_.count()) * 2 * sizeof(float) * static_cast<size_t>(channels_);
  }
  void run(int phase, int shard, const ExecContext& ctx) override {
    float* partials = reinterpret_cast<float*>(ctx.shared_scratch);
    if (phase == 0) {
      BnActBwdArgs k = args(shard, ctx);
      k.partial = partials + 2 * shard * channels_;
      EFF_DISPATCH(bn_act_bwd_reduce)(k);
    } else {
      merge_bn_sums({partials, split_.count(), channels_, merge_.begin(shard), merge_.end(shard),
                     ctx.ptr<const float>(p_.inv_std), ctx.ptr<float>(diff_scale_), ctx.ptr<float>(diff_shift_)});
    }
  }

 private:
  const plan::Tensor *diff_scale_, *diff_shift_;
  Split merge_;
};

class BnBwdApply : public BnBwdBase {
 public:
  BnBwdApply(const char* base, const BwdPorts& ports, const plan::Tensor* diff_scale, const plan::Tensor* diff_shift,
             const plan::Tensor* diff_src)
      : BnBwdBase(base, ports, 1), diff_scale_(diff_scale), diff_shift_(diff_shift), diff_src_(diff_src) {}
  int shards(int) const override { return split_.count(); }
  void run(int, int shard, const ExecContext& ctx) override {
    BnActBwdArgs k = args(shard, ctx);
    k.diff_scale = ctx.ptr<const float>(diff_scale_);
    k.diff_shift = ctx.ptr<const float>(diff_shift_);
    k.diff_src = ctx.ptr<void>(diff_src_);
    k.past_caches = exceeds_caches(diff_src_);
    EFF_DISPATCH(bn_act_bwd_apply)(k);
  }

 private:
  const plan::Tensor *diff_scale_, *diff_shift_, *diff_src_;
};

Status check_ports(const plan::Op& op, const BwdPorts& p) {
  OpCheck check(op);
  check.activation(p.src, "src").like(p.diff_dst, p.src, "diff_dst");
  if (!check.ok()) return check.status();
  const int64_t n = p.src->n(), c = p.src->c();
  check.f32(p.mean, {c}, "mean").f32(p.inv_std, {c}, "inv_std");
  check.optional_f32(p.scale, {c}, "scale").optional_f32(p.shift, {c}, "shift");
  check.optional_f32(p.gate, {n, c}, "gate").optional_f32(p.diff_pooled, {n, c}, "diff_pooled");
  return check.that(p.drop.rate >= 0 && p.drop.rate < 1, "drop_rate").status();
}

StatusOr<KernelPtr> make_reduce(const plan::Op& op, const char* base, const BwdPorts& p, const plan::Tensor* diff_scale,
                                const plan::Tensor* diff_shift) {
  EFF_RETURN_IF_ERROR(check_ports(op, p));
  const int64_t c = p.src->c();
  EFF_RETURN_IF_ERROR(OpCheck(op).f32(diff_scale, {c}, "diff_scale").f32(diff_shift, {c}, "diff_shift").status());
  return KernelPtr(new BnBwdReduce(base, p, diff_scale, diff_shift));
}

StatusOr<KernelPtr> make_apply(const plan::Op& op, const char* base, const BwdPorts& p, const plan::Tensor* diff_scale,
                               const plan::Tensor* diff_shift, const plan::Tensor* diff_src, bool batch_stats) {
  EFF_RETURN_IF_ERROR(check_ports(op, p));
  OpCheck check(op);
  check.like(diff_src, p.src, "diff_src").that(p.scale, "scale");
  if (batch_stats) {
    check.f32(diff_scale, {p.src->c()}, "diff_scale").f32(diff_shift, {p.src->c()}, "diff_shift");
  }
  if (!check.ok()) return check.status();
  return KernelPtr(
      new BnBwdApply(base, p, batch_stats ? diff_scale : nullptr, batch_stats ? diff_shift : nullptr, diff_src));
}

}  // namespace

StatusOr<KernelPtr> make_bn_bwd_reduce(const plan::Op& op) {
  using namespace op::bn_bwd_reduce;
  const BwdPorts p{
      op.in(in_diff_dst),  op.in(in_src), op.in(in_mean), op.in(in_inv_std), nullptr, nullptr, nullptr, nullptr,
      plan::Act::identity, Drop{}};
  return make_reduce(op, "bn_bwd_reduce", p, op.out(out_diff_scale), op.out(out_diff_shift));
}

StatusOr<KernelPtr> make_bn_bwd_apply(const plan::Op& op) {
  using namespace op::bn_bwd_apply;
  const BwdPorts p{op.in(in_diff_dst),  op.in(in_src), op.in(in_mean), op.in(in_inv_std),
                   op.in(in_scale),     nullptr,       nullptr,        nullptr,
                   plan::Act::identity, Drop{}};
  return make_apply(op, "bn_bwd_apply", p, op.in(in_diff_scale), op.in(in_diff_shift), op.out(out_diff_src),
                    op.attr(attr_batch_stats) != 0);
}

StatusOr<KernelPtr> make_bn_act_bwd_reduce(const plan::Op& op) {
  using namespace op::bn_act_bwd_reduce;
  EFF_RETURN_IF_ERROR(OpCheck(op).act(attr_act).that(op.in(in_scale) && op.in(in_shift), "scale, shift").status());
  const BwdPorts p{op.in(in_diff_dst), op.in(in_src),
                   op.in(in_mean),     op.in(in_inv_std),
                   op.in(in_scale),    op.in(in_shift),
                   op.in(in_gate),     op.in(in_diff_pooled),
                   op.act(attr_act),   Drop::of(op, attr_drop_rate, attr_rng_stream)};
  return make_reduce(op, "bn_act_bwd_reduce", p, op.out(out_diff_scale), op.out(out_diff_shift));
}

StatusOr<KernelPtr> make_bn_act_bwd_apply(const plan::Op& op) {
  using namespace op::bn_act_bwd_apply;
  EFF_RETURN_IF_ERROR(OpCheck(op).act(attr_act).that(op.in(in_scale) && op.in(in_shift), "scale, shift").status());
  const BwdPorts p{op.in(in_diff_dst), op.in(in_src),
                   op.in(in_mean),     op.in(in_inv_std),
                   op.in(in_scale),    op.in(in_shift),
                   op.in(in_gate),     op.in(in_diff_pooled),
                   op.act(attr_act),   Drop::of(op, attr_drop_rate, attr_rng_stream)};
  return make_apply(op, "bn_act_bwd_apply", p, op.in(in_diff_scale), op.in(in_diff_shift), op.out(out_diff_src),
                    op.attr(attr_batch_stats) != 0);
}

}  // namespace effnet::cpu
#endif
