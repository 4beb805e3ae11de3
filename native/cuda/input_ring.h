// How the inputs of steps come to a GPU: each through a slot of page-locked memory and a place on the device. The next
// step's input is copied on a stream of its own beside the present step; events order the two streams both ways, and
// tell the host when it may write a slot again.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "core/step_scalars.h"
#include "cuda/device_memory.h"
#include "cuda/image_batches.h"

namespace effnet::cuda {

struct Slot {
  HostBlock scalars, input, output;  // `input`: where one comes from memory that is not page-locked
  DeviceBlock device;                // scalars, then the input arena
  CUevent copied = nullptr;          // the input is on the device
  CUevent done = nullptr;            // the step has read its input and written its results
  CUstream copied_on = nullptr;      // the stream of `copied`
  bool waits_for_results = false;    // queued, and nobody has taken what it gave
  bool taken = false;                // by a step whose end `done` does not mark yet; under the ring's mutex
  uint64_t ticket = 0;               // of the input that lies here; under the ring's mutex
  size_t number = 0;

  static constexpr size_t kInputAt = 256;  // in `device`, behind the scalars
  // Whether a graph may have the copies of scalars and output.
  bool locked() const { return scalars.locked() && output.locked(); }
  StepScalars* host_scalars() const { return reinterpret_cast<StepScalars*>(scalars.data()); }
  const StepScalars* device_scalars() const { return reinterpret_cast<const StepScalars*>(device.data()); }
  std::byte* device_input() const { return device.data() + kInputAt; }
};
static_assert(sizeof(StepScalars) <= Slot::kInputAt);

class InputRing {
 public:
  // A step in work and one that is prepared.
  static constexpr size_t kSlots = 2;

  // One slot; the second comes with the first input that is staged ahead. Where there is no memory for it the steps go
  // on with one, and bring their inputs themselves: then copies are not beside them, and nothing else is lost. So a
  // plan that nothing is staged ahead for has no second one, and none is refused for want of it.
  Status create(const DeviceMemory& memory, uint64_t input_bytes, uint64_t output_bytes);
  void destroy(const Driver& driver);

  // Copies an input to the device on the memory's stream, in place of all that was staged ahead; the slot is taken. One
  // in page-locked memory may be changed when that stream has read it, another when this returns.
  StatusOr<Slot*> stage(const DeviceMemory& memory, const std::byte* input);
  // The same from where the device has made it; `take` gives the slot next.
  Status stage(const DeviceMemory& memory, const DeviceBatch& input);
  // Copies an input beside the steps; it may be changed when this returns. Its ticket, which no other input of this
  // ring ever has; 0 where all slots wait ahead already, or there is memory for one alone. Waits while a step that was
  // given the only other slot is being queued.
  StatusOr<uint64_t> stage_ahead(const DeviceMemory& memory, const std::byte* input);
  StatusOr<uint64_t> stage_ahead(const DeviceMemory& memory, const DeviceBatch& input);
  // Makes it what `take` gives next; what was staged before it is dropped. False: it is not there any more.
  bool claim(uint64_t ticket);
  // What was staged ahead, the oldest first; nullptr: nothing. Until it is released no other input comes there.
  Slot* take();
  // Marks the end of what `stream` reads of a slot that was taken.
  Status release(Slot& slot, const Driver& driver, CUstream stream);
  const std::vector<std::unique_ptr<Slot>>& slots() const { return slots_; }

 private:
  Status add_slot(const DeviceMemory& memory, CUstream stream);
  // The slot's own memory for inputs, where it has none.
  Status make_room(const DeviceMemory& memory, Slot& slot) const;
  // Neither taken nor staged ahead, the least recently used first; nullptr: there is none.
  Slot* free_slot();
  // `copy(slot, stream)` brings an input there. The last two under the mutex.
  struct Staged {
    Slot* slot;  // nullptr: it was not taken
    uint64_t ticket;
  };
  template <class Copy>
  StatusOr<Staged> stage_beside(const DeviceMemory& memory, const Copy& copy);
  template <class Copy>
  StatusOr<Slot*> stage_now(const DeviceMemory& memory, const Copy& copy);
  template <class Copy>
  Status fill(const DeviceMemory& memory, Slot& slot, CUstream stream, const Copy& copy);
  auto copy_from(const DeviceMemory& memory, const std::byte* input) const;
  auto copy_from(const DeviceBatch& input) const;

  uint64_t input_bytes_ = 0, output_bytes_ = 0;
  std::mutex mutex_;  // whoever stages ahead does so beside the steps
  std::condition_variable released_;
  std::vector<std::unique_ptr<Slot>> slots_;
  bool alone_ = false;  // there is no memory for another slot
  size_t next_ = 0;
  uint64_t tickets_ = 0;
  std::deque<Slot*> ahead_;
};

}  // namespace effnet::cuda
