// A plan bound to CUDA kernels over one memory. Its ops are recorded once as launches, captured into a graph, and every
// step is one replay of it: copy in, kernels, copy out.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/step_scalars.h"
#include "cuda/device_memory.h"
#include "cuda/kernel.h"
#include "plan/plan.h"

namespace effnet::cuda {

class Executable {
 public:
  // Verifies the plan, binds every op to a kernel, allocates. Code::plan_invalid for a plan made for a CPU.
  static StatusOr<std::shared_ptr<Executable>> bind(std::shared_ptr<DeviceMemory> memory,
                                                    std::span<const std::byte> plan);
  ~Executable();
  Executable(const Executable&) = delete;
  Executable& operator=(const Executable&) = delete;

  // One step; waits for it. `input`: at least arena_bytes(input) bytes, read before it returns; `output` receives the
  // output arena. Where loss, norm of the gradients or running statistics are not finite the parameters are as they
  // were; Code::nan where running statistics, or parameters after the update, are not finite.
  Status step(const std::byte* input, const StepScalars& scalars, std::byte* output);

  // The host wrote weights: folded ones are made again before the next step.
  void invalidate() { prepared_ = false; }

  const plan::Plan& plan() const { return *plan_; }
  const std::shared_ptr<DeviceMemory>& memory() const { return memory_; }
  struct OpReport {
    std::string name, op, kernel;
    int flags;
    double flops;
  };
  std::vector<OpReport> report() const;

 private:
  // What a step hands over to the device, in one copy: scalars, then the input arena.
  struct Staging {
    PinnedBlock host;
    DeviceBlock device;
  };

  explicit Executable(std::shared_ptr<DeviceMemory> memory) : memory_(std::move(memory)) {}
  Status bind_ops();
  Status allocate();
  Status record();
  Status capture(bool prepare, CUgraphExec* graph);
  Status queue(bool prepare) const;
  void forget_graphs();

  struct Bound {
    const plan::Op* op;
    KernelPtr kernel;
    size_t constants_at = 0;
    std::vector<std::pair<Launch, CUfunction>> launches;
  };

  std::shared_ptr<DeviceMemory> memory_;
  std::shared_ptr<const plan::Plan> plan_;
  std::vector<Bound> bound_;
  DeviceBlock prepared_arena_, output_, scratch_, constants_, state_;
  Staging in_;
  PinnedBlock out_;  // output arena, then the step's state
  CUgraphExec step_graph_ = nullptr, prepare_graph_ = nullptr;
  uint64_t recorded_generation_ = 0;
  bool recorded_ = false, prepared_ = false;
};

}  // namespace effnet::cuda
