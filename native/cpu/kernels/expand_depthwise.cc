// Inference: the 1x1 expansion of an inverted bottleneck and the depthwise convolution behind it as one op. A shard
// makes a band of rows of a group of channels of the wide tensor in the core's L2 and convolves it there, so that
// tensor (the largest of the network) never goes to memory. Rows that two bands need are computed twice.
#include <algorithm>

#include "core/memory.h"
#include "cpu/kernels/common.h"
#include "cpu/kernels/depthwise.h"
#include "cpu/kernels/dense_rows.h"

namespace effnet::cpu {
namespace {

namespace port = op::expand_depthwise_bias_act;

// Of a band of the wide tensor: less than half of the smallest L2 we meet on AVX-512 machines.
constexpr int64_t kBandBytes = 448 << 10;
// Channels of a group: at least, so that a depthwise tile finds a whole vector.
constexpr int64_t kGroupChannels = 32;

class ExpandDepthwise final : public Kernel {
 public:
  Status init(const plan::Op& op) {
    src_ = op.in(port::in_src);
    weights_ = op.in(port::in_weights);
    bias_ = op.in(port::in_bias);
    depthwise_weights_ = op.in(port::in_depthwise_weights);
    depthwise_bias_ = op.in(port::in_depthwise_bias);
    dst_ = op.out(port::out_dst);
    pooled_ = op.out(port::out_pooled);
    expand_act_ = op.act(port::attr_expand_act);
    act_ = op.act(port::attr_act);
    const int64_t h = src_->dims[1], w = src_->dims[2];
    packing_ = {src_->dtype, src_->dims[3], weights_->dims[0]};
    pass_ = {};
    pass_.n = src_->dims[0];
    pass_.src_h = h;
    pass_.src_w = w;
    pass_.dst_h = dst_->dims[1];
    pass_.dst_w = dst_->dims[2];
    pass_.c = packing_.channels;
    pass_.kh = depthwise_weights_->dims[0];
    pass_.kw = depthwise_weights_->dims[1];
    pass_.stride = op.attr_int(port::attr_stride);
    pass_.pad_t = op.attr_int(port::attr_pad_t);
    pass_.pad_l = op.attr_int(port::attr_pad_l);
    pass_.bf16 = src_->dtype == plan::DType::bf16;
    OpCheck check(op);
    check.activation(src_, "src")
        .that(has_dense_rows(packing_.dtype, packing_.terms), "src: no 1x1 convolution of this type on this CPU")
        .that(pass_.has_tiles(), "depthwise_weights: neither 3x3 nor 5x5, stride 1 nor 2")
        .that(packing_.channels >= kMaxLanes, "weights: too few channels");
    EFF_RETURN_IF_ERROR(check.status());
    split();
    auto packed = Block::allocate(packing_.bytes(), Block::Kind::kernel);
    if (!packed.ok()) return packed.status();
    packed_ = std::move(packed.value());
    char base[64];
    std::snprintf(base, sizeof base, "expand_dwconv_k%ds%d", static_cast<int>(pass_.kw),
                  static_cast<int>(pass_.stride));
    name_ = kernel_name(base, src_->dtype);
    return ok_status();
  }

  const char* name() const override { return name_.c_str(); }
  int phases() const override { return pooled_ && bands_ > 1 ? 2 : 1; }
  int shards(int phase) const override {
    return static_cast<int>(phase == 0 ? pass_.n * bands_ * static_cast<int64_t>(groups_.size()) : pass_.n);
  }
  size_t worker_scratch_bytes() const override { return band_bytes_ + pointwise_bytes_ + depthwise_bytes(); }
  size_t shared_scratch_bytes() const override {
    return phases() == 1 ? 0 : static_cast<size_t>(pass_.n * bands_ * pass_.c) * sizeof(float);
  }
  size_t persistent_bytes() const override { return packed_.bytes(); }
  double flops() const override {
    const auto wide = static_cast<double>(pass_.n * pass_.src_h * pass_.src_w * pass_.c);
    return 2.0 * wide * static_cast<double>(packing_.terms) +
           2.0 * static_cast<double>(pass_.kh * pass_.kw) * static_cast<double>(dst_->elements());
  }

  void prepare(const ExecContext& ctx) override { packing_.pack(ctx.ptr<float>(weights_), false, packed_.data()); }

  void run(int phase, int shard, const ExecContext& ctx) override {
    const float mean_scale = 1.0f / static_cast<float>(pass_.dst_h * pass_.dst_w);
    float* partial = reinterpret_cast<float*>(ctx.shared_scratch);
    if (phase == 1) {
      sum_rows(partial + shard * bands_ * pass_.c, bands_, pass_.c, mean_scale,
               ctx.ptr<float>(pooled_) + shard * pass_.c, pass_.c);
      return;
    }
    const auto groups = static_cast<int64_t>(groups_.size());
    const int64_t band = shard / groups % bands_, image = shard / groups / bands_;
    const Group& group = groups_[static_cast<size_t>(shard % groups)];
    const DepthwiseShard part{image, band * band_rows_, std::min(pass_.dst_h, (band + 1) * band_rows_), group.begin,
                              group.end};
    const int64_t first = std::max<int64_t>(part.row0 * pass_.stride - pass_.pad_t, 0);
    const int64_t last = std::min((part.row1 - 1) * pass_.stride - pass_.pad_t + pass_.kh, pass_.src_h);
    expand(ctx, group, image, first, last);

    DepthwiseConvArgs args{};
    args.pass = &pass_;
    args.src = ctx.worker_scratch;
    args.band = {true, first, group.begin, group.end - group.begin};
    args.weights = ctx.ptr<float>(depthwise_weights_);
    args.bias = ctx.ptr<float>(depthwise_bias_);
    args.act = act_;
    args.dst = ctx.ptr<std::byte>(dst_);
    args.scratch = reinterpret_cast<float*>(ctx.worker_scratch + band_bytes_ + pointwise_bytes_);
    if (pooled_) {
      const bool whole = bands_ == 1;
      args.pooled = whole ? ctx.ptr<float>(pooled_) + image * pass_.c : partial + (image * bands_ + band) * pass_.c;
      args.pool_scale = whole ? mean_scale : 1;
    }
    conv_depthwise_tiles(args, part);
  }

 private:
  struct Group {
    int64_t panel_begin, panel_end, begin, end;  // channels [begin, end)
  };

  void split() {
    for (int64_t panel = 0; panel < packing_.panels();) {
      int64_t end = panel + 1;
      while (end < packing_.panels() && packing_.first_channel(end) - packing_.first_channel(panel) < kGroupChannels)
        ++end;
      // No group of less than a vector at the end.
      if (packing_.channels - packing_.first_channel(end) < kMaxLanes) end = packing_.panels();
      groups_.push_back({panel, end, packing_.first_channel(panel), packing_.first_channel(end)});
      panel = end;
    }
    int64_t widest = 0;
    for (const Group& group : groups_) widest = std::max(widest, group.end - group.begin);
    const int64_t row_bytes = pass_.src_w * widest * static_cast<int64_t>(plan::dtype_bytes(packing_.dtype));
    const int64_t src_rows = std::max(kBandBytes / row_bytes, pass_.kh + pass_.stride);
    const int64_t most_rows = std::max<int64_t>((src_rows - pass_.kh) / pass_.stride + 1, 2);
    const int64_t pairs = (pass_.dst_h + 1) / 2;
    int64_t bands = ceil_div(pass_.dst_h, most_rows);
    // An even number of shards of an image, so that two threads end together.
    if (bands * static_cast<int64_t>(groups_.size()) % 2 && bands < pairs) ++bands;
    band_rows_ = 2 * ceil_div(pairs, bands);
    bands_ = ceil_div(pass_.dst_h, band_rows_);
    band_bytes_ = align64(static_cast<size_t>(((band_rows_ - 1) * pass_.stride + pass_.kh) * row_bytes));
    pointwise_bytes_ = dense_scratch_bytes(packing_, 0);
  }
  size_t depthwise_bytes() const { return static_cast<size_t>(pass_.scratch_floats()) * sizeof(float); }

  // Rows [first, last) of the image, channels of the group, to the beginning of the scratch.
  void expand(const ExecContext& ctx, const Group& group, int64_t image, int64_t first, int64_t last) const {
    const size_t size = plan::dtype_bytes(packing_.dtype);
    DenseRowsArgs args{};
    args.weights = packing_;
    args.packed = packed_.data();
    args.src = ctx.ptr<std::byte>(src_) +
               static_cast<size_t>((image * pass_.src_h + first) * pass_.src_w * packing_.terms) * size;
    args.dst = ctx.worker_scratch;
    args.dst_row = group.end - group.begin;
    args.bias = ctx.ptr<float>(bias_);
    args.act = expand_act_;
    args.row_end = (last - first) * pass_.src_w;
    args.panel_begin = group.panel_begin;
    args.panel_end = group.panel_end;
    args.scratch = ctx.worker_scratch + band_bytes_;
    dense_rows(args);
  }

  const plan::Tensor *src_, *weights_, *bias_, *depthwise_weights_, *depthwise_bias_, *dst_, *pooled_;
  plan::Act expand_act_, act_;
  DenseWeights packing_{};
  DepthwisePass pass_{};
  std::vector<Group> groups_;
  int64_t bands_ = 1, band_rows_ = 1;
  size_t band_bytes_ = 0, pointwise_bytes_ = 0;
  Block packed_;
  std::string name_;
};

}  // namespace

StatusOr<KernelPtr> make_expand_depthwise_bias_act(const plan::Op& op) {
  auto kernel = std::make_unique<ExpandDepthwise>();
  EFF_RETURN_IF_ERROR(kernel->init(op));
  return KernelPtr(std::move(kernel));
}

}  // namespace effnet::cpu
