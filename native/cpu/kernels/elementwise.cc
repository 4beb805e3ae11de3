// Ops that treat a tensor as a flat run of elements: activation, activation_bwd, add, cast, dropout, fill,
// input_normalize. One pass each; every sum or product is in FP32, stored once.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/elementwise.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/bn_pack-inl.h"

#ifndef EFFNET_ELEMENTWISE_ARGS_
#define EFFNET_ELEMENTWISE_ARGS_
#include "cpu/kernels/common.h"
#include "cpu/kernels/drop.h"

namespace effnet::cpu {

struct FlatArgs {
  plan::DType src_dtype, dst_dtype;
  const void *src0, *src1;
  void* dst;
  int64_t begin, end;
};

struct NormalizeArgs {
  plan::DType dst_dtype;
  const uint8_t* src;
  void* dst;
  int64_t begin, end;  // multiples of 3 and of 3 vectors but for the end of the tensor
  float mean[3], inv_std[3];
};

struct DropoutArgs {
  FlatArgs flat;
  Drop drop;
  const StepScalars* scalars;
};
}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

// dst[i] = f(src0[i], src1[i]); src1 may be null when f ignores it.
template <class TS, class TD, bool two, class F>
HWY_INLINE void flat_map(const FlatArgs& k, F&& f) {
  const TS *src0 = static_cast<const TS*>(k.src0) + k.begin,
           *src1 = two ? static_cast<const TS*>(k.src1) + k.begin : nullptr;
  TD* dst = static_cast<TD*>(k.dst) + k.begin;
  for_each_vector(k.end - k.begin, [&](int64_t i, size_t n, auto full) HWY_ATTR {
    const Vec x = load_part(src0 + i, n, full);
    if constexpr (two) {
      store_part(f(x, load_part(src1 + i, n, full)), dst + i, n, full);
    } else {
      store_part(f(x, x), dst + i, n, full);
    }
  });
}

template <bool two, class F>
HWY_INLINE void flat_map_dtype(const FlatArgs& k, F&& f) {
  if (k.src_dtype == plan::DType::bf16) {
    flat_map<BFloat16, BFloat16, two>(k, f);
  } else {
    flat_map<float, float, two>(k, f);
  }
}

void flat_activation(const FlatArgs& k, plan::Act act) {
  with_act(act,
           [&](auto a) HWY_ATTR { flat_map_dtype<false>(k, [&](Vec x, Vec) HWY_ATTR { return activate<a()>(x); }); });
}

void flat_activation_bwd(const FlatArgs& k, plan::Act act) {
  with_act(act, [&](auto a) HWY_ATTR {
    flat_map_dtype<true>(k, [&](Vec diff_dst, Vec x) HWY_ATTR { return hn::Mul(diff_dst, activate_grad<a()>(x)); });
  });
}

void flat_add(const FlatArgs& k) {
  flat_map_dtype<true>(k, [&](Vec x, Vec y) HWY_ATTR { return hn::Add(x, y); });
}

void flat_cast(const FlatArgs& k) {
  const auto same = [](Vec x, Vec) HWY_ATTR { return x; };
  if (k.src_dtype == plan::DType::bf16) {
    flat_map<BFloat16, float, false>(k, same);
  } else {
    flat_map<float, BFloat16, false>(k, same);
  }
}

template <class T>
void normalize_range(const NormalizeArgs& k) {
  constexpr int64_t L = kLanes;
  alignas(64) float mean[3 * kLanes], inv_std[3 * kLanes];
  for (int64_t i = 0; i < 3 * L; ++i) {
    mean[i] = k.mean[i % 3];
    inv_std[i] = k.inv_std[i % 3];
  }
  T* dst = static_cast<T*>(k.dst);
  const hn::Rebind<uint8_t, F32> du8;
  const I32 di;
  int64_t i = k.begin;
  for (; i + 3 * L <= k.end; i += 3 * L) {
    for (int64_t v = 0; v < 3 * L; v += L) {
      const Vec x = hn::ConvertTo(F32(), hn::PromoteTo(di, hn::LoadU(du8, k.src + i + v)));
      store(hn::Mul(hn::Sub(x, load(mean + v)), load(inv_std + v)), dst + i + v);
    }
  }
  for (int64_t j = 0; i < k.end; ++i, ++j) {
    store_n(splat((static_cast<float>(k.src[i]) - mean[j]) * inv_std[j]), dst + i, 1);
  }
}

void normalize(const NormalizeArgs& k) {
  if (k.dst_dtype == plan::DType::bf16) {
    normalize_range<BFloat16>(k);
  } else {
    normalize_range<float>(k);
  }
}

template <class T>
void dropout_range(const DropoutArgs& k) {
  alignas(64) float factors[kLanes];
  const T* src = static_cast<const T*>(k.flat.src0) + k.flat.begin;
  T* dst = static_cast<T*>(k.flat.dst) + k.flat.begin;
  const uint64_t seed = static_cast<uint64_t>(k.scalars->seed), step = static_cast<uint64_t>(k.scalars->step);
  const uint32_t threshold = drop_threshold(k.drop.rate);
  const float kept = k.drop.kept_factor();
  for_each_vector(k.flat.end - k.flat.begin, [&](int64_t i, size_t n, auto full) HWY_ATTR {
    // Shards begin at multiples of 4: a Philox block has the words of 4 neighbours.
    for (size_t j = 0; j < kLanes; j += 4) {
      const uint64_t element = static_cast<uint64_t>(k.flat.begin + i) + j;
      const auto words = philox4x32({static_cast<uint32_t>(element >> 2), k.drop.stream, static_cast<uint32_t>(step),
                                     static_cast<uint32_t>(step >> 32)},
                                    static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
      for (size_t w = 0; w < 4; ++w) factors[j + w] = words[w] < threshold ? 0.0f : kept;
    }
    const Vec f = load(factors);
    // Not a product with 0: a dropped infinity is 0 too.
    const Vec y = hn::IfThenElseZero(hn::Ne(f, zero()), hn::Mul(load_part(src + i, n, full), f));
    store_part(y, dst + i, n, full);
  });
}

void dropout(const DropoutArgs& k) {
  if (k.flat.src_dtype == plan::DType::bf16) {
    dropout_range<BFloat16>(k);
  } else {
    dropout_range<float>(k);
  }
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
namespace {

HWY_EXPORT(flat_activation);
HWY_EXPORT(flat_activation_bwd);
HWY_EXPORT(flat_add);
HWY_EXPORT(flat_cast);
HWY_EXPORT(normalize);
HWY_EXPORT(dropout);

enum class FlatKind { activation, activation_bwd, add, cast };

// Elements in shards of whole vectors and Philox blocks.
Split split_elements(int64_t total) { return split_rows(total, 1, 1, 3 * 64); }

class Flat : public Kernel {
 public:
  Flat(const char* base, FlatKind kind, const plan::Tensor* src0, const plan::Tensor* src1, const plan::Tensor* dst,
       plan::Act act = plan::Act::identity)
      : kind_(kind), src0_(src0), src1_(src1), dst_(dst), act_(act), name_(kernel_name(base, dst->dtype)) {
    split_ = split_elements(dst->elements());
  }
  const char* name() const override { return name_.c_str(); }
  int shards(int) const override { return split_.count(); }
  void run(int, int shard, const ExecContext& ctx) override {
    const FlatArgs k{src0_->dtype,        dst_->dtype,         ctx.ptr<const void>(src0_), ctx.ptr<const void>(src1_),
                     ctx.ptr<void>(dst_), split_.begin(shard), split_.end(shard)};
    switch (kind_) {
      case FlatKind::activation:
        return EFF_DISPATCH(flat_activation)(k, act_);
      case FlatKind::activation_bwd:
        return EFF_DISPATCH(flat_activation_bwd)(k, act_);
      case FlatKind::add:
        return EFF_DISPATCH(flat_add)(k);
      case FlatKind::cast:
        return EFF_DISPATCH(flat_cast)(k);
    }
  }

 private:
  FlatKind kind_;
  const plan::Tensor *src0_, *src1_, *dst_;
  plan::Act act_;
  std::string name_;
  Split split_;
};

class InputNormalize : public Kernel {
 public:
  explicit InputNormalize(const plan::Op& op) {
    using namespace op::input_normalize;
    src_ = op.in(in_src);
    dst_ = op.out(out_dst);
    name_ = kernel_name("input_normalize", dst_->dtype);
    for (int i = 0; i < 3; ++i) {
      mean_[i] = static_cast<float>(op.attr(attr_mean0 + i));
      inv_std_[i] = static_cast<float>(1.0 / op.attr(attr_std0 + i));
    }
    split_ = split_elements(dst_->elements());
  }
  const char* name() const override { return name_.c_str(); }
  int shards(int) const override { return split_.count(); }
  void run(int, int shard, const ExecContext& ctx) override {
    NormalizeArgs k{
        dst_->dtype, ctx.ptr<const uint8_t>(src_), ctx.ptr<void>(dst_), split_.begin(shard), split_.end(shard), {}, {}};
    std::copy(mean_, mean_ + 3, k.mean);
    std::copy(inv_std_, inv_std_ + 3, k.inv_std);
    EFF_DISPATCH(normalize)(k);
  }

 private:
  const plan::Tensor *src_, *dst_;
  std::string name_;
  float mean_[3], inv_std_[3];
  Split split_;
};

class Dropout : public Kernel {
 public:
  explicit Dropout(const plan::Op& op) {
    using namespace op::dropout;
    src_ = op.in(in_src);
    dst_ = op.out(out_dst);
    drop_ = Drop::of(op, attr_drop_rate, attr_rng_stream);
    name_ = kernel_name("dropout", dst_->dtype);
    split_ = split_elements(dst_->elements());
  }
  const char* name() const override { return name_.c_str(); }
  int shards(int) const override { return split_.count(); }
  void run(int, int shard, const ExecContext& ctx) override {
    EFF_DISPATCH(dropout)
    ({{src_->dtype, dst_->dtype, ctx.ptr<const void>(src_), nullptr, ctx.ptr<void>(dst_), split_.begin(shard),
       split_.end(shard)},
      drop_,
      ctx.scalars});
  }

 private:
  const plan::Tensor *src_, *dst_;
  Drop drop_;
  std::string name_;
  Split split_;
};

// Memory-bound and rare: the compiler's loop is enough.
class Fill : public Kernel {
 public:
  explicit Fill(const plan::Op& op)
      : dst_(op.out(op::fill::out_dst)),
        value_(op.attr(op::fill::attr_value)),
        name_(std::string("fill_") + plan::dtype_name(dst_->dtype) + ":scalar"),
        split_(split_elements(dst_->elements())) {}
  const char* name() const override { return name_.c_str(); }
  int shards(int) const override { return split_.count(); }
  void run(int, int shard, const ExecContext& ctx) override {
    const int64_t begin = split_.begin(shard), end = split_.end(shard);
    switch (dst_->dtype) {
      case plan::DType::f32:
        return std::fill(ctx.ptr<float>(dst_) + begin, ctx.ptr<float>(dst_) + end, static_cast<float>(value_));
      case plan::DType::bf16:
        return std::fill(ctx.ptr<uint16_t>(dst_) + begin, ctx.ptr<uint16_t>(dst_) + end,
                         to_bf16(static_cast<float>(value_)).bits);
      case plan::DType::i32:
        return std::fill(ctx.ptr<int32_t>(dst_) + begin, ctx.ptr<int32_t>(dst_) + end, static_cast<int32_t>(value_));
      default:
        return std::fill(ctx.ptr<uint8_t>(dst_) + begin, ctx.ptr<uint8_t>(dst_) + end, static_cast<uint8_t>(value_));
    }
  }

 private:
  const plan::Tensor* dst_;
  double value_;
  std::string name_;
  Split split_;
};

}  // namespace

StatusOr<KernelPtr> make_activation(const plan::Op& op) {
  using namespace op::activation;
  OpCheck check(op);
  check.activation(op.in(in_src), "src").like(op.out(out_dst), op.in(in_src), "dst").act(attr_act);
  if (!check.ok()) return check.status();
  return KernelPtr(
      new Flat("activation", FlatKind::activation, op.in(in_src), nullptr, op.out(out_dst), op.act(attr_act)));
}

StatusOr<KernelPtr> make_activation_bwd(const plan::Op& op) {
  using namespace op::activation_bwd;
  OpCheck check(op);
  check.activation(op.in(in_src), "src").like(op.in(in_diff_dst), op.in(in_src), "diff_dst");
  check.like(op.out(out_diff_src), op.in(in_src), "diff_src").act(attr_act);
  if (!check.ok()) return check.status();
  return KernelPtr(new Flat("activation_bwd", FlatKind::activation_bwd, op.in(in_diff_dst), op.in(in_src),
                            op.out(out_diff_src), op.act(attr_act)));
}

StatusOr<KernelPtr> make_add(const plan::Op& op) {
  using namespace op::add;
  OpCheck check(op);
  check.activation(op.in(in_src0), "src0")
      .like(op.in(in_src1), op.in(in_src0), "src1")
      .like(op.out(out_dst), op.in(in_src0), "dst");
  if (!check.ok()) return check.status();
  return KernelPtr(new Flat("add", FlatKind::add, op.in(in_src0), op.in(in_src1), op.out(out_dst)));
}

StatusOr<KernelPtr> make_cast(const plan::Op& op) {
  using namespace op::cast;
  OpCheck check(op);
  check.activation(op.in(in_src), "src")
      .activation(op.out(out_dst), "dst")
      .same_shape(op.out(out_dst), op.in(in_src), "dst");
  if (check.ok()) check.that(op.in(in_src)->dtype != op.out(out_dst)->dtype, "cast between equal types");
  if (!check.ok()) return check.status();
  return KernelPtr(new Flat("cast", FlatKind::cast, op.in(in_src), nullptr, op.out(out_dst)));
}

StatusOr<KernelPtr> make_input_normalize(const plan::Op& op) {
  using namespace op::input_normalize;
  OpCheck check(op);
  const plan::Tensor *src = op.in(in_src), *dst = op.out(out_dst);
  check.that(src && src->dtype == plan::DType::u8 && src->c() == 3, "src")
      .activation(dst, "dst")
      .same_shape(dst, src, "dst");
  for (int i = 0; i < 3; ++i) check.that(op.attr(attr_std0 + i) > 0, "std must be positive");
  if (!check.ok()) return check.status();
  return KernelPtr(new InputNormalize(op));
}

StatusOr<KernelPtr> make_dropout(const plan::Op& op) {
  using namespace op::dropout;
  OpCheck check(op);
  check.activation(op.in(in_src), "src").like(op.out(out_dst), op.in(in_src), "dst").drop_rate(attr_drop_rate);
  if (!check.ok()) return check.status();
  return KernelPtr(new Dropout(op));
}

StatusOr<KernelPtr> make_fill(const plan::Op& op) {
  OpCheck check(op);
  const plan::Tensor* dst = op.out(op::fill::out_dst);
  check.that(dst && dst->dtype != plan::DType::f16, "dst");
  if (!check.ok()) return check.status();
  return KernelPtr(new Fill(op));
}

}  // namespace effnet::cpu
#endif
