// A plan bound to kernels over one memory: the machine's side of a plan. Runs whole steps on a pool.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "core/memory.h"
#include "core/thread_pool.h"
#include "cpu/kernel.h"
#include "plan/plan.h"

namespace effnet::cpu {

struct OpReport {
  std::string name, op, kernel;
  int flags;
  double flops, bytes, ms;
};

class Executable {
 public:
  // Verifies the plan and binds every op to a kernel. Run inside a task of `pool`.
  static StatusOr<std::shared_ptr<Executable>> bind(std::shared_ptr<ThreadPool> pool, std::shared_ptr<Memory> memory,
                                                    std::span<const std::byte> plan);

  // One step, inside a task of the pool. `input` is the input arena (at least arena_bytes(input) bytes), `output`
  // receives the output arena. Fails with Code::aborted when the pool stops.
  Status step(const std::byte* input, const StepScalars& scalars, std::byte* output);

  const plan::Plan& plan() const { return *plan_; }
  const std::shared_ptr<Memory>& memory() const { return memory_; }
  const std::shared_ptr<ThreadPool>& pool() const { return pool_; }
  std::vector<OpReport> report() const;
  // Folded and packed weights, scratch, output.
  uint64_t owned_bytes() const;
  // Where a tensor lies now; nullptr for one of the input arena, which only a step has.
  const std::byte* data(const plan::Tensor& tensor) const;

  // Set when the host wrote weights; changes by steps are seen by Memory::weights_version.
  std::atomic<bool> weights_changed{true};
  std::atomic<bool> profiling{false};

 private:
  struct Bound {
    const plan::Op* op;
    KernelPtr kernel;
    double seconds = 0;
  };

  Status check_arenas() const;
  Status bind_ops();
  void run(Bound& bound, const ExecContext& base);
  void prepare(const ExecContext& base);

  std::shared_ptr<ThreadPool> pool_;
  std::shared_ptr<Memory> memory_;
  std::shared_ptr<const plan::Plan> plan_;
  std::vector<Bound> bound_;
  bool updates_weights_ = false;
  uint64_t prepared_version_ = 0;  // Memory::weights_version of the packed weights
  size_t worker_scratch_bytes_ = 0;
  Block prepared_, output_, shared_scratch_, worker_scratch_;
  int profiled_steps_ = 0;
};

}  // namespace effnet::cpu
