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
//     it has asked for (shared memory, of which a GPU of FAKE_CUDA_CAPABILITY has its share): the call fails, in a
//     capture too.
//   - A call that works in a context wants one that is current on its thread (fake_driver.h, kContext); a
//     context that its last user has given back is gone.
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
//     first that it has), FAKE_CUDA_MEMORY (1000000000 bytes), FAKE_CUDA_CACHE (50000000, the L2) and
//     FAKE_CUDA_VERSION (13000).
//   - An allocation of a gigabyte and more is zeros that take no memory until they are written: plans of large batches
//     can be bound, if not run.
#include <sys/mman.h>
#include <unistd.h>

#include "cuda/fake/fake_driver.h"

using namespace effnet::fake;

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
