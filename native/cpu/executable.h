// A plan bound to kernels over one memory: the machine's side of a plan. Runs whole steps on a pool.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
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
  double flops, bytes;
  double ms;  // of a step; of an op that several threads run for an image each: their time / threads
};

// The first tensor that is not finite. `part`: "weights" (they were so before the step), "gradient" (of the update that
// made such weights), "forward" or "backward".
struct NonFinite {
  std::string part, op, layer, tensor;
};

// Optimizer and moving average: what a step leaves out when its loss or the norm of its gradients is not finite.
bool updates_parameters(plan::OpId id);

class Executable {
 public:
  // Verifies the plan and binds every op to a kernel. Run inside a task of `pool`.
  static StatusOr<std::shared_ptr<Executable>> bind(std::shared_ptr<ThreadPool> pool, std::shared_ptr<Memory> memory,
                                                    std::span<const std::byte> plan);

  // One step, inside a task of the pool. `input` is the input arena (at least arena_bytes(input) bytes), `output`
  // receives the output arena. Fails with Code::aborted when the pool stops. A loss that is not finite ends the step
  // before its backward part, a norm of gradients that is not before the update: the parameters are as they were.
  // Code::nan when the update itself made parameters that are not finite; the moving average is then not touched.
  Status step(const std::byte* input, const StepScalars& scalars, std::byte* output);

  // Why a step was not finite: runs it again as far as the first tensor that is not. Parameters are not changed, the
  // running statistics of batch norm are. Inside a task of the pool.
  StatusOr<std::optional<NonFinite>> find_nonfinite(const std::byte* input, const StepScalars& scalars);

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
  struct Lane;

  Status check_arenas() const;
  void gather_arenas(const std::byte* input, std::byte** arenas) const;
  const plan::Tensor* bad_weights(std::byte* const* arenas, const plan::Op** reader) const;
  // Whether the running statistics are finite: a few tens of thousands of numbers.
  bool statistics_sound(std::byte* const* arenas) const;
  Status bind_ops();
  // An op with its shards on all threads.
  void run(Bound& bound, const ExecContext& base);
  Status run_checked(Bound& bound, const ExecContext& base);
  Status run_region(const ExecContext& base);
  uint64_t activation_bytes() const;
  std::byte* lane_arena(int lane) const;
  void prepare(const ExecContext& base);

  std::shared_ptr<ThreadPool> pool_;
  std::shared_ptr<Memory> memory_;
  std::shared_ptr<const plan::Plan> plan_;
  std::vector<Bound> bound_;
  bool updates_weights_ = false;
  uint64_t prepared_version_ = 0;  // Memory::weights_version of the packed weights
  size_t worker_scratch_bytes_ = 0;
  // The phase that a thread last took a shard of, and how many there have been: what tells it its first one.
  struct alignas(64) Turn {
    uint64_t number = 0;
  };
  std::vector<Turn> last_turns_;
  uint64_t turns_ = 0;
  // Of the region: how many of its images are given to one thread each, and how many images may be in work at once.
  int whole_images_ = 0, lanes_ = 0;
  size_t lane_scratch_bytes_ = 0;  // of shared scratch
  Block prepared_, output_, shared_scratch_, worker_scratch_;
  int profiled_steps_ = 0;
};

}  // namespace effnet::cpu
