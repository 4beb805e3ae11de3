// Batch normalisation applied, forward:
//
//   dst = residual + drop * gate * act((src - mean) * a + shift),  a = scale*inv_std
//
// bn_apply is the case without activation, gate, drop and residual. The mean is subtracted first instead of being
// folded into one shift: a channel whose mean is large against its deviation keeps all its bits, and a constant channel
// gives exactly act(shift). One pass: reads src (and residual), writes dst; everything between stays in registers.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/bn_act.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/bn_pack-inl.h"

#ifndef EFFNET_BN_ACT_ARGS_
#define EFFNET_BN_ACT_ARGS_
#include "cpu/kernels/common.h"
#include "cpu/kernels/drop.h"

namespace effnet::cpu {
struct BnActArgs {
  plan::DType dtype;
  plan::Act act;
  const void *src, *residual;
  void* dst;
  const float *mean, *inv_std, *scale, *shift, *gate;
  int64_t channels, image_rows;  // image_rows: H*W where gate or drop differ by image, else all rows
  int64_t row_begin, row_end;
  Drop drop;
  bool past_caches;
  const StepScalars* scalars;
  float* scratch;  // 4 packed arrays
};
}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

// Rows of one image. `factor` is gate * drop by channel, or null.
template <class T, plan::Act act>
HWY_INLINE void bn_act_rows(const T* src, const T* residual, T* dst, int64_t rows, int64_t channels, int64_t pack,
                            const float* mean, const float* a, const float* shift, const float* factor,
                            bool past_caches) {
  for_each_group<T, 4>(rows, channels, pack, [&](int64_t at, int64_t c, size_t n, auto full, auto group) HWY_ATTR {
    constexpr int N = decltype(group)::kCount;
    Vec y[N], more[N];
    for (int i = 0; i < N; ++i) y[i] = load_part(src + at + group.at(i), n, full);
    if (residual)
      for (int i = 0; i < N; ++i) more[i] = load_part(residual + at + group.at(i), n, full);
    for (int i = 0; i < N; ++i) {
      const int64_t column = c + group.column(i);
      y[i] = activate<act, T>(hn::MulAdd(hn::Sub(y[i], load(mean + column)), load(a + column), load(shift + column)));
    }
    if (factor)
      for (int i = 0; i < N; ++i) y[i] = hn::Mul(y[i], load(factor + c + group.column(i)));
    if (residual)
      for (int i = 0; i < N; ++i) y[i] = hn::Add(y[i], more[i]);
    for (int i = 0; i < N; ++i) store_part_past(y[i], dst + at + group.at(i), n, full, past_caches);
  });
}

template <class T, plan::Act act>
void bn_act_range(const BnActArgs& k) {
  const int64_t C = k.channels, pack = pack_factor(C), capacity = packed_capacity(C);
  const auto [mean, a, shift] = fill_norm(k.scratch, capacity, C, pack, k.mean, k.inv_std, k.scale, k.shift);
  float* factor = shift + capacity;
  const T* src = static_cast<const T*>(k.src);
  const T* residual = static_cast<const T*>(k.residual);
  T* dst = static_cast<T*>(k.dst);

  for (int64_t row = k.row_begin; row < k.row_end;) {
    const int64_t image = row / k.image_rows, end = std::min(k.row_end, (image + 1) * k.image_rows);
    const float drop = k.drop.factor(*k.scalars, image);
    if (drop == 0) {
      const size_t count = static_cast<size_t>((end - row) * C);
      if (residual) {
        std::memmove(dst + row * C, residual + row * C, count * sizeof(T));
      } else {
        std::memset(static_cast<void*>(dst + row * C), 0, count * sizeof(T));
      }
      row = end;
      continue;
    }
    const bool scaled = k.gate || drop != 1;
    if (scaled) fill_packed(factor, C, pack, [&](int64_t c) { return k.gate ? k.gate[image * C + c] * drop : drop; });
    bn_act_rows<T, act>(src + row * C, residual ? residual + row * C : nullptr, dst + row * C, end - row, C, pack, mean,
                        a, shift, scaled ? factor : nullptr, k.past_caches);
    row = end;
  }
  if (k.past_caches) hwy::FlushStream();
}

void bn_act(const BnActArgs& k) {
  with_act(k.act, [&](auto act) HWY_ATTR {
    if (k.dtype == plan::DType::bf16) {
      bn_act_range<BFloat16, act()>(k);
    } else {
      bn_act_range<float, act()>(k);
    }
  });
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
namespace {

HWY_EXPORT(bn_act);

struct BnActPorts {
  const plan::Tensor *src, *mean, *inv_std, *scale, *shift, *gate, *residual, *dst;
  plan::Act act;
  Drop drop;
};

class BnAct : public Kernel {
 public:
  BnAct(const char* base, const BnActPorts& ports) : p_(ports), name_(kernel_name(base, ports.src->dtype)) {
    const plan::Tensor& src = *p_.src;
    channels_ = src.c();
    const int64_t rows = src.elements() / channels_;
    image_rows_ = p_.gate || p_.drop.rate > 0 ? src.h() * src.w() : rows;
    split_ = split_rows(rows, channels_);
  }
  const char* name() const override { return name_.c_str(); }
  int shards(int) const override { return split_.count(); }
  size_t worker_scratch_bytes() const override {
    return 4 * sizeof(float) * static_cast<size_t>(packed_capacity(channels_));
  }
  void run(int, int shard, const ExecContext& ctx) override {
    BnActArgs k{p_.src->dtype,
                p_.act,
                ctx.ptr<const void>(p_.src),
                ctx.ptr<const void>(p_.residual),
                ctx.ptr<void>(p_.dst),
                ctx.ptr<const float>(p_.mean),
                ctx.ptr<const float>(p_.inv_std),
                ctx.ptr<const float>(p_.scale),
                ctx.ptr<const float>(p_.shift),
                ctx.ptr<const float>(p_.gate),
                channels_,
                image_rows_,
                split_.begin(shard),
                split_.end(shard),
                p_.drop,
                exceeds_caches(p_.dst),
                ctx.scalars,
                reinterpret_cast<float*>(ctx.worker_scratch)};
    EFF_DISPATCH(bn_act)(k);
  }

 private:
  BnActPorts p_;
  std::string name_;
  int64_t channels_, image_rows_;
  Split split_;
};

Status check(const plan::Op& op, const BnActPorts& p) {
  OpCheck check(op);
  check.activation(p.src, "src").like(p.dst, p.src, "dst");
  if (!check.ok()) return check.status();
  const int64_t n = p.src->n(), c = p.src->c();
  check.f32(p.mean, {c}, "mean").f32(p.inv_std, {c}, "inv_std").f32(p.scale, {c}, "scale").f32(p.shift, {c}, "shift");
  check.optional_f32(p.gate, {n, c}, "gate");
  if (p.residual) check.like(p.residual, p.src, "residual");
  return check.that(p.drop.rate >= 0 && p.drop.rate < 1, "drop_rate").status();
}

}  // namespace

StatusOr<KernelPtr> make_bn_act(const plan::Op& op) {
  using namespace op::bn_act;
  EFF_RETURN_IF_ERROR(OpCheck(op).act(attr_act).status());
  const BnActPorts p{op.in(in_src),      op.in(in_mean),
                     op.in(in_inv_std),  op.in(in_scale),
                     op.in(in_shift),    op.in(in_gate),
                     op.in(in_residual), op.out(out_dst),
                     op.act(attr_act),   Drop::of(op, attr_drop_rate, attr_rng_stream)};
  EFF_RETURN_IF_ERROR(check(op, p));
  return KernelPtr(new BnAct("bn_act", p));
}

StatusOr<KernelPtr> make_bn_apply(const plan::Op& op) {
  using namespace op::bn_apply;
  const BnActPorts p{op.in(in_src), op.in(in_mean), op.in(in_inv_std), op.in(in_scale),     op.in(in_shift),
                     nullptr,       nullptr,        op.out(out_dst),   plan::Act::identity, Drop{}};
  EFF_RETURN_IF_ERROR(check(op, p));
  return KernelPtr(new BnAct("bn_apply", p));
}

}  // namespace effnet::cpu
#endif
