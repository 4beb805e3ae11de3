// A plan bound to kernels over one memory: the machine's side of a plan. Runs whole steps on a pool.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/backend.h"
#include "cpu/kernel.h"
#include "plan/plan.h"

namespace effnet::cpu {

class Executable final : public effnet::Executable {
 public:
  // See Backend::bind.
  static StatusOr<std::shared_ptr<Executable>> bind(std::shared_ptr<ThreadPool> pool,
                                                    std::shared_ptr<HostMemory> memory,
                                                    std::span<const std::byte> plan);
  explicit Executable(std::shared_ptr<ThreadPool> pool) : effnet::Executable(std::move(pool)) {}

  // A loss that is not finite ends the step before its backward part, a norm of gradients that is not before the
  // update. After Code::nan the moving average is not touched.
  Status step(const std::byte* input, const StepScalars& scalars, std::byte* output) override;
  StatusOr<std::optional<NonFinite>> find_nonfinite(const std::byte* input, const StepScalars& scalars) override;
  std::vector<OpReport> report() const override;
  uint64_t owned_bytes() const override;
  Status read(const plan::Tensor& tensor, std::span<std::byte> into) const override;

  const plan::Plan& plan() const override { return *plan_; }
  std::shared_ptr<Memory> memory() const override { return memory_; }
  HostMemory& host_memory() const { return *memory_; }
  // Where a tensor lies now; nullptr for one of the input arena, which only a step has.
  const std::byte* data(const plan::Tensor& tensor) const;

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
  // Adds the gradients of this batch to those of the batches before it; the last one leaves their mean in the arena.
  Status accumulate(const StepScalars& scalars);
  // An op with its shards on all threads.
  void run(Bound& bound, const ExecContext& base);
  Status run_checked(Bound& bound, const ExecContext& base);
  Status run_region(const ExecContext& base);
  uint64_t activation_bytes() const;
  std::byte* lane_arena(int lane) const;
  void prepare(const ExecContext& base);

  std::shared_ptr<HostMemory> memory_;
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
  Block gradient_sums_;  // once an update takes several batches
  int profiled_steps_ = 0;
};

// The backend of the CPU; one for the process.
Backend& backend();

}  // namespace effnet::cpu
