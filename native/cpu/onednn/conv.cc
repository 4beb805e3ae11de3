// The dense convolutions as kernels. 1x1 ones run on our own matrix product where it has code, 3x3 ones of stride 1 in
// FP32 on our own Winograd kernels; the others are oneDNN primitives on fixed tiles, weights packed once per change,
// epilogues on tiles that are still in cache.
#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <tuple>

#include "core/math.h"
#include "core/memory.h"
#include "cpu/kernel.h"
#include "cpu/kernels/epilogue.h"
#include "cpu/kernels/dense_rows.h"
#include "cpu/kernels/pointwise_conv.h"
#include "cpu/kernels/stats.h"
#include "cpu/kernels/winograd.h"
#include "cpu/onednn/adapter.h"
#include "cpu/onednn/conv_tiles.h"
#include "plan/op_ports.h"

namespace effnet::cpu {
namespace {

constexpr char kReadsPixels[] = "reads uint8 images in a convolution";

using onednn::Conv;
using onednn::ConvShape;
using onednn::Pass;
using onednn::Reorder;
using onednn::Tile;
using plan::Tensor;

// All ops of the family begin with these attributes, in this order.
using Geometry = op::conv2d::Attr;

ConvShape shape_of(const plan::Op& op, Pass pass, const Tensor& src, const Tensor& weights, const Tensor& dst) {
  ConvShape s{};
  s.pass = pass;
  s.dtype = src.dtype;
  s.n = src.dims[0];
  s.ih = src.dims[1];
  s.iw = src.dims[2];
  s.ic = src.dims[3];
  s.oh = dst.dims[1];
  s.ow = dst.dims[2];
  s.oc = dst.dims[3];
  s.kh = weights.dims[1];
  s.kw = weights.dims[2];
  s.stride = op.attr_int(Geometry::attr_stride);
  s.pad_t = op.attr_int(Geometry::attr_pad_t);
  s.pad_l = op.attr_int(Geometry::attr_pad_l);
  // Not the op's: rows and columns that no output reads are cut off, and oneDNN wants the padding the sizes imply.
  s.pad_b = (s.oh - 1) * s.stride + s.kh - s.ih - s.pad_t;
  s.pad_r = (s.ow - 1) * s.stride + s.kw - s.iw - s.pad_l;
  return s;
}

double conv_flops(const ConvShape& s) {
  return 2.0 * static_cast<double>(s.n * s.oh * s.ow) * static_cast<double>(s.oc * s.kh * s.kw * s.ic);
}

// Primitives of a set of tiles: few distinct shapes, one weights layout for all.
class TilePrimitives {
 public:
  Status init(const std::vector<Tile>& tiles) {
    // Each shape has a layout it likes best, but may have code for others only: take the first that serves all.
    std::map<Key, const ConvShape*> shapes;
    for (const Tile& tile : tiles) shapes.emplace(key_of(tile.shape), &tile.shape);
    Status last;
    for (const auto& [key, preferred] : shapes) {
      auto favourite = Conv::create(*preferred);
      if (!favourite.ok()) return favourite.status();
      std::map<Key, std::shared_ptr<const Conv>> made{{key, favourite.value()}};
      last = ok_status();
      for (const auto& [other, shape] : shapes) {
        if (other == key) continue;
        auto created = Conv::create(*shape, &favourite.value()->layout());
        if (!created.ok()) {
          last = created.status();
          break;
        }
        made[other] = created.value();
      }
      if (!last.ok()) continue;
      for (const Tile& tile : tiles) {
        convs_.push_back(made[key_of(tile.shape)]);
        scratch_ = std::max(scratch_, convs_.back()->scratch_bytes());
      }
      return ok_status();
    }
    return last;
  }
  const Conv& operator[](size_t tile) const { return *convs_[tile]; }
  size_t scratch_bytes() const { return scratch_; }

 private:
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;
  static Key key_of(const ConvShape& s) { return {s.n, s.ih, s.iw, s.pad_t, s.pad_b}; }

  std::vector<std::shared_ptr<const Conv>> convs_;
  size_t scratch_ = 0;
};

std::string kernel_name(const char* what, plan::DType dtype, const std::string& implementation) {
  return std::string("onednn_conv_") + what + "_" + plan::dtype_name(dtype) + ":" + implementation;
}

// Forward and backward data, with an optional gate on the source and an epilogue on the destination.
class TiledConv final : public Kernel {
 public:
  struct Operands {
    const Tensor *src, *weights, *dst;  // src is what is read: diff_dst in backward data
    const Tensor *bias = nullptr, *gate = nullptr, *residual = nullptr;
    plan::Act act = plan::Act::identity;
  };

  Status init(const ConvShape& shape, const Operands& operands, const char* what) {
    shape_ = shape;
    operands_ = operands;
    tiles_ = onednn::independent_tiles(shape);
    EFF_RETURN_IF_ERROR(primitives_.init(tiles_));
    auto pack = Reorder::pack(shape, primitives_[0].layout());
    if (!pack.ok()) return pack.status();
    pack_ = pack.value();
    auto packed = Block::allocate(primitives_[0].weights_bytes(), Block::Kind::kernel);
    if (!packed.ok()) return packed.status();
    packed_ = std::move(packed.value());
    auto pack_scratch = Block::allocate(pack_->scratch_bytes(), Block::Kind::kernel);
    if (!pack_scratch.ok()) return pack_scratch.status();
    pack_scratch_ = std::move(pack_scratch.value());
    name_ = kernel_name(what, shape.dtype, primitives_[0].implementation());
    if (operands.gate) {
      int64_t elements = 0;
      for (const Tile& tile : tiles_) elements = std::max(elements, tile.src_elements);
      gated_bytes_ = align64(static_cast<size_t>(elements) * plan::dtype_bytes(shape.dtype));
    }
    return ok_status();
  }

  const char* name() const override { return name_.c_str(); }
  int shards(int) const override { return static_cast<int>(tiles_.size()); }
  size_t worker_scratch_bytes() const override { return gated_bytes_ + primitives_.scratch_bytes(); }
  size_t persistent_bytes() const override { return packed_.bytes() + pack_scratch_.bytes(); }
  double flops() const override { return conv_flops(shape_); }

  void prepare(const ExecContext& ctx) override {
    ctx.expect_ok(pack_->execute(ctx.ptr<float>(operands_.weights), packed_.data(), pack_scratch_.data()));
  }

  void run(int, int shard, const ExecContext& ctx) override {
    const Tile& tile = tiles_[static_cast<size_t>(shard)];
    const bool backward = shape_.pass == Pass::backward_data;
    const size_t size = plan::dtype_bytes(shape_.dtype);
    const int64_t read_first = backward ? tile.dst_first : tile.src_first;
    const int64_t write_first = backward ? tile.src_first : tile.dst_first;
    const std::byte* src = ctx.ptr<std::byte>(operands_.src) + static_cast<size_t>(read_first) * size;
    std::byte* dst = ctx.ptr<std::byte>(operands_.dst) + static_cast<size_t>(write_first) * size;
    if (operands_.gate) {
      scale_by_gate(src, ctx.ptr<float>(operands_.gate), ctx.worker_scratch, tile.src_first / shape_.ic,
                    tile.src_elements / shape_.ic, shape_.ih * shape_.iw, shape_.ic, shape_.dtype);
      src = ctx.worker_scratch;
    }
    ctx.expect_ok(primitives_[static_cast<size_t>(shard)].execute(src, packed_.data(), ctx.ptr<float>(operands_.bias),
                                                                  dst, ctx.worker_scratch + gated_bytes_));
    if (operands_.act != plan::Act::identity || operands_.residual) {
      const std::byte* residual = ctx.ptr<std::byte>(operands_.residual);
      if (residual) residual += static_cast<size_t>(write_first) * size;
      act_residual(operands_.act, dst, residual, static_cast<size_t>(tile.dst_elements), shape_.dtype);
    }
  }

 private:
  ConvShape shape_;
  Operands operands_;
  std::vector<Tile> tiles_;
  TilePrimitives primitives_;
  std::shared_ptr<const Reorder> pack_;
  Block packed_, pack_scratch_;
  size_t gated_bytes_ = 0;
  std::string name_;
};

// Backward weights. Phase 0: each group of images gives a partial gradient in the primitive's layout; phase 1 adds
// them in order; phase 2 unpacks to OHWI.
class WeightsGradient final : public Kernel {
 public:
  Status init(const ConvShape& shape, const Tensor* src, const Tensor* diff_dst, const Tensor* diff_weights) {
    shape_ = shape;
    src_ = src;
    diff_dst_ = diff_dst;
    diff_weights_ = diff_weights;
    tiles_ = onednn::reduction_tiles(shape);
    EFF_RETURN_IF_ERROR(primitives_.init(tiles_));
    auto unpack = Reorder::unpack(shape, primitives_[0].layout());
    if (!unpack.ok()) return unpack.status();
    unpack_ = unpack.value();
    part_bytes_ = align64(primitives_[0].weights_bytes());
    name_ = kernel_name("bwd_weights", shape.dtype, primitives_[0].implementation());
    return ok_status();
  }

  const char* name() const override { return name_.c_str(); }
  int phases() const override { return 3; }
  int shards(int phase) const override {
    if (phase == 0) return static_cast<int>(tiles_.size());
    if (phase == 1) return tiles_.size() == 1 ? 0 : static_cast<int>(ceil_div(part_floats(), kAddChunk));
    return 1;
  }
  size_t worker_scratch_bytes() const override {
    return std::max(primitives_.scratch_bytes(), unpack_->scratch_bytes());
  }
  size_t shared_scratch_bytes() const override { return part_bytes_ * tiles_.size(); }
  double flops() const override { return conv_flops(shape_); }

  void run(int phase, int shard, const ExecContext& ctx) override {
    if (phase == 0) {
      const Tile& tile = tiles_[static_cast<size_t>(shard)];
      const size_t size = plan::dtype_bytes(shape_.dtype);
      ctx.expect_ok(primitives_[static_cast<size_t>(shard)].execute(
          ctx.ptr<std::byte>(src_) + static_cast<size_t>(tile.src_first) * size,
          ctx.shared_scratch + static_cast<size_t>(shard) * part_bytes_, nullptr,
          ctx.ptr<std::byte>(diff_dst_) + static_cast<size_t>(tile.dst_first) * size, ctx.worker_scratch));
    } else if (phase == 1) {
      const size_t first = static_cast<size_t>(shard) * kAddChunk;
      add_parts(reinterpret_cast<float*>(ctx.shared_scratch) + first, std::min(kAddChunk, part_floats() - first),
                part_floats(), static_cast<int>(tiles_.size()));
    } else {
      ctx.expect_ok(unpack_->execute(ctx.shared_scratch, ctx.ptr<float>(diff_weights_), ctx.worker_scratch));
    }
  }

 private:
  static constexpr size_t kAddChunk = 1 << 14;  // floats
  size_t part_floats() const { return part_bytes_ / sizeof(float); }

  ConvShape shape_;
  const Tensor *src_ = nullptr, *diff_dst_ = nullptr, *diff_weights_ = nullptr;
  std::vector<Tile> tiles_;
  TilePrimitives primitives_;
  std::shared_ptr<const Reorder> unpack_;
  size_t part_bytes_ = 0;
  std::string name_;
};

// One kernel after the other.
class InSequence final : public Kernel {
 public:
  InSequence(KernelPtr first, KernelPtr second) : first_(std::move(first)), second_(std::move(second)) {
    name_ = std::string(first_->name()) + "+" + second_->name();
  }
  const char* name() const override { return name_.c_str(); }
  int phases() const override { return first_->phases() + second_->phases(); }
  int shards(int phase) const override {
    return phase < first_->phases() ? first_->shards(phase) : second_->shards(phase - first_->phases());
  }
  void run(int phase, int shard, const ExecContext& ctx) override {
    if (phase < first_->phases()) return first_->run(phase, shard, ctx);
    second_->run(phase - first_->phases(), shard, ctx);
  }
  void prepare(const ExecContext& ctx) override {
    first_->prepare(ctx);
    second_->prepare(ctx);
  }
  size_t worker_scratch_bytes() const override {
    return std::max(first_->worker_scratch_bytes(), second_->worker_scratch_bytes());
  }
  size_t shared_scratch_bytes() const override {
    return std::max(first_->shared_scratch_bytes(), second_->shared_scratch_bytes());
  }
  size_t persistent_bytes() const override { return first_->persistent_bytes() + second_->persistent_bytes(); }
  double flops() const override { return first_->flops() + second_->flops(); }

 private:
  KernelPtr first_, second_;
  std::string name_;
};

Status check_dtype(const plan::Op& op, const Tensor& activation) {
  if (activation.dtype == plan::DType::f32 || activation.dtype == plan::DType::bf16) return ok_status();
  return error(Code::plan_invalid, "%.*s: no convolution for %s activations", static_cast<int>(op.name.size()),
               op.name.data(), plan::dtype_name(activation.dtype));
}

// 1x1: on our own code, unless oneDNN has AMX for bf16 and may use it (by its own word: the system must permit AMX
// too). There it has no code for some numbers of channels, as backward with 1000 of the result.
bool suits_dense_rows(const ConvShape& s, int64_t terms) {
  static const bool amx = onednn::effective_isa().find("amx") != std::string::npos;
  return onednn::is_pointwise(s) && has_dense_rows(s.dtype, terms) && !(amx && s.dtype == plan::DType::bf16);
}

bool suits_winograd(const ConvShape& s) {
  return s.dtype == plan::DType::f32 && s.kh == 3 && s.kw == 3 && s.stride == 1 &&
         prefer_winograd(s.ic, s.oc, std::min(s.oh, s.ow));
}

StatusOr<KernelPtr> make_independent(const plan::Op& op, const ConvShape& shape, const TiledConv::Operands& operands,
                                     const char* what) {
  EFF_RETURN_IF_ERROR(check_dtype(op, *operands.src));
  if (operands.gate && !onednn::is_pointwise(shape))
    return error(Code::plan_invalid, "%.*s: a gate needs a 1x1 convolution", static_cast<int>(op.name.size()),
                 op.name.data());
  const bool backward = shape.pass == Pass::backward_data;
  const int64_t terms = backward ? shape.oc : shape.ic;
  const auto on_dense_rows = [&] {
    return make_pointwise({operands.src, operands.weights, operands.dst, backward, operands.bias, operands.gate,
                           operands.residual, operands.act},
                          (std::string("pointwise_") + what).c_str());
  };
  if (suits_dense_rows(shape, terms)) return on_dense_rows();
  if (suits_winograd(shape)) {
    return make_winograd({operands.src, operands.weights, operands.dst, shape.pad_t, shape.pad_l, backward,
                          operands.bias, operands.residual, operands.act},
                         (std::string("winograd_") + what).c_str());
  }
  auto kernel = std::make_unique<TiledConv>();
  const Status tiled = kernel->init(shape, operands, what);
  if (tiled.ok()) return KernelPtr(std::move(kernel));
  if (onednn::is_pointwise(shape) && has_dense_rows(shape.dtype, terms)) return on_dense_rows();
  return tiled;
}

}  // namespace

StatusOr<KernelPtr> make_conv2d(const plan::Op& op) {
  using namespace op::conv2d;
  const Tensor &src = *op.in(in_src), &weights = *op.in(in_weights), &dst = *op.out(out_dst);
  return make_independent(op, shape_of(op, Pass::forward, src, weights, dst), {&src, &weights, &dst}, "fwd");
}

// In one kernel where the convolution is ours, else the convolution and bn_stats one after the other.
StatusOr<KernelPtr> make_conv2d_stats(const plan::Op& op) {
  using namespace op::conv2d_stats;
  const Tensor &src = *op.in(in_src), &weights = *op.in(in_weights), &dst = *op.out(out_dst);
  EFF_RETURN_IF_ERROR(check_dtype(op, src));
  if (op.in(in_src_mean)) return for_gpus("normalises the source of a dense convolution");
  const ConvShape shape = shape_of(op, Pass::forward, src, weights, dst);
  plan::Op statistics{};
  statistics.id = plan::OpId::bn_stats;
  statistics.name = op.name;
  statistics.inputs = {&dst};
  statistics.outputs = {op.out(out_mean), op.out(out_inv_std)};
  statistics.updates = {op.upd(upd_running_mean), op.upd(upd_running_var)};
  statistics.attrs = {op.attr(attr_eps), op.attr(attr_momentum)};
  EFF_RETURN_IF_ERROR(check_bn_stats(statistics));
  if (suits_dense_rows(shape, shape.ic)) {
    PointwiseOperands operands{&src, &weights, &dst};
    operands.gate = op.in(in_gate);
    operands.mean = op.out(out_mean);
    operands.inv_std = op.out(out_inv_std);
    operands.running_mean = op.upd(upd_running_mean);
    operands.running_var = op.upd(upd_running_var);
    operands.eps = op.attr(attr_eps);
    operands.momentum = op.attr(attr_momentum);
    return make_pointwise(operands, "pointwise_fwd_stats");
  }
  TiledConv::Operands operands{&src, &weights, &dst};
  operands.gate = op.in(in_gate);
  auto conv = make_independent(op, shape, operands, "fwd");
  if (!conv.ok()) return conv.status();
  auto stats = make_bn_stats(statistics);
  if (!stats.ok()) return stats.status();
  return KernelPtr(std::make_unique<InSequence>(std::move(conv.value()), std::move(stats.value())));
}

StatusOr<KernelPtr> make_conv2d_bias_act(const plan::Op& op) {
  using namespace op::conv2d_bias_act;
  const Tensor &src = *op.in(in_src), &weights = *op.in(in_weights), &dst = *op.out(out_dst);
  ConvShape shape = shape_of(op, Pass::forward, src, weights, dst);
  shape.bias = true;
  TiledConv::Operands operands{&src, &weights, &dst};
  operands.bias = op.in(in_bias);
  operands.gate = op.in(in_gate);
  operands.residual = op.in(in_residual);
  operands.act = op.act(attr_act);
  return make_independent(op, shape, operands, "bias_act");
}

StatusOr<KernelPtr> make_conv2d_bwd_data(const plan::Op& op) {
  using namespace op::conv2d_bwd_data;
  const Tensor &diff_dst = *op.in(in_diff_dst), &weights = *op.in(in_weights), &diff_src = *op.out(out_diff_src);
  return make_independent(op, shape_of(op, Pass::backward_data, diff_src, weights, diff_dst),
                          {&diff_dst, &weights, &diff_src}, "bwd_data");
}

StatusOr<KernelPtr> make_conv2d_bwd_weights(const plan::Op& op) {
  using namespace op::conv2d_bwd_weights;
  const Tensor &src = *op.in(in_src), &diff_dst = *op.in(in_diff_dst), &diff_weights = *op.out(out_diff_weights);
  EFF_RETURN_IF_ERROR(check_dtype(op, src));
  const ConvShape shape = shape_of(op, Pass::backward_weights, src, diff_weights, diff_dst);
  if (suits_dense_rows(shape, 2)) return make_pointwise_bwd_weights(&src, &diff_dst, &diff_weights);
  if (suits_winograd(shape)) return make_winograd_bwd_weights(&src, &diff_dst, &diff_weights, shape.pad_t, shape.pad_l);
  auto kernel = std::make_unique<WeightsGradient>();
  EFF_RETURN_IF_ERROR(kernel->init(shape, &src, &diff_dst, &diff_weights));
  return KernelPtr(std::move(kernel));
}

StatusOr<KernelPtr> make_input_conv2d_stats(const plan::Op&) { return for_gpus(kReadsPixels); }
StatusOr<KernelPtr> make_input_conv2d_bias_act(const plan::Op&) { return for_gpus(kReadsPixels); }
StatusOr<KernelPtr> make_input_conv2d_bwd_weights(const plan::Op&) { return for_gpus(kReadsPixels); }

StatusOr<KernelPtr> make_conv2d_bwd(const plan::Op& op) {
  using namespace op::conv2d_bwd;
  if (op.in(in_src_mean)) return for_gpus("normalises the source of a dense convolution");
  if (op.in(in_addend) || op.in(in_end_src)) return for_gpus("finishes the gradient of a block's result");
  PointwiseBwdOperands o{};
  o.src = op.in(in_src);
  o.weights = op.in(in_weights);
  o.diff_dst = op.in(in_diff_dst);
  o.dst = op.in(in_dst);
  o.mean = op.in(in_mean);
  o.inv_std = op.in(in_inv_std);
  o.scale = op.in(in_scale);
  o.shift = op.in(in_shift);
  const bool batch_stats = op.attr(attr_batch_stats) != 0;
  o.diff_scale = batch_stats ? op.in(in_diff_scale) : nullptr;
  o.diff_shift = batch_stats ? op.in(in_diff_shift) : nullptr;
  o.act = op.act(attr_act);
  o.drop = Drop::of(op, attr_drop_rate, attr_rng_stream);
  o.diff_src = op.out(out_diff_src);
  o.diff_weights = op.out(out_diff_weights);
  const ConvShape shape = shape_of(op, Pass::backward_weights, *o.src, *o.weights, *o.dst);
  if (o.src->dtype != plan::DType::f32 || !onednn::is_pointwise(shape) || (o.act != plan::Act::identity && !o.shift) ||
      (batch_stats && !(o.diff_scale && o.diff_shift)))
    return error(Code::plan_invalid, "%.*s: both gradients in one are for 1x1 convolutions in f32",
                 static_cast<int>(op.name.size()), op.name.data());
  return make_pointwise_bwd(o);
}

}  // namespace effnet::cpu
