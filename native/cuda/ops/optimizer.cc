#include "cuda/kernels/optimizer.h"

#include "cuda/ops/common.h"

namespace effnet::cuda {
namespace {

using plan::Arena;
using plan::DType;
using plan::Op;
using plan::Segment;
using plan::Segments;
using plan::Tensor;

// A kernel over the pieces of `segments`, which become its constants.
KernelPtr over_pieces(const char* name, const Segments& segments, Kernel::Record record, size_t scratch_bytes = 0) {
  KernelPtr kernel = make_kernel(name, DType::f32, std::move(record), scratch_bytes);
  const auto bytes = std::as_bytes(std::span(segments.pieces()));
  kernel->constants.assign(bytes.begin(), bytes.end());
  return kernel;
}

Dim a_block_each(size_t pieces) { return {static_cast<uint32_t>(pieces), 1, 1}; }

KernelPtr update(const char* name, const Op& op, Rule rule, double decay_mult) {
  // The three optimizer ops have the same ports: norm, then a gradient for each updated parameter.
  const size_t first = op::optimizer_sgd::in_grad;
  const Tensor* norm = op.in(op::optimizer_sgd::in_norm);
  Segments segments;
  for (size_t i = 0; i < op.updates.size(); ++i)
    segments.add(op.updates[i]->offset, op.inputs[first + i]->offset, op.updates[i]->elements());
  segments.finish();
  const size_t pieces = segments.pieces().size();
  const Arena grads = op.inputs[first]->arena;
  return over_pieces(name, segments, [=](const Addresses& at, std::vector<Launch>& launches) {
    const UpdateArgs args{rule,
                          reinterpret_cast<const Segment*>(at.constants),
                          at.arena(Arena::weights),
                          at.arena(Arena::moment0),
                          at.arena(Arena::moment1),
                          at.arena(grads),
                          at.scalars,
                          at.ptr<const float>(norm),
                          decay_mult,
                          at.state};
    launches.push_back(make_launch("update_weights", a_block_each(pieces), kOptimizerThreads, 0, args));
  });
}

}  // namespace

StatusOr<KernelPtr> make_optimizer_sgd(const Op& op) {
  using namespace op::optimizer_sgd;
  return update("optimizer_sgd", op, op.attr(attr_nesterov) == 1 ? Rule::sgd_nesterov : Rule::sgd,
                op.attr(attr_decay_mult));
}

StatusOr<KernelPtr> make_optimizer_rmsprop(const Op& op) {
  using namespace op::optimizer_rmsprop;
  return update("optimizer_rmsprop", op, op.attr(attr_tf_form) == 1 ? Rule::rmsprop_tf : Rule::rmsprop_torch,
                op.attr(attr_decay_mult));
}

StatusOr<KernelPtr> make_optimizer_adamw(const Op& op) {
  return update("optimizer_adamw", op, Rule::adamw, op.attr(op::optimizer_adamw::attr_decay_mult));
}

StatusOr<KernelPtr> make_ema_update(const Op& op) {
  Segments segments;
  for (const Tensor* src : op.inputs) segments.add(src->offset, src->offset, src->elements());
  segments.finish();
  const size_t pieces = segments.pieces().size();
  return over_pieces("ema_update", segments, [=](const Addresses& at, std::vector<Launch>& launches) {
    if (pieces == 0) return;
    const EmaArgs args{reinterpret_cast<const Segment*>(at.constants), at.arena(Arena::weights), at.arena(Arena::ema),
                       at.scalars, at.state};
    launches.push_back(make_launch("update_ema", a_block_each(pieces), kOptimizerThreads, 0, args));
  });
}

StatusOr<KernelPtr> make_grad_norm(const Op& op) {
  using namespace op::grad_norm;
  if (op.inputs.empty()) return error(Code::plan_invalid, "op %s: no gradients", std::string(op.name).c_str());
  Segments segments;
  for (const Tensor* grad : op.inputs) segments.add(grad->offset, grad->offset, grad->elements());
  segments.finish();
  const size_t pieces = segments.pieces().size();
  const Arena grads = op.in(in_grad)->arena;
  const Tensor* norm = op.out(out_norm);
  return over_pieces(
      "grad_norm", segments,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        auto* sums = reinterpret_cast<double*>(at.scratch);
        launches.push_back(
            make_launch("sum_squares", a_block_each(pieces), kOptimizerThreads, kNormShared,
                        NormArgs{reinterpret_cast<const Segment*>(at.constants), at.arena(grads), sums}));
        launches.push_back(
            make_launch("merge_norm", {1, 1, 1}, kOptimizerThreads, 0,
                        NormMergeArgs{sums, static_cast<int64_t>(pieces), at.ptr<float>(norm), at.state}));
      },
      pieces * sizeof(double));
}

}  // namespace effnet::cuda
