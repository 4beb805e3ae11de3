// Squeeze-and-excitation between pooling and gate, FP32 (everything here is [N, C] or [N, R], R the squeezed width):
//
//   hidden = pooled * weights0^T + bias0            stored before the activation
//   gate   = sigmoid(act(hidden) * weights1^T + bias1)
//
// Backward, phase 0 by images:
//
//   d = diff_gate*gate*(1-gate),  e = (d * weights1) * act'(hidden),  diff_pooled = e * weights0
//
// and phase 1 by channels, the sums over images: diff_weights1 = d^T * act(hidden), diff_weights0 = e^T * pooled, and
// the biases' of d and e.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/se.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/small_gemm-inl.h"

#ifndef EFFNET_SE_ARGS_
#define EFFNET_SE_ARGS_
#include "cpu/kernels/common.h"

namespace effnet::cpu {
struct SeArgs {
  plan::Act act;
  int64_t n, c, r;
  int64_t n_begin, n_end, c_begin, c_end, r_begin, r_end;
  const float *pooled, *weights0, *bias0, *weights1, *bias1;
  float *gate, *hidden;
  float* active;  // act(hidden): of the shard's images (forward), of all (backward) [.., R]
};
struct SeBwdArgs {
  SeArgs se;
  const float *diff_gate, *gate, *hidden;
  float *d, *e;  // [N, C], [N, R]
  float *diff_pooled, *diff_weights0, *diff_bias0, *diff_weights1, *diff_bias1;
};
}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

void activate_flat(plan::Act act, const float* src, float* dst, int64_t count) {
  with_act(act, [&](auto a) HWY_ATTR {
    for_each_vector(count, [&](int64_t i, size_t n, auto full)
                               HWY_ATTR { store_part(activate<a()>(load_part(src + i, n, full)), dst + i, n, full); });
  });
}

// Channels [r_begin, r_end) of hidden.
void se_squeeze(const SeArgs& k) {
  const int64_t rows = k.n_end - k.n_begin, C = k.c, R = k.r;
  float* hidden = k.hidden + k.n_begin * R + k.r_begin;
  dot_product(k.pooled + k.n_begin * C, C, rows, k.weights0 + k.r_begin * C, C, k.r_end - k.r_begin, C,
              [&](int64_t n, int64_t j, float sum) HWY_ATTR { hidden[n * R + j] = sum + k.bias0[k.r_begin + j]; });
}

// Channels [c_begin, c_end) of gate.
void se_excite(const SeArgs& k) {
  const int64_t rows = k.n_end - k.n_begin, C = k.c, R = k.r, width = k.c_end - k.c_begin;
  float* gate = k.gate + k.n_begin * C + k.c_begin;
  activate_flat(k.act, k.hidden + k.n_begin * R, k.active, rows * R);
  dot_product(k.active, R, rows, k.weights1 + k.c_begin * R, R, width, R,
              [&](int64_t n, int64_t c, float sum) HWY_ATTR { gate[n * C + c] = sum + k.bias1[k.c_begin + c]; });
  for (int64_t n = 0; n < rows; ++n) activate_flat(plan::Act::sigmoid, gate + n * C, gate + n * C, width);
}

void se_gate_bwd_images(const SeBwdArgs& k) {
  const int64_t first = k.se.n_begin, rows = k.se.n_end - first, C = k.se.c, R = k.se.r;
  float *d = k.d + first * C, *e = k.e + first * R;
  const float *gate = k.gate + first * C, *diff_gate = k.diff_gate + first * C, *hidden = k.hidden + first * R;
  for_each_vector(rows * C, [&](int64_t i, size_t n, auto full) HWY_ATTR {
    const Vec g = load_part(gate + i, n, full);
    const Vec slope = hn::Mul(g, hn::Sub(splat(1.0f), g));
    store_part(hn::Mul(load_part(diff_gate + i, n, full), slope), d + i, n, full);
  });
  activate_flat(k.se.act, hidden, k.se.active + first * R, rows * R);
  outer_product(d, C, 1, rows, k.se.weights1, R, C, e, R, R);
  with_act(k.se.act, [&](auto a) HWY_ATTR {
    for_each_vector(rows * R, [&](int64_t i, size_t n, auto full) HWY_ATTR {
      store_part(hn::Mul(load_part(e + i, n, full), activate_grad<a()>(load_part(hidden + i, n, full))), e + i, n,
                 full);
    });
  });
  outer_product(e, R, 1, rows, k.se.weights0, C, R, k.diff_pooled + first * C, C, C);
}

void se_gate_bwd_channels(const SeBwdArgs& k) {
  const int64_t first = k.se.c_begin, count = k.se.c_end - first, N = k.se.n, C = k.se.c, R = k.se.r;
  outer_product(k.d + first, 1, C, count, k.se.active, R, N, k.diff_weights1 + first * R, R, R);
  sum_rows(k.d + first, C, N, k.diff_bias1 + first, count);
  outer_product(k.e, 1, R, R, k.se.pooled + first, C, N, k.diff_weights0 + first, C, count);
  if (first == 0) sum_rows(k.e, R, N, k.diff_bias0, R);
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
namespace {

HWY_EXPORT(se_squeeze);
HWY_EXPORT(se_excite);
HWY_EXPORT(se_gate_bwd_images);
HWY_EXPORT(se_gate_bwd_channels);

constexpr int64_t kImagesPerShard = 4, kChannelsPerShard = 128;
// Weights, of both matrices, from which on the images of one shard are cut by channels: some 15 us to read them,
// several times what another barrier costs.
constexpr int64_t kCutWeights = 65536;

class SeGate : public Kernel {
 public:
  explicit SeGate(const plan::Op& op) : op_(op), name_(kernel_name("se_gate", plan::DType::f32)) {
    using namespace op::se_gate;
    n_ = op.in(in_pooled)->dims[0];
    r_ = op.in(in_weights0)->dims[0];
    c_ = op.in(in_weights0)->dims[1];
    images_ = {n_, kImagesPerShard};
    const bool cut = images_.count() == 1 && 2 * c_ * r_ >= kCutWeights;
    squeezed_ = {r_, cut ? std::max<int64_t>(4, (r_ + 15) / 16 * 4) : r_};
    channels_ = {c_, cut ? kChannelsPerShard : c_};
  }
  const char* name() const override { return name_.c_str(); }
  int phases() const override { return cut() ? 2 : 1; }
  int shards(int phase) const override {
    return images_.count() * (phase == 0 ? squeezed_.count() : channels_.count());
  }
  size_t worker_scratch_bytes() const override { return static_cast<size_t>(kImagesPerShard * r_) * sizeof(float); }
  double flops() const override {
    return 4.0 * static_cast<double>(n_) * static_cast<double>(c_) * static_cast<double>(r_);
  }
  void run(int phase, int shard, const ExecContext& ctx) override {
    using namespace op::se_gate;
    SeArgs k{};
    k.act = op_.act(attr_act);
    k.n = n_;
    k.c = c_;
    k.r = r_;
    k.pooled = ctx.ptr<const float>(op_.in(in_pooled));
    k.weights0 = ctx.ptr<const float>(op_.in(in_weights0));
    k.bias0 = ctx.ptr<const float>(op_.in(in_bias0));
    k.weights1 = ctx.ptr<const float>(op_.in(in_weights1));
    k.bias1 = ctx.ptr<const float>(op_.in(in_bias1));
    k.gate = ctx.ptr<float>(op_.out(out_gate));
    k.hidden = ctx.ptr<float>(op_.out(out_hidden));
    k.active = reinterpret_cast<float*>(ctx.worker_scratch);
    const int images = cut() ? 0 : shard, part = cut() ? shard : 0;
    k.n_begin = images_.begin(images);
    k.n_end = images_.end(images);
    if (phase == 0) {
      k.r_begin = squeezed_.begin(part);
      k.r_end = squeezed_.end(part);
      EFF_DISPATCH(se_squeeze)(k);
    }
    if (phase == 1 || !cut()) {
      k.c_begin = channels_.begin(phase * part);
      k.c_end = channels_.end(phase * part);
      EFF_DISPATCH(se_excite)(k);
    }
  }

 private:
  bool cut() const { return squeezed_.count() > 1 || channels_.count() > 1; }

  const plan::Op op_;
  std::string name_;
  int64_t n_, c_, r_;
  // Images, or where those are one shard channels: of hidden, then of the gate.
  Split images_, squeezed_, channels_;
};

class SeGateBwd : public Kernel {
 public:
  explicit SeGateBwd(const plan::Op& op) : op_(op), name_(kernel_name("se_gate_bwd", plan::DType::f32)) {
    using namespace op::se_gate_bwd;
    n_ = op.in(in_pooled)->dims[0];
    r_ = op.in(in_weights0)->dims[0];
    c_ = op.in(in_weights0)->dims[1];
    images_ = {n_, kImagesPerShard};
    channels_ = {c_, kChannelsPerShard};
  }
  const char* name() const override { return name_.c_str(); }
  int phases() const override { return 2; }
  int shards(int phase) const override { return phase == 0 ? images_.count() : channels_.count(); }
  size_t shared_scratch_bytes() const override { return d_bytes() + 2 * r_bytes(); }
  double flops() const override {
    return 8.0 * static_cast<double>(n_) * static_cast<double>(c_) * static_cast<double>(r_);
  }
  void run(int phase, int shard, const ExecContext& ctx) override {
    using namespace op::se_gate_bwd;
    SeBwdArgs k{};
    k.se.act = op_.act(attr_act);
    k.se.n = n_;
    k.se.c = c_;
    k.se.r = r_;
    k.se.pooled = ctx.ptr<const float>(op_.in(in_pooled));
    k.se.weights0 = ctx.ptr<const float>(op_.in(in_weights0));
    k.se.weights1 = ctx.ptr<const float>(op_.in(in_weights1));
    k.diff_gate = ctx.ptr<const float>(op_.in(in_diff_gate));
    k.gate = ctx.ptr<const float>(op_.in(in_gate));
    k.hidden = ctx.ptr<const float>(op_.in(in_hidden));
    k.d = reinterpret_cast<float*>(ctx.shared_scratch);
    k.e = reinterpret_cast<float*>(ctx.shared_scratch + d_bytes());
    k.se.active = reinterpret_cast<float*>(ctx.shared_scratch + d_bytes() + r_bytes());
    k.diff_pooled = ctx.ptr<float>(op_.out(out_diff_pooled));
    k.diff_weights0 = ctx.ptr<float>(op_.out(out_diff_weights0));
    k.diff_bias0 = ctx.ptr<float>(op_.out(out_diff_bias0));
    k.diff_weights1 = ctx.ptr<float>(op_.out(out_diff_weights1));
    k.diff_bias1 = ctx.ptr<float>(op_.out(out_diff_bias1));
    if (phase == 0) {
      k.se.n_begin = images_.begin(shard);
      k.se.n_end = images_.end(shard);
      EFF_DISPATCH(se_gate_bwd_images)(k);
    } else {
      k.se.c_begin = channels_.begin(shard);
      k.se.c_end = channels_.end(shard);
      EFF_DISPATCH(se_gate_bwd_channels)(k);
    }
  }

 private:
  size_t d_bytes() const { return align64(static_cast<size_t>(n_ * c_) * sizeof(float)); }
  size_t r_bytes() const { return align64(static_cast<size_t>(n_ * r_) * sizeof(float)); }

  const plan::Op op_;
  std::string name_;
  int64_t n_, c_, r_;
  Split images_, channels_;
};

// The shapes that both directions share; false when pooled or weights0 are not matrices.
bool se_shapes(const plan::Tensor* pooled, const plan::Tensor* weights0) {
  return pooled && weights0 && pooled->rank == 2 && weights0->rank == 2 && pooled->elements() > 0 &&
         weights0->elements() > 0;
}

}  // namespace

StatusOr<KernelPtr> make_se_gate(const plan::Op& op) {
  using namespace op::se_gate;
  OpCheck check(op);
  check.act(attr_act).that(se_shapes(op.in(in_pooled), op.in(in_weights0)), "pooled, weights0");
  if (!check.ok()) return check.status();
  const int64_t n = op.in(in_pooled)->dims[0], r = op.in(in_weights0)->dims[0], c = op.in(in_weights0)->dims[1];
  check.f32(op.in(in_pooled), {n, c}, "pooled")
      .f32(op.in(in_weights0), {r, c}, "weights0")
      .f32(op.in(in_bias0), {r}, "bias0");
  check.f32(op.in(in_weights1), {c, r}, "weights1").f32(op.in(in_bias1), {c}, "bias1");
  check.f32(op.out(out_gate), {n, c}, "gate").f32(op.out(out_hidden), {n, r}, "hidden");
  if (!check.ok()) return check.status();
  return KernelPtr(new SeGate(op));
}

StatusOr<KernelPtr> make_se_gate_bwd(const plan::Op& op) {
  using namespace op::se_gate_bwd;
  OpCheck check(op);
  check.act(attr_act).that(se_shapes(op.in(in_pooled), op.in(in_weights0)), "pooled, weights0");
  if (!check.ok()) return check.status();
  const int64_t n = op.in(in_pooled)->dims[0], r = op.in(in_weights0)->dims[0], c = op.in(in_weights0)->dims[1];
  check.f32(op.in(in_pooled), {n, c}, "pooled").f32(op.in(in_weights0), {r, c}, "weights0");
  check.f32(op.in(in_weights1), {c, r}, "weights1").f32(op.in(in_diff_gate), {n, c}, "diff_gate");
  check.f32(op.in(in_hidden), {n, r}, "hidden").f32(op.in(in_gate), {n, c}, "gate");
  check.f32(op.out(out_diff_pooled), {n, c}, "diff_pooled").f32(op.out(out_diff_weights0), {r, c}, "diff_weights0");
  check.f32(op.out(out_diff_bias0), {r}, "diff_bias0").f32(op.out(out_diff_weights1), {c, r}, "diff_weights1");
  check.f32(op.out(out_diff_bias1), {c}, "diff_bias1");
  if (!check.ok()) return check.status();
  return KernelPtr(new SeGateBwd(op));
}

}  // namespace effnet::cpu
#endif
