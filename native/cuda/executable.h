// A plan bound to CUDA kernels over one memory. Its ops are recorded once as launches, captured into a graph, and every
// step is one replay of it: copy in, kernels, copy out.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/backend.h"
#include "cuda/device_memory.h"
#include "cuda/kernel.h"
#include "plan/plan.h"

namespace effnet::cuda {

class Executable final : public effnet::Executable {
 public:
  // See Backend::bind. Code::plan_invalid for a plan made for a CPU.
  static StatusOr<std::shared_ptr<Executable>> bind(std::shared_ptr<ThreadPool> pool,
                                                    std::shared_ptr<DeviceMemory> memory,
                                                    std::span<const std::byte> plan);
  ~Executable() override;
  Executable(const Executable&) = delete;
  Executable& operator=(const Executable&) = delete;

  // Waits for the step. Where running statistics are not finite the parameters are as they were, too, and it is
  // Code::nan.
  Status step(const std::byte* input, const StepScalars& scalars, std::byte* output) override;
  StatusOr<std::optional<NonFinite>> find_nonfinite(const std::byte* input, const StepScalars& scalars) override;
  std::vector<OpReport> report() const override;
  uint64_t owned_bytes() const override;
  Status read(const plan::Tensor& tensor, std::span<std::byte> into) const override;

  const plan::Plan& plan() const override { return *plan_; }
  std::shared_ptr<Memory> memory() const override { return memory_; }

 private:
  // What a step hands over to the device, in one copy: scalars, then the input arena.
  struct Staging {
    PinnedBlock host;
    DeviceBlock device;
  };

  Executable(std::shared_ptr<ThreadPool> pool, std::shared_ptr<DeviceMemory> memory)
      : effnet::Executable(std::move(pool)), memory_(std::move(memory)) {}
  Status check_arenas() const;
  Status bind_ops();
  Status allocate();
  Status record();
  Status capture(bool prepare, CUgraphExec* graph);
  // Onto the memory's stream.
  Status queue(bool prepare) const;
  Status queue_input() const;
  // The 16-bit copy of an arena of weights, where there is one.
  Status queue_cast(plan::Arena arena) const;
  Status queue_op(size_t op) const;
  Status queue_output() const;
  // Records the launches again where an arena has moved since.
  Status make_current();
  // Whether anything is to be done when weights have changed, apart from a step.
  bool prepares() const;
  // Scalars and input into the staging block, and the ops that fold weights where those have changed.
  Status stage(const std::byte* input, const StepScalars& scalars);
  Status profiled_step();
  // The first of `tensors` that is not finite, or nullptr.
  StatusOr<const plan::Tensor*> first_bad(std::span<const plan::Tensor* const> tensors) const;
  std::byte* data(const plan::Tensor& tensor) const;
  void forget_graphs();

  struct Bound {
    const plan::Op* op;
    KernelPtr kernel;
    size_t constants_at = 0;
    std::vector<std::pair<Launch, CUfunction>> launches;
    double ms = 0;
  };

  std::shared_ptr<DeviceMemory> memory_;
  std::shared_ptr<const plan::Plan> plan_;
  std::vector<Bound> bound_;
  DeviceBlock prepared_arena_, output_, scratch_, constants_, state_;
  plan::DType working_ = plan::DType::f32;  // of the copies of weights, where kernels read such
  DeviceBlock working_arenas_[plan::kArenaCount];
  std::vector<std::pair<Launch, CUfunction>> casts_[plan::kArenaCount];
  Staging in_;
  PinnedBlock out_;                                             // output arena, then the step's state
  CUgraphExec step_graph_ = nullptr, prepare_graph_ = nullptr;  // the second only where it has something to do
  uint64_t recorded_generation_ = 0;
  bool recorded_ = false, updates_weights_ = false;
  uint64_t prepared_version_ = 0;  // Memory::weights_version of the folded weights
  std::vector<CUevent> marks_;     // between the ops of a profiled step
  int profiled_steps_ = 0;
};

}  // namespace effnet::cuda
