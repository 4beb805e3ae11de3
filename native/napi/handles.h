// The kinds of opaque handles. Each is owned by its JavaScript object and emptied by close(); native work in flight
// holds what it needs by itself.
#pragma once

#include <napi.h>

#include <atomic>
#include <memory>

#include "core/backend.h"
#include "core/thread_pool.h"
#include "io/batch.h"
#include "napi/common.h"

namespace effnet::napi {

// Live handles, process-wide; leak tests compare it exactly.
extern std::atomic<uint64_t> g_live_handles;

// Bytes that V8 should know a handle keeps alive. JavaScript thread only.
class ExternalBytes {
 public:
  explicit ExternalBytes(Napi::Env env) : env_(env) { ++g_live_handles; }
  ~ExternalBytes() {
    set(0);
    --g_live_handles;
  }
  ExternalBytes(const ExternalBytes&) = delete;
  ExternalBytes& operator=(const ExternalBytes&) = delete;
  void set(uint64_t bytes) {
    Napi::MemoryManagement::AdjustExternalMemory(env_, static_cast<int64_t>(bytes) - static_cast<int64_t>(bytes_));
    bytes_ = bytes;
  }

 private:
  Napi::Env env_;
  uint64_t bytes_ = 0;
};

struct DeviceHandle {
  static const napi_type_tag kTag;
  static constexpr const char* kKind = "device";
  explicit DeviceHandle(Napi::Env env) : accounted(env) {}
  std::shared_ptr<Backend> backend;
  ExternalBytes accounted;
};

struct PoolHandle {
  static const napi_type_tag kTag;
  static constexpr const char* kKind = "pool";
  explicit PoolHandle(Napi::Env env) : accounted(env) {}
  std::shared_ptr<ThreadPool> pool;  // empty after close
  ExternalBytes accounted;
};

struct MemoryHandle {
  static const napi_type_tag kTag;
  static constexpr const char* kKind = "memory";
  explicit MemoryHandle(Napi::Env env) : accounted(env) {}
  std::shared_ptr<Backend> backend;
  std::shared_ptr<Memory> memory;  // empty after close
  ExternalBytes accounted;
};

struct ExecutableHandle {
  static const napi_type_tag kTag;
  static constexpr const char* kKind = "executable";
  explicit ExecutableHandle(Napi::Env env) : accounted(env) {}
  std::shared_ptr<Executable> executable;  // empty after close
  ExternalBytes accounted;
};

struct BatchHandle {
  static const napi_type_tag kTag;
  static constexpr const char* kKind = "batch";
  explicit BatchHandle(Napi::Env env) : accounted(env) {}
  std::shared_ptr<io::Batch> batch;  // empty after release
  ExternalBytes accounted;
};

// The object behind a handle that is still open, or EFF_CLOSED.
std::shared_ptr<Memory> open_memory(Napi::Env env, Napi::Value value);
std::shared_ptr<Memory> open_memory(const Napi::CallbackInfo& info, size_t index);
std::shared_ptr<io::Batch> open_batch(Napi::Env env, Napi::Value value);

// EFF_CLOSED while a step, a binding or a change uses the arenas.
void require_no_step(Napi::Env env, const Memory& memory);

// What keeps others from a memory's arenas, given back by end() or with the object.
class MemoryMark {
 public:
  MemoryMark(const MemoryMark&) = delete;
  MemoryMark& operator=(const MemoryMark&) = delete;
  void end() {
    if (const auto memory = std::exchange(memory_, nullptr)) (memory.get()->*end_)();
  }

 protected:
  MemoryMark(std::shared_ptr<Memory> memory, void (Memory::*end)()) : memory_(std::move(memory)), end_(end) {}
  ~MemoryMark() { end(); }

 private:
  std::shared_ptr<Memory> memory_;
  void (Memory::*end_)();
};

class PinMark : public MemoryMark {
 public:
  explicit PinMark(const std::shared_ptr<Memory>& memory) : MemoryMark(memory, &Memory::unpin) { memory->pin(); }
};

class ChangeMark : public MemoryMark {
 public:
  // EFF_CLOSED while a step or a binding uses the arenas.
  static std::shared_ptr<ChangeMark> begin(Napi::Env env, const std::shared_ptr<Memory>& memory);

 private:
  explicit ChangeMark(const std::shared_ptr<Memory>& memory) : MemoryMark(memory, &Memory::end_change) {}
};

void register_engine(Napi::Env env, Napi::Object exports);

}  // namespace effnet::napi
