#include "cuda/fake/fake_driver.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace effnet::fake {

thread_local CUcontext current_context = nullptr;

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

CUresult refuse(Capture& capture, CUresult why) {
  capture.broken = true;
  return why;
}

// Whether a call that may wait, or that works beside streams, breaks captures: those of this thread that are not
// relaxed, and others' that are global.
static bool breaks_captures() {
  bool any = false;
  for (const auto& capture : fake().captures) {
    const bool own = capture->thread == std::this_thread::get_id();
    if (own ? capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED : capture->mode != CU_STREAM_CAPTURE_MODE_GLOBAL)
      continue;
    any = capture->broken = true;
  }
  return any;
}

static CUresult context_missing() {
  if (!current_context) return CUDA_ERROR_INVALID_CONTEXT;
  return is_retained(current_context) ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

static bool works_before_start(std::string_view name) { return name == "cuInit" || name == "cuDriverGetVersion"; }

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

bool alive(void* object) { return fake().objects.count(object) > 0; }

// Of FAKE_CUDA_TIMES.
static double duration(const std::string& kernel) {
  const std::string times = "," + std::string(setting("FAKE_CUDA_TIMES", "")), entry = "," + kernel + "=";
  const size_t at = times.find(entry);
  return at == std::string::npos ? 1 : std::atof(times.c_str() + at + entry.size());
}

static void run(const Work& work) {
  if (!work.kernel.empty()) fake().clock += duration(work.kernel);
  if (work.from && sum_of(work.from, work.bytes) != work.sum && !fake().fault) {
    log_line("  page-locked memory was written while its copy was pending");
    fake().fault = CUDA_ERROR_LAUNCH_FAILED;
  }
  if (work.run) work.run();
}

static bool ready(const Stream& s) {
  return !s.queue.empty() && (!s.queue.front().wait || s.queue.front().wait->reached >= s.queue.front().version);
}

static void run_front(Stream& s) {
  Item item = std::move(s.queue.front());
  s.queue.pop_front();
  run(item.work);
  if (!item.record) return;
  item.record->reached = std::max(item.record->reached, item.version);
  item.record->at = fake().clock;
}

// The order asked for, whose choices begin anew where it changes.
static unsigned order_of(Fake& f) {
  const auto order = static_cast<unsigned>(std::atoi(setting("FAKE_CUDA_ORDER", "0")));
  if (f.order != order) f.random.seed(order);
  f.order = order;
  return order;
}

// Until `done`, in the order asked for. False when nothing can go on: streams wait for each other.
static bool run_until(Stream* wanted, const std::function<bool()>& done) {
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

static CUresult outcome(bool ran) {
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

bool in_memory(CUdeviceptr p, size_t n) {
  auto after = fake().memory.upper_bound(p);
  if (after == fake().memory.begin()) return false;
  --after;
  return p + n <= after->first + after->second;
}

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

bool is_launchable(const CUlaunchConfig& c) {
  const bool grid = c.gridDimX > 0 && c.gridDimX <= 0x7fffffff && c.gridDimY > 0 && c.gridDimY <= 65535 &&
                    c.gridDimZ > 0 && c.gridDimZ <= 65535;
  const uint64_t threads = uint64_t{c.blockDimX} * c.blockDimY * c.blockDimZ;
  return grid && threads > 0 && threads <= 1024 && c.blockDimX <= 1024 && c.blockDimY <= 1024 && c.blockDimZ <= 64;
}

}  // namespace effnet::fake
