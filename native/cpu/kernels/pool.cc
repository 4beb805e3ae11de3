// Sums over the pixels of each image, one value by image and channel:
//
//   global_avg_pool          mean(src)
//   bn_act_pool              mean(act(bn(src)))        rounded to src's type before the sum, stored or not
//   channel_scale_bwd_gate   sum(diff_dst * src)
//   bn_act_bwd_gate          sum(diff_dst * act(bn(src)))
//
// Sums: groups in registers, kSumTileRows rows in a tile, then the tiles in order, all FP32. A shard is some images, or
// some channels of one image where there are few images; the order of a sum does not depend on it.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/pool.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/bn_pack-inl.h"

#ifndef EFFNET_POOL_ARGS_
#define EFFNET_POOL_ARGS_
#include "cpu/kernels/common.h"

namespace effnet::cpu {
struct PoolArgs {
  plan::DType dtype;
  plan::Act act;
  const void *src, *diff_dst;                   // diff_dst: null, or multiplied in
  const float *mean, *inv_std, *scale, *shift;  // mean: null without bn
  float* dst;                                   // [N, C]
  void* values;                                 // bn without product: null, or receives what the mean is taken of
  bool past_caches;                             // values are larger than the caches
  bool average;
  int64_t rows, channels;  // of an image
  int64_t image_begin, image_end, channel_begin, channel_end;
  float* scratch;  // kPoolArrays packed arrays
};
inline constexpr int kPoolArrays = 5;
}  // namespace effnet::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

template <class T, plan::Act act, bool bn, bool product>
void pool_range(const PoolArgs& k) {
  constexpr bool wide = !product && std::is_same_v<T, BFloat16>;  // f32 waits for memory
  const int64_t C = k.channels, first = k.channel_begin, count = k.channel_end - first;
  const bool whole = count == C;
  const int64_t pack = whole ? pack_factor(C) : 1, width = pack * count, capacity = packed_capacity(C);
  float *mean = k.scratch, *a = mean + capacity, *shift = a + capacity, *tile = shift + capacity,
        *sum = tile + capacity;
  if constexpr (bn) {
    fill_norm(mean, capacity, count, pack, k.mean + first, k.inv_std + first, k.scale + first, k.shift + first);
  }
  const auto flush = [&]() HWY_ATTR {
    for (int64_t c = 0; c < width; c += kLanes) {
      store(hn::Add(load(sum + c), load(tile + c)), sum + c);
      store(zero(), tile + c);
    }
  };
  for (int64_t image = k.image_begin; image < k.image_end; ++image) {
    const T* src = static_cast<const T*>(k.src) + image * k.rows * C + first;
    T* values = k.values ? static_cast<T*>(k.values) + image * k.rows * C + first : nullptr;
    const T* diff = product ? static_cast<const T*>(k.diff_dst) + image * k.rows * C + first : nullptr;
    std::memset(tile, 0, static_cast<size_t>(capacity) * sizeof(float));
    std::memset(sum, 0, static_cast<size_t>(capacity) * sizeof(float));
    const int64_t tile_rows = kSumTileRows * pack;
    for (int64_t row = 0; row < k.rows; row += tile_rows) {
      const auto add = [&](int64_t at, int64_t c, size_t n, auto full, auto group) HWY_ATTR {
        constexpr int N = decltype(group)::kCount, U = decltype(group)::kColumns;
        at += row * C;
        Vec v[N], d[N], total[U] = {};
        if constexpr (wide) fetch_group(src + at, group);
        for (int i = 0; i < N; ++i) v[i] = load_part(src + at + group.at(i), n, full);
        if constexpr (product)
          for (int i = 0; i < N; ++i) d[i] = load_part(diff + at + group.at(i), n, full);
        for (int i = 0; i < N; ++i) {
          const int64_t column = c + group.column(i);
          if constexpr (bn) {
            v[i] = activate<act, T>(
                hn::MulAdd(hn::Sub(v[i], load(mean + column)), load(a + column), load(shift + column)));
            if constexpr (!product) {
              if (values) store_part_past(v[i], values + at + group.at(i), n, full, k.past_caches);
              v[i] = round_to<T>(v[i]);
            }
          }
          if constexpr (product) v[i] = hn::Mul(v[i], d[i]);
          total[i % U] = i < U ? v[i] : hn::Add(total[i % U], v[i]);
        }
        for (int u = 0; u < U; ++u) {
          // Beyond a tail of packed rows lie columns of the next ones.
          if constexpr (!decltype(full)::value) total[u] = hn::IfThenElseZero(hn::FirstN(F32(), n), total[u]);
          float* to = tile + c + group.column(u);
          store(hn::Add(load(to), total[u]), to);
        }
      };
      for_each_group<T, 4, wide>(std::min(tile_rows, k.rows - row), count, C, pack, add);
      flush();
    }
    float* dst = k.dst + image * C + first;
    const float rows = static_cast<float>(k.rows);
    for (int64_t c = 0; c < count; ++c) {
      float total = 0;
      for (int64_t i = c; i < width; i += count) total += sum[i];
      dst[c] = k.average ? total / rows : total;
    }
  }
  if (k.past_caches) hwy::FlushStream();
}

template <class T>
void pool_dtype(const PoolArgs& k) {
  if (!k.mean) {
    if (k.diff_dst) {
      pool_range<T, plan::Act::identity, false, true>(k);
    } else {
      pool_range<T, plan::Act::identity, false, false>(k);
    }
    return;
  }
  with_act(k.act, [&](auto act) HWY_ATTR {
    if (k.diff_dst) {
      pool_range<T, act(), true, true>(k);
    } else {
      pool_range<T, act(), true, false>(k);
    }
  });
}

void pool(const PoolArgs& k) {
  if (k.dtype == plan::DType::bf16) {
    pool_dtype<BFloat16>(k);
  } else {
    pool_dtype<float>(k);
  }
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
namespace {

HWY_EXPORT(pool);

struct PoolPorts {
  const plan::Tensor *src, *diff_dst, *mean, *inv_std, *scale, *shift, *dst;
  plan::Act act;
  bool average;
  const plan::Tensor* values = nullptr;
};

class Pool : public Kernel {
 public:
  Pool(const char* base, const PoolPorts& ports) : p_(ports), name_(kernel_name(base, ports.src->dtype)) {
    const plan::Tensor& src = *p_.src;
    channels_ = src.c();
    rows_ = src.h() * src.w();
    images_ = {src.n(), std::max<int64_t>(1, kShardElements / (rows_ * channels_))};
    channel_split_ = {channels_, channels_};
    // Parts of rows are read at half of the bandwidth (two cores, batch 8): an image is cut only where there are very
    // few.
    if (src.n() < 4 && rows_ * channels_ > kShardElements) {
      const int64_t step = std::max<int64_t>(kPackBelow, kShardElements / rows_ / 64 * 64);
      if (step < channels_) channel_split_.step = step;
    }
  }
  const char* name() const override { return name_.c_str(); }
  int shards(int) const override { return images_.count() * channel_split_.count(); }
  size_t worker_scratch_bytes() const override {
    return kPoolArrays * sizeof(float) * static_cast<size_t>(packed_capacity(channels_));
  }
  void run(int, int shard, const ExecContext& ctx) override {
    const int image = shard / channel_split_.count(), channel = shard % channel_split_.count();
    EFF_DISPATCH(pool)
    ({p_.src->dtype, p_.act, ctx.ptr<const void>(p_.src), ctx.ptr<const void>(p_.diff_dst),
      ctx.ptr<const float>(p_.mean), ctx.ptr<const float>(p_.inv_std), ctx.ptr<const float>(p_.scale),
      ctx.ptr<const float>(p_.shift), ctx.ptr<float>(p_.dst), ctx.ptr<void>(p_.values),
      p_.values && exceeds_caches(p_.values), p_.average, rows_, channels_, images_.begin(image), images_.end(image),
      channel_split_.begin(channel), channel_split_.end(channel), reinterpret_cast<float*>(ctx.worker_scratch)});
  }

 private:
  PoolPorts p_;
  std::string name_;
  int64_t channels_, rows_;
  Split images_, channel_split_;
};

StatusOr<KernelPtr> make_pool(const plan::Op& op, const char* base, const PoolPorts& p, bool bn, bool product) {
  OpCheck check(op);
  check.activation(p.src, "src");
  if (!check.ok()) return check.status();
  const int64_t n = p.src->n(), c = p.src->c();
  if (product) check.like(p.diff_dst, p.src, "diff_dst");
  if (bn) {
    check.f32(p.mean, {c}, "mean").f32(p.inv_std, {c}, "inv_std").f32(p.scale, {c}, "scale").f32(p.shift, {c}, "shift");
  }
  check.f32(p.dst, {n, c}, "dst");
  if (!check.ok()) return check.status();
  return KernelPtr(new Pool(base, p));
}

}  // namespace

StatusOr<KernelPtr> make_global_avg_pool(const plan::Op& op) {
  using namespace op::global_avg_pool;
  const PoolPorts p{op.in(in_src),       nullptr, nullptr, nullptr, nullptr, nullptr, op.out(out_dst),
                    plan::Act::identity, true};
  return make_pool(op, "global_avg_pool", p, false, false);
}

StatusOr<KernelPtr> make_bn_act_pool(const plan::Op& op) {
  using namespace op::bn_act_pool;
  EFF_RETURN_IF_ERROR(OpCheck(op).act(attr_act).status());
  const PoolPorts p{
      op.in(in_src),      nullptr,          op.in(in_mean), op.in(in_inv_std), op.in(in_scale), op.in(in_shift),
      op.out(out_pooled), op.act(attr_act), true,           op.out(out_dst)};
  if (p.values) EFF_RETURN_IF_ERROR(OpCheck(op).like(p.values, p.src, "dst").status());
  return make_pool(op, "bn_act_pool", p, true, false);
}

StatusOr<KernelPtr> make_channel_scale_bwd_gate(const plan::Op& op) {
  using namespace op::channel_scale_bwd_gate;
  const PoolPorts p{op.in(in_src),         op.in(in_diff_dst),  nullptr, nullptr, nullptr, nullptr,
                    op.out(out_diff_gate), plan::Act::identity, false};
  return make_pool(op, "channel_scale_bwd_gate", p, false, true);
}

StatusOr<KernelPtr> make_bn_act_bwd_gate(const plan::Op& op) {
  using namespace op::bn_act_bwd_gate;
  EFF_RETURN_IF_ERROR(OpCheck(op).act(attr_act).status());
  const PoolPorts p{op.in(in_src),         op.in(in_diff_dst), op.in(in_mean),
                    op.in(in_inv_std),     op.in(in_scale),    op.in(in_shift),
                    op.out(out_diff_gate), op.act(attr_act),   false};
  return make_pool(op, "bn_act_bwd_gate", p, true, true);
}

}  // namespace effnet::cpu
#endif
