// dst = src * factor, factor by image and channel or by image; or the factor alone, spread over the pixels:
//
//   channel_scale         factor = gate[n,c]
//   drop_path             factor = 0 or 1/(1-rate) by image (its gradient is the same op on the gradient)
//   global_avg_pool_bwd   dst = diff_dst[n,c] / (H*W)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/channel_scale.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/bn_pack-inl.h"

#ifndef EFFNET_CHANNEL_SCALE_ARGS_
#define EFFNET_CHANNEL_SCALE_ARGS_
#include "cpu/kernels/common.h"
#include "cpu/kernels/drop.h"

namespace effnet::cpu {
struct ChannelScaleArgs {
  plan::DType dtype;
  const void* src;    // null: dst is the factor
  const float* gate;  // [N, C], or null
  void* dst;
  float divisor;  // the gate is divided by it
  int64_t channels, image_rows, row_begin, row_end;
  Drop drop;
  const StepScalars* scalars;
  float* scratch;  // one packed array
};
}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

template <class T>
void channel_scale_range(const ChannelScaleArgs& k) {
  const int64_t C = k.channels, pack = pack_factor(C);
  const T* src = static_cast<const T*>(k.src);
  T* dst = static_cast<T*>(k.dst);
  for (int64_t row = k.row_begin; row < k.row_end;) {
    const int64_t image = row / k.image_rows, end = std::min(k.row_end, (image + 1) * k.image_rows);
    const float drop = k.drop.factor(*k.scalars, image);
    if (drop == 0) {
      std::memset(static_cast<void*>(dst + row * C), 0, static_cast<size_t>((end - row) * C) * sizeof(T));
      row = end;
      continue;
    }
    fill_packed(k.scratch, C, pack,
                [&](int64_t c) { return k.gate ? k.gate[image * C + c] / k.divisor * drop : drop; });
    for_each_group<T, 4>(end - row, C, pack, [&](int64_t first, int64_t c, size_t n, auto full, auto group) HWY_ATTR {
      for (int i = 0; i < decltype(group)::kCount; ++i) {
        const Vec f = load(k.scratch + c + group.column(i));
        const int64_t at = row * C + first + group.at(i);
        store_part(src ? hn::Mul(load_part(src + at, n, full), f) : f, dst + at, n, full);
      }
    });
    row = end;
  }
}

void channel_scale(const ChannelScaleArgs& k) {
  if (k.dtype == plan::DType::bf16) {
    channel_scale_range<BFloat16>(k);
  } else {
    channel_scale_range<float>(k);
  }
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
namespace {

HWY_EXPORT(channel_scale);

class ChannelScale : public Kernel {
 public:
  ChannelScale(const char* base, const plan::Tensor* src, const plan::Tensor* gate, const plan::Tensor* dst,
               float divisor, Drop drop)
      : src_(src), gate_(gate), dst_(dst), divisor_(divisor), drop_(drop), name_(kernel_name(base, dst->dtype)) {
    split_ = split_rows(dst->elements() / dst->c(), dst->c());
  }
  const char* name() const override { return name_.c_str(); }
  int shards(int) const override { return split_.count(); }
  size_t worker_scratch_bytes() const override {
    return sizeof(float) * static_cast<size_t>(packed_capacity(dst_->c()));
  }
  void run(int, int shard, const ExecContext& ctx) override {
    EFF_DISPATCH(channel_scale)
    ({dst_->dtype, ctx.ptr<const void>(src_), ctx.ptr<const float>(gate_), ctx.ptr<void>(dst_), divisor_, dst_->c(),
      dst_->h() * dst_->w(), split_.begin(shard), split_.end(shard), drop_, ctx.scalars,
      reinterpret_cast<float*>(ctx.worker_scratch)});
  }

 private:
  const plan::Tensor *src_, *gate_, *dst_;
  float divisor_;
  Drop drop_;
  std::string name_;
  Split split_;
};

}  // namespace

StatusOr<KernelPtr> make_channel_scale(const plan::Op& op) {
  using namespace op::channel_scale;
  const plan::Tensor *src = op.in(in_src), *gate = op.in(in_gate), *dst = op.out(out_dst);
  OpCheck check(op);
  check.activation(src, "src").like(dst, src, "dst");
  if (check.ok()) check.f32(gate, {src->n(), src->c()}, "gate");
  if (!check.ok()) return check.status();
  return KernelPtr(new ChannelScale("channel_scale", src, gate, dst, 1, Drop{}));
}

StatusOr<KernelPtr> make_drop_path(const plan::Op& op) {
  using namespace op::drop_path;
  const plan::Tensor *src = op.in(in_src), *dst = op.out(out_dst);
  OpCheck check(op);
  check.activation(src, "src").like(dst, src, "dst").drop_rate(attr_drop_rate);
  if (!check.ok()) return check.status();
  return KernelPtr(new ChannelScale("drop_path", src, nullptr, dst, 1, Drop::of(op, attr_drop_rate, attr_rng_stream)));
}

StatusOr<KernelPtr> make_global_avg_pool_bwd(const plan::Op& op) {
  using namespace op::global_avg_pool_bwd;
  const plan::Tensor *diff_dst = op.in(in_diff_dst), *diff_src = op.out(out_diff_src);
  OpCheck check(op);
  check.activation(diff_src, "diff_src");
  if (check.ok()) check.f32(diff_dst, {diff_src->n(), diff_src->c()}, "diff_dst");
  if (!check.ok()) return check.status();
  const float pixels = static_cast<float>(diff_src->h() * diff_src->w());
  return KernelPtr(new ChannelScale("global_avg_pool_bwd", nullptr, diff_dst, diff_src, pixels, Drop{}));
}

}  // namespace effnet::cpu
#endif
