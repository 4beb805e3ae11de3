#include "core/memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

namespace effnet {
namespace {

std::atomic<uint64_t> g_bytes[3];
constexpr uint64_t kHugePage = uint64_t{2} << 20;

}  // namespace

uint64_t native_bytes(Block::Kind kind) { return g_bytes[static_cast<int>(kind)].load(); }

Block::~Block() {
  if (!data_) return;
  std::free(data_);
  g_bytes[static_cast<int>(kind_)] -= bytes_;
}

StatusOr<Block> Block::allocate(uint64_t bytes, Kind kind) {
  Block block;
  if (bytes == 0) return block;
  const uint64_t alignment = bytes >= kHugePage ? kHugePage : plan::kAlignment;
  const uint64_t rounded = (bytes + alignment - 1) / alignment * alignment;
  if (rounded < bytes) return error(Code::oom, "%llu bytes asked for", static_cast<unsigned long long>(bytes));
  block.data_ = static_cast<std::byte*>(std::aligned_alloc(alignment, rounded));
  if (!block.data_) return error(Code::oom, "%.1f MiB could not be allocated", static_cast<double>(bytes) / (1 << 20));
  if (alignment == kHugePage) madvise(block.data_, rounded, MADV_HUGEPAGE);
  std::memset(block.data_, 0, rounded);
  block.bytes_ = bytes;
  block.kind_ = kind;
  g_bytes[static_cast<int>(kind)] += bytes;
  return block;
}

StatusOr<std::shared_ptr<Memory>> Memory::create(const uint64_t (&arena_bytes)[plan::kArenaCount]) {
  auto memory = std::make_shared<Memory>();
  for (int i = 0; i < plan::kArenaCount; ++i) {
    auto block = Block::allocate(arena_bytes[i], Block::Kind::arena);
    if (!block.ok()) return block.status();
    memory->blocks_[i] = std::move(block.value());
  }
  return memory;
}

Status Memory::ensure(plan::Arena a, uint64_t bytes) {
  Block& block = blocks_[static_cast<int>(a)];
  if (bytes <= block.bytes()) return ok_status();
  if (busy.load()) return error(Code::closed, "arenas cannot grow while a step runs");
  wait_unpinned();
  if (a == plan::Arena::activations) block = Block();  // freed first, so that the peak is not the sum
  auto grown = Block::allocate(bytes, Block::Kind::arena);
  if (!grown.ok()) return grown.status();
  if (block.bytes()) std::memcpy(grown.value().data(), block.data(), block.bytes());
  block = std::move(grown.value());
  return ok_status();
}

Status Memory::swap(plan::Arena a, plan::Arena b) {
  if (busy.load()) return error(Code::closed, "arenas cannot be exchanged while a step runs");
  wait_unpinned();
  if (bytes(a) != bytes(b))
    return error(Code::invalid_argument, "arenas %d and %d differ in size", static_cast<int>(a), static_cast<int>(b));
  std::swap(blocks_[static_cast<int>(a)], blocks_[static_cast<int>(b)]);
  return ok_status();
}

void Memory::pin() {
  std::lock_guard lock(pin_mutex_);
  ++pins_;
}

void Memory::unpin() {
  std::lock_guard lock(pin_mutex_);
  if (--pins_ == 0) unpinned_.notify_all();
}

bool Memory::begin_load() {
  std::lock_guard lock(pin_mutex_);
  if (busy.load() > loads_) return false;
  ++busy;
  ++loads_;
  return true;
}

void Memory::end_load() {
  std::lock_guard lock(pin_mutex_);
  --busy;
  if (--loads_ == 0) unpinned_.notify_all();
}

void Memory::wait_unpinned() {
  std::unique_lock lock(pin_mutex_);
  unpinned_.wait(lock, [this] { return pins_ == 0 && loads_ == 0; });
}

void Memory::wait_snapshots() {
  std::unique_lock lock(pin_mutex_);
  unpinned_.wait(lock, [this] { return pins_ == 0; });
}

}  // namespace effnet
