#include "cuda/ops/elementwise.h"

#include "cuda/kernels/elementwise.h"
#include "cuda/ops/common.h"
#include "cuda/ops/drop.h"
#include "cuda/ops/walk.h"

namespace effnet::cuda {
namespace {

using plan::Op;
using plan::Tensor;

// Over elements in order, `count` of them `each` to a thread.
template <class Args>
Launch elementwise(const std::string& kernel, int64_t count, int64_t each, const Args& args) {
  const int64_t blocks = (count + kElementwiseThreads * each - 1) / (kElementwiseThreads * each);
  return make_launch(kernel, {static_cast<uint32_t>(blocks), 1, 1}, kElementwiseThreads, 0, args);
}
int64_t flat_elements(plan::DType from, plan::DType to) {
  return kFlatVectors * (from == plan::DType::f32 && to == plan::DType::f32 ? 4 : 8);
}

// Over images, a walk of which knows its image.
template <class Args>
Launch by_image(const char* kernel, const Tensor* dst, Args args) {
  const int vector = walk_vector(dst->dtype, dst->c());
  args.walk = make_walk(dst->n(), dst->h() * dst->w(), dst->c(), vector, kStreamBlocks);
  return make_launch(kernel + walk_suffix(dst->dtype, vector), walk_grid(args.walk, vector), kWalkThreads, 0, args);
}

// dst = f(src0, src1?) of elements in order; all of one type.
Launch flat_launch(const std::string& base, plan::DType dtype, const ElementwiseArgs& args) {
  return elementwise(base + suffix(dtype), args.count, flat_elements(dtype, dtype), args);
}
KernelPtr flat(const char* base, const Tensor* src0, const Tensor* src1, const Tensor* dst, plan::Act act = {}) {
  return make_kernel(base, dst->dtype, [=](const Addresses& at, std::vector<Launch>& launches) {
    launches.push_back(flat_launch(base, dst->dtype, {at.ptr(src0), at.ptr(src1), at.ptr(dst), dst->elements(), act}));
  });
}

KernelPtr per_channel(const char* name, const char* kernel, const Tensor* src, const Tensor* channel, const Tensor* dst,
                      float factor) {
  const std::string form = form_name(name, walk_vector(dst->dtype, dst->c()) == 1);
  return make_kernel(form.c_str(), dst->dtype, [=](const Addresses& at, std::vector<Launch>& launches) {
    launches.push_back(
        by_image(kernel, dst, PerChannelArgs{{}, at.ptr(src), at.ptr<const float>(channel), at.ptr(dst), factor}));
  });
}

}  // namespace

StatusOr<KernelPtr> make_input_normalize(const Op& op) {
  using namespace op::input_normalize;
  const Tensor *src = op.in(in_src), *dst = op.out(out_dst);
  NormalizeArgs args{};
  args.norm = pixel_norm(op, attr_mean0, attr_std0);
  args.count = dst->elements();
  return make_kernel("input_normalize", dst->dtype, [=](const Addresses& at, std::vector<Launch>& launches) mutable {
    args.src = at.ptr<const uint8_t>(src);
    args.dst = at.ptr(dst);
    launches.push_back(elementwise("input_normalize" + suffix(dst->dtype), args.count, kNormalizeBytes, args));
  });
}

StatusOr<KernelPtr> make_cast(const Op& op) {
  using namespace op::cast;
  const Tensor *src = op.in(in_src), *dst = op.out(out_dst);
  return make_kernel("cast", dst->dtype, [=](const Addresses& at, std::vector<Launch>& launches) {
    const ElementwiseArgs args{at.ptr(src), nullptr, at.ptr(dst), dst->elements(), {}};
    launches.push_back(elementwise("cast" + suffix(src->dtype) + suffix(dst->dtype), dst->elements(),
                                   flat_elements(src->dtype, dst->dtype), args));
  });
}

StatusOr<KernelPtr> make_activation(const Op& op) {
  using namespace op::activation;
  return flat("activation", op.in(in_src), nullptr, op.out(out_dst), op.act(attr_act));
}

StatusOr<KernelPtr> make_activation_bwd(const Op& op) {
  using namespace op::activation_bwd;
  return flat("activation_bwd", op.in(in_diff_dst), op.in(in_src), op.out(out_diff_src), op.act(attr_act));
}

Launch add_launch(const void* src0, const void* src1, void* dst, int64_t count, plan::DType dtype) {
  return flat_launch("add", dtype, {src0, src1, dst, count, {}});
}

StatusOr<KernelPtr> make_add(const Op& op) {
  using namespace op::add;
  return flat("add", op.in(in_src0), op.in(in_src1), op.out(out_dst));
}

StatusOr<KernelPtr> make_fill(const Op& op) {
  using namespace op::fill;
  const Tensor* dst = op.out(out_dst);
  const double value = op.attr(attr_value);
  return make_kernel("fill", dst->dtype, [=](const Addresses& at, std::vector<Launch>& launches) {
    const FillArgs args{at.ptr(dst), dst->elements(), value};
    launches.push_back(make_launch("fill" + suffix(dst->dtype), grid_for(dst->elements(), kElementwiseThreads * 16),
                                   kElementwiseThreads, 0, args));
  });
}

StatusOr<KernelPtr> make_channel_scale(const Op& op) {
  using namespace op::channel_scale;
  return per_channel("channel_scale", "channel_scale", op.in(in_src), op.in(in_gate), op.out(out_dst), 1);
}

StatusOr<KernelPtr> make_global_avg_pool_bwd(const Op& op) {
  using namespace op::global_avg_pool_bwd;
  const Tensor* diff_src = op.out(out_diff_src);
  const float factor = 1.0f / static_cast<float>(diff_src->h() * diff_src->w());
  return per_channel("global_avg_pool_bwd", "spread_channels", nullptr, op.in(in_diff_dst), diff_src, factor);
}

StatusOr<KernelPtr> make_drop_path(const Op& op) {
  using namespace op::drop_path;
  const Tensor *src = op.in(in_src), *dst = op.out(out_dst);
  const DropSpec spec = DropSpec::of(op, attr_drop_rate, attr_rng_stream);
  const std::string form = form_name("drop_path", walk_vector(dst->dtype, dst->c()) == 1);
  return make_kernel(form.c_str(), dst->dtype, [=](const Addresses& at, std::vector<Launch>& launches) {
    launches.push_back(by_image("drop_images", dst, DropImagesArgs{{}, at.ptr(src), at.ptr(dst), spec.at(at.scalars)}));
  });
}

StatusOr<KernelPtr> make_dropout(const Op& op) {
  using namespace op::dropout;
  const Tensor *src = op.in(in_src), *dst = op.out(out_dst);
  const DropSpec spec = DropSpec::of(op, attr_drop_rate, attr_rng_stream);
  return make_kernel("dropout", dst->dtype, [=](const Addresses& at, std::vector<Launch>& launches) {
    const DropElementsArgs args{at.ptr(src), at.ptr(dst), dst->elements(), spec.at(at.scalars)};
    launches.push_back(
        elementwise("drop_elements" + suffix(dst->dtype), args.count, flat_elements(dst->dtype, dst->dtype), args));
  });
}

}  // namespace effnet::cuda
