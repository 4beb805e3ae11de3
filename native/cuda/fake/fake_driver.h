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

Fake& fake();

const char* setting(const char* name, const char* fallback);
void log_line(const std::string& line);
// Whether a launch is to be written down instead of being run.
bool noted(const Launch& launch);
bool ignored(const char* name);
uint64_t sum_of(const void* data, size_t bytes);
int capability();
// Whether a library that is loaded has code of it for this GPU.
bool has_code(CUkernel kernel);
bool is_retained(CUcontext context);
// Breaks a capture that what is being done has no place in.
CUresult refuse(Capture& capture, CUresult why);
// Where a function may be called: kContext wants a current context, as cuda.h has it (CUDA_ERROR_INVALID_CONTEXT) or
// the stream or graph that it is given; kUnsafe too, and the mode of a capture decides whether it may be called
// meanwhile.
enum Where { kAnywhere, kContext, kUnsafe };

// Of the calling thread.
extern thread_local CUcontext current_context;

// At the head of every function.
CUresult enter(const char* name, Where where);
template <class T>
T* born(T* object, const char* kind) {
  fake().objects[object] = kind;
  return object;
}
bool alive(void* object);
template <class T>
CUresult bury(void* object) {
  if (!fake().objects.erase(object)) return CUDA_ERROR_INVALID_HANDLE;
  delete static_cast<T*>(object);
  return CUDA_SUCCESS;
}

// ---- running what is queued --------------------------------------------------------------------------------------

// Runs what is queued until that stream has nothing more, or that event has come.
CUresult synchronise(Stream* s);
CUresult synchronise(Event* e);
CUresult add(CUstream handle, Work work);
void run_graph(const Graph& graph);
// Whether [p, p + n) lies in one live allocation.
bool in_memory(CUdeviceptr p, size_t n);
// Whether [p, p + n) lies in one block that the host has locked.
bool is_page_locked(const void* p, size_t n);
Capture* capture_of(CUstream stream);
// The limits of grids and blocks, which all GPUs have in common (CUDA C++ programming guide, compute capabilities).
bool is_launchable(const CUlaunchConfig& c);

using Lock = std::lock_guard<std::recursive_mutex>;

}  // namespace effnet::fake
