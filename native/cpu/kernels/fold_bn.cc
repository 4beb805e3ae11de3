// Folds batch normalisation with constant statistics into the convolution before it. Runs when weights changed, not
// every step, so it is scalar; the factors are double, and each folded weight is rounded once.
#include <cmath>

#include "cpu/kernels/common.h"

namespace effnet::cpu {
namespace {

class FoldBn : public Kernel {
 public:
  explicit FoldBn(const plan::Op& op) {
    using namespace op::fold_bn;
    weights_ = op.in(in_weights);
    scale_ = op.in(in_scale);
    shift_ = op.in(in_shift);
    mean_ = op.in(in_running_mean);
    var_ = op.in(in_running_var);
    folded_weights_ = op.out(out_folded_weights);
    folded_bias_ = op.out(out_folded_bias);
    eps_ = op.attr(attr_eps);
    depthwise_ = op.attr(attr_depthwise) != 0;
    channels_ = scale_->elements();
    split_ = split_rows(channels_, weights_->elements() / channels_);
  }
  const char* name() const override { return "fold_bn_f32:scalar"; }
  int shards(int) const override { return split_.count(); }
  void run(int, int shard, const ExecContext& ctx) override {
    const float *weights = ctx.ptr<const float>(weights_), *scale = ctx.ptr<const float>(scale_);
    const float *shift = ctx.ptr<const float>(shift_), *mean = ctx.ptr<const float>(mean_),
                *var = ctx.ptr<const float>(var_);
    float *folded = ctx.ptr<float>(folded_weights_), *bias = ctx.ptr<float>(folded_bias_);
    const int64_t per_channel = weights_->elements() / channels_;
    for (int64_t c = split_.begin(shard); c < split_.end(shard); ++c) {
      const double factor = static_cast<double>(scale[c]) / std::sqrt(static_cast<double>(var[c]) + eps_);
      bias[c] = static_cast<float>(static_cast<double>(shift[c]) - static_cast<double>(mean[c]) * factor);
      const int64_t first = depthwise_ ? c : c * per_channel, step = depthwise_ ? channels_ : 1;
      for (int64_t i = 0; i < per_channel; ++i) {
        folded[first + i * step] = static_cast<float>(static_cast<double>(weights[first + i * step]) * factor);
      }
    }
  }

 private:
  const plan::Tensor *weights_, *scale_, *shift_, *mean_, *var_, *folded_weights_, *folded_bias_;
  double eps_;
  bool depthwise_;
  int64_t channels_;
  Split split_;
};

}  // namespace

StatusOr<KernelPtr> make_fold_bn(const plan::Op& op) {
  using namespace op::fold_bn;
  const plan::Tensor* weights = op.in(in_weights);
  OpCheck check(op);
  check.that(weights && weights->dtype == plan::DType::f32 && weights->elements() > 0, "weights");
  check.that(op.attr(attr_eps) > 0, "eps must be positive");
  if (!check.ok()) return check.status();
  const bool depthwise = op.attr(attr_depthwise) != 0;
  check.that(weights->rank == (depthwise ? 3 : 4), "weights");
  const int64_t c = depthwise ? weights->dims[2] : weights->dims[0];
  check.f32(op.in(in_scale), {c}, "scale").f32(op.in(in_shift), {c}, "shift");
  check.f32(op.in(in_running_mean), {c}, "running_mean").f32(op.in(in_running_var), {c}, "running_var");
  check.like(op.out(out_folded_weights), weights, "folded_weights").f32(op.out(out_folded_bias), {c}, "folded_bias");
  if (!check.ok()) return check.status();
  return KernelPtr(new FoldBn(op));
}

}  // namespace effnet::cpu
