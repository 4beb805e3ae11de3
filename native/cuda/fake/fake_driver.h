// The state of the driver without a GPU (fake_cuda.cc), and how what is queued in it runs.
#pragma once

#include <cuda.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "cuda/device/emulation.h"
#include "cuda/fake/fake_calls.h"
#include "cuda/fake/fake_images.h"

namespace effnet::fake {

using cuda::Launch;

struct Work {
  std::function<void()> run;
  std::string kernel = {};  // "" for what is none
  // Of a copy from page-locked memory, else nullptr.
  const void* from = nullptr;
  size_t bytes = 0;
  uint64_t sum = 0;  // of what lay there when the copy was asked for
};

struct Graph {
  struct Node {
    Work work;
    std::vector<size_t> after;
  };
  std::vector<Node> nodes;
};

// Of a capture: the nodes that what comes next in a stream depends on.
struct Capture {
  CUstreamCaptureMode mode;
  std::thread::id thread;  // that began it
  std::shared_ptr<Graph> graph = std::make_shared<Graph>();
  bool broken = false, ended = false;
};

struct Item {
  Work work;
  struct Event* record = nullptr;  // or
  struct Event* wait = nullptr;    // until it has come to `version`
  uint64_t version = 0;
};

struct Event {
  uint64_t recorded = 0, reached = 0;  // how often recorded, and how far the streams have come
  double at = 0;                       // the clock when it was reached last
  bool timed = true;                   // no CU_EVENT_DISABLE_TIMING
  std::shared_ptr<Capture> capture;    // of its last record
  std::vector<size_t> nodes;
};

struct Stream {
  std::deque<Item> queue;
  std::shared_ptr<Capture> capture;
  bool origin = false;
  std::vector<size_t> tail;
};

inline constexpr size_t kReserved = 1 << 30;  // as large an allocation takes no memory by itself

struct Fake {
  std::recursive_mutex mutex;
  effnet::fake::Calls calls{"FAKE_CUDA_FAIL"};
  std::map<CUdeviceptr, size_t> memory;
  std::map<void*, std::string> objects;
  std::set<Stream*> streams;
  std::set<Library*> libraries;
  std::map<CUfunction, int> shared_allowed;  // what a kernel has asked for, bytes
  size_t used = 0;
  std::set<std::shared_ptr<Capture>> captures;  // that have not ended
  std::map<const void*, size_t> page_locked;
  bool started = false;  // by cuInit
  int fault = 0;
  std::map<CUdevice, int> retained;  // how often a device's primary context is in use; one of them is a CUcontext
  double clock = 0;                  // milliseconds that kernels have taken
  std::mt19937 random{0};
  std::optional<unsigned> order;  // that `random` was seeded for
};

inline Fake& fake() {
  static Fake* const one = new Fake;
  return *one;
}

inline const char* setting(const char* name, const char* fallback) {
  const char* value = std::getenv(name);
  return value ? value : fallback;
}

inline void log_line(const std::string& line) {
  static FILE* const file = std::getenv("FAKE_CUDA_LOG") ? std::fopen(std::getenv("FAKE_CUDA_LOG"), "a") : nullptr;
  if (!file) return;
  std::fprintf(file, "%s\n", line.c_str());
  std::fflush(file);
}

// Whether a launch is to be written down instead of being run.
inline bool noted(const Launch& launch) {
  const char* path = std::getenv("FAKE_CUDA_LAUNCHES");
  FILE* const file = path ? std::fopen(path, "a") : nullptr;
  if (!file) return false;
  std::fprintf(file, "launch %s %u %u %u %u %u ", launch.kernel.c_str(), launch.grid.x, launch.grid.y, launch.grid.z,
               launch.threads, launch.shared_bytes);
  for (const std::byte b : launch.args) std::fprintf(file, "%02x", static_cast<unsigned>(b));
  std::fprintf(file, "\n");
  return std::fclose(file) == 0;
}

inline bool ignored(const char* name) { return std::string(setting("FAKE_CUDA_IGNORE", "")) == name; }

inline uint64_t sum_of(const void* data, size_t bytes) {
  uint64_t sum = 1469598103934665603u;
  for (size_t i = 0; i < bytes; ++i) sum = (sum ^ static_cast<const unsigned char*>(data)[i]) * 1099511628211u;
  return sum;
}

inline int capability() { return std::atoi(setting("FAKE_CUDA_CAPABILITY", FAKE_CAPABILITY)); }

// Whether a library that is loaded has code of it for this GPU.
inline bool has_code(CUkernel kernel) {
  return std::any_of(fake().libraries.begin(), fake().libraries.end(), [kernel](const Library* library) {
    return std::find(library->kernels.begin(), library->kernels.end(), kernel) != library->kernels.end() &&
           has_code_for(library->image, capability());
  });
}

inline bool is_retained(CUcontext context) {
  for (const auto& use : fake().retained)
    if (reinterpret_cast<CUcontext>(const_cast<int*>(&use.second)) == context) return use.second > 0;
  return false;
}

// Breaks a capture that what is being done has no place in.
inline CUresult refuse(Capture& capture, CUresult why) {
  capture.broken = true;
  return why;
}

// Whether a call that may wait, or that works beside streams, breaks captures: those of this thread that are not
// relaxed, and others' that are global.
inline bool breaks_captures() {
  bool any = false;
  for (const auto& capture : fake().captures) {
    const bool own = capture->thread == std::this_thread::get_id();
    if (own ? capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED : capture->mode != CU_STREAM_CAPTURE_MODE_GLOBAL)
      continue;
    any = capture->broken = true;
  }
  return any;
}

// Where a function may be called: kContext wants a current context, as cuda.h has it (CUDA_ERROR_INVALID_CONTEXT) or
// the stream or graph that it is given; kUnsafe too, and the mode of a capture decides whether it may be called
// meanwhile.
enum Where { kAnywhere, kContext, kUnsafe };

// Of the calling thread.
inline thread_local CUcontext current_context = nullptr;

inline CUresult context_missing() {
  if (!current_context) return CUDA_ERROR_INVALID_CONTEXT;
  return is_retained(current_context) ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

inline bool works_before_start(std::string_view name) { return name == "cuInit" || name == "cuDriverGetVersion"; }

// At the head of every function.
inline CUresult enter(const char* name, Where where) {
  Fake& f = fake();
  log_line(name);
  if (f.fault) return static_cast<CUresult>(f.fault);
  if (const int code = f.calls.enter(name)) {
    if (code < 0) {
      log_line("  does not come back");
      f.mutex.unlock();  // the caller's
      for (;;) pause();
    }
    if (code >= 700 && !f.calls.once() && f.started) f.fault = code;
    return static_cast<CUresult>(code);
  }
  if (!f.started && !works_before_start(name)) return CUDA_ERROR_NOT_INITIALIZED;
  if (where == kAnywhere) return CUDA_SUCCESS;
  if (const CUresult missing = context_missing()) return missing;
  return where == kUnsafe && breaks_captures() ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

template <class T>
T* born(T* object, const char* kind) {
  fake().objects[object] = kind;
  return object;
}
inline bool alive(void* object) { return fake().objects.count(object) > 0; }
template <class T>
inline CUresult bury(void* object) {
  if (!fake().objects.erase(object)) return CUDA_ERROR_INVALID_HANDLE;
  delete static_cast<T*>(object);
  return CUDA_SUCCESS;
}

// ---- running what is queued --------------------------------------------------------------------------------------

// Of FAKE_CUDA_TIMES.
inline double duration(const std::string& kernel) {
  const std::string times = "," + std::string(setting("FAKE_CUDA_TIMES", "")), entry = "," + kernel + "=";
  const size_t at = times.find(entry);
  return at == std::string::npos ? 1 : std::atof(times.c_str() + at + entry.size());
}

inline void run(const Work& work) {
  if (!work.kernel.empty()) fake().clock += duration(work.kernel);
  if (work.from && sum_of(work.from, work.bytes) != work.sum && !fake().fault) {
    log_line("  page-locked memory was written while its copy was pending");
    fake().fault = CUDA_ERROR_LAUNCH_FAILED;
  }
  if (work.run) work.run();
}

inline bool ready(const Stream& s) {
  return !s.queue.empty() && (!s.queue.front().wait || s.queue.front().wait->reached >= s.queue.front().version);
}

inline void run_front(Stream& s) {
  Item item = std::move(s.queue.front());
  s.queue.pop_front();
  run(item.work);
  if (!item.record) return;
  item.record->reached = std::max(item.record->reached, item.version);
  item.record->at = fake().clock;
}

// The order asked for, whose choices begin anew where it changes.
inline unsigned order_of(Fake& f) {
  const auto order = static_cast<unsigned>(std::atoi(setting("FAKE_CUDA_ORDER", "0")));
  if (f.order != order) f.random.seed(order);
  f.order = order;
  return order;
}

// Until `done`, in the order asked for. False when nothing can go on: streams wait for each other.
inline bool run_until(Stream* wanted, const std::function<bool()>& done) {
  Fake& f = fake();
  const unsigned order = order_of(f);
  while (!done()) {
    std::vector<Stream*> able;
    for (Stream* s : f.streams)
      if (ready(*s)) able.push_back(s);
    if (able.empty()) return false;
    Stream* next = nullptr;
    if (order == 0 && wanted && ready(*wanted)) next = wanted;
    if (!next && order == 0 && wanted && !wanted->queue.empty()) {
      // Only what it waits for.
      for (Stream* s : able)
        for (const Item& item : s->queue)
          if (item.record == wanted->queue.front().wait) next = s;
    }
    if (!next) next = able[f.random() % able.size()];
    run_front(*next);
  }
  return true;
}

inline CUresult outcome(bool ran) {
  if (fake().fault) return static_cast<CUresult>(fake().fault);
  return ran ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
}

inline CUresult synchronise(Stream* s) {
  return outcome(run_until(s, [s] { return s->queue.empty(); }));
}

inline CUresult synchronise(Event* e) {
  Stream* recorded_on = nullptr;
  for (Stream* s : fake().streams)
    for (const Item& item : s->queue)
      if (item.record == e) recorded_on = s;
  return outcome(run_until(recorded_on, [e] { return e->reached >= e->recorded; }));
}

inline CUresult add(CUstream handle, Work work) {
  auto* s = reinterpret_cast<Stream*>(handle);
  if (!alive(s)) return CUDA_ERROR_INVALID_HANDLE;
  if (s->capture) {
    s->capture->graph->nodes.push_back({std::move(work), s->tail});
    s->tail = {s->capture->graph->nodes.size() - 1};
  } else {
    s->queue.push_back({std::move(work)});
  }
  return CUDA_SUCCESS;
}

inline void run_graph(const Graph& graph) {
  Fake& f = fake();
  const unsigned order = order_of(f);
  std::vector<bool> done(graph.nodes.size());
  for (size_t left = graph.nodes.size(); left > 0; --left) {
    std::vector<size_t> able;
    for (size_t i = 0; i < graph.nodes.size(); ++i) {
      const auto& after = graph.nodes[i].after;
      if (!done[i] && std::all_of(after.begin(), after.end(), [&](size_t n) { return done[n]; })) able.push_back(i);
    }
    const size_t next = order == 0 ? able.front() : able[f.random() % able.size()];
    run(graph.nodes[next].work);
    done[next] = true;
  }
}

// Whether [p, p + n) lies in one live allocation.
inline bool in_memory(CUdeviceptr p, size_t n) {
  auto after = fake().memory.upper_bound(p);
  if (after == fake().memory.begin()) return false;
  --after;
  return p + n <= after->first + after->second;
}

// Whether [p, p + n) lies in one block that the host has locked.
inline bool is_page_locked(const void* p, size_t n) {
  const auto after = fake().page_locked.upper_bound(p);
  if (after == fake().page_locked.begin()) return false;
  const auto& [start, size] = *std::prev(after);
  return static_cast<const std::byte*>(p) + n <= static_cast<const std::byte*>(start) + size;
}

inline Capture* capture_of(CUstream stream) {
  auto* s = reinterpret_cast<Stream*>(stream);
  return alive(s) ? s->capture.get() : nullptr;
}

// The limits of grids and blocks, which all GPUs have in common (CUDA C++ programming guide, compute capabilities).
inline bool is_launchable(const CUlaunchConfig& c) {
  const bool grid = c.gridDimX > 0 && c.gridDimX <= 0x7fffffff && c.gridDimY > 0 && c.gridDimY <= 65535 &&
                    c.gridDimZ > 0 && c.gridDimZ <= 65535;
  const uint64_t threads = uint64_t{c.blockDimX} * c.blockDimY * c.blockDimZ;
  return grid && threads > 0 && threads <= 1024 && c.blockDimX <= 1024 && c.blockDimY <= 1024 && c.blockDimZ <= 64;
}

using Lock = std::lock_guard<std::recursive_mutex>;

}  // namespace effnet::fake
