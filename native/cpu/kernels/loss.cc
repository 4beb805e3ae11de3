// Softmax and its cross-entropy with label smoothing over logits [N, K], FP32.
//
//   loss = mean over samples with a label of (1-s)*NLL + s*mean_k(-log p_k),  diff_logits = (p - target) / samples
//
// A row is read from memory once (it stays in the first-level cache): maximum, then exponentials and sums relative to
// it, then the gradient. Sums over a row are in vector lanes, over rows in double in order. A label of K or more is a
// mistake of the caller that must not pass: it makes the loss NaN and leaves the row without a gradient.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/loss.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/bn_pack-inl.h"

#ifndef EFFNET_LOSS_ARGS_
#define EFFNET_LOSS_ARGS_
#include <cmath>
#include <limits>

#include "cpu/kernels/common.h"

namespace effnet::cpu {
struct LossArgs {
  const float* logits;
  const int32_t* labels;
  float* diff_logits;
  int32_t* rank;
  double* row_loss;  // [N]
  int64_t n, k, row_begin, row_end;
  double smoothing;
};

struct SoftmaxArgs {
  const float* logits;
  float* probs;
  int64_t k, row_begin, row_end;
};
}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

struct RowSums {
  float max;
  float exponentials;  // sum of e^(x - max)
  double distances;    // sum of x - max
};

// Also writes e^(x - max) to `e`.
HWY_INLINE RowSums row_sums(const float* x, float* e, int64_t k) {
  Vec vmax = splat(-std::numeric_limits<float>::infinity());
  for_each_vector(k, [&](int64_t i, size_t n, auto full) HWY_ATTR {
    Vec v = load_part(x + i, n, full);
    if constexpr (!decltype(full)::value) v = hn::IfThenElse(hn::FirstN(F32(), n), v, vmax);
    vmax = hn::Max(vmax, v);
  });
  const float max = hn::GetLane(hn::MaxOfLanes(F32(), vmax));
  Vec exponentials = zero(), distances = zero();
  for_each_vector(k, [&](int64_t i, size_t n, auto full) HWY_ATTR {
    Vec d = hn::Sub(load_part(x + i, n, full), splat(max));
    Vec v = exp(d);
    if constexpr (!decltype(full)::value) {
      const auto mask = hn::FirstN(F32(), n);
      d = hn::IfThenElseZero(mask, d);
      v = hn::IfThenElseZero(mask, v);
    }
    store_part(v, e + i, n, full);
    exponentials = hn::Add(exponentials, v);
    distances = hn::Add(distances, d);
  });
  return {max, hn::GetLane(hn::SumOfLanes(F32(), exponentials)),
          static_cast<double>(hn::GetLane(hn::SumOfLanes(F32(), distances)))};
}

// Logits above the label's and equal ones before it. What is not a number counts as above: a broken row is never right.
HWY_INLINE int32_t rank_of(const float* x, int64_t k, int64_t label) {
  const Vec own = splat(x[label]);
  int64_t rank = 0;
  for_each_vector(k, [&](int64_t i, size_t n, auto full) HWY_ATTR {
    const Vec v = load_part(x + i, n, full);
    auto above = hn::Not(hn::Le(v, own));
    const int64_t before = std::min<int64_t>(std::max<int64_t>(label - i, 0), kLanes);
    above = hn::Or(above, hn::And(hn::Eq(v, own), hn::FirstN(F32(), static_cast<size_t>(before))));
    if constexpr (!decltype(full)::value) above = hn::And(above, hn::FirstN(F32(), n));
    rank += static_cast<int64_t>(hn::CountTrue(F32(), above));
  });
  return static_cast<int32_t>(rank);
}

void cross_entropy_rows(const LossArgs& a) {
  int64_t samples = 0;
  for (int64_t i = 0; i < a.n; ++i) samples += a.labels[i] >= 0;
  const double inv_samples = samples > 0 ? 1.0 / static_cast<double>(samples) : 0;
  for (int64_t row = a.row_begin; row < a.row_end; ++row) {
    const int64_t label = a.labels[row];
    const float* x = a.logits + row * a.k;
    float* diff = a.diff_logits + row * a.k;
    if (label < 0 || label >= a.k) {
      std::memset(diff, 0, static_cast<size_t>(a.k) * sizeof(float));
      a.rank[row] = label < 0 ? -1 : static_cast<int32_t>(a.k);
      a.row_loss[row] = label < 0 ? 0 : std::numeric_limits<double>::quiet_NaN();
      continue;
    }
    a.rank[row] = rank_of(x, a.k, label);
    const RowSums s = row_sums(x, diff, a.k);
    const double log_sum = std::log(static_cast<double>(s.exponentials));
    double loss = (1 - a.smoothing) * (log_sum - (static_cast<double>(x[label]) - static_cast<double>(s.max)));
    if (a.smoothing > 0) loss += a.smoothing * (log_sum - s.distances / static_cast<double>(a.k));
    a.row_loss[row] = loss * inv_samples;

    const Vec factor = splat(static_cast<float>(inv_samples / static_cast<double>(s.exponentials)));
    const Vec target = splat(static_cast<float>(a.smoothing / static_cast<double>(a.k) * inv_samples));
    for_each_vector(a.k, [&](int64_t i, size_t n, auto full) HWY_ATTR {
      store_part(hn::MulSub(load_part(diff + i, n, full), factor, target), diff + i, n, full);
    });
    diff[label] -= static_cast<float>((1 - a.smoothing) * inv_samples);
  }
}

void softmax_rows(const SoftmaxArgs& a) {
  for (int64_t row = a.row_begin; row < a.row_end; ++row) {
    float* probs = a.probs + row * a.k;
    const RowSums s = row_sums(a.logits + row * a.k, probs, a.k);
    const Vec factor = splat(1.0f / s.exponentials);
    for_each_vector(a.k, [&](int64_t i, size_t n, auto full) HWY_ATTR {
      store_part(hn::Mul(load_part(probs + i, n, full), factor), probs + i, n, full);
    });
  }
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
namespace {

HWY_EXPORT(cross_entropy_rows);
HWY_EXPORT(softmax_rows);

class CrossEntropy : public Kernel {
 public:
  explicit CrossEntropy(const plan::Op& op) : name_(kernel_name("softmax_cross_entropy", plan::DType::f32)) {
    using namespace op::softmax_cross_entropy;
    logits_ = op.in(in_logits);
    labels_ = op.in(in_labels);
    loss_ = op.out(out_loss);
    diff_logits_ = op.out(out_diff_logits);
    rank_ = op.out(out_rank);
    smoothing_ = op.attr(attr_label_smoothing);
    rows_ = split_rows(logits_->dims[0], 4 * logits_->dims[1]);
  }
  const char* name() const override { return name_.c_str(); }
  int phases() const override { return 2; }
  int shards(int phase) const override { return phase == 0 ? rows_.count() : 1; }
  size_t shared_scratch_bytes() const override { return static_cast<size_t>(rows_.total) * sizeof(double); }
  void run(int phase, int shard, const ExecContext& ctx) override {
    double* row_loss = reinterpret_cast<double*>(ctx.shared_scratch);
    if (phase == 0) {
      EFF_DISPATCH(cross_entropy_rows)
      ({ctx.ptr<const float>(logits_), ctx.ptr<const int32_t>(labels_), ctx.ptr<float>(diff_logits_),
        ctx.ptr<int32_t>(rank_), row_loss, logits_->dims[0], logits_->dims[1], rows_.begin(shard), rows_.end(shard),
        smoothing_});
      return;
    }
    double loss = 0;
    for (int64_t row = 0; row < rows_.total; ++row) loss += row_loss[row];
    *ctx.ptr<float>(loss_) = static_cast<float>(loss);
  }

 private:
  const plan::Tensor *logits_, *labels_, *loss_, *diff_logits_, *rank_;
  double smoothing_;
  std::string name_;
  Split rows_;
};

class Softmax : public Kernel {
 public:
  explicit Softmax(const plan::Op& op)
      : logits_(op.in(op::softmax::in_logits)),
        probs_(op.out(op::softmax::out_probs)),
        name_(kernel_name("softmax", plan::DType::f32)),
        rows_(split_rows(logits_->dims[0], 4 * logits_->dims[1])) {}
  const char* name() const override { return name_.c_str(); }
  int shards(int) const override { return rows_.count(); }
  void run(int, int shard, const ExecContext& ctx) override {
    EFF_DISPATCH(softmax_rows)
    ({ctx.ptr<const float>(logits_), ctx.ptr<float>(probs_), logits_->dims[1], rows_.begin(shard), rows_.end(shard)});
  }

 private:
  const plan::Tensor *logits_, *probs_;
  std::string name_;
  Split rows_;
};

OpCheck& logits_matrix(OpCheck& check, const plan::Tensor* logits) {
  return check.that(logits && logits->dtype == plan::DType::f32 && logits->rank == 2 && logits->elements() > 0,
                    "logits");
}

}  // namespace

StatusOr<KernelPtr> make_softmax_cross_entropy(const plan::Op& op) {
  using namespace op::softmax_cross_entropy;
  OpCheck check(op);
  const plan::Tensor* logits = op.in(in_logits);
  logits_matrix(check, logits);
  if (!check.ok()) return check.status();
  const int64_t n = logits->dims[0];
  const bool smoothing_fits = op.attr(attr_label_smoothing) >= 0 && op.attr(attr_label_smoothing) <= 1;
  check.shape(op.in(in_labels), plan::DType::i32, {n}, "labels").f32(op.out(out_loss), {1}, "loss");
  check.like(op.out(out_diff_logits), logits, "diff_logits").shape(op.out(out_rank), plan::DType::i32, {n}, "rank");
  check.that(smoothing_fits, "label_smoothing");
  if (!check.ok()) return check.status();
  return KernelPtr(new CrossEntropy(op));
}

StatusOr<KernelPtr> make_softmax(const plan::Op& op) {
  using namespace op::softmax;
  OpCheck check(op);
  logits_matrix(check, op.in(in_logits)).like(op.out(out_probs), op.in(in_logits), "probs");
  if (!check.ok()) return check.status();
  return KernelPtr(new Softmax(op));
}

}  // namespace effnet::cpu
#endif
