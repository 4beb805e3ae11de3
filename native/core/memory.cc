#include "core/memory.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <system_error>
#include <thread>

#include "core/byte_text.h"

namespace effnet {
namespace {

std::atomic<uint64_t> g_bytes[3];
constexpr uint64_t kHugePage = uint64_t{2} << 20;
constexpr uint64_t kSlowUnmap = uint64_t{64} << 20;
constexpr uint64_t kMostBytes = uint64_t{1} << 46;

uint64_t round_up(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }

// Fresh pages are zero already and cost nothing until they are touched, by then on an engine thread.
std::byte* map_zeroed(uint64_t bytes) {
  void* mapped = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  const auto first = reinterpret_cast<uintptr_t>(mapped);
  const uintptr_t aligned = round_up(first, kHugePage);
  if (aligned > first) munmap(mapped, aligned - first);
  if (const uint64_t rest = first + kHugePage - aligned) munmap(reinterpret_cast<void*>(aligned + bytes), rest);
  auto* data = reinterpret_cast<std::byte*>(aligned);
  madvise(data, bytes, MADV_HUGEPAGE);
  return data;
}

}  // namespace

uint64_t native_bytes(Block::Kind kind) { return g_bytes[static_cast<int>(kind)].load(); }

Block::~Block() {
  if (!data_) return;
  g_bytes[static_cast<int>(kind_)] -= bytes_;
  if (owner_) return;
  if (bytes_ < kHugePage) {
    std::free(data_);
    return;
  }
  const auto unmap = [data = data_, mapped = round_up(bytes_, kHugePage)] { munmap(data, mapped); };
  // Giving back gigabytes takes the kernel a while, and the owner may be the JavaScript thread.
  if (bytes_ < kSlowUnmap) {
    unmap();
    return;
  }
  try {
    std::thread(unmap).detach();
  } catch (const std::system_error&) {
    unmap();
  }
}

StatusOr<Block> Block::allocate(uint64_t bytes, Kind kind) {
  Block block;
  if (bytes == 0) return block;
  if (bytes > kMostBytes) return error(Code::oom, "%llu bytes asked for", static_cast<unsigned long long>(bytes));
  if (bytes >= kHugePage) {
    block.data_ = map_zeroed(round_up(bytes, kHugePage));
  } else {
    const uint64_t rounded = round_up(bytes, plan::kAlignment);
    block.data_ = static_cast<std::byte*>(std::aligned_alloc(plan::kAlignment, rounded));
    if (block.data_) std::memset(block.data_, 0, rounded);
  }
  if (!block.data_) return error(Code::oom, "%s could not be allocated", byte_text(bytes).c_str());
  block.bytes_ = bytes;
  block.kind_ = kind;
  g_bytes[static_cast<int>(kind)] += bytes;
  return block;
}

Block Block::adopt(std::shared_ptr<std::byte> memory, uint64_t bytes, Kind kind) {
  Block block;
  std::memset(memory.get(), 0, bytes);
  block.data_ = memory.get();
  block.owner_ = std::move(memory);
  block.bytes_ = bytes;
  block.kind_ = kind;
  g_bytes[static_cast<int>(kind)] += bytes;
  return block;
}

Status Budget::take(uint64_t bytes) {
  uint64_t used = used_.load();
  do {
    if (bytes > limit_ - used)
      return error(Code::oom, "%s were needed; the limit of %s leaves %s", byte_text(bytes).c_str(),
                   byte_text(limit_).c_str(), byte_text(limit_ - used).c_str());
  } while (!used_.compare_exchange_weak(used, used + bytes));
  return ok_status();
}

StatusOr<std::shared_ptr<HostMemory>> HostMemory::create(const uint64_t (&arena_bytes)[plan::kArenaCount],
                                                         uint64_t limit) {
  auto memory = std::make_shared<HostMemory>(limit);
  for (int i = 0; i < plan::kArenaCount; ++i) {
    EFF_RETURN_IF_ERROR(memory->budget()->take(arena_bytes[i]));
    auto block = Block::allocate(arena_bytes[i], Block::Kind::arena);
    if (!block.ok()) return block.status();
    memory->blocks_[i] = std::move(block.value());
  }
  return memory;
}

Status HostMemory::ensure(plan::Arena a, uint64_t bytes) {
  Block& block = blocks_[static_cast<int>(a)];
  if (bytes <= block.bytes()) return ok_status();
  const uint64_t before = block.bytes();
  EFF_RETURN_IF_ERROR(budget()->take(bytes - before));
  if (a == plan::Arena::activations) block = Block();  // freed first, so that the peak is not the sum
  auto grown = Block::allocate(bytes, Block::Kind::arena);
  if (!grown.ok()) {
    budget()->give_back(bytes - before);
    // Plans bound earlier still run in what there was.
    if (block.bytes() < before)
      if (auto again = Block::allocate(before, Block::Kind::arena); again.ok()) block = std::move(again.value());
    return grown.status();
  }
  if (block.bytes()) std::memcpy(grown.value().data(), block.data(), block.bytes());
  block = std::move(grown.value());
  return ok_status();
}

Status HostMemory::clear(plan::Arena a) {
  Block& block = blocks_[static_cast<int>(a)];
  auto fresh = Block::allocate(block.bytes(), Block::Kind::arena);
  if (fresh.ok())
    block = std::move(fresh.value());
  else
    std::memset(block.data(), 0, block.bytes());
  return ok_status();
}

Status HostMemory::copy(plan::Arena from, plan::Arena to) {
  EFF_RETURN_IF_ERROR(check_same_size(from, to));
  if (bytes(to)) std::memcpy(arena(to), arena(from), bytes(to));
  return ok_status();
}

Status HostMemory::swap(plan::Arena a, plan::Arena b) {
  EFF_RETURN_IF_ERROR(check_same_size(a, b));
  std::swap(blocks_[static_cast<int>(a)], blocks_[static_cast<int>(b)]);
  return ok_status();
}

Status HostMemory::read(plan::Arena a, uint64_t offset, std::span<std::byte> into) const {
  EFF_RETURN_IF_ERROR(check_range(a, offset, into.size()));
  if (!into.empty()) std::memcpy(into.data(), arena(a) + offset, into.size());
  return ok_status();
}

Status HostMemory::write(plan::Arena a, uint64_t offset, std::span<const std::byte> from) {
  EFF_RETURN_IF_ERROR(check_range(a, offset, from.size()));
  if (!from.empty()) std::memcpy(arena(a) + offset, from.data(), from.size());
  return ok_status();
}

Status Memory::check_range(plan::Arena a, uint64_t offset, uint64_t size) const {
  const uint64_t total = bytes(a);
  if (offset <= total && size <= total - offset) return ok_status();
  return error(Code::invalid_argument, "bytes %llu to %llu lie outside arena %d of %llu bytes",
               static_cast<unsigned long long>(offset), static_cast<unsigned long long>(offset + size),
               static_cast<int>(a), static_cast<unsigned long long>(total));
}

Status Memory::check_same_size(plan::Arena a, plan::Arena b) const {
  if (bytes(a) == bytes(b)) return ok_status();
  return error(Code::invalid_argument, "arenas %d and %d differ in size", static_cast<int>(a), static_cast<int>(b));
}

void Memory::pin() {
  std::lock_guard lock(pin_mutex_);
  ++pins_;
}

void Memory::unpin() {
  std::lock_guard lock(pin_mutex_);
  if (--pins_ == 0) unpinned_.notify_all();
}

bool Memory::begin_change() {
  std::lock_guard lock(pin_mutex_);
  if (busy.load() > changes_) return false;
  ++busy;
  ++changes_;
  return true;
}

void Memory::end_change() {
  std::lock_guard lock(pin_mutex_);
  --busy;
  if (--changes_ == 0) unpinned_.notify_all();
}

void Memory::wait_unpinned() {
  std::unique_lock lock(pin_mutex_);
  unpinned_.wait(lock, [this] { return pins_ == 0 && changes_ == 0; });
}

void Memory::wait_snapshots() {
  std::unique_lock lock(pin_mutex_);
  unpinned_.wait(lock, [this] { return pins_ == 0; });
}

}  // namespace effnet
