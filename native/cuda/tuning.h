// Which of an op's kernels is the fastest on this GPU: measured on the memory that the plan will run in.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "cuda/device_memory.h"
#include "cuda/providers/providers.h"

namespace effnet::cuda {

// What an op's choice depends on, in words: "linear f32[8,1280] w:f32[5,1280] ...". Equal ones are measured once.
std::string signature(const plan::Op& op);

// Runs candidates one after another on the stream of the memory's steps, none of which is in work. What it allocates
// counts in the memory's budget and goes with it.
class Tuner {
 public:
  explicit Tuner(std::shared_ptr<DeviceMemory> memory)
      : memory_(std::move(memory)), device_(memory_->device()), stream_(memory_->stream()) {}
  ~Tuner();
  Tuner(const Tuner&) = delete;
  Tuner& operator=(const Tuner&) = delete;

  struct Fastest {
    size_t index;  // of equals the first, and the first where nothing could be measured
    bool of_all;   // false where memory for measuring was missing: with more another may be it
  };
  // One that fails is left out; an error is the GPU's. What the op writes is as before, but for activations and the
  // plan's output. `at`: of the op, without scratch.
  StatusOr<Fastest> fastest(const plan::Op& op, const std::vector<Candidate>& candidates, Addresses at);

 private:
  struct Graph;
  using Marks = std::pair<CUevent, CUevent>;

  const Driver& driver() const { return device_->driver(); }
  Status start();
  // Copies, and puts back, what `op` writes that must not change.
  Status put_aside(const plan::Op& op, const Addresses& at, bool back);
  // Milliseconds of a run: the median; infinite for one that is much slower than `best`.
  StatusOr<double> time(const Kernel& kernel, Addresses at, bool cold, double best);
  Status run(const Graph& graph, const Marks& marks, bool cold);

  const std::shared_ptr<DeviceMemory> memory_;
  const std::shared_ptr<Device> device_;
  const CUstream stream_;
  std::vector<Marks> marks_;  // around each run
  DeviceBlock scratch_, aside_, flush_;
};

}  // namespace effnet::cuda
