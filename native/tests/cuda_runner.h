// Runs an op's CUDA launches on the emulation, under its schedules.
#pragma once

#include <gtest/gtest.h>

#include <cstring>

#include "cuda/device/emulation.h"
#include "cuda/kernel.h"
#include "plan/shapes.h"
#include "tests/aligned.h"

namespace effnet::test {

namespace backend {
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

class Runner {
 public:
  static constexpr unsigned kSchedules[] = {0, 3, 4, 7};
  static constexpr int kOrders = 4;
  static std::string order_name(int order) { return "schedule " + std::to_string(kSchedules[order]); }

  explicit Runner(KernelFactory factory) : factory_(factory) {}
  // As a plan is bound: its shapes are checked first.
  Status make(plan::Op& op) {
    op.id = id_of(factory_);
    EFF_RETURN_IF_ERROR(plan::check_shapes(op));
    auto made = factory_(op);
    if (!made.ok()) return made.status();
    kernel_ = std::move(made.value());
    std::vector<cuda::Launch> launches;
    kernel_->record({}, launches);
    for (const cuda::Launch& l : launches) parts_ = std::max(parts_, static_cast<int>(l.grid.x * l.grid.y * l.grid.z));
    return ok_status();
  }
  bool made() const { return kernel_ != nullptr; }
  const std::string& name() const { return kernel_->name; }
  int parts() const { return parts_; }
  double flops() const { return kernel_->flops; }

  void execute(int order, std::byte** arenas, const StepScalars& scalars) {
    Aligned scratch(kernel_->scratch_bytes), constants(kernel_->constants.size());
    if (!kernel_->constants.empty())
      std::memcpy(constants.data(), kernel_->constants.data(), kernel_->constants.size());
    cuda::Addresses at;
    std::copy(arenas, arenas + plan::kArenaCount, at.arenas);
    cuda::StepState state{};
    at.scalars = &scalars;
    at.scratch = scratch.data();
    at.constants = constants.data();
    at.state = &state;
    std::vector<cuda::Launch> launches;
    kernel_->record(at, launches);
    for (const cuda::Launch& launch : launches) {
      const char* problem = cuda::emulation::run(launch, kSchedules[order]);
      ASSERT_EQ(problem, nullptr) << launch.kernel << ": " << problem;
    }
  }

 private:
  KernelFactory factory_;
  cuda::KernelPtr kernel_;
  int parts_ = 0;
};

}  // namespace backend
}  // namespace effnet::test
