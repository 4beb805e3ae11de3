// How the inputs of steps come to a GPU: each through a slot of page-locked memory and a place on the device. The next
// step's input is copied on a stream of its own beside the present step; events order the two streams both ways, and
// tell the host when it may write a slot again.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "core/step_scalars.h"
#include "cuda/device_memory.h"
#include "cuda/image_batches.h"

namespace effnet::cuda {

struct Slot {
  PinnedBlock scalars, input, output;
  DeviceBlock device;              // scalars, then the input arena
  CUevent copied = nullptr;        // the input is on the device
  CUevent done = nullptr;          // the step has read its input and written its results
  CUstream copied_on = nullptr;    // the stream of `copied`
  bool waits_for_results = false;  // queued, and nobody has taken what it gave
  size_t number = 0;

  static constexpr size_t kInputAt = 256;  // in `device`, behind the scalars
  StepScalars* host_scalars() const { return reinterpret_cast<StepScalars*>(scalars.data()); }
  const StepScalars* device_scalars() const { return reinterpret_cast<const StepScalars*>(device.data()); }
  std::byte* device_input() const { return device.data() + kInputAt; }
};
static_assert(sizeof(StepScalars) <= Slot::kInputAt);

class InputRing {
 public:
  // A step in work and one that is prepared.
  static constexpr size_t kSlots = 2;

  // One slot; the second comes with the first input that is staged ahead.
  Status create(const DeviceMemory& memory, uint64_t input_bytes, uint64_t output_bytes);
  void destroy(const Driver& driver);

  // Copies an input to the device, on the memory's stream or, `ahead`, beside it. It may be changed when this returns.
  // nullptr where all slots wait ahead already. An input that is not staged ahead takes the place of one that was.
  StatusOr<Slot*> stage(const DeviceMemory& memory, const std::byte* input, bool ahead);
  // The same from where the device has made it. Not `ahead`, `take` gives it next.
  StatusOr<Slot*> stage(const DeviceMemory& memory, const DeviceBatch& input, bool ahead);
  // What was staged ahead, the oldest first; nullptr: nothing.
  Slot* take();
  const std::vector<std::unique_ptr<Slot>>& slots() const { return slots_; }

 private:
  Status add_slot(const DeviceMemory& memory, CUstream stream);
  // `copy(slot, stream)` brings the input there.
  template <class Copy>
  StatusOr<Slot*> stage(const DeviceMemory& memory, bool ahead, bool taken_later, Copy&& copy);

  uint64_t input_bytes_ = 0, output_bytes_ = 0;
  std::mutex mutex_;  // whoever stages ahead does so beside the steps
  std::vector<std::unique_ptr<Slot>> slots_;
  size_t next_ = 0;
  std::deque<Slot*> ahead_;
};

}  // namespace effnet::cuda
