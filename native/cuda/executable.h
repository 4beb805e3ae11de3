// A plan bound to CUDA kernels over one memory. Its ops are recorded once as launches, captured into graphs, and every
// step is one replay: scalars in, kernels, results out. Inputs come through a ring (input_ring.h).
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/backend.h"
#include "cuda/device_memory.h"
#include "cuda/input_ring.h"
#include "cuda/kernel.h"
#include "cuda/recording.h"
#include "plan/plan.h"
#include "plan/segments.h"

namespace effnet::cuda {

class Executable final : public effnet::Executable {
 public:
  // See Backend::bind. Code::plan_invalid for a plan made for a CPU.
  static StatusOr<std::shared_ptr<Executable>> bind(std::shared_ptr<ThreadPool> pool,
                                                    std::shared_ptr<DeviceMemory> memory,
                                                    std::span<const std::byte> plan, const Tuning& tuning = {});
  ~Executable() override;
  Executable(const Executable&) = delete;
  Executable& operator=(const Executable&) = delete;

  // queue_step and finish_step. Where running statistics are not finite the parameters are as they were, too, and it is
  // Code::nan unless the loss scale answers for it.
  Status step(const std::byte* input, const StepScalars& scalars, std::byte* output) override;
  StatusOr<uint64_t> prefetch(const std::byte* input) override;
  StatusOr<uint64_t> prefetch(const DeviceInput& input) override;
  bool claim(uint64_t ticket) override { return ring_.claim(ticket); }
  Status take(const DeviceInput& input) override;
  StatusOr<std::optional<NonFinite>> find_nonfinite(const std::byte* input, const StepScalars& scalars) override;
  std::vector<OpReport> report() const override;
  TuningReport tuning() const override { return tuning_; }
  uint64_t owned_bytes() const override;
  Status read(const plan::Tensor& tensor, std::span<std::byte> into) const override;

  // A step without waiting for it. As many may be queued as there are slots; each is finished, in order.
  StatusOr<Slot*> queue_step(const std::byte* input, const StepScalars& scalars);
  Status finish_step(Slot& slot, std::byte* output);

  const plan::Plan& plan() const override { return *plan_; }
  std::shared_ptr<Memory> memory() const override { return memory_; }

 private:
  // Of the weights as they are, and of the moving average while the two are exchanged: what the plan makes from them.
  // Each has its own, so that recorded addresses hold.
  struct Folded {
    DeviceBlock prepared, working;  // and its 16-bit copy; that of the weights is the memory's
    uint64_t version = 0;           // Memory::weights_version that it was made from
    bool stale = true, allocated = false;
  };
  // Where a step's input is, and the launches over it.
  struct Use {
    Slot& slot;
    Recording& recording;
  };

  Executable(std::shared_ptr<ThreadPool> pool, std::shared_ptr<DeviceMemory> memory)
      : effnet::Executable(std::move(pool)), memory_(std::move(memory)) {}
  const Device& device() const { return *memory_->device(); }
  const Driver& driver() const { return device().driver(); }
  CUstream stream() const { return memory_->stream(); }

  Status check_arenas() const;
  Status enter_for(const DeviceBatch& batch) const;
  Status bind_ops(const Tuning& tuning);
  // `to_tune`: other kernels are to be measured against it.
  StatusOr<KernelPtr> bind_op(const plan::Op& op, const Tuning& tuning, bool& to_tune);
  void gather_statistics();
  Status allocate();
  Status allocate_scratch();
  Status allocate(Folded& folded);
  // Ops that wait for it get the fastest of their kernels (executable_tuning.cc).
  Status tune(const Tuning& tuning);
  Status measure();
  Status fill_to_tune();
  Folded& folded() { return folded_[memory_->exchanged()]; }
  const Folded& folded() const { return folded_[memory_->exchanged()]; }
  Addresses addresses(const Slot& slot);
  Status prepare_to_accumulate();
  Status record(const Slot& slot, Recording& recording);
  // The arenas of weights that 16-bit copies are made of, and how many numbers of one.
  std::vector<plan::Arena> cast_arenas() const;
  int64_t cast_count(plan::Arena arena) const;
  // What is launched beside the plan's ops.
  std::vector<OpReport> report_beside_ops() const;
  double mean_ms(double ms) const { return profiled_steps_ ? ms / profiled_steps_ : 0; }
  // Whether something is to be made of weights that have changed besides 16-bit copies.
  bool has_prepare_ops() const;

  static bool calls_libraries(const Recording& recording);
  // Onto the memory's stream.
  Status queue(Part part, const Use& use) const;
  // Without the copies of scalars and output.
  Status queue_on_device(Part part, const Recording& recording) const;
  Status queue_scalars(const Slot& slot) const;
  Status queue_begin(const Use& use) const;
  Status queue_op(const Recording& recording, size_t op) const;
  Status queue_launches(const BoundLaunches& launches) const {
    return cuda::queue_launches(device(), launches, stream(), synchronous_);
  }
  Status queue_output(const Slot& slot) const;
  // The graph of a part, captured at its first use.
  StatusOr<CUgraphExec> graph(Part part, const Use& use);

  // A slot of the ring, and that it is given back behind what has been queued, whether that is all or not.
  class Taken {
   public:
    Taken(Executable& executable, Slot& slot) : executable_(executable), slot_(&slot) {}
    // Without its end: whoever gave the input has it back, and what was queued may still read it.
    ~Taken() {
      if (!slot_) return;
      static_cast<void>(release());
      executable_.driver().cuStreamSynchronize(executable_.stream());
    }
    Taken(const Taken&) = delete;
    Taken& operator=(const Taken&) = delete;
    Status release() {
      return executable_.ring_.release(*std::exchange(slot_, nullptr), executable_.driver(), executable_.stream());
    }

   private:
    Executable& executable_;
    Slot* slot_;
  };

  // Before a step or a look through one: what that needs, and its input in a slot.
  StatusOr<Slot*> take_slot(const std::byte* input, const StepScalars& scalars);
  // Then scalars in the slot, launches over the present addresses, weights folded where those have changed.
  Status stage(Slot& slot, const StepScalars& scalars);
  Status fold(const Use& use);
  Status run(Part part, const Use& use);
  Status profiled_step(const Use& use);
  Recording& recording(const Slot& slot) { return recordings_[slot.number][memory_->exchanged()]; }
  // The first of `tensors` that is not finite, or nullptr.
  StatusOr<const plan::Tensor*> first_bad(std::span<const plan::Tensor* const> tensors) const;
  std::byte* data(const plan::Tensor& tensor) const;

  struct Bound {
    const plan::Op* op;
    KernelPtr kernel;
    size_t constants_at = 0;
    double ms = 0;
    bool to_tune = false;  // bound to the table's kernel until the others have been measured
  };

  std::shared_ptr<DeviceMemory> memory_;
  std::shared_ptr<const plan::Plan> plan_;
  std::vector<Bound> bound_;
  size_t update_at_ = 0;  // of the ops: the first that waits for the gradients of all batches
  bool updates_weights_ = false;
  bool synchronous_ = false;  // no graphs; waits after every launch, so that a fault is its own (EFFNET_CUDA_SYNC=1)
  plan::DType working_ = plan::DType::f32;  // of the copies of weights, where kernels read such
  // Running statistics, and where they are put aside (kernels/step.h).
  std::vector<plan::Segment> statistics_;
  uint64_t statistics_bytes_ = 0;

  TuningReport tuning_;

  DeviceBlock output_, scratch_, constants_, statistics_list_, aside_;
  DeviceBlock gradient_sums_;  // once an update takes several batches
  Folded folded_[2];
  InputRing ring_;
  Recording recordings_[InputRing::kSlots][2];  // by slot, and whether weights and average are exchanged
  bool ungraphed_[kParts] = {};  // launched once without a graph, as a library's first launches were not captured
  std::vector<CUevent> marks_;   // of a profiled step: around its beginning, each op and its end
  double begin_ms_ = 0, finish_ms_ = 0;
  int profiled_steps_ = 0;
};

}  // namespace effnet::cuda
