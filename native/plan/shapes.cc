#include "plan/shapes.h"

#include <initializer_list>

#include "plan/op_ports.h"

namespace effnet::plan {
namespace {

bool is_floating(const Tensor* t) {
  return t->dtype == DType::f32 || t->dtype == DType::bf16 || t->dtype == DType::f16;
}

// Collects the checks of one op; the first that fails is reported. A null operand (absent optional) passes.
class Checker {
 public:
  explicit Checker(const Op& op) : op_(op) {}

  void expect(bool ok, const char* what) {
    if (!ok && !failed_) failed_ = what;
  }
  Status status() const {
    if (!failed_) return ok_status();
    return error(Code::plan_invalid, "plan: op %.*s (%s): %s", static_cast<int>(op_.name.size()), op_.name.data(),
                 op_name(op_.id), failed_);
  }

  // Storage of images and their gradients.
  void image(const Tensor* t) {
    if (!t) return;
    expect(t->rank == 4, "an image is not of rank 4");
    expect(is_floating(t), "an image is neither f32 nor of 16 bits");
  }
  void same(const Tensor* a, const Tensor* b) {
    if (!a || !b) return;
    expect(a->dtype == b->dtype, "types differ");
    same_shape(a, b);
  }
  void same_shape(const Tensor* a, const Tensor* b) {
    if (!a || !b) return;
    expect(a->rank == b->rank, "ranks differ");
    for (int d = 0; d < 4; ++d) expect(a->dims[d] == b->dims[d], "shapes differ");
  }
  void shape(const Tensor* t, std::initializer_list<int64_t> dims, DType dtype = DType::f32) {
    if (!t) return;
    expect(t->dtype == dtype, "wrong type");
    expect(t->rank == static_cast<int>(dims.size()), "wrong rank");
    int d = 0;
    for (int64_t dim : dims) expect(t->dims[d++] == dim, "wrong shape");
  }
  void range(int attr, double low, double high) {
    expect(op_.attr(attr) >= low && op_.attr(attr) <= high, "an attribute is out of range");
  }
  void eps(int attr) { expect(op_.attr(attr) > 0 && op_.attr(attr) <= 1, "eps is not in (0, 1]"); }
  void flag(int attr) { expect(op_.attr(attr) == 0 || op_.attr(attr) == 1, "a flag is neither 0 nor 1"); }
  void act(int attr) {
    const double code = op_.attr(attr);
    expect(code >= 0 && code <= static_cast<int>(Act::sigmoid) && code == static_cast<int>(code), "unknown activation");
  }
  void drop(int rate, int stream) {
    expect(op_.attr(rate) >= 0 && op_.attr(rate) < 1, "a drop rate is not in [0, 1)");
    range(stream, 0, 4294967295.0);
  }

  // uint8 images, with the deviations by which they are normalised.
  void pixels(const Tensor* src, int first_std) {
    expect(src->rank == 4 && src->dtype == DType::u8 && src->dims[3] == 3, "not an RGB image");
    for (int attr = first_std; attr < first_std + 3; ++attr) range(attr, 1e-6, 1e6);
  }
  void convolution(const Tensor* src, const Tensor* dst, int64_t kh, int64_t kw, int first_attr) {
    image(src);
    expect(src->dtype == dst->dtype, "types differ");
    window(src, dst, kh, kw, first_attr);
  }
  // dst[o] reads src[o * stride - pad .. + k): every output must see at least one real pixel, none may be missing.
  void window(const Tensor* src, const Tensor* dst, int64_t kh, int64_t kw, int first_attr) {
    image(dst);
    expect(src->dims[0] == dst->dims[0], "batch sizes differ");
    for (int i = 0; i < 5; ++i) {
      const double value = op_.attr(first_attr + i);
      const bool in_range = value >= (i == 0 ? 1 : 0) && value <= 64;
      expect(in_range, "a stride or padding is out of range");
      expect(!in_range || value == static_cast<int64_t>(value), "a stride or padding is not an integer");
    }
    expect(kh >= 1 && kh <= 64 && kw >= 1 && kw <= 64, "a kernel size is out of range");
    if (failed_) return;
    const int64_t stride = op_.attr_int(first_attr);
    const int64_t top = op_.attr_int(first_attr + 1), left = op_.attr_int(first_attr + 2);
    const int64_t bottom = op_.attr_int(first_attr + 3), right = op_.attr_int(first_attr + 4);
    expect(top < kh && bottom < kh && left < kw && right < kw, "padding is not below the kernel size");
    const int64_t height = src->dims[1] + top + bottom - kh, width = src->dims[2] + left + right - kw;
    expect(height >= 0 && width >= 0, "the kernel is larger than the padded image");
    expect(dst->dims[1] == height / stride + 1 && dst->dims[2] == width / stride + 1, "wrong output size");
  }
  void dense_weights(const Tensor* weights, const Tensor* src, const Tensor* dst) {
    expect(weights->rank == 4, "dense weights are not OHWI");
    shape(weights, {dst->dims[3], weights->dims[1], weights->dims[2], src->dims[3]});
  }
  void depthwise_weights(const Tensor* weights, const Tensor* src, const Tensor* dst) {
    expect(weights->rank == 3, "depthwise weights are not HWC");
    shape(weights, {weights->dims[0], weights->dims[1], src->dims[3]});
    expect(src->dims[3] == dst->dims[3], "channels differ");
  }
  void channels(const Tensor* image, std::initializer_list<const Tensor*> vectors) {
    for (const Tensor* v : vectors) shape(v, {image->dims[3]});
  }
  // Of a source that is act(bn(src)): the vectors of the normalisation and of its gradient, all or none.
  void source_norm(const Tensor* src, std::initializer_list<const Tensor*> parts, int act_attr) {
    const Tensor* first = *parts.begin();
    for (const Tensor* part : parts) expect(!part == !first, "a normalisation is given in part");
    expect(first || op_.attr(act_attr) == 0, "an activation without its normalisation");
    channels(src, parts);
    act(act_attr);
  }
  void all_or_none(bool all, std::initializer_list<const Tensor*> parts) {
    for (const Tensor* part : parts) expect(!part == !all, "operands that belong together are given in part");
  }
  void per_image(const Tensor* image, const Tensor* t) { shape(t, {image->dims[0], image->dims[3]}); }

 private:
  const Op& op_;
  const char* failed_ = nullptr;
};

void check_dense(Checker& c, const Op& op) {
  namespace fwd = op::conv2d;
  namespace bwd_data = op::conv2d_bwd_data;
  namespace bwd_weights = op::conv2d_bwd_weights;
  namespace fused = op::conv2d_bias_act;
  namespace stats = op::conv2d_stats;
  namespace bwd = op::conv2d_bwd;
  switch (op.id) {
    case OpId::conv2d_bwd: {
      const Tensor *src = op.in(bwd::in_src), *dst = op.in(bwd::in_dst), *weights = op.in(bwd::in_weights);
      c.convolution(src, dst, weights->dims[1], weights->dims[2], bwd::attr_stride);
      c.dense_weights(weights, src, dst);
      c.same(dst, op.in(bwd::in_diff_dst));
      c.channels(dst, {op.in(bwd::in_mean), op.in(bwd::in_inv_std), op.in(bwd::in_scale), op.in(bwd::in_shift),
                       op.in(bwd::in_diff_scale), op.in(bwd::in_diff_shift)});
      c.drop(bwd::attr_drop_rate, bwd::attr_rng_stream);
      c.flag(bwd::attr_batch_stats);
      c.expect(op.attr(bwd::attr_batch_stats) == 0 || (op.in(bwd::in_diff_scale) && op.in(bwd::in_diff_shift)),
               "batch statistics need both sums");
      c.act(bwd::attr_act);
      c.same(src, op.out(bwd::out_diff_src));
      const Tensor* gate = op.in(bwd::in_gate);
      c.per_image(src, gate);
      c.source_norm(
          src,
          {op.in(bwd::in_src_mean), op.in(bwd::in_src_inv_std), op.in(bwd::in_src_scale), op.in(bwd::in_src_shift)},
          bwd::attr_src_act);
      c.expect(!gate || op.in(bwd::in_src_mean), "a gate without the normalisation of its source");
      const Tensor *addend = op.in(bwd::in_addend), *end_src = op.in(bwd::in_end_src);
      c.expect(!op.in(bwd::in_src_mean) || (!addend && !end_src), "a source that is normalised ends no block");
      c.same(src, addend);
      c.same(src, end_src);
      c.all_or_none(end_src, {op.in(bwd::in_end_mean), op.in(bwd::in_end_inv_std)});
      c.channels(src, {op.in(bwd::in_end_mean), op.in(bwd::in_end_inv_std)});
      c.drop(bwd::attr_end_drop_rate, bwd::attr_end_rng_stream);
      c.expect(end_src || op.attr(bwd::attr_end_drop_rate) == 0, "a drop without the normalisation in front of it");
      const bool sums_by_channel = (op.in(bwd::in_src_mean) && !gate) || end_src;
      c.all_or_none(sums_by_channel, {op.out(bwd::out_src_diff_scale), op.out(bwd::out_src_diff_shift)});
      c.channels(src, {op.out(bwd::out_src_diff_scale), op.out(bwd::out_src_diff_shift)});
      c.all_or_none(gate, {op.out(bwd::out_diff_gate), op.out(bwd::out_sums)});
      c.per_image(src, op.out(bwd::out_diff_gate));
      c.shape(op.out(bwd::out_sums), {src->dims[0], 4, src->dims[3]});
      return c.same(weights, op.out(bwd::out_diff_weights));
    }
    case OpId::conv2d_stats: {
      const Tensor *src = op.in(stats::in_src), *weights = op.in(stats::in_weights), *dst = op.out(stats::out_dst);
      c.convolution(src, dst, weights->dims[1], weights->dims[2], stats::attr_stride);
      c.dense_weights(weights, src, dst);
      c.per_image(src, op.in(stats::in_gate));
      c.source_norm(src,
                    {op.in(stats::in_src_mean), op.in(stats::in_src_inv_std), op.in(stats::in_src_scale),
                     op.in(stats::in_src_shift)},
                    stats::attr_src_act);
      c.channels(dst, {op.out(stats::out_mean), op.out(stats::out_inv_std), op.upd(stats::upd_running_mean),
                       op.upd(stats::upd_running_var)});
      c.eps(stats::attr_eps);
      return c.range(stats::attr_momentum, 0, 1);
    }
    case OpId::conv2d: {
      const Tensor *src = op.in(fwd::in_src), *weights = op.in(fwd::in_weights), *dst = op.out(fwd::out_dst);
      c.convolution(src, dst, weights->dims[1], weights->dims[2], fwd::attr_stride);
      return c.dense_weights(weights, src, dst);
    }
    case OpId::conv2d_bwd_data: {
      const Tensor *dst = op.in(bwd_data::in_diff_dst), *weights = op.in(bwd_data::in_weights);
      const Tensor* src = op.out(bwd_data::out_diff_src);
      c.convolution(src, dst, weights->dims[1], weights->dims[2], bwd_data::attr_stride);
      return c.dense_weights(weights, src, dst);
    }
    case OpId::conv2d_bwd_weights: {
      const Tensor *src = op.in(bwd_weights::in_src), *dst = op.in(bwd_weights::in_diff_dst);
      const Tensor* weights = op.out(bwd_weights::out_diff_weights);
      c.convolution(src, dst, weights->dims[1], weights->dims[2], bwd_weights::attr_stride);
      return c.dense_weights(weights, src, dst);
    }
    default: {
      const Tensor *src = op.in(fused::in_src), *weights = op.in(fused::in_weights), *dst = op.out(fused::out_dst);
      c.convolution(src, dst, weights->dims[1], weights->dims[2], fused::attr_stride);
      c.dense_weights(weights, src, dst);
      c.channels(dst, {op.in(fused::in_bias)});
      c.per_image(src, op.in(fused::in_gate));
      c.same(dst, op.in(fused::in_residual));
      return c.act(fused::attr_act);
    }
  }
}

// Convolutions of uint8 images.
void check_input_dense(Checker& c, const Op& op) {
  namespace stats = op::input_conv2d_stats;
  namespace fused = op::input_conv2d_bias_act;
  namespace bwd_weights = op::input_conv2d_bwd_weights;
  const auto convolution = [&](const Tensor* src, const Tensor* weights, const Tensor* dst, int first_attr, int std) {
    c.pixels(src, std);
    c.window(src, dst, weights->dims[1], weights->dims[2], first_attr);
    c.dense_weights(weights, src, dst);
  };
  switch (op.id) {
    case OpId::input_conv2d_stats: {
      const Tensor* dst = op.out(stats::out_dst);
      convolution(op.in(stats::in_src), op.in(stats::in_weights), dst, stats::attr_stride, stats::attr_std0);
      c.channels(dst, {op.out(stats::out_mean), op.out(stats::out_inv_std), op.upd(stats::upd_running_mean),
                       op.upd(stats::upd_running_var)});
      c.eps(stats::attr_eps);
      return c.range(stats::attr_momentum, 0, 1);
    }
    case OpId::input_conv2d_bwd_weights:
      return convolution(op.in(bwd_weights::in_src), op.out(bwd_weights::out_diff_weights),
                         op.in(bwd_weights::in_diff_dst), bwd_weights::attr_stride, bwd_weights::attr_std0);
    default: {
      const Tensor* dst = op.out(fused::out_dst);
      convolution(op.in(fused::in_src), op.in(fused::in_weights), dst, fused::attr_stride, fused::attr_std0);
      c.channels(dst, {op.in(fused::in_bias)});
      return c.act(fused::attr_act);
    }
  }
}

void check_depthwise(Checker& c, const Op& op) {
  namespace fwd = op::depthwise_conv2d;
  namespace bwd_data = op::depthwise_conv2d_bwd_data;
  namespace bwd_weights = op::depthwise_conv2d_bwd_weights;
  namespace fused = op::depthwise_conv2d_bias_act;
  namespace stats = op::depthwise_conv2d_stats;
  namespace bwd = op::depthwise_conv2d_bwd;
  switch (op.id) {
    case OpId::depthwise_conv2d_stats: {
      const Tensor *src = op.in(stats::in_src), *weights = op.in(stats::in_weights), *dst = op.out(stats::out_dst);
      c.convolution(src, dst, weights->dims[0], weights->dims[1], stats::attr_stride);
      c.depthwise_weights(weights, src, dst);
      c.channels(dst, {op.out(stats::out_mean), op.out(stats::out_inv_std), op.upd(stats::upd_running_mean),
                       op.upd(stats::upd_running_var)});
      c.source_norm(src,
                    {op.in(stats::in_src_mean), op.in(stats::in_src_inv_std), op.in(stats::in_src_scale),
                     op.in(stats::in_src_shift)},
                    stats::attr_src_act);
      c.eps(stats::attr_eps);
      return c.range(stats::attr_momentum, 0, 1);
    }
    case OpId::depthwise_conv2d_bwd: {
      const Tensor *src = op.in(bwd::in_src), *dst = op.in(bwd::in_diff_dst), *weights = op.in(bwd::in_weights);
      c.convolution(src, dst, weights->dims[0], weights->dims[1], bwd::attr_stride);
      c.depthwise_weights(weights, src, dst);
      c.same(src, op.out(bwd::out_diff_src));
      c.source_norm(src,
                    {op.in(bwd::in_src_mean), op.in(bwd::in_src_inv_std), op.in(bwd::in_src_scale),
                     op.in(bwd::in_src_shift), op.out(bwd::out_src_diff_scale), op.out(bwd::out_src_diff_shift)},
                    bwd::attr_src_act);
      const Tensor* behind = op.in(bwd::in_dst);
      c.all_or_none(behind, {op.in(bwd::in_mean), op.in(bwd::in_inv_std), op.in(bwd::in_scale),
                             op.in(bwd::in_diff_scale), op.in(bwd::in_diff_shift)});
      c.expect(op.in(bwd::in_shift) || op.attr(bwd::attr_act) == 0, "an activation without the shift in front of it");
      c.expect(behind || (!op.in(bwd::in_shift) && !op.in(bwd::in_gate) && !op.in(bwd::in_diff_pooled) &&
                          op.attr(bwd::attr_act) == 0),
               "operands of the normalisation behind without its tensor");
      c.same(dst, behind);
      c.channels(dst, {op.in(bwd::in_mean), op.in(bwd::in_inv_std), op.in(bwd::in_scale), op.in(bwd::in_shift),
                       op.in(bwd::in_diff_scale), op.in(bwd::in_diff_shift)});
      c.per_image(dst, op.in(bwd::in_gate));
      c.per_image(dst, op.in(bwd::in_diff_pooled));
      c.act(bwd::attr_act);
      return c.same(weights, op.out(bwd::out_diff_weights));
    }
    case OpId::depthwise_conv2d: {
      const Tensor *src = op.in(fwd::in_src), *weights = op.in(fwd::in_weights), *dst = op.out(fwd::out_dst);
      c.convolution(src, dst, weights->dims[0], weights->dims[1], fwd::attr_stride);
      return c.depthwise_weights(weights, src, dst);
    }
    case OpId::depthwise_conv2d_bwd_data: {
      const Tensor *dst = op.in(bwd_data::in_diff_dst), *weights = op.in(bwd_data::in_weights);
      const Tensor* src = op.out(bwd_data::out_diff_src);
      c.convolution(src, dst, weights->dims[0], weights->dims[1], bwd_data::attr_stride);
      return c.depthwise_weights(weights, src, dst);
    }
    case OpId::depthwise_conv2d_bwd_weights: {
      const Tensor *src = op.in(bwd_weights::in_src), *dst = op.in(bwd_weights::in_diff_dst);
      const Tensor* weights = op.out(bwd_weights::out_diff_weights);
      c.convolution(src, dst, weights->dims[0], weights->dims[1], bwd_weights::attr_stride);
      return c.depthwise_weights(weights, src, dst);
    }
    default: {
      const Tensor *src = op.in(fused::in_src), *weights = op.in(fused::in_weights), *dst = op.out(fused::out_dst);
      c.convolution(src, dst, weights->dims[0], weights->dims[1], fused::attr_stride);
      c.depthwise_weights(weights, src, dst);
      c.channels(dst, {op.in(fused::in_bias)});
      c.per_image(dst, op.out(fused::out_pooled));
      return c.act(fused::attr_act);
    }
  }
}

void check_expand_depthwise(Checker& c, const Op& op) {
  using namespace op::expand_depthwise_bias_act;
  const Tensor *src = op.in(in_src), *weights = op.in(in_weights), *dst = op.out(out_dst);
  const Tensor* taps = op.in(in_depthwise_weights);
  // The tensor between the two convolutions has the pixels of src and the channels of dst.
  Tensor wide = *src;
  wide.dims[3] = dst->dims[3];
  c.convolution(&wide, dst, taps->dims[0], taps->dims[1], attr_stride);
  c.depthwise_weights(taps, &wide, dst);
  c.shape(weights, {dst->dims[3], 1, 1, src->dims[3]});
  c.channels(dst, {op.in(in_bias), op.in(in_depthwise_bias)});
  c.per_image(dst, op.out(out_pooled));
  c.act(attr_expand_act);
  c.act(attr_act);
}

void check_batch_norm(Checker& c, const Op& op) {
  switch (op.id) {
    case OpId::bn_stats: {
      using namespace op::bn_stats;
      const Tensor* src = op.in(in_src);
      c.image(src);
      c.channels(src, {op.out(out_mean), op.out(out_inv_std), op.upd(upd_running_mean), op.upd(upd_running_var)});
      c.eps(attr_eps);
      return c.range(attr_momentum, 0, 1);
    }
    case OpId::bn_inv_std: {
      using namespace op::bn_inv_std;
      c.shape(op.in(in_var), {op.in(in_var)->dims[0]});
      c.same(op.in(in_var), op.out(out_inv_std));
      return c.eps(attr_eps);
    }
    case OpId::bn_apply: {
      using namespace op::bn_apply;
      c.image(op.in(in_src));
      c.same(op.in(in_src), op.out(out_dst));
      c.channels(op.in(in_src), {op.in(in_mean), op.in(in_inv_std), op.in(in_scale), op.in(in_shift)});
      return c.flag(attr_batch_stats);
    }
    case OpId::bn_bwd_reduce: {
      using namespace op::bn_bwd_reduce;
      c.image(op.in(in_src));
      c.same(op.in(in_src), op.in(in_diff_dst));
      return c.channels(op.in(in_src),
                        {op.in(in_mean), op.in(in_inv_std), op.out(out_diff_scale), op.out(out_diff_shift)});
    }
    case OpId::bn_bwd_apply: {
      using namespace op::bn_bwd_apply;
      c.image(op.in(in_src));
      c.same(op.in(in_src), op.in(in_diff_dst));
      c.same(op.in(in_src), op.out(out_diff_src));
      c.channels(op.in(in_src),
                 {op.in(in_mean), op.in(in_inv_std), op.in(in_scale), op.in(in_diff_scale), op.in(in_diff_shift)});
      c.flag(attr_batch_stats);
      return c.expect(op.attr(attr_batch_stats) == 0 || (op.in(in_diff_scale) && op.in(in_diff_shift)),
                      "batch statistics need both sums");
    }
    case OpId::fold_bn: {
      using namespace op::fold_bn;
      const Tensor* weights = op.in(in_weights);
      c.flag(attr_depthwise);
      c.eps(attr_eps);
      c.expect(weights->rank == (op.attr(attr_depthwise) == 1 ? 3 : 4), "wrong rank of weights");
      c.expect(weights->dtype == DType::f32, "weights are not f32");
      c.same(weights, op.out(out_folded_weights));
      const int64_t channels = op.attr(attr_depthwise) == 1 ? weights->dims[2] : weights->dims[0];
      for (const Tensor* v :
           {op.in(in_scale), op.in(in_shift), op.in(in_running_mean), op.in(in_running_var), op.out(out_folded_bias)})
        c.shape(v, {channels});
      return;
    }
    default:
      return;
  }
}

void check_fused_bn(Checker& c, const Op& op) {
  switch (op.id) {
    case OpId::bn_act: {
      using namespace op::bn_act;
      const Tensor* src = op.in(in_src);
      c.image(src);
      c.same(src, op.out(out_dst));
      c.same(src, op.in(in_residual));
      c.per_image(src, op.in(in_gate));
      c.channels(src, {op.in(in_mean), op.in(in_inv_std), op.in(in_scale), op.in(in_shift)});
      c.drop(attr_drop_rate, attr_rng_stream);
      return c.act(attr_act);
    }
    case OpId::bn_act_pool: {
      using namespace op::bn_act_pool;
      const Tensor* src = op.in(in_src);
      c.image(src);
      c.per_image(src, op.out(out_pooled));
      c.same(src, op.out(out_dst));
      c.channels(src, {op.in(in_mean), op.in(in_inv_std), op.in(in_scale), op.in(in_shift)});
      return c.act(attr_act);
    }
    case OpId::bn_act_bwd_reduce: {
      using namespace op::bn_act_bwd_reduce;
      const Tensor* src = op.in(in_src);
      c.image(src);
      c.same(src, op.in(in_diff_dst));
      c.per_image(src, op.in(in_gate));
      c.per_image(src, op.in(in_diff_pooled));
      c.channels(src, {op.in(in_mean), op.in(in_inv_std), op.in(in_scale), op.in(in_shift), op.out(out_diff_scale),
                       op.out(out_diff_shift)});
      c.drop(attr_drop_rate, attr_rng_stream);
      return c.act(attr_act);
    }
    case OpId::bn_act_bwd_apply: {
      using namespace op::bn_act_bwd_apply;
      const Tensor* src = op.in(in_src);
      c.image(src);
      c.same(src, op.in(in_diff_dst));
      c.same(src, op.out(out_diff_src));
      c.per_image(src, op.in(in_gate));
      c.per_image(src, op.in(in_diff_pooled));
      c.channels(src, {op.in(in_mean), op.in(in_inv_std), op.in(in_scale), op.in(in_shift), op.in(in_diff_scale),
                       op.in(in_diff_shift)});
      c.drop(attr_drop_rate, attr_rng_stream);
      c.flag(attr_batch_stats);
      c.expect(op.attr(attr_batch_stats) == 0 || (op.in(in_diff_scale) && op.in(in_diff_shift)),
               "batch statistics need both sums");
      return c.act(attr_act);
    }
    case OpId::bn_act_bwd_sums: {
      using namespace op::bn_act_bwd_sums;
      const Tensor* src = op.in(in_src);
      c.image(src);
      c.same(src, op.in(in_diff_dst));
      c.same(src, op.out(out_dst));
      c.per_image(src, op.in(in_gate));
      c.per_image(src, op.out(out_diff_gate));
      c.shape(op.out(out_sums), {src->dims[0], 4, src->dims[3]});
      c.channels(src, {op.in(in_mean), op.in(in_inv_std), op.in(in_scale), op.in(in_shift)});
      c.expect(!op.out(out_dst) || op.in(in_gate), "the activation cannot be made without its gate");
      c.drop(attr_drop_rate, attr_rng_stream);
      return c.act(attr_act);
    }
    case OpId::bn_act_bwd_merge: {
      using namespace op::bn_act_bwd_merge;
      const Tensor* gate = op.in(in_gate);
      c.expect(gate->rank == 2, "a gate is not a matrix");
      c.shape(gate, {gate->dims[0], gate->dims[1]});
      c.shape(op.in(in_diff_pooled), {gate->dims[0], gate->dims[1]});
      c.shape(op.in(in_sums), {gate->dims[0], 4, gate->dims[1]});
      c.shape(op.out(out_diff_scale), {gate->dims[1]});
      c.shape(op.out(out_diff_shift), {gate->dims[1]});
      return c.range(attr_pixels, 1, 1e18);
    }
    case OpId::bn_act_bwd_gate: {
      using namespace op::bn_act_bwd_gate;
      const Tensor* src = op.in(in_src);
      c.image(src);
      c.same(src, op.in(in_diff_dst));
      c.per_image(src, op.out(out_diff_gate));
      c.channels(src, {op.in(in_mean), op.in(in_inv_std), op.in(in_scale), op.in(in_shift)});
      return c.act(attr_act);
    }
    default:
      return;
  }
}

// Ops on images or on [N, C] alike.
void check_elementwise(Checker& c, const Op& op) {
  switch (op.id) {
    case OpId::input_normalize: {
      using namespace op::input_normalize;
      const Tensor *src = op.in(in_src), *dst = op.out(out_dst);
      c.image(dst);
      c.pixels(src, attr_std0);
      return c.same_shape(src, dst);
    }
    case OpId::cast: {
      using namespace op::cast;
      c.expect(is_floating(op.in(in_src)) && is_floating(op.out(out_dst)), "only floating types are cast");
      return c.same_shape(op.in(in_src), op.out(out_dst));
    }
    case OpId::activation: {
      using namespace op::activation;
      c.same(op.in(in_src), op.out(out_dst));
      return c.act(attr_act);
    }
    case OpId::activation_bwd: {
      using namespace op::activation_bwd;
      c.same(op.in(in_src), op.in(in_diff_dst));
      c.same(op.in(in_src), op.out(out_diff_src));
      return c.act(attr_act);
    }
    case OpId::add: {
      using namespace op::add;
      c.same(op.in(in_src0), op.in(in_src1));
      return c.same(op.in(in_src0), op.out(out_dst));
    }
    case OpId::drop_path:
    case OpId::dropout: {
      using namespace op::drop_path;
      c.same(op.in(in_src), op.out(out_dst));
      return c.drop(attr_drop_rate, attr_rng_stream);
    }
    case OpId::global_avg_pool: {
      using namespace op::global_avg_pool;
      c.image(op.in(in_src));
      return c.per_image(op.in(in_src), op.out(out_dst));
    }
    case OpId::global_avg_pool_bwd: {
      using namespace op::global_avg_pool_bwd;
      c.image(op.out(out_diff_src));
      return c.per_image(op.out(out_diff_src), op.in(in_diff_dst));
    }
    case OpId::channel_scale: {
      using namespace op::channel_scale;
      c.image(op.in(in_src));
      c.same(op.in(in_src), op.out(out_dst));
      return c.per_image(op.in(in_src), op.in(in_gate));
    }
    case OpId::channel_scale_bwd_gate: {
      using namespace op::channel_scale_bwd_gate;
      c.image(op.in(in_src));
      c.same(op.in(in_src), op.in(in_diff_dst));
      return c.per_image(op.in(in_src), op.out(out_diff_gate));
    }
    default:
      return;
  }
}

void check_matrices(Checker& c, const Op& op) {
  switch (op.id) {
    case OpId::linear: {
      using namespace op::linear;
      const int64_t n = op.in(in_src)->dims[0], i = op.in(in_src)->dims[1], o = op.in(in_weights)->dims[0];
      c.shape(op.in(in_src), {n, i});
      c.shape(op.in(in_weights), {o, i});
      c.shape(op.in(in_bias), {o});
      return c.shape(op.out(out_dst), {n, o});
    }
    case OpId::linear_bwd_data: {
      using namespace op::linear_bwd_data;
      const int64_t n = op.in(in_diff_dst)->dims[0], o = op.in(in_weights)->dims[0], i = op.in(in_weights)->dims[1];
      c.shape(op.in(in_diff_dst), {n, o});
      c.shape(op.in(in_weights), {o, i});
      return c.shape(op.out(out_diff_src), {n, i});
    }
    case OpId::linear_bwd_weights: {
      using namespace op::linear_bwd_weights;
      const int64_t n = op.in(in_src)->dims[0], i = op.in(in_src)->dims[1], o = op.in(in_diff_dst)->dims[1];
      c.shape(op.in(in_src), {n, i});
      c.shape(op.in(in_diff_dst), {n, o});
      c.shape(op.out(out_diff_weights), {o, i});
      return c.shape(op.out(out_diff_bias), {o});
    }
    case OpId::se_gate: {
      using namespace op::se_gate;
      const int64_t n = op.in(in_pooled)->dims[0], ch = op.in(in_pooled)->dims[1], r = op.in(in_weights0)->dims[0];
      c.shape(op.in(in_pooled), {n, ch});
      c.shape(op.in(in_weights0), {r, ch});
      c.shape(op.in(in_bias0), {r});
      c.shape(op.in(in_weights1), {ch, r});
      c.shape(op.in(in_bias1), {ch});
      c.shape(op.out(out_gate), {n, ch});
      c.shape(op.out(out_hidden), {n, r});
      return c.act(attr_act);
    }
    case OpId::se_gate_bwd: {
      using namespace op::se_gate_bwd;
      const int64_t n = op.in(in_pooled)->dims[0], ch = op.in(in_pooled)->dims[1], r = op.in(in_weights0)->dims[0];
      for (const Tensor* t : {op.in(in_diff_gate), op.in(in_pooled), op.in(in_gate), op.out(out_diff_pooled)})
        c.shape(t, {n, ch});
      c.shape(op.in(in_hidden), {n, r});
      for (const Tensor* t : {op.in(in_weights0), op.out(out_diff_weights0)}) c.shape(t, {r, ch});
      for (const Tensor* t : {op.in(in_weights1), op.out(out_diff_weights1)}) c.shape(t, {ch, r});
      c.shape(op.out(out_diff_bias0), {r});
      c.shape(op.out(out_diff_bias1), {ch});
      return c.act(attr_act);
    }
    case OpId::softmax_cross_entropy: {
      using namespace op::softmax_cross_entropy;
      const int64_t n = op.in(in_logits)->dims[0], k = op.in(in_logits)->dims[1];
      c.shape(op.in(in_logits), {n, k});
      c.shape(op.in(in_labels), {n}, DType::i32);
      c.shape(op.out(out_loss), {1});
      c.shape(op.out(out_diff_logits), {n, k});
      c.shape(op.out(out_rank), {n}, DType::i32);
      return c.range(attr_label_smoothing, 0, 1);
    }
    case OpId::softmax: {
      using namespace op::softmax;
      c.shape(op.in(in_logits), {op.in(in_logits)->dims[0], op.in(in_logits)->dims[1]});
      return c.same(op.in(in_logits), op.out(out_probs));
    }
    default:
      return;
  }
}

// Optimizers address moments by the parameter's offset and gradients by their own.
void check_update(Checker& c, const Op& op) {
  const auto gradient = [&](const Tensor* grad) {
    c.expect(grad->arena == Arena::grads && grad->dtype == DType::f32, "not a gradient");
  };
  if (op.id == OpId::grad_norm) {
    for (const Tensor* grad : op.inputs) gradient(grad);
    return c.shape(op.out(op::grad_norm::out_norm), {1});
  }
  if (op.id == OpId::ema_update) {
    for (const Tensor* src : op.inputs)
      c.expect(src->arena == Arena::weights && src->dtype == DType::f32, "averages something that is not a weight");
    return;
  }
  c.shape(op.inputs[0], {1});
  c.expect(op.inputs.size() == op.updates.size() + 1, "parameters and gradients differ in number");
  for (size_t i = 0; i < op.updates.size() && i + 1 < op.inputs.size(); ++i) {
    gradient(op.inputs[i + 1]);
    c.same(op.inputs[i + 1], op.updates[i]);
    c.expect(op.inputs[i + 1]->offset == op.updates[i]->offset, "a gradient is not at its parameter's offset");
  }
}

// A value that the type holds: the conversion of another one to an integer has no meaning.
void check_fill(Checker& c, const Op& op) {
  using namespace op::fill;
  switch (op.out(out_dst)->dtype) {
    case DType::u8:
      return c.range(attr_value, 0, 255);
    case DType::i32:
      return c.range(attr_value, -2147483648.0, 2147483647.0);
    default:
      return;
  }
}

}  // namespace

Status check_shapes(const Op& op) {
  Checker checker(op);
  switch (op.id) {
    case OpId::conv2d:
    case OpId::conv2d_bwd_data:
    case OpId::conv2d_bwd_weights:
    case OpId::conv2d_bias_act:
    case OpId::conv2d_stats:
    case OpId::conv2d_bwd:
      check_dense(checker, op);
      break;
    case OpId::input_conv2d_stats:
    case OpId::input_conv2d_bias_act:
    case OpId::input_conv2d_bwd_weights:
      check_input_dense(checker, op);
      break;
    case OpId::depthwise_conv2d:
    case OpId::depthwise_conv2d_bwd_data:
    case OpId::depthwise_conv2d_bwd_weights:
    case OpId::depthwise_conv2d_bias_act:
    case OpId::depthwise_conv2d_stats:
    case OpId::depthwise_conv2d_bwd:
      check_depthwise(checker, op);
      break;
    case OpId::expand_depthwise_bias_act:
      check_expand_depthwise(checker, op);
      break;
    case OpId::bn_stats:
    case OpId::bn_inv_std:
    case OpId::bn_apply:
    case OpId::bn_bwd_reduce:
    case OpId::bn_bwd_apply:
    case OpId::fold_bn:
      check_batch_norm(checker, op);
      break;
    case OpId::bn_act:
    case OpId::bn_act_pool:
    case OpId::bn_act_bwd_reduce:
    case OpId::bn_act_bwd_apply:
    case OpId::bn_act_bwd_gate:
    case OpId::bn_act_bwd_sums:
    case OpId::bn_act_bwd_merge:
      check_fused_bn(checker, op);
      break;
    case OpId::input_normalize:
    case OpId::cast:
    case OpId::activation:
    case OpId::activation_bwd:
    case OpId::add:
    case OpId::drop_path:
    case OpId::dropout:
    case OpId::global_avg_pool:
    case OpId::global_avg_pool_bwd:
    case OpId::channel_scale:
    case OpId::channel_scale_bwd_gate:
      check_elementwise(checker, op);
      break;
    case OpId::linear:
    case OpId::linear_bwd_data:
    case OpId::linear_bwd_weights:
    case OpId::se_gate:
    case OpId::se_gate_bwd:
    case OpId::softmax_cross_entropy:
    case OpId::softmax:
      check_matrices(checker, op);
      break;
    case OpId::grad_norm:
    case OpId::optimizer_sgd:
    case OpId::optimizer_rmsprop:
    case OpId::optimizer_adamw:
    case OpId::ema_update:
      check_update(checker, op);
      break;
    case OpId::fill:
      check_fill(checker, op);
      break;
  }
  return checker.status();
}

}  // namespace effnet::plan
