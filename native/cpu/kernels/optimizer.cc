// Updates of the weights over flat arenas: SGD, RMSProp (two forms), AdamW, the moving average, and the gradient norm.
// One pass: reads weights, gradients and moments, writes weights, moments and, where there is one, the average of the
// new weights. Formulas: the update functions below.
// Constants are made in double from the step's scalars; the arithmetic is FP32, the norm double.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/optimizer.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/bn_pack-inl.h"

#ifndef EFFNET_OPTIMIZER_ARGS_
#define EFFNET_OPTIMIZER_ARGS_
#include <cmath>

#include "cpu/kernels/common.h"
#include "plan/segments.h"

namespace effnet::cpu {

using plan::Segment;
using plan::Segments;

enum class Rule { sgd, sgd_nesterov, rmsprop_torch, rmsprop_tf, adamw };

struct UpdateArgs {
  Rule rule;
  std::span<const Segment> segments;
  std::byte *weights, *moment0, *moment1;
  const std::byte* grads;
  std::byte* ema;  // or nullptr
  const StepScalars* scalars;
  double weight_decay, grad_factor;
};

struct EmaArgs {
  std::span<const Segment> segments;
  const std::byte* weights;
  std::byte* ema;
  double decay;
};

struct NormArgs {
  std::span<const Segment> segments;
  const std::byte* grads;
  double* sum;
};
}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

// The constants of a step, in vectors.
struct Constants {
  Vec lr, momentum, one_minus_momentum, alpha, one_minus_alpha, eps, weight_decay, grad_factor;
  Vec adam_step, adam_inv_root;  // lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
  Vec adam_decay;                // lr * weight_decay
  Vec ema_share;                 // 1 - decay
  HWY_INLINE explicit Constants(const UpdateArgs& k) {
    const StepScalars& s = *k.scalars;
    const auto set = [](double v) HWY_ATTR { return splat(static_cast<float>(v)); };
    lr = set(s.lr);
    momentum = set(s.momentum);
    one_minus_momentum = set(1 - s.momentum);
    alpha = set(s.alpha);
    one_minus_alpha = set(1 - s.alpha);
    eps = set(s.eps);
    weight_decay = set(k.weight_decay);
    grad_factor = set(k.grad_factor);
    adam_step = set(s.lr / (1 - std::pow(s.momentum, s.optimizer_step)));
    adam_inv_root = set(1 / std::sqrt(1 - std::pow(s.alpha, s.optimizer_step)));
    adam_decay = set(s.lr * k.weight_decay);
    ema_share = set(1 - s.ema_decay);
  }
};

template <Rule rule>
HWY_INLINE void update(const Constants& k, Vec& w, Vec g, Vec& m0, Vec& m1) {
  if constexpr (rule == Rule::adamw) {
    m0 = hn::MulAdd(k.momentum, m0, hn::Mul(k.one_minus_momentum, g));
    m1 = hn::MulAdd(k.alpha, m1, hn::Mul(k.one_minus_alpha, hn::Mul(g, g)));
    const Vec root = hn::MulAdd(hn::Sqrt(m1), k.adam_inv_root, k.eps);
    w = hn::NegMulAdd(k.adam_decay, w, w);
    w = hn::NegMulAdd(k.adam_step, hn::Div(m0, root), w);
    return;
  }
  g = hn::MulAdd(k.weight_decay, w, g);
  if constexpr (rule == Rule::sgd || rule == Rule::sgd_nesterov) {
    m0 = hn::MulAdd(k.momentum, m0, g);
    w = hn::NegMulAdd(k.lr, rule == Rule::sgd ? m0 : hn::MulAdd(k.momentum, m0, g), w);
  }
  if constexpr (rule == Rule::rmsprop_torch || rule == Rule::rmsprop_tf) {
    m0 = hn::MulAdd(k.alpha, m0, hn::Mul(k.one_minus_alpha, hn::Mul(g, g)));
    if constexpr (rule == Rule::rmsprop_tf) {
      m1 = hn::MulAdd(k.momentum, m1, hn::Div(hn::Mul(k.lr, g), hn::Sqrt(hn::Add(m0, k.eps))));
      w = hn::Sub(w, m1);
    } else {
      m1 = hn::MulAdd(k.momentum, m1, hn::Div(g, hn::Add(hn::Sqrt(m0), k.eps)));
      w = hn::NegMulAdd(k.lr, m1, w);
    }
  }
}

// ema += (1-d) * (weights - ema): settles around the weights, where d*ema + (1-d)*weights in FP32 would settle beside
// them, because d and 1-d, both rounded, do not add up to 1.
HWY_INLINE Vec averaged(Vec share, Vec ema, Vec w) { return hn::MulAdd(share, hn::Sub(w, ema), ema); }

// False when a parameter is NaN or infinite now, whose average stays as it is. The sum of w * 0 tells: it costs nothing
// beside the traffic.
template <Rule rule>
bool update_segments(const UpdateArgs& k) {
  constexpr bool second = rule != Rule::sgd && rule != Rule::sgd_nesterov;
  const Constants constants(k);
  Vec witness = zero();
  for (const Segment& s : k.segments) {
    float* w = reinterpret_cast<float*>(k.weights + s.offset);
    float* m0 = reinterpret_cast<float*>(k.moment0 + s.offset);
    float* m1 = second ? reinterpret_cast<float*>(k.moment1 + s.offset) : nullptr;
    float* ema = k.ema ? reinterpret_cast<float*>(k.ema + s.offset) : nullptr;
    const float* g = reinterpret_cast<const float*>(k.grads + s.grad_offset);
    for_each_vector(s.count, [&](int64_t i, size_t n, auto full) HWY_ATTR {
      Vec vw = load_part(w + i, n, full), v0 = load_part(m0 + i, n, full), v1 = zero();
      if constexpr (second) v1 = load_part(m1 + i, n, full);
      update<rule>(constants, vw, hn::Mul(load_part(g + i, n, full), constants.grad_factor), v0, v1);
      store_part(vw, w + i, n, full);
      store_part(v0, m0 + i, n, full);
      if constexpr (second) store_part(v1, m1 + i, n, full);
      if (ema) {
        const Vec e = load_part(ema + i, n, full);
        store_part(hn::IfThenElse(hn::IsFinite(vw), averaged(constants.ema_share, e, vw), e), ema + i, n, full);
      }
      if constexpr (!full.value) vw = hn::IfThenElseZero(hn::FirstN(F32(), n), vw);
      witness = hn::MulAdd(vw, zero(), witness);
    });
  }
  return hn::AllFalse(F32(), hn::IsNaN(witness));
}

bool update_weights(const UpdateArgs& k) {
  switch (k.rule) {
    case Rule::sgd:
      return update_segments<Rule::sgd>(k);
    case Rule::sgd_nesterov:
      return update_segments<Rule::sgd_nesterov>(k);
    case Rule::rmsprop_torch:
      return update_segments<Rule::rmsprop_torch>(k);
    case Rule::rmsprop_tf:
      return update_segments<Rule::rmsprop_tf>(k);
    case Rule::adamw:
      return update_segments<Rule::adamw>(k);
  }
  return true;
}

void update_ema(const EmaArgs& k) {
  const Vec share = splat(static_cast<float>(1 - k.decay));
  for (const Segment& s : k.segments) {
    const float* w = reinterpret_cast<const float*>(k.weights + s.offset);
    float* ema = reinterpret_cast<float*>(k.ema + s.offset);
    for_each_vector(s.count, [&](int64_t i, size_t n, auto full) HWY_ATTR {
      const Vec e = load_part(ema + i, n, full);
      store_part(averaged(share, e, load_part(w + i, n, full)), ema + i, n, full);
    });
  }
}

void sum_squares(const NormArgs& k) {
  const hn::ScalableTag<double> dd;
  const hn::Half<F32> dh;
  auto low = hn::Zero(dd), high = hn::Zero(dd);
  for (const Segment& s : k.segments) {
    const float* g = reinterpret_cast<const float*>(k.grads + s.grad_offset);
    for_each_vector(s.count, [&](int64_t i, size_t n, auto full) HWY_ATTR {
      const Vec v = load_part(g + i, n, full);
      const auto a = hn::PromoteTo(dd, hn::LowerHalf(dh, v)), b = hn::PromoteTo(dd, hn::UpperHalf(dh, v));
      low = hn::MulAdd(a, a, low);
      high = hn::MulAdd(b, b, high);
    });
  }
  *k.sum = hn::GetLane(hn::SumOfLanes(dd, hn::Add(low, high)));
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
namespace {

HWY_EXPORT(update_weights);
HWY_EXPORT(update_ema);
HWY_EXPORT(sum_squares);

class Update : public Kernel {
 public:
  Update(const char* base, Rule rule, const plan::Tensor* norm, double decay_mult, bool averages, Segments segments,
         plan::Arena grads)
      : rule_(rule),
        averages_(averages),
        norm_(norm),
        decay_mult_(decay_mult),
        segments_(std::move(segments)),
        grads_(grads),
        name_(kernel_name(base, plan::DType::f32)) {}
  const char* name() const override { return name_.c_str(); }
  int shards(int) const override { return segments_.shards(); }
  void run(int, int shard, const ExecContext& ctx) override {
    const StepScalars& s = *ctx.scalars;
    double factor = 1;
    if (norm_ && s.clip_norm > 0)
      factor = s.clip_norm / std::max(static_cast<double>(*ctx.ptr<const float>(norm_)), s.clip_norm);
    const bool sound = EFF_DISPATCH(update_weights)(
        {rule_, segments_.shard(shard), ctx.arena(plan::Arena::weights), ctx.arena(plan::Arena::moment0),
         ctx.arena(plan::Arena::moment1), ctx.arena(grads_), averages_ ? ctx.arena(plan::Arena::ema) : nullptr,
         ctx.scalars, s.weight_decay * decay_mult_, factor});
    if (!sound) ctx.mark_unsound();
  }

 private:
  Rule rule_;
  bool averages_;
  const plan::Tensor* norm_;
  double decay_mult_;
  Segments segments_;
  plan::Arena grads_;
  std::string name_;
};

class EmaUpdate : public Kernel {
 public:
  explicit EmaUpdate(Segments segments)
      : segments_(std::move(segments)), name_(kernel_name("ema_update", plan::DType::f32)) {}
  const char* name() const override { return name_.c_str(); }
  int shards(int) const override { return segments_.shards(); }
  void run(int, int shard, const ExecContext& ctx) override {
    EFF_DISPATCH(update_ema)
    ({segments_.shard(shard), ctx.arena(plan::Arena::weights), ctx.arena(plan::Arena::ema), ctx.scalars->ema_decay});
  }

 private:
  Segments segments_;
  std::string name_;
};

class GradNorm : public Kernel {
 public:
  GradNorm(Segments segments, plan::Arena grads, const plan::Tensor* norm)
      : segments_(std::move(segments)), grads_(grads), norm_(norm), name_(kernel_name("grad_norm", plan::DType::f32)) {}
  const char* name() const override { return name_.c_str(); }
  int phases() const override { return 2; }
  int shards(int phase) const override { return phase == 0 ? segments_.shards() : 1; }
  size_t shared_scratch_bytes() const override { return static_cast<size_t>(segments_.shards()) * sizeof(double); }
  void run(int phase, int shard, const ExecContext& ctx) override {
    double* sums = reinterpret_cast<double*>(ctx.shared_scratch);
    if (phase == 0) {
      EFF_DISPATCH(sum_squares)({segments_.shard(shard), ctx.arena(grads_), sums + shard});
      return;
    }
    double sum = 0;
    for (int i = 0; i < segments_.shards(); ++i) sum += sums[i];
    *ctx.ptr<float>(norm_) = static_cast<float>(std::sqrt(sum));
  }

 private:
  Segments segments_;
  plan::Arena grads_;
  const plan::Tensor* norm_;
  std::string name_;
};

bool is_f32(const plan::Tensor* t) { return t && t->dtype == plan::DType::f32 && t->elements() > 0; }

StatusOr<KernelPtr> make_update(const plan::Op& op, const char* base, Rule rule, double decay_mult, bool averages) {
  // The three optimizer ops have the same ports: norm, then a gradient for each updated parameter.
  const plan::Tensor* norm = op.in(op::optimizer_sgd::in_norm);
  const size_t first = op::optimizer_sgd::in_grad;
  OpCheck check(op);
  check.optional_f32(norm, {1}, "norm")
      .that(op.inputs.size() == op.updates.size() + first, "gradients and parameters differ in number");
  check.that(!op.updates.empty(), "no parameters");
  if (!check.ok()) return check.status();
  Segments segments;
  const plan::Tensor* any = op.inputs[first];
  for (size_t i = 0; i < op.updates.size(); ++i) {
    const plan::Tensor *param = op.updates[i], *grad = op.inputs[first + i];
    check.that(is_f32(param) && param->arena == plan::Arena::weights, "param").that(is_f32(grad), "grad");
    if (check.ok()) check.that(grad->elements() == param->elements() && grad->arena == any->arena, "grad");
    if (!check.ok()) return check.status();
    segments.add(param->offset, grad->offset, param->elements());
  }
  segments.finish();
  return KernelPtr(new Update(base, rule, norm, decay_mult, averages, std::move(segments), any->arena));
}

}  // namespace

StatusOr<KernelPtr> make_optimizer_sgd(const plan::Op& op) {
  using namespace op::optimizer_sgd;
  return make_update(op, "optimizer_sgd", op.attr(attr_nesterov) != 0 ? Rule::sgd_nesterov : Rule::sgd,
                     op.attr(attr_decay_mult), op.attr(attr_ema) == 1);
}

StatusOr<KernelPtr> make_optimizer_rmsprop(const plan::Op& op) {
  using namespace op::optimizer_rmsprop;
  const Rule rule = op.attr(attr_tf_form) != 0 ? Rule::rmsprop_tf : Rule::rmsprop_torch;
  return make_update(op, "optimizer_rmsprop", rule, op.attr(attr_decay_mult), op.attr(attr_ema) == 1);
}

StatusOr<KernelPtr> make_optimizer_adamw(const plan::Op& op) {
  using namespace op::optimizer_adamw;
  return make_update(op, "optimizer_adamw", Rule::adamw, op.attr(attr_decay_mult), op.attr(attr_ema) == 1);
}

StatusOr<KernelPtr> make_ema_update(const plan::Op& op) {
  OpCheck check(op);
  check.that(!op.inputs.empty(), "src");
  Segments segments;
  for (const plan::Tensor* src : op.inputs) {
    check.that(is_f32(src) && src->arena == plan::Arena::weights, "src");
    if (!check.ok()) return check.status();
    segments.add(src->offset, src->offset, src->elements());
  }
  segments.finish();
  return KernelPtr(new EmaUpdate(std::move(segments)));
}

StatusOr<KernelPtr> make_grad_norm(const plan::Op& op) {
  using namespace op::grad_norm;
  OpCheck check(op);
  check.that(!op.inputs.empty(), "grad").f32(op.out(out_norm), {1}, "norm");
  if (!check.ok()) return check.status();
  Segments segments;
  const plan::Tensor* any = op.in(in_grad);
  for (const plan::Tensor* grad : op.inputs) {
    check.that(is_f32(grad) && any && grad->arena == any->arena, "grad");
    if (!check.ok()) return check.status();
    segments.add(grad->offset, grad->offset, grad->elements());
  }
  segments.finish();
  return KernelPtr(new GradNorm(std::move(segments), any->arena, op.out(out_norm)));
}

}  // namespace effnet::cpu
#endif
