// A libcuda.so.1 without a GPU, for tests: it runs the package's own kernels through the emulation, so that whole
// captured steps run on a CPU, and it is stricter than a real driver about what may be seen when.
//
//   - Work is queued by stream and runs only when somebody waits for it, so whoever reads too early reads the past.
//     Streams are ordered by events alone; FAKE_CUDA_ORDER picks among the legal orders (0: the stream waited for first
//     and no more than it needs; n: a random order of everything queued, seeded by n).
//   - Host memory of an asynchronous copy is read when the copy runs. Page-locked memory that has changed since the
//     copy was asked for is a fault: whoever writes it must wait first. A graph asks for its copies when it is
//     launched.
//   - A capture records a graph with its dependencies. What its mode forbids to a thread (memory, and all that waits:
//     cuStreamBeginCapture), and in every mode to wait for a captured stream or event, breaks it.
//   - A capture takes copies from and to page-locked memory alone. FAKE_CUDA_LOCKABLE is how much of that the host has,
//     bytes; without it there is no end.
//   - A launch keeps to the limits of grids and blocks, what the kernel was compiled for (threads of a block) and what
//   it
//     has asked for (shared memory, of which a GPU of FAKE_CUDA_CAPABILITY has its share): the call fails, in a capture
//     too.
//   - A call that works in a context wants one that is current on its thread (kAnywhere, kContext below); a context
//   that
//     its last user has given back is gone.
//   - Streams are non-blocking: any other would wait for what libraries do on the default stream.
//   - Kernels are loaded when they are asked for, as by default: what is compiled for other GPUs shows at
//     cuKernelGetFunction.
//   - Fresh device memory is 0xff: NaN. Using freed objects is an error; fake_cuda_live() counts what is left.
//   - Between two events lies 0.5 ms, or with FAKE_CUDA_TIMES=kernel=ms,kernel=ms what the kernels took that ran
//     meanwhile: 1 ms where one is not listed. A library's are called by what it queues.
//   - FAKE_CUDA_FAIL=name:nth:code makes the nth call of a function fail; codes of device faults (700 and above) stick:
//     every later call fails too, unless it is name:nth:code:once. With code -1 it does not come back, while other
//     threads' calls do. FAKE_CUDA_IGNORE=name makes calls of cuStreamSynchronize, cuEventSynchronize,
//     cuStreamWaitEvent or cuCtxSetCurrent do nothing: what a program does that lacks them. FAKE_CUDA_LOG=file gets a
//     line a call.
//   - FAKE_CUDA_LAUNCHES=file: launches are not run, only written there, a line each: kernel, grid, threads of a block,
//     bytes of its shared memory, its argument in hex.
//   - The machine: FAKE_CUDA_DEVICES (1 GPU), FAKE_CUDA_CAPABILITY (90, or of a build without kernels for that the
//   first
//     that it has), FAKE_CUDA_MEMORY (1000000000 bytes), FAKE_CUDA_CACHE (50000000, the L2) and FAKE_CUDA_VERSION
//     (13000).
//   - An allocation of a gigabyte and more is zeros that take no memory until they are written: plans of large batches
//     can be bound, if not run.
#include <cuda.h>
#include <sys/mman.h>
#include <unistd.h>

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

namespace {

using effnet::cuda::Launch;
namespace emulation = effnet::cuda::emulation;
using effnet::fake::has_code_for;
using effnet::fake::Library;
using effnet::fake::library_of;
using effnet::fake::most_shared;
using effnet::fake::NamedKernel;

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

constexpr size_t kReserved = 1 << 30;  // as large an allocation takes no memory by itself

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

Fake& fake() {
  static Fake* const one = new Fake;
  return *one;
}

const char* setting(const char* name, const char* fallback) {
  const char* value = std::getenv(name);
  return value ? value : fallback;
}

void log_line(const std::string& line) {
  static FILE* const file = std::getenv("FAKE_CUDA_LOG") ? std::fopen(std::getenv("FAKE_CUDA_LOG"), "a") : nullptr;
  if (!file) return;
  std::fprintf(file, "%s\n", line.c_str());
  std::fflush(file);
}

// Whether a launch is to be written down instead of being run.
bool noted(const Launch& launch) {
  const char* path = std::getenv("FAKE_CUDA_LAUNCHES");
  FILE* const file = path ? std::fopen(path, "a") : nullptr;
  if (!file) return false;
  std::fprintf(file, "launch %s %u %u %u %u %u ", launch.kernel.c_str(), launch.grid.x, launch.grid.y, launch.grid.z,
               launch.threads, launch.shared_bytes);
  for (const std::byte b : launch.args) std::fprintf(file, "%02x", static_cast<unsigned>(b));
  std::fprintf(file, "\n");
  return std::fclose(file) == 0;
}

bool ignored(const char* name) { return std::string(setting("FAKE_CUDA_IGNORE", "")) == name; }

uint64_t sum_of(const void* data, size_t bytes) {
  uint64_t sum = 1469598103934665603u;
  for (size_t i = 0; i < bytes; ++i) sum = (sum ^ static_cast<const unsigned char*>(data)[i]) * 1099511628211u;
  return sum;
}

int capability() { return std::atoi(setting("FAKE_CUDA_CAPABILITY", FAKE_CAPABILITY)); }

// Whether a library that is loaded has code of it for this GPU.
bool has_code(CUkernel kernel) {
  return std::any_of(fake().libraries.begin(), fake().libraries.end(), [kernel](const Library* library) {
    return std::find(library->kernels.begin(), library->kernels.end(), kernel) != library->kernels.end() &&
           has_code_for(library->image, capability());
  });
}

bool is_retained(CUcontext context) {
  for (const auto& use : fake().retained)
    if (reinterpret_cast<CUcontext>(const_cast<int*>(&use.second)) == context) return use.second > 0;
  return false;
}

// Breaks a capture that what is being done has no place in.
CUresult refuse(Capture& capture, CUresult why) {
  capture.broken = true;
  return why;
}

// Whether a call that may wait, or that works beside streams, breaks captures: those of this thread that are not
// relaxed, and others' that are global.
bool breaks_captures() {
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
thread_local CUcontext current_context = nullptr;

CUresult context_missing() {
  if (!current_context) return CUDA_ERROR_INVALID_CONTEXT;
  return is_retained(current_context) ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

bool works_before_start(std::string_view name) { return name == "cuInit" || name == "cuDriverGetVersion"; }

// At the head of every function.
CUresult enter(const char* name, Where where) {
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
bool alive(void* object) { return fake().objects.count(object) > 0; }
template <class T>
CUresult bury(void* object) {
  if (!fake().objects.erase(object)) return CUDA_ERROR_INVALID_HANDLE;
  delete static_cast<T*>(object);
  return CUDA_SUCCESS;
}

// ---- running what is queued --------------------------------------------------------------------------------------

// Of FAKE_CUDA_TIMES.
double duration(const std::string& kernel) {
  const std::string times = "," + std::string(setting("FAKE_CUDA_TIMES", "")), entry = "," + kernel + "=";
  const size_t at = times.find(entry);
  return at == std::string::npos ? 1 : std::atof(times.c_str() + at + entry.size());
}

void run(const Work& work) {
  if (!work.kernel.empty()) fake().clock += duration(work.kernel);
  if (work.from && sum_of(work.from, work.bytes) != work.sum && !fake().fault) {
    log_line("  page-locked memory was written while its copy was pending");
    fake().fault = CUDA_ERROR_LAUNCH_FAILED;
  }
  if (work.run) work.run();
}

bool ready(const Stream& s) {
  return !s.queue.empty() && (!s.queue.front().wait || s.queue.front().wait->reached >= s.queue.front().version);
}

void run_front(Stream& s) {
  Item item = std::move(s.queue.front());
  s.queue.pop_front();
  run(item.work);
  if (!item.record) return;
  item.record->reached = std::max(item.record->reached, item.version);
  item.record->at = fake().clock;
}

// The order asked for, whose choices begin anew where it changes.
unsigned order_of(Fake& f) {
  const auto order = static_cast<unsigned>(std::atoi(setting("FAKE_CUDA_ORDER", "0")));
  if (f.order != order) f.random.seed(order);
  f.order = order;
  return order;
}

// Until `done`, in the order asked for. False when nothing can go on: streams wait for each other.
bool run_until(Stream* wanted, const std::function<bool()>& done) {
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

CUresult outcome(bool ran) {
  if (fake().fault) return static_cast<CUresult>(fake().fault);
  return ran ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
}

CUresult synchronise(Stream* s) {
  return outcome(run_until(s, [s] { return s->queue.empty(); }));
}

CUresult synchronise(Event* e) {
  Stream* recorded_on = nullptr;
  for (Stream* s : fake().streams)
    for (const Item& item : s->queue)
      if (item.record == e) recorded_on = s;
  return outcome(run_until(recorded_on, [e] { return e->reached >= e->recorded; }));
}

CUresult add(CUstream handle, Work work) {
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

void run_graph(const Graph& graph) {
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
bool in_memory(CUdeviceptr p, size_t n) {
  auto after = fake().memory.upper_bound(p);
  if (after == fake().memory.begin()) return false;
  --after;
  return p + n <= after->first + after->second;
}

// Whether [p, p + n) lies in one block that the host has locked.
bool is_page_locked(const void* p, size_t n) {
  const auto after = fake().page_locked.upper_bound(p);
  if (after == fake().page_locked.begin()) return false;
  const auto& [start, size] = *std::prev(after);
  return static_cast<const std::byte*>(p) + n <= static_cast<const std::byte*>(start) + size;
}

Capture* capture_of(CUstream stream) {
  auto* s = reinterpret_cast<Stream*>(stream);
  return alive(s) ? s->capture.get() : nullptr;
}

// The limits of grids and blocks, which all GPUs have in common (CUDA C++ programming guide, compute capabilities).
bool is_launchable(const CUlaunchConfig& c) {
  const bool grid = c.gridDimX > 0 && c.gridDimX <= 0x7fffffff && c.gridDimY > 0 && c.gridDimY <= 65535 &&
                    c.gridDimZ > 0 && c.gridDimZ <= 65535;
  const uint64_t threads = uint64_t{c.blockDimX} * c.blockDimY * c.blockDimZ;
  return grid && threads > 0 && threads <= 1024 && c.blockDimX <= 1024 && c.blockDimY <= 1024 && c.blockDimZ <= 64;
}

using Lock = std::lock_guard<std::recursive_mutex>;

}  // namespace

#define EFF_TEXT_OF(x) #x
#define EFF_TEXT(x) EFF_TEXT_OF(x)
#define EFF_FAKE(name, ...) EFF_EXPORT CUresult CUDAAPI name(__VA_ARGS__)
#define EFF_ENTER(name, where)   \
  const Lock lock(fake().mutex); \
  if (const CUresult failed = enter(#name, where)) return failed;

EFF_FAKE(cuInit, unsigned) {
  EFF_ENTER(cuInit, kAnywhere)
  fake().started = std::atoi(setting("FAKE_CUDA_DEVICES", "1")) > 0;
  return fake().started ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}
EFF_FAKE(cuDriverGetVersion, int* version) {
  EFF_ENTER(cuDriverGetVersion, kAnywhere)
  *version = std::atoi(setting("FAKE_CUDA_VERSION", "13000"));
  return CUDA_SUCCESS;
}
EFF_FAKE(cuGetErrorName, CUresult, const char** name) {
  *name = "CUDA_ERROR_FAKE";
  return CUDA_SUCCESS;
}
EFF_FAKE(cuGetErrorString, CUresult, const char** text) {
  *text = "injected by the fake driver";
  return CUDA_SUCCESS;
}
EFF_FAKE(cuDeviceGetCount, int* count) {
  EFF_ENTER(cuDeviceGetCount, kAnywhere)
  *count = std::atoi(setting("FAKE_CUDA_DEVICES", "1"));
  return CUDA_SUCCESS;
}
EFF_FAKE(cuDeviceGet, CUdevice* device, int ordinal) {
  EFF_ENTER(cuDeviceGet, kAnywhere)
  if (ordinal < 0 || ordinal >= std::atoi(setting("FAKE_CUDA_DEVICES", "1"))) return CUDA_ERROR_INVALID_DEVICE;
  *device = ordinal;
  return CUDA_SUCCESS;
}
EFF_FAKE(cuDeviceGetName, char* name, int bytes, CUdevice) {
  EFF_ENTER(cuDeviceGetName, kAnywhere)
  std::snprintf(name, static_cast<size_t>(bytes), "Fake H200");
  return CUDA_SUCCESS;
}
EFF_FAKE(cuDeviceGetAttribute, int* value, CUdevice_attribute attribute, CUdevice) {
  EFF_ENTER(cuDeviceGetAttribute, kAnywhere)
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
      *value = capability() / 10;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
      *value = capability() % 10;
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      *value = most_shared(capability());
      return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE:
      *value = std::atoi(setting("FAKE_CUDA_CACHE", "50000000"));
      return CUDA_SUCCESS;
    default:
      return CUDA_ERROR_INVALID_VALUE;  // nothing is known of it here
  }
}
EFF_FAKE(cuDeviceTotalMem, size_t* bytes, CUdevice) {
  EFF_ENTER(cuDeviceTotalMem, kAnywhere)
  *bytes = static_cast<size_t>(std::atoll(setting("FAKE_CUDA_MEMORY", "1000000000")));
  return CUDA_SUCCESS;
}
EFF_FAKE(cuDevicePrimaryCtxRetain, CUcontext* context, CUdevice device) {
  EFF_ENTER(cuDevicePrimaryCtxRetain, kAnywhere)
  log_line("  device " + std::to_string(device));
  int& uses = fake().retained[device];
  ++uses;
  *context = reinterpret_cast<CUcontext>(&uses);
  return CUDA_SUCCESS;
}
EFF_FAKE(cuDevicePrimaryCtxRelease, CUdevice device) {
  EFF_ENTER(cuDevicePrimaryCtxRelease, kAnywhere)
  int& uses = fake().retained[device];
  if (uses == 0) return CUDA_ERROR_INVALID_CONTEXT;
  --uses;
  return CUDA_SUCCESS;
}
EFF_FAKE(cuCtxSetCurrent, CUcontext context) {
  EFF_ENTER(cuCtxSetCurrent, kAnywhere)
  if (context && !is_retained(context)) return CUDA_ERROR_INVALID_CONTEXT;
  if (!ignored("cuCtxSetCurrent")) current_context = context;
  return CUDA_SUCCESS;
}
EFF_FAKE(cuMemGetInfo, size_t* free, size_t* total) {
  EFF_ENTER(cuMemGetInfo, kUnsafe)
  *total = static_cast<size_t>(std::atoll(setting("FAKE_CUDA_MEMORY", "1000000000")));
  *free = *total - fake().used;
  return CUDA_SUCCESS;
}
EFF_FAKE(cuMemAlloc, CUdeviceptr* address, size_t bytes) {
  EFF_ENTER(cuMemAlloc, kUnsafe)
  Fake& f = fake();
  if (f.used + bytes > static_cast<size_t>(std::atoll(setting("FAKE_CUDA_MEMORY", "1000000000"))))
    return CUDA_ERROR_OUT_OF_MEMORY;
  const bool reserved = bytes >= kReserved;
  void* data = reserved
                   ? mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
                   : std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!data || data == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  if (!reserved) std::memset(data, 0xff, bytes);
  *address = reinterpret_cast<CUdeviceptr>(data);
  log_line("  " + std::to_string(bytes) + " bytes");
  f.memory[*address] = bytes;
  f.used += bytes;
  return CUDA_SUCCESS;
}
EFF_FAKE(cuMemFree, CUdeviceptr address) {
  EFF_ENTER(cuMemFree, kUnsafe)
  Fake& f = fake();
  const auto found = f.memory.find(address);
  if (found == f.memory.end()) return CUDA_ERROR_INVALID_VALUE;
  for (Stream* s : f.streams) synchronise(s);  // as the driver does
  const size_t bytes = found->second;
  f.used -= bytes;
  f.memory.erase(found);
  if (bytes >= kReserved)
    munmap(reinterpret_cast<void*>(address), bytes);
  else
    std::free(reinterpret_cast<void*>(address));
  return CUDA_SUCCESS;
}
EFF_FAKE(cuMemHostAlloc, void** data, size_t bytes, unsigned) {
  EFF_ENTER(cuMemHostAlloc, kUnsafe)
  if (const char* lockable = std::getenv("FAKE_CUDA_LOCKABLE")) {
    size_t locked = bytes;
    for (const auto& [block, size] : fake().page_locked) locked += size;
    if (locked > std::strtoull(lockable, nullptr, 10)) return CUDA_ERROR_OUT_OF_MEMORY;
  }
  *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!*data) return CUDA_ERROR_OUT_OF_MEMORY;
  fake().objects[*data] = "page-locked memory";
  fake().page_locked[*data] = bytes;
  return CUDA_SUCCESS;
}
EFF_FAKE(cuMemFreeHost, void* data) {
  EFF_ENTER(cuMemFreeHost, kUnsafe)
  if (!fake().objects.erase(data)) return CUDA_ERROR_INVALID_VALUE;
  for (Stream* s : fake().streams) synchronise(s);
  fake().page_locked.erase(data);
  std::free(data);
  return CUDA_SUCCESS;
}
EFF_FAKE(cuMemcpyHtoDAsync, CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  EFF_ENTER(cuMemcpyHtoDAsync, kContext)
  if (!in_memory(to, bytes)) return CUDA_ERROR_INVALID_VALUE;
  Work work{[=] { std::memcpy(reinterpret_cast<void*>(to), from, bytes); }};
  if (is_page_locked(from, bytes)) {
    work.from = from;
    work.bytes = bytes;
    work.sum = sum_of(from, bytes);
  } else if (Capture* capture = capture_of(stream)) {
    return refuse(*capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  }
  return add(stream, std::move(work));
}
EFF_FAKE(cuMemcpyDtoHAsync, void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  EFF_ENTER(cuMemcpyDtoHAsync, kContext)
  if (!in_memory(from, bytes)) return CUDA_ERROR_INVALID_VALUE;
  if (Capture* capture = capture_of(stream); capture && !is_page_locked(to, bytes))
    return refuse(*capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  return add(stream, {[=] { std::memcpy(to, reinterpret_cast<void*>(from), bytes); }});
}
EFF_FAKE(cuMemcpyDtoDAsync, CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  EFF_ENTER(cuMemcpyDtoDAsync, kContext)
  if (!in_memory(from, bytes) || !in_memory(to, bytes)) return CUDA_ERROR_INVALID_VALUE;
  return add(stream, {[=] { std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); }});
}
EFF_FAKE(cuMemsetD8Async, CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
  EFF_ENTER(cuMemsetD8Async, kContext)
  if (!in_memory(to, bytes)) return CUDA_ERROR_INVALID_VALUE;
  return add(stream, {[=] {
               void* const data = reinterpret_cast<void*>(to);
               if (value == 0 && fake().memory.count(to) && bytes >= kReserved)
                 madvise(data, bytes, MADV_DONTNEED);  // zeros again
               else
                 std::memset(data, value, bytes);
             }});
}
EFF_FAKE(cuStreamCreateWithPriority, CUstream* stream, unsigned flags, int) {
  EFF_ENTER(cuStreamCreateWithPriority, kContext)
  if (flags != CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
  auto* s = born(new Stream, "stream");
  fake().streams.insert(s);
  *stream = reinterpret_cast<CUstream>(s);
  return CUDA_SUCCESS;
}
EFF_FAKE(cuStreamDestroy, CUstream stream) {
  EFF_ENTER(cuStreamDestroy, kContext)
  auto* s = reinterpret_cast<Stream*>(stream);
  if (!alive(s)) return CUDA_ERROR_INVALID_HANDLE;
  synchronise(s);
  fake().streams.erase(s);
  return bury<Stream>(s);
}
EFF_FAKE(cuStreamSynchronize, CUstream stream) {
  EFF_ENTER(cuStreamSynchronize, kUnsafe)
  if (stream == CU_STREAM_LEGACY) return CUDA_SUCCESS;  // nobody queues anything there
  auto* s = reinterpret_cast<Stream*>(stream);
  if (!alive(s)) return CUDA_ERROR_INVALID_HANDLE;
  if (s->capture) return refuse(*s->capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  return ignored("cuStreamSynchronize") ? CUDA_SUCCESS : synchronise(s);
}
EFF_FAKE(cuStreamIsCapturing, CUstream stream, CUstreamCaptureStatus* status) {
  EFF_ENTER(cuStreamIsCapturing, kContext)
  auto* s = reinterpret_cast<Stream*>(stream);
  if (!alive(s)) return CUDA_ERROR_INVALID_HANDLE;
  *status = !s->capture          ? CU_STREAM_CAPTURE_STATUS_NONE
            : s->capture->broken ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                 : CU_STREAM_CAPTURE_STATUS_ACTIVE;
  return CUDA_SUCCESS;
}
EFF_FAKE(cuEventCreate, CUevent* event, unsigned flags) {
  EFF_ENTER(cuEventCreate, kContext)
  if (flags & ~unsigned{CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING}) return CUDA_ERROR_INVALID_VALUE;
  auto* e = born(new Event, "event");
  e->timed = !(flags & CU_EVENT_DISABLE_TIMING);
  *event = reinterpret_cast<CUevent>(e);
  return CUDA_SUCCESS;
}
EFF_FAKE(cuEventDestroy, CUevent event) {
  EFF_ENTER(cuEventDestroy, kContext)
  auto* e = reinterpret_cast<Event*>(event);
  if (!alive(e)) return CUDA_ERROR_INVALID_HANDLE;
  for (Stream* s : fake().streams) synchronise(s);
  return bury<Event>(e);
}
EFF_FAKE(cuEventRecord, CUevent event, CUstream stream) {
  EFF_ENTER(cuEventRecord, kContext)
  auto* e = reinterpret_cast<Event*>(event);
  auto* s = reinterpret_cast<Stream*>(stream);
  if (!alive(e) || !alive(s)) return CUDA_ERROR_INVALID_HANDLE;
  e->capture = s->capture;
  e->nodes = s->tail;
  if (!s->capture) s->queue.push_back({{}, e, nullptr, ++e->recorded});
  return CUDA_SUCCESS;
}
EFF_FAKE(cuStreamWaitEvent, CUstream stream, CUevent event, unsigned) {
  EFF_ENTER(cuStreamWaitEvent, kContext)
  if (ignored("cuStreamWaitEvent")) return CUDA_SUCCESS;
  auto* e = reinterpret_cast<Event*>(event);
  auto* s = reinterpret_cast<Stream*>(stream);
  if (!alive(e) || !alive(s)) return CUDA_ERROR_INVALID_HANDLE;
  if (e->capture && e->capture->ended) return CUDA_ERROR_CAPTURED_EVENT;
  if (e->capture) {  // a stream that waits for a captured event joins the capture
    if (!s->capture) {
      if (!s->queue.empty()) return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
      s->capture = e->capture;
      s->tail.clear();
    }
    s->tail.insert(s->tail.end(), e->nodes.begin(), e->nodes.end());
    return CUDA_SUCCESS;
  }
  if (s->capture) return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
  s->queue.push_back({{}, nullptr, e, e->recorded});
  return CUDA_SUCCESS;
}
EFF_FAKE(cuEventSynchronize, CUevent event) {
  EFF_ENTER(cuEventSynchronize, kUnsafe)
  auto* e = reinterpret_cast<Event*>(event);
  if (!alive(e)) return CUDA_ERROR_INVALID_HANDLE;
  if (e->capture) return refuse(*e->capture, CUDA_ERROR_CAPTURED_EVENT);
  return ignored("cuEventSynchronize") ? CUDA_SUCCESS : synchronise(e);
}
EFF_FAKE(cuEventElapsedTime, float* ms, CUevent from, CUevent to) {
  EFF_ENTER(cuEventElapsedTime, kContext)
  auto *a = reinterpret_cast<Event*>(from), *b = reinterpret_cast<Event*>(to);
  if (!alive(a) || !alive(b)) return CUDA_ERROR_INVALID_HANDLE;
  if (!a->timed || !b->timed || a->recorded == 0 || b->recorded == 0) return CUDA_ERROR_INVALID_HANDLE;
  if (a->reached < a->recorded || b->reached < b->recorded) return CUDA_ERROR_NOT_READY;
  *ms = std::getenv("FAKE_CUDA_TIMES") ? static_cast<float>(b->at - a->at) : 0.5f;
  return CUDA_SUCCESS;
}
EFF_FAKE(cuLibraryLoadData, CUlibrary* library, const void* image, CUjit_option*, void**, unsigned, CUlibraryOption*,
         void**, unsigned) {
  EFF_ENTER(cuLibraryLoadData, kAnywhere)
  if (*static_cast<const unsigned*>(image) != 0xBA55ED50u) return CUDA_ERROR_INVALID_IMAGE;  // of a fat binary
  auto* loaded = born(new Library(library_of(static_cast<const char*>(image))), "library");
  fake().libraries.insert(loaded);
  *library = reinterpret_cast<CUlibrary>(loaded);
  return CUDA_SUCCESS;
}
EFF_FAKE(cuLibraryUnload, CUlibrary library) {
  EFF_ENTER(cuLibraryUnload, kAnywhere)
  fake().libraries.erase(reinterpret_cast<Library*>(library));
  return bury<Library>(library);
}
EFF_FAKE(cuLibraryGetKernelCount, unsigned* count, CUlibrary library) {
  EFF_ENTER(cuLibraryGetKernelCount, kAnywhere)
  if (!alive(library)) return CUDA_ERROR_INVALID_HANDLE;
  *count = static_cast<unsigned>(reinterpret_cast<Library*>(library)->kernels.size());
  return CUDA_SUCCESS;
}
EFF_FAKE(cuLibraryEnumerateKernels, CUkernel* kernels, unsigned most, CUlibrary library) {
  EFF_ENTER(cuLibraryEnumerateKernels, kAnywhere)
  if (!alive(library)) return CUDA_ERROR_INVALID_HANDLE;
  const auto& all = reinterpret_cast<Library*>(library)->kernels;
  std::copy_n(all.begin(), std::min<size_t>(most, all.size()), kernels);
  return CUDA_SUCCESS;
}
EFF_FAKE(cuKernelGetName, const char** name, CUkernel kernel) {
  EFF_ENTER(cuKernelGetName, kAnywhere)
  *name = reinterpret_cast<const NamedKernel*>(kernel)->first.c_str();
  return CUDA_SUCCESS;
}
EFF_FAKE(cuKernelGetFunction, CUfunction* function, CUkernel kernel) {
  EFF_ENTER(cuKernelGetFunction, kContext)
  if (!has_code(kernel)) return CUDA_ERROR_NO_BINARY_FOR_GPU;
  *function = reinterpret_cast<CUfunction>(kernel);
  return CUDA_SUCCESS;
}
EFF_FAKE(cuFuncSetAttribute, CUfunction function, CUfunction_attribute attribute, int value) {
  EFF_ENTER(cuFuncSetAttribute, kContext)
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 || value > most_shared(capability()))
    return CUDA_ERROR_INVALID_VALUE;
  fake().shared_allowed[function] = value;
  return CUDA_SUCCESS;
}
EFF_FAKE(cuLaunchKernelEx, const CUlaunchConfig* config, CUfunction function, void** parameters, void**) {
  EFF_ENTER(cuLaunchKernelEx, kContext)
  const auto* entry = reinterpret_cast<const NamedKernel*>(function);
  const auto allowed = fake().shared_allowed.find(function);
  const int most = allowed == fake().shared_allowed.end() ? 48 << 10 : allowed->second;
  if (!is_launchable(*config) || config->sharedMemBytes > static_cast<unsigned>(most)) return CUDA_ERROR_INVALID_VALUE;
  if (config->blockDimX * config->blockDimY * config->blockDimZ > entry->second.threads)
    return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
  Launch launch{entry->first,
                {config->gridDimX, config->gridDimY, config->gridDimZ},
                config->blockDimX,
                config->sharedMemBytes,
                {}};
  const auto* args = static_cast<const std::byte*>(parameters[0]);
  launch.args.assign(args, args + entry->second.args_bytes);  // parameters are copied at the call
  log_line("  " + launch.kernel);
  if (noted(launch)) return CUDA_SUCCESS;
  return add(config->hStream, {[launch] {
                                 const unsigned order =
                                     static_cast<unsigned>(std::atoi(setting("FAKE_CUDA_ORDER", "0")));
                                 if (const char* problem = emulation::run(launch, order % 8)) emulation::fail(problem);
                               },
                               launch.kernel});
}
EFF_FAKE(cuStreamBeginCapture, CUstream stream, CUstreamCaptureMode mode) {
  EFF_ENTER(cuStreamBeginCapture, kContext)
  auto* s = reinterpret_cast<Stream*>(stream);
  if (!alive(s)) return CUDA_ERROR_INVALID_HANDLE;
  if (s->capture) return CUDA_ERROR_ILLEGAL_STATE;
  s->capture = std::make_shared<Capture>(Capture{mode, std::this_thread::get_id()});
  s->origin = true;
  s->tail.clear();
  fake().captures.insert(s->capture);
  return CUDA_SUCCESS;
}
EFF_FAKE(cuStreamEndCapture, CUstream stream, CUgraph* graph) {
  const Lock lock(fake().mutex);
  const CUresult failed = enter("cuStreamEndCapture", kContext);  // it ends the capture also where it fails
  auto* s = reinterpret_cast<Stream*>(stream);
  if (!alive(s) || !s->capture || !s->origin) return CUDA_ERROR_ILLEGAL_STATE;
  const std::shared_ptr<Capture> capture = s->capture;
  if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != std::this_thread::get_id())
    return refuse(*capture, CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
  // Every stream that joined must have been joined back: its last node is one that the origin's last nodes need.
  std::set<size_t> needed(s->tail.begin(), s->tail.end());
  for (std::vector<size_t> pending(s->tail); !pending.empty();) {
    const size_t node = pending.back();
    pending.pop_back();
    for (const size_t before : capture->graph->nodes[node].after)
      if (needed.insert(before).second) pending.push_back(before);
  }
  bool unjoined = false;
  for (Stream* other : fake().streams) {
    if (other->capture != capture) continue;
    for (const size_t node : other->tail) unjoined |= !needed.count(node);
    other->capture.reset();
    other->tail.clear();
  }
  s->origin = false;
  capture->ended = true;
  fake().captures.erase(capture);
  *graph = nullptr;
  if (failed) return failed;
  if (capture->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (unjoined) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
  *graph = reinterpret_cast<CUgraph>(born(new Graph(*capture->graph), "graph"));
  return CUDA_SUCCESS;
}
EFF_FAKE(cuGraphInstantiateWithFlags, CUgraphExec* executable, CUgraph graph, unsigned long long) {
  EFF_ENTER(cuGraphInstantiateWithFlags, kContext)
  if (!alive(graph)) return CUDA_ERROR_INVALID_HANDLE;
  *executable = reinterpret_cast<CUgraphExec>(born(new Graph(*reinterpret_cast<Graph*>(graph)), "executable graph"));
  return CUDA_SUCCESS;
}
EFF_FAKE(cuGraphLaunch, CUgraphExec executable, CUstream stream) {
  EFF_ENTER(cuGraphLaunch, kContext)
  if (!alive(executable)) return CUDA_ERROR_INVALID_HANDLE;
  const auto graph = std::make_shared<Graph>(*reinterpret_cast<Graph*>(executable));
  for (Graph::Node& node : graph->nodes)
    if (node.work.from) node.work.sum = sum_of(node.work.from, node.work.bytes);
  return add(stream, {[graph] { run_graph(*graph); }});
}
EFF_FAKE(cuGraphExecDestroy, CUgraphExec executable) {
  EFF_ENTER(cuGraphExecDestroy, kContext)
  return bury<Graph>(executable);
}
EFF_FAKE(cuGraphDestroy, CUgraph graph) {
  EFF_ENTER(cuGraphDestroy, kContext)
  return bury<Graph>(graph);
}

// For the other fake libraries: they queue their work on a stream, as the real ones do. As a kernel of that name, which
// takes its time (FAKE_CUDA_TIMES).
EFF_EXPORT int fake_cuda_queue_kernel(CUstream stream, const char* kernel, const std::function<void()>& work) {
  EFF_ENTER(fake_cuda_queue_kernel, kContext)
  log_line("  " + std::string(kernel));
  return add(stream, {work, kernel});
}

// Likewise, of engines that do not wait for what a stream still has to do.
EFF_EXPORT int fake_cuda_run_at_once(const std::function<void()>& work) {
  EFF_ENTER(fake_cuda_run_at_once, kContext)
  work();
  return CUDA_SUCCESS;
}

// For the tests: a fault is over, calls are counted from 0 again.
EFF_EXPORT void fake_cuda_reset() {
  const Lock lock(fake().mutex);
  fake().calls.reset();
  fake().fault = 0;
  fake().order.reset();
}

EFF_EXPORT int fake_cuda_calls(const char* name) {
  const Lock lock(fake().mutex);
  return fake().calls.count(name);
}

// Objects and blocks of memory that are still there.
EFF_EXPORT int fake_cuda_live() {
  const Lock lock(fake().mutex);
  return static_cast<int>(fake().objects.size() + fake().memory.size());
}

// Of device memory, in use.
EFF_EXPORT size_t fake_cuda_bytes() {
  const Lock lock(fake().mutex);
  return fake().used;
}
