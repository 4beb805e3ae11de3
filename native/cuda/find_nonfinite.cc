// Where NaN or infinity came from: a step that has gone wrong is run again, op by op, and each result is looked at.
#include "cuda/executable.h"
#include "plan/op_traits.h"

namespace effnet::cuda {
namespace {

using plan::Arena;
using plan::Op;
using plan::Tensor;

std::optional<NonFinite> found(const char* part, const Op& op, const Tensor& tensor) {
  return NonFinite{part, plan::op_name(op.id), std::string(op.name), std::string(tensor.name)};
}

std::vector<const Tensor*> in_arena(std::span<const Tensor* const> tensors, Arena arena) {
  std::vector<const Tensor*> chosen;
  for (const Tensor* t : tensors)
    if (t && t->arena == arena) chosen.push_back(t);
  return chosen;
}

}  // namespace

StatusOr<const Tensor*> Executable::first_bad(std::span<const Tensor* const> tensors) const {
  std::vector<std::byte> values;
  for (const Tensor* t : tensors) {
    if (!t) continue;
    values.resize(t->bytes);
    EFF_RETURN_IF_ERROR(read(*t, values));
    if (!plan::all_finite(*t, values.data())) return t;
  }
  return static_cast<const Tensor*>(nullptr);
}

StatusOr<std::optional<NonFinite>> Executable::find_nonfinite(const std::byte* input, const StepScalars& scalars) {
  const auto with_input = take_slot(input, scalars);
  if (!with_input.ok()) return with_input.status();
  Slot& slot = *with_input.value();
  const Taken taken(*this, slot);
  EFF_RETURN_IF_ERROR(stage(slot, scalars));
  const Use use{slot, recording(slot)};
  // Weights that were not finite before; the gradients of the update that made them are still there. The running
  // statistics of a batch norm in training are written, not read: they are no cause.
  for (const Bound& bound : bound_) {
    if (plan::updates_parameters(bound.op->id)) continue;
    const auto weights = first_bad(in_arena(bound.op->inputs, Arena::weights));
    if (!weights.ok()) return weights.status();
    if (!weights.value()) continue;
    for (const Bound& other : bound_) {
      const auto gradient = first_bad(in_arena(other.op->outputs, Arena::grads));
      if (!gradient.ok()) return gradient.status();
      if (gradient.value()) return found("gradient", *other.op, *gradient.value());
    }
    return found("weights", *bound.op, *weights.value());
  }
  EFF_RETURN_IF_ERROR(queue_begin(use));
  bool backward = false;
  for (size_t i = 0; i < bound_.size(); ++i) {
    const Op& op = *bound_[i].op;
    if (plan::updates_parameters(op.id)) break;
    if (pool_->stopping()) return error(Code::aborted, "closed while a step was looked through");
    if (!op.is_prepare()) EFF_RETURN_IF_ERROR(queue_op(use.recording, i));
    for (const auto* list : {&op.outputs, &op.updates}) {
      const auto bad = first_bad(*list);
      if (!bad.ok()) return bad.status();
      if (bad.value()) return found(op.is_prepare() ? "weights" : backward ? "backward" : "forward", op, *bad.value());
    }
    backward |= op.id == plan::OpId::softmax_cross_entropy;
  }
  return std::optional<NonFinite>();
}

}  // namespace effnet::cuda
