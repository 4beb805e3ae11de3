// What a kind of machine gives to plans: arenas, and executables over them. Everything above (addon, tests, tools)
// works through these, so a plan's caller does not know where it runs.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/device_images.h"
#include "core/memory.h"
#include "core/peaks.h"
#include "core/step_scalars.h"
#include "core/thread_pool.h"
#include "plan/plan.h"

namespace effnet {

struct OpReport {
  std::string name, op, kernel;
  int flags = 0;
  double flops = 0, bytes = 0;
  double ms = 0;  // of a step; of an op that several threads run for an image each: their time / threads
};

// The first tensor that is not finite. `part`: "weights" (they were so before the step), "gradient" (of the update that
// made such weights), "forward" or "backward".
struct NonFinite {
  std::string part, op, layer, tensor;
};

// By an op's signature (shapes, types, attributes): which of its kernels it gets.
using KernelChoices = std::map<std::string, std::string>;

// Where an op has several kernels, libraries' among them. One that is kept is taken; else the fastest of those
// measured, or without `measure` the one that a table names.
struct Tuning {
  bool measure = false;
  KernelChoices kept;
  std::function<void(int ops)> begins;  // measuring, of so many ops; not called where there is nothing to measure
};

// What a binding has come to: empty where no op had a choice.
struct TuningReport {
  KernelChoices choices;
  int measured = 0;  // of them, now
  int refused = 0;   // that were kept, and cannot be had here
};

// A plan bound to kernels over one memory. Its steps run inside tasks of the pool that it was bound on.
class Executable {
 public:
  virtual ~Executable() = default;

  // One step. `input` is the input arena (at least arena_bytes(input) bytes, 16-byte aligned), read before this
  // returns; nullptr: the one that was claimed, or taken from a device. `output` receives the output arena.
  // Code::aborted when the pool stops. Where the loss or the norm of the gradients is not finite the parameters are as
  // they were; Code::nan when the update itself made parameters that are not. Where scalars.parts is above 1 gradients
  // are averaged over so many steps, and the last of them updates.
  virtual Status step(const std::byte* input, const StepScalars& scalars, std::byte* output) = 0;

  // Takes the input of a coming step to where it will be read, beside the present one; on any thread. It may be changed
  // now. The ticket is for `claim`; 0: it was not taken.
  virtual StatusOr<uint64_t> prefetch(const std::byte*) { return uint64_t{0}; }
  // The same for an input of this backend's DeviceImages.
  virtual StatusOr<uint64_t> prefetch(const DeviceInput&) { return not_of_this_device(); }
  // Before a step, which reads what this ticket was given for. False: another input has taken its place, and the step
  // needs its own.
  virtual bool claim(uint64_t ticket) { return false; }
  // Before a step, which reads this input of this backend's DeviceImages.
  virtual Status take(const DeviceInput&) { return not_of_this_device(); }

  // Why a step was not finite: runs it again as far as the first tensor that is not. Parameters are not changed, the
  // running statistics of batch norm are.
  virtual StatusOr<std::optional<NonFinite>> find_nonfinite(const std::byte* input, const StepScalars& scalars) = 0;

  virtual std::vector<OpReport> report() const = 0;
  virtual TuningReport tuning() const { return {}; }
  // Of the host: folded and packed weights, scratch, output.
  virtual uint64_t owned_bytes() const = 0;
  // A tensor's bytes as they are now, between steps. Code::invalid_argument for one of the input arena, which only a
  // step has.
  virtual Status read(const plan::Tensor& tensor, std::span<std::byte> into) const = 0;

  virtual const plan::Plan& plan() const = 0;
  virtual std::shared_ptr<Memory> memory() const = 0;
  const std::shared_ptr<ThreadPool>& pool() const { return pool_; }

  // Set when the host wrote weights; changes by steps are seen by Memory::weights_version.
  std::atomic<bool> weights_changed{true};
  std::atomic<bool> profiling{false};

 protected:
  explicit Executable(std::shared_ptr<ThreadPool> pool) : pool_(std::move(pool)) {}
  static Status not_of_this_device() {
    return error(Code::invalid_argument, "a batch made on a GPU is for plans of that GPU");
  }
  std::shared_ptr<ThreadPool> pool_;
};

class Backend {
 public:
  virtual ~Backend() = default;
  // The machine's name, e.g. "NVIDIA H200".
  virtual std::string name() const = 0;
  // What arenas could have of the machine's memory now; where that is the host's, all of it.
  virtual StatusOr<uint64_t> available_bytes() const = 0;
  // Of the machine, whether free or not.
  virtual uint64_t total_bytes() const = 0;
  // Takes about half a second, inside a task of `pool`.
  virtual StatusOr<Peaks> measure_peaks(ThreadPool& pool) = 0;
  // Makes batches where steps read them. Code::backend_missing where this machine cannot, with what is missing.
  virtual StatusOr<std::unique_ptr<DeviceImages>> create_images(const DeviceImages::Options& options) {
    return error(Code::backend_missing, "images are decoded on a GPU only where plans run on one");
  }
  // Host memory that this machine's steps read where it lies, so that inputs there come to it without a copy by the
  // CPU. nullptr: any memory is, or the host has no such memory left. Any thread.
  virtual StatusOr<std::shared_ptr<std::byte>> page_locked(uint64_t bytes) { return std::shared_ptr<std::byte>(); }
  // Of the host, asked for since the start, that could not be page-locked: copies to this machine are slower for it.
  // Any thread.
  virtual uint64_t unlocked_bytes() const { return 0; }
  // `limit`: what the memory and the executables over it may take together, bytes.
  virtual StatusOr<std::shared_ptr<Memory>> create_memory(const uint64_t (&arena_bytes)[plan::kArenaCount],
                                                          uint64_t limit) = 0;
  // Verifies the plan and binds every op to a kernel. `memory` is of this backend; measuring kernels leaves its arenas
  // as they are but for the activations. Run inside a task of `pool`.
  virtual StatusOr<std::shared_ptr<Executable>> bind(std::shared_ptr<ThreadPool> pool, std::shared_ptr<Memory> memory,
                                                     std::span<const std::byte> plan, const Tuning& tuning) = 0;
};

}  // namespace effnet
