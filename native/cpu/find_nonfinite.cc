// Where NaN or infinity came from: a step that has gone wrong is run again, op by op, and each result is looked at.
#include "cpu/executable.h"
#include "plan/op_traits.h"

namespace effnet::cpu {

using plan::all_finite;
using plan::updates_parameters;

namespace {

NonFinite found(const char* part, const plan::Op& op, const plan::Tensor& tensor) {
  return {part, plan::op_name(op.id), std::string(op.name), std::string(tensor.name)};
}

}  // namespace

// The running statistics of a batch norm in training are written, not read: they are no cause.
const plan::Tensor* Executable::bad_weights(std::byte* const* arenas, const plan::Op** reader) const {
  for (const Bound& bound : bound_) {
    if (updates_parameters(bound.op->id)) continue;
    for (const plan::Tensor* t : bound.op->inputs)
      if (t && t->arena == plan::Arena::weights && !all_finite(*t, arenas[static_cast<int>(t->arena)] + t->offset)) {
        *reader = bound.op;
        return t;
      }
  }
  return nullptr;
}

bool Executable::statistics_sound(std::byte* const* arenas) const {
  for (const Bound& bound : bound_) {
    if (updates_parameters(bound.op->id)) continue;
    for (const plan::Tensor* t : bound.op->updates)
      if (t && !all_finite(*t, arenas[static_cast<int>(t->arena)] + t->offset)) return false;
  }
  return true;
}

StatusOr<std::optional<NonFinite>> Executable::find_nonfinite(const std::byte* input, const StepScalars& scalars) {
  memory_->wait_unpinned();
  EFF_RETURN_IF_ERROR(check_arenas());
  std::byte* arenas[plan::kArenaCount];
  gather_arenas(input, arenas);
  std::atomic<int> failure{0};
  ExecContext base{arenas, &scalars, nullptr, shared_scratch_.data(), 0, &failure};
  const auto first_bad = [&](const Bound& bound) -> const plan::Tensor* {
    for (const auto* list : {&bound.op->outputs, &bound.op->updates})
      for (const plan::Tensor* t : *list)
        if (t && !all_finite(*t, base.ptr<std::byte>(t))) return t;
    return nullptr;
  };

  const plan::Op* reader = nullptr;
  if (const plan::Tensor* weights = bad_weights(arenas, &reader)) {
    // A step ends before its backward part when its loss is not finite: what lies in the gradients is of the update
    // that made these weights.
    for (const Bound& bound : bound_)
      for (const plan::Tensor* t : bound.op->outputs)
        if (t && t->arena == plan::Arena::grads && !all_finite(*t, arenas[static_cast<int>(t->arena)] + t->offset))
          return std::optional(found("gradient", *bound.op, *t));
    return std::optional(found("weights", *reader, *weights));
  }

  prepare(base);
  for (const Bound& bound : bound_)
    if (bound.op->is_prepare())
      if (const plan::Tensor* t = first_bad(bound)) return std::optional(found("weights", *bound.op, *t));
  bool backward = false;
  const plan::Region& region = plan_->region();
  for (size_t i = 0; i < bound_.size(); ++i) {
    Bound& bound = bound_[i];
    if (bound.op->is_prepare()) continue;
    if (updates_parameters(bound.op->id)) break;
    if (pool_->stopping()) return error(Code::aborted, "closed while a step was looked through");
    run(bound, base);
    if (failure) break;
    if (const plan::Tensor* t = first_bad(bound))
      return std::optional(found(backward ? "backward" : "forward", *bound.op, *t));
    backward |= bound.op->id == plan::OpId::softmax_cross_entropy;
    // The next image of a region.
    if (region.has(i) && !region.has(i + 1) && base.image + 1 < static_cast<uint64_t>(region.images)) {
      ++base.image;
      i = region.first - 1;
    }
  }
  return std::optional<NonFinite>();
}

}  // namespace effnet::cpu
