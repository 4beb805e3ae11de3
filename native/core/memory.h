// Arenas shared by all plans of a model, on whatever machine runs them. They grow to what the plans bound to them need:
// an engine that only predicts holds no gradients or moments.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <span>

#include "core/status.h"
#include "core/step_scalars.h"
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
  // The first `bytes` of memory of somebody else, zeroed; let go of with the block.
  static Block adopt(std::shared_ptr<std::byte> memory, uint64_t bytes, Kind kind);
  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

 private:
  void swap(Block& other) {
    std::swap(owner_, other.owner_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(kind_, other.kind_);
  }
  std::shared_ptr<std::byte> owner_;  // of adopted memory
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
  Kind kind_ = Kind::arena;
};

// Bytes held by live blocks of a kind, process-wide. Leak tests compare it exactly.
uint64_t native_bytes(Block::Kind kind);

// How much of a machine's memory a model may take, and has.
class Budget {
 public:
  static constexpr uint64_t kNoLimit = UINT64_MAX;

  explicit Budget(uint64_t limit = kNoLimit) : limit_(limit) {}
  // Code::oom, and nothing is taken, where the limit leaves less.
  Status take(uint64_t bytes);
  void give_back(uint64_t bytes) { used_ -= bytes; }
  uint64_t limit() const { return limit_; }
  uint64_t used() const { return used_; }

 private:
  const uint64_t limit_;
  std::atomic<uint64_t> used_{0};
};

class Memory {
 public:
  explicit Memory(uint64_t limit = Budget::kNoLimit) : budget_(std::make_shared<Budget>(limit)) {}
  virtual ~Memory() = default;
  // Of the CPU: of the arenas.
  const std::shared_ptr<Budget>& budget() const { return budget_; }

  virtual uint64_t bytes(plan::Arena a) const = 0;
  // Grows an arena to `bytes` if it is smaller, keeping its contents (new bytes are zero). Activations are undefined
  // between steps and not copied. Code::oom leaves the arena as large as it was.
  virtual Status ensure(plan::Arena a, uint64_t bytes) = 0;
  // Fills an arena with zeros.
  virtual Status clear(plan::Arena a) = 0;
  // Copies one arena onto another of the same size.
  virtual Status copy(plan::Arena from, plan::Arena to) = 0;
  // Exchanges two arenas of the same size.
  virtual Status swap(plan::Arena a, plan::Arena b) = 0;
  // Bytes of an arena to or from the host. Code::invalid_argument outside the arena. Any thread.
  virtual Status read(plan::Arena a, uint64_t offset, std::span<std::byte> into) const = 0;
  virtual Status write(plan::Arena a, uint64_t offset, std::span<const std::byte> from) = 0;

  // As the last step left it, and for the next one. Not while a step runs.
  LossScale loss_scale() const { return loss_scale_; }
  virtual Status set_loss_scale(const LossScale& scale) {
    loss_scale_ = scale;
    return ok_status();
  }

  // How many steps, bindings and changes are using the arenas; host access is refused meanwhile.
  std::atomic<int> busy{0};

  // Counts the steps that changed the weights, so that every other plan packs them again before it runs.
  std::atomic<uint64_t> weights_version{0};

  // Pinned between the start of a checkpoint's snapshot and its end on an engine thread: whoever changes the arenas
  // waits, so a step may be queued at once. Any thread.
  void pin();
  void unpin();
  // A change of the arenas (`ensure` to `swap`, `write`) from an engine thread; counted in `busy`, no step runs beside
  // it. False while something else than changes is busy.
  bool begin_change();
  void end_change();
  // Until nothing is pinned and no change is in work: before a step or a host write.
  void wait_unpinned();
  // Until nothing is pinned: before a change is made.
  void wait_snapshots();

  // Held alone while arenas are replaced (`ensure`, `clear`, `copy`, `swap`), shared while ranges of them are written.
  std::shared_mutex arenas;

 protected:
  Status check_range(plan::Arena a, uint64_t offset, uint64_t size) const;
  Status check_same_size(plan::Arena a, plan::Arena b) const;
  LossScale loss_scale_;

 private:
  std::shared_ptr<Budget> budget_;
  std::mutex pin_mutex_;
  std::condition_variable unpinned_;
  int pins_ = 0, changes_ = 0;
};

// Arenas in the main memory of the machine, where the CPU computes.
class HostMemory final : public Memory {
 public:
  using Memory::Memory;
  static StatusOr<std::shared_ptr<HostMemory>> create(const uint64_t (&arena_bytes)[plan::kArenaCount],
                                                      uint64_t limit = Budget::kNoLimit);

  std::byte* arena(plan::Arena a) const { return blocks_[static_cast<int>(a)].data(); }
  uint64_t bytes(plan::Arena a) const override { return blocks_[static_cast<int>(a)].bytes(); }
  Status ensure(plan::Arena a, uint64_t bytes) override;
  // By fresh pages where it is large: those cost nothing until a step touches them.
  Status clear(plan::Arena a) override;
  Status copy(plan::Arena from, plan::Arena to) override;
  Status swap(plan::Arena a, plan::Arena b) override;
  Status read(plan::Arena a, uint64_t offset, std::span<std::byte> into) const override;
  Status write(plan::Arena a, uint64_t offset, std::span<const std::byte> from) override;

 private:
  Block blocks_[plan::kArenaCount];
};

}  // namespace effnet
