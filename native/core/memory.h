// Arenas shared by all plans of a model. They grow to what the plans bound to them need: an engine that only predicts
// holds no gradients or moments.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "core/status.h"
#include "plan/format.h"

namespace effnet {

// A zeroed block aligned to 64 bytes (huge pages asked for where large), counted in native_bytes().
class Block {
 public:
  enum class Kind { arena, kernel, batch };

  Block() = default;
  ~Block();
  Block(Block&& other) noexcept { swap(other); }
  Block& operator=(Block&& other) noexcept {
    Block taken(std::move(other));
    swap(taken);
    return *this;
  }
  // Fails with Code::oom, naming the size.
  static StatusOr<Block> allocate(uint64_t bytes, Kind kind);
  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

 private:
  void swap(Block& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(kind_, other.kind_);
  }
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
  Kind kind_ = Kind::arena;
};

// Bytes held by live blocks of a kind, process-wide. Leak tests compare it exactly.
uint64_t native_bytes(Block::Kind kind);

class Memory {
 public:
  static StatusOr<std::shared_ptr<Memory>> create(const uint64_t (&arena_bytes)[plan::kArenaCount]);

  std::byte* arena(plan::Arena a) const { return blocks_[static_cast<int>(a)].data(); }
  uint64_t bytes(plan::Arena a) const { return blocks_[static_cast<int>(a)].bytes(); }
  // Grows an arena to `bytes` if it is smaller, keeping its contents (new bytes are zero). Activations are undefined
  // between steps and not copied. Code::oom leaves the arena as large as it was.
  // This and what follows changes arenas: only between begin_load() and end_load(), after wait_snapshots().
  Status ensure(plan::Arena a, uint64_t bytes);
  // Fills an arena with zeros, by fresh pages where it is large: those cost nothing until a step touches them.
  Status clear(plan::Arena a);
  // Copies one arena onto another of the same size.
  Status copy(plan::Arena from, plan::Arena to);
  // Exchanges two arenas of the same size.
  Status swap(plan::Arena a, plan::Arena b);

  // Whether a step, a bind or a load is using the arenas; host access is refused meanwhile.
  std::atomic<int> busy{0};

  // Counts the steps that changed the weights, so that every other plan packs them again before it runs.
  std::atomic<uint64_t> weights_version{0};

  // Pinned between the start of a checkpoint's snapshot and its end on an engine thread: whoever changes the arenas
  // waits, so a step may be queued at once. Any thread.
  void pin();
  void unpin();
  // A load changes arenas from an engine thread. Loads may overlap each other (different ranges) but no step; counted
  // in `busy`. False while something else is busy.
  bool begin_load();
  void end_load();
  // Until nothing is pinned and no load is in flight: before a step or a host write.
  void wait_unpinned();
  // Until nothing is pinned: before a load writes.
  void wait_snapshots();

 private:
  std::mutex pin_mutex_;
  std::condition_variable unpinned_;
  int pins_ = 0, loads_ = 0;
  Block blocks_[plan::kArenaCount];
};

}  // namespace effnet
