// An op's CUDA kernel, bound as a plan binds it; what runs its launches is up to the runner.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "cuda/kernel.h"
#include "cuda/ops/weights.h"
#include "plan/shapes.h"

namespace effnet::test::backend {

inline constexpr bool kIsCpu = false;
using cuda::KernelFactory;
#define EFF_OP(id, name, ...) using cuda::make_##name;
#include "plan/op_table.inc"
#undef EFF_OP

inline plan::OpId id_of(KernelFactory factory) {
#define EFF_OP(id, name, ...) \
  if (factory == cuda::make_##name) return plan::OpId::name;
#include "plan/op_table.inc"
#undef EFF_OP
  return {};
}

// As every launch must leave them for the next one.
inline bool counters_are_zero(const cuda::StepState& state) {
  const auto zero = [](uint32_t counter) { return counter == 0; };
  return std::all_of(std::begin(state.block_counters), std::end(state.block_counters), zero) &&
         std::all_of(std::begin(state.merge_counters), std::end(state.merge_counters), zero);
}

class Binding {
 public:
  explicit Binding(KernelFactory factory) : factory_(factory) {}
  virtual ~Binding() = default;
  // As a plan is bound: its shapes are checked first.
  Status make(plan::Op& op) {
    op.id = id_of(factory_);
    EFF_RETURN_IF_ERROR(plan::check_shapes(op));
    auto made = bind(op, factory_);
    if (!made.ok()) return made.status();
    kernel_ = std::move(made.value());
    std::vector<cuda::Launch> launches;
    kernel_->record({}, launches);
    forms_.clear();
    for (const cuda::Launch& l : launches) {
      const auto blocks = static_cast<int>(l.grid.x * l.grid.y * l.grid.z);
      parts_ = std::max(parts_, blocks);
      forms_.push_back(l.kernel + (blocks > 1 ? "+" : ""));
    }
    return ok_status();
  }
  bool made() const { return kernel_ != nullptr; }
  const std::string& name() const { return kernel_->name; }
  int parts() const { return parts_; }
  // The kernels that it launches, with a sign behind those of several blocks.
  const std::vector<std::string>& forms() const { return forms_; }
  double flops() const { return kernel_->flops; }

 protected:
  const cuda::Kernel& kernel() const { return *kernel_; }
  // The arenas of which the kernel reads a 16-bit copy, and what makes it.
  std::vector<int> working_arenas() const {
    if (kernel_->working == plan::DType::f32) return {};
    return {static_cast<int>(plan::Arena::weights), static_cast<int>(plan::Arena::prepared)};
  }
  cuda::Launch cast(const std::byte* from, std::byte* to, size_t bytes) const {
    return cuda::cast_weights_launch(from, to, static_cast<int64_t>(bytes / sizeof(float)), kernel_->working);
  }

 private:
  virtual StatusOr<cuda::KernelPtr> bind(const plan::Op& op, KernelFactory factory) { return factory(op); }

  KernelFactory factory_;
  cuda::KernelPtr kernel_;
  int parts_ = 0;
  std::vector<std::string> forms_;
};

}  // namespace effnet::test::backend
