// Runs CUDA kernels on the CPU: one fiber per CUDA thread, one block at a time, switches only at barriers and warp
// operations. It finds wrong results, deadlocks and divergent barriers by itself, accesses out of bounds under ASan,
// races under TSan, misaligned vectors under UBSan. A kernel is the same source for nvcc and for this.
//
// Schedules (a launch takes a number made of bits): 1 = blocks run backwards, and asynchronous copies land when they
// are issued instead of when they are waited for; 2 = greedy, the threads woken last run first, so that one warp runs
// ahead of the others; 4 = blocks and threads in random order, seeded by the number. Results must be the same bits
// under all of them: that is what "deterministic" means for a kernel.
//
// Not visible here: speed, bank conflicts, what tensor cores do inside, and the error of approximations but for that of
// tanh_fast, which EMULATED_TANH=gpu in the environment makes as far off as a GPU's may be.
#pragma once

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda/launch.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_create_fiber(unsigned);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

namespace effnet::cuda::emulation {

inline const bool kTanhOfGpu = [] {
  const char* asked = std::getenv("EMULATED_TANH");
  return asked && std::strcmp(asked, "gpu") == 0;
}();

#if defined(__SANITIZE_ADDRESS__)
inline void poison(void* p, size_t n) { __asan_poison_memory_region(p, n); }
inline void unpoison(void* p, size_t n) { __asan_unpoison_memory_region(p, n); }
#else
inline void poison(void*, size_t) {}
inline void unpoison(void*, size_t) {}
#endif

#if defined(__SANITIZE_THREAD__)
// Sets of fibers, used in turn by the blocks: a fiber keeps what it learnt at a barrier, so with one set races between
// blocks would vanish.
inline constexpr int kFiberSets = 2;
inline void acquire(void* p) { __tsan_acquire(p); }
inline void release(void* p) { __tsan_release(p); }
// The emulation's own accesses are no part of the kernel.
struct Hidden {
  Hidden() {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  ~Hidden() {
    AnnotateIgnoreWritesEnd("", 0);
    AnnotateIgnoreReadsEnd("", 0);
  }
};
#else
inline constexpr int kFiberSets = 1;
inline void acquire(void*) {}
inline void release(void*) {}
struct Hidden {
  Hidden() {}
  ~Hidden() {}
};
#endif

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

enum class State : uint8_t { ready, at_warp, at_block, done };

// One cp.async, or the end of a group of them.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  bool valid, ends_group;
};

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  void* tsan = nullptr;
  Index thread;
  int id = 0;
  State state = State::done;
  int line = 0;              // of the barrier it waits at
  std::vector<Copy> copies;  // pending
};

struct Warp {
  unsigned arrived = 0, mask = 0;
  int line = 0, generation = 0;
  alignas(16) unsigned char slot[2][32][64];  // what lanes hand to each other
};

inline constexpr size_t kStackBytes = 256 << 10;
inline constexpr size_t kGap = 64;  // poisoned behind every shared array
inline constexpr size_t kMostGaps = 32 * kGap;
inline constexpr size_t kSharedRoom = 256 << 10;
// Of a block: the least that a GPU has which a release has kernels for (compute capability 8.6, 8.9, 12.0; others have
// 163 or 227 KiB), so that a kernel that runs here fits on all.
inline constexpr size_t kMostShared = 99 << 10;
// Of a kernel's arguments, on every GPU and driver.
inline constexpr size_t kMostArgs = 4096;

struct Machine {
  Index block_index;
  Dim grid, block;
  Fiber* current = nullptr;
  Fiber main;
  std::deque<Fiber> fibers[kFiberSets];
  std::vector<Fiber*> threads;
  std::vector<Warp> warps;
  std::vector<int> ready;
  size_t head = 0;
  int live = 0, at_block = 0, barrier_line = 0, barrier_generation = 0;
  char begin_sync, end_sync, fence;
  char* sync = nullptr;  // addresses that TSan orders by; new for every block, blocks are not ordered among themselves
  unsigned schedule = 0;
  std::mt19937 random;
  void (*body)(const void*) = nullptr;
  const void* args = nullptr;
  const char* kernel = "";
  bool fences = true;      // false: a mistake that tests plant, no fence orders anything
  size_t last_blocks = 0;  // of a grid run these alone, so that a test may have tensors too large to go through; 0: all
  char* shared = nullptr;
  size_t shared_declared = 0, shared_used = 0, main_stack_bytes = 0;
};

// Asked for at every access to an index: initial-exec, so that no call finds it.
__attribute__((tls_model("initial-exec"))) inline constinit thread_local Machine* machine_of_thread = nullptr;

// Fibers point into it: it is never destroyed.
[[gnu::noinline, gnu::cold]] inline void make_machine() { machine_of_thread = new Machine; }
[[gnu::always_inline]] inline Machine& machine() {
  if (!machine_of_thread) [[unlikely]]
    make_machine();
  return *machine_of_thread;
}
inline unsigned lane() { return static_cast<unsigned>(machine().current->id) & 31; }
inline Warp& warp() { return machine().warps[static_cast<size_t>(machine().current->id) >> 5]; }

// What a kernel did wrong, and where its threads are; ends the process, as a fault would end the context.
[[noreturn]] inline void fail(const char* what) {
  Machine& m = machine();
  std::fprintf(stderr, "emulation: %s: %s, block (%u,%u,%u)", m.kernel, what, m.block_index.x, m.block_index.y,
               m.block_index.z);
  if (m.current && m.current != &m.main) std::fprintf(stderr, ", thread %d", m.current->id);
  const char* names[] = {"ready", "at a warp operation", "at __syncthreads", "exited"};
  int shown = 0;
  for (size_t i = 0; i < m.threads.size() && shown < 6; ++i) {
    const Fiber& f = *m.threads[i];
    if (i > 0 && f.state == m.threads[i - 1]->state && f.line == m.threads[i - 1]->line) continue;
    std::fprintf(stderr, "%s thread %zu.. %s (line %d)", shown++ ? ";" : ":", i, names[static_cast<int>(f.state)],
                 f.line);
  }
  std::fprintf(stderr, "\n");
  std::abort();
}

// Saves the callee-saved registers on the stack of the one, takes them from that of the other. noipa: the compiler
// must not reason through it.
__attribute__((naked, noipa, no_sanitize("address", "thread", "undefined"))) inline void swap_stack(void**, void*) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp,(%rdi)\n movq %rsi,%rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}

inline void switch_to(Fiber* to) {
  Machine& m = machine();
  Fiber* from = m.current;
  if (from == to) return;
  m.current = to;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, to->stack, to == &m.main ? m.main_stack_bytes : kStackBytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to->tsan, 1);  // 1: a switch orders nothing
#endif
  swap_stack(&from->stack_pointer, to->stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

// The next runnable fiber, or main when there is none.
inline Fiber* pick() {
  Machine& m = machine();
  if (m.head == m.ready.size()) {
    m.ready.clear();
    m.head = 0;
    return &m.main;
  }
  if (m.schedule & 4) std::swap(m.ready[m.head], m.ready[m.head + m.random() % (m.ready.size() - m.head)]);
  if ((m.schedule & 6) == 2) {
    const int last = m.ready.back();
    m.ready.pop_back();
    return m.threads[static_cast<size_t>(last)];
  }
  return m.threads[static_cast<size_t>(m.ready[m.head++])];
}

inline void wake(int id) {
  machine().threads[static_cast<size_t>(id)]->state = State::ready;
  machine().ready.push_back(id);
}

inline void release_block() {
  Machine& m = machine();
  m.at_block = 0;
  m.barrier_generation ^= 1;
  for (size_t i = 0; i < m.threads.size(); ++i)
    if (m.threads[i]->state == State::at_block) wake(static_cast<int>(i));
}

// A fiber lives for ever and runs one thread of every block (of every second one, under TSan).
inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  for (Machine& m = machine();;) {
    acquire(&m.begin_sync);
    m.body(m.args);
    Hidden hidden;
    for (const Copy& copy : m.current->copies)
      if (!copy.ends_group) fail("the kernel ends with copies pending");
    m.current->copies.clear();
    release(&m.end_sync);
    m.current->state = State::done;
    m.live--;
    if (m.live && m.at_block == m.live) release_block();  // threads that have left do not hold a barrier up
    switch_to(pick());
  }
}

inline void sync_block(int line) {
  Hidden hidden;
  Machine& m = machine();
  Fiber* f = m.current;
  f->line = line;
  const int generation = m.barrier_generation;
  if (m.at_block && m.barrier_line != line) fail("threads of one block wait at different __syncthreads");
  m.barrier_line = line;
  release(m.sync + 8 * generation);
  f->state = State::at_block;
  if (++m.at_block == m.live) release_block();
  switch_to(pick());
  acquire(m.sync + 8 * generation);
}

// All lanes of `mask` meet, the last one runs `together`; returns the generation of slots that they filled.
inline int sync_warp(unsigned mask, int line, void (*together)(Warp&, int) = nullptr) {
  Hidden hidden;
  Machine& m = machine();
  Warp& w = warp();
  Fiber* f = m.current;
  const int generation = w.generation;
  f->line = line;
  char* sync = m.sync + 8 * (2 + f->id / 32 * 2 + generation);
  if (!(mask >> lane() & 1)) fail("a lane is not in its own mask");
  if (w.arrived && (w.mask != mask || w.line != line)) fail("lanes of one warp are at different warp operations");
  w.mask = mask;
  w.line = line;
  w.arrived |= 1u << lane();
  release(sync);
  if (w.arrived == mask) {
    if (together) {
      acquire(sync);
      together(w, generation);
      release(sync);
    }
    w.arrived = 0;
    w.generation ^= 1;
    const int first = f->id & ~31;
    for (int i = 0; i < 32; ++i)
      if (mask >> i & 1) wake(first + i);
  } else {
    f->state = State::at_warp;
  }
  switch_to(pick());
  acquire(sync);
  return generation;
}

// Orders blocks: without it another block's data is a race.
inline void fence() {
  Hidden hidden;
  if (!machine().fences) return;
  release(&machine().fence);
  acquire(&machine().fence);
}

template <class T>
T& slot(int generation, unsigned of_lane) {
  static_assert(sizeof(T) <= 64);
  return *reinterpret_cast<T*>(warp().slot[generation][of_lane]);
}

// The value of another lane of a full warp.
template <class T>
T exchange(T value, unsigned from, int line) {
  Hidden hidden;
  slot<T>(warp().generation, lane()) = value;
  return slot<T>(sync_warp(~0u, line), from & 31);
}

// The next shared array of a block; all threads make the same calls in the same order. `taken`: bytes so far, `gaps`
// those behind the arrays.
inline char* take_shared(size_t bytes, size_t& taken, size_t& gaps) {
  Hidden hidden;
  Machine& m = machine();
  char* array = m.shared + taken + gaps;
  taken += (bytes + 15) / 16 * 16;
  gaps += kGap;
  if (gaps > kMostGaps) fail("the kernel has more shared arrays than the emulation");
  if (taken > m.shared_declared) fail("the kernel takes more shared memory than the launch declares");
  m.shared_used = std::max(m.shared_used, taken);
  unpoison(array, bytes);
  return array;
}

inline void make_fibers(Machine& m, size_t count) {
  for (auto& set : m.fibers) {
    while (set.size() < count) {
      Fiber& f = set.emplace_back();
      f.stack = static_cast<char*>(
          mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
#if defined(__SANITIZE_THREAD__)
      f.tsan = __tsan_create_fiber(0);
#endif
      void** top = reinterpret_cast<void**>(f.stack + kStackBytes) - 2;
      *top = reinterpret_cast<void*>(fiber_main);
      f.stack_pointer = top - 6;  // below the return address: six callee-saved registers
    }
  }
}

inline void run_block(Machine& m, int set) {
  unpoison(m.shared, kSharedRoom);
  // NaN in every floating-point format: reads of what nobody wrote show.
  std::memset(m.shared, 0xff, m.shared_declared + kMostGaps);
  poison(m.shared, kSharedRoom);
  unpoison(m.sync, 1024);
  m.shared_used = 0;
  m.live = static_cast<int>(m.threads.size());
  m.at_block = 0;
  m.ready.clear();
  m.head = 0;
  for (size_t i = 0; i < m.threads.size(); ++i) {
    Fiber& f = *(m.threads[i] = &m.fibers[set][i]);
    f.id = static_cast<int>(i);
    f.line = 0;
    const auto id = static_cast<unsigned>(i);
    f.thread = {id % m.block.x, id / m.block.x % m.block.y, id / m.block.x / m.block.y};
  }
  for (size_t i = 0; i < m.threads.size(); ++i) wake(static_cast<int>(i));
  for (Fiber* f = pick(); f != &m.main; f = pick()) switch_to(f);
  if (m.live) fail("deadlock");
  if (m.shared_used && m.shared_used != m.shared_declared)
    fail("the launch declares other shared memory than the kernel takes");
}

// Runs a whole grid. `args` is the kernel's parameter, copied by the caller as a driver would.
inline void launch(const char* name, void (*body)(const void*), const Dim& grid, const Dim& block, size_t shared,
                   const void* args, unsigned schedule) {
  Hidden hidden;
  Machine& m = machine();
  m.kernel = name;
  m.grid = grid;
  m.block = block;
  m.current = &m.main;
  const size_t threads = size_t{block.x} * block.y * block.z, blocks = size_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > 1024 || blocks == 0 || shared > kMostShared || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535)
    fail("launch limits exceeded");
  m.schedule = schedule;
  m.random.seed(schedule);
  m.body = body;
  m.args = args;
  m.shared_declared = shared;
#if defined(__SANITIZE_THREAD__)
  m.main.tsan = __tsan_get_current_fiber();
#endif
#if defined(__SANITIZE_ADDRESS__)
  pthread_attr_t attributes;
  void* base;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &base, &m.main_stack_bytes);
  pthread_attr_destroy(&attributes);
  m.main.stack = static_cast<char*>(base);
#endif
  make_fibers(m, threads);
  m.warps.assign((threads + 31) / 32, Warp{});
  m.threads.assign(threads, nullptr);
  const size_t first = m.last_blocks ? blocks - std::min(blocks, m.last_blocks) : 0;
  std::vector<size_t> order(blocks - first);
  std::iota(order.begin(), order.end(), first);
  if (schedule & 1) std::reverse(order.begin(), order.end());
  if (schedule & 4) std::shuffle(order.begin(), order.end(), m.random);
  release(&m.begin_sync);
  int set = 0;
  std::vector<char*> memories;
  for (const size_t o : order) {
    m.block_index = {static_cast<unsigned>(o % grid.x), static_cast<unsigned>(o / grid.x % grid.y),
                     static_cast<unsigned>(o / grid.x / grid.y)};
    // Under TSan every block has shared memory of its own: two blocks do not race on an address that both used.
    if (!m.shared || kFiberSets > 1) {
      m.shared = static_cast<char*>(std::aligned_alloc(128, kSharedRoom + 1024));
      m.sync = m.shared + kSharedRoom;
      if (kFiberSets > 1) memories.push_back(m.shared);
    }
    set = (set + 1) % kFiberSets;
    run_block(m, set);
  }
  acquire(&m.end_sync);
  for (char* memory : memories) std::free(memory);
  if (!memories.empty()) m.shared = nullptr;
}

// ---- the kernels of a program, by name ---------------------------------------------------------------------------

struct Entry {
  void (*body)(const void*);
  size_t args_bytes;
  uint32_t threads;  // that it was compiled for: no block has more
};

inline std::map<std::string, Entry, std::less<>>& kernels() {
  static std::map<std::string, Entry, std::less<>> all;
  return all;
}

struct Registration {
  Registration(const char* name, Entry entry) { kernels().emplace(name, entry); }
};

// Runs a launch by name; `what` is null or says why it cannot.
inline const char* run(const Launch& l, unsigned schedule) {
  const auto found = kernels().find(l.kernel);
  if (found == kernels().end()) return "no such kernel";
  if (found->second.args_bytes != l.args.size()) return "the size of its arguments is another";
  if (l.threads > found->second.threads) return "its blocks have more threads than it is compiled for";
  launch(found->first.c_str(), found->second.body, l.grid, {l.threads, 1, 1}, l.shared_bytes, l.args.data(), schedule);
  return nullptr;
}

}  // namespace effnet::cuda::emulation
