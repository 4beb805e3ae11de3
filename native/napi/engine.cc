// Pools, memories, executables and steps for JavaScript.
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <shared_mutex>
#include <system_error>

#include "cpu/cpu_info.h"
#include "cpu/fill_random.h"
#include "cpu/kernels/dispatch.h"
#include "cpu/onednn/adapter.h"
#include "io/task_pool.h"
#include "napi/backends.h"
#include "napi/handles.h"
#include "napi/io_values.h"

namespace effnet::napi {

std::atomic<uint64_t> g_live_handles{0};

const napi_type_tag DeviceHandle::kTag = {0x3f5d81c2a7e94b60, 0xa1c47e9032bd58f6};
const napi_type_tag PoolHandle::kTag = {0x6a1f0c5b9d2e4487, 0x8f3b1c6e7a905d21};
const napi_type_tag MemoryHandle::kTag = {0x2c9e7f4410b84d6a, 0x93d5a8e6f17c0b42};
const napi_type_tag ExecutableHandle::kTag = {0xb07d3a92e5c14f18, 0x4e6a9b2d8c031f75};
const napi_type_tag BatchHandle::kTag = {0x51c8e2f7a96b4d03, 0xd2407b9f3e8a1c66};

namespace {

[[noreturn]] void throw_closed(Napi::Env env, const char* kind) {
  throw_status(env, error(Code::closed, "the %s has been closed", kind));
}

std::shared_ptr<Executable> open_executable(const Napi::CallbackInfo& info, size_t index) {
  const auto& handle = get_handle<ExecutableHandle>(info, index);
  if (!handle->executable) throw_closed(info.Env(), "executable");
  return handle->executable;
}

plan::Arena get_arena(const Napi::CallbackInfo& info, size_t index, const char* what) {
  return static_cast<plan::Arena>(
      get_number(info.Env(), info[index], what, 0, static_cast<int>(plan::Arena::activations)));
}

uint64_t get_offset(const Napi::CallbackInfo& info, size_t index) {
  return static_cast<uint64_t>(get_number(info.Env(), info[index], "offset", 0, 9e15));
}

Napi::Value cpu_info(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const cpu::CpuInfo cpu = cpu::cpu_info();
  const char* unsupported = cpu::unsupported_cpu_reason();
  Napi::Object object = Napi::Object::New(env);
  object.Set("model", cpu.model);
  object.Set("isa", unsupported ? "none" : cpu::isa_name());
  object.Set("unsupported", unsupported ? Napi::Value(Napi::String::New(env, unsupported)) : env.Null());
  // What is in force: EFFNET_MAX_ISA and oneDNN's own limit take capabilities away.
  const std::string onednn_isa = onednn::effective_isa();
  const auto allows = [&](const char* set) { return onednn_isa.find(set) != std::string::npos; };
  object.Set("onednnIsa", onednn_isa);
  object.Set("avx2", cpu.avx2);
  object.Set("avx512", cpu.avx512);
  object.Set("avx512Bf16", cpu.avx512_bf16 && (allows("bf16") || allows("fp16") || allows("amx")));
  object.Set("amxBf16", cpu.amx_bf16 && allows("amx"));
  object.Set("cpus", cpu.cpus);
  object.Set("memoryBytes", static_cast<double>(cpu.memory_bytes));
  return object;
}

// Opening a GPU takes seconds where its driver has been asleep.
Napi::Value open_device(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const std::string device = get_string(env, info[0], "device");
  const Completion completion = Completion::create(env);
  io::run_task([completion, device] {
    auto backend = caught([&] { return open_backend(device); });
    if (!backend.ok()) return completion.reject(backend.status());
    completion.resolve([backend = std::move(backend.value())](Napi::Env e) {
      auto handle = std::make_shared<DeviceHandle>(e);
      handle->backend = backend;
      return make_handle(e, std::move(handle));
    });
  });
  return completion.promise();
}

Napi::Value device_info(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto& backend = get_handle<DeviceHandle>(info, 0)->backend;
  const auto available = backend->available_bytes();
  check(env, available.status());
  Napi::Object object = Napi::Object::New(env);
  object.Set("name", backend->name());
  object.Set("availableBytes", static_cast<double>(available.value()));
  object.Set("totalBytes", static_cast<double>(backend->total_bytes()));
  return object;
}

Napi::Value unlocked_bytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(),
                           static_cast<double>(get_handle<DeviceHandle>(info, 0)->backend->unlocked_bytes()));
}

// Arguments: device, bytes. A zeroed Uint8Array that the device's steps read where it lies.
Napi::Value page_locked(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto& backend = get_handle<DeviceHandle>(info, 0)->backend;
  const auto bytes = static_cast<size_t>(get_number(env, info[1], "bytes", 1, 4294967296.0));
  auto memory = backend->page_locked(bytes);
  check(env, memory.status());
  if (!memory.value()) return Napi::Uint8Array::New(env, bytes);
  auto block = std::make_unique<Block>(Block::adopt(std::move(memory.value()), bytes, Block::Kind::batch));
  const auto release = [](napi_env, void*, void* hint) { delete static_cast<Block*>(hint); };
  napi_value buffer;
  const napi_status status = napi_create_external_arraybuffer(env, block->data(), bytes, release, block.get(), &buffer);
  if (status != napi_ok) return Napi::Uint8Array::New(env, bytes);  // napi_no_external_buffers_allowed
  block.release();
  return Napi::Uint8Array::New(env, bytes, Napi::ArrayBuffer(env, buffer), 0);
}

Napi::Value cuda_object(Napi::Env env, const CudaDescription& cuda) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("library", cuda.library);
  object.Set("unavailable", cuda.status.ok() ? env.Null() : Napi::Value(Napi::String::New(env, cuda.status.message())));
  object.Set("architectures", cuda.facts.architectures);
  object.Set("cudnn", cuda.facts.cudnn);
  object.Set("driverPath", cuda.facts.driver_path);
  object.Set("driverVersion", cuda.facts.driver_version);
  object.Set("driverRelease", cuda.facts.driver_release);
  Napi::Array gpus = Napi::Array::New(env, cuda.facts.gpus.size());
  for (uint32_t i = 0; i < cuda.facts.gpus.size(); ++i) {
    const auto& [name, capability, total_bytes, problem] = cuda.facts.gpus[i];
    Napi::Object gpu = Napi::Object::New(env);
    gpu.Set("name", name);
    gpu.Set("computeCapability", capability / 10.0);
    gpu.Set("memoryBytes", static_cast<double>(total_bytes));
    gpu.Set("problem", problem);
    gpus.Set(i, gpu);
  }
  object.Set("gpus", gpus);
  Napi::Array libraries = Napi::Array::New(env, cuda.facts.libraries.size());
  for (uint32_t i = 0; i < cuda.facts.libraries.size(); ++i) {
    const auto& [name, path, version, problem, without, mend] = cuda.facts.libraries[i];
    Napi::Object library = Napi::Object::New(env);
    library.Set("name", name);
    library.Set("path", path);
    library.Set("version", version);
    library.Set("problem", problem);
    library.Set("without", without);
    library.Set("mend", mend);
    libraries.Set(i, library);
  }
  object.Set("libraries", libraries);
  return object;
}

Napi::Value cuda_info(const Napi::CallbackInfo& info) {
  const Completion completion = Completion::create(info.Env());
  io::run_task([completion] {
    auto cuda = caught([] { return StatusOr<CudaDescription>(describe_cuda()); });
    if (!cuda.ok()) return completion.reject(cuda.status());
    completion.resolve([cuda = std::move(cuda.value())](Napi::Env env) { return cuda_object(env, cuda); });
  });
  return completion.promise();
}

Napi::Value memory_usage(const Napi::CallbackInfo& info) {
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("arenas", static_cast<double>(native_bytes(Block::Kind::arena)));
  object.Set("kernels", static_cast<double>(native_bytes(Block::Kind::kernel)));
  object.Set("batches", static_cast<double>(native_bytes(Block::Kind::batch)));
  object.Set("handles", static_cast<double>(g_live_handles.load()));
  return object;
}

Napi::Value create_pool(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const int threads = static_cast<int>(get_number(env, info[0], "threads", 1, 256));
  auto handle = std::make_shared<PoolHandle>(env);
  try {
    handle->pool = make_pool(threads);
  } catch (const std::system_error& e) {
    throw_status(env, error(Code::oom, "no %d threads for the engine: %s", threads, e.what()));
  }
  // The environment may go while a step runs: its threads must be done before native memory is.
  EnvState::of(env).at_teardown(handle->pool, &ThreadPool::join);
  return make_handle(env, std::move(handle));
}

void close_pool(const Napi::CallbackInfo& info) {
  const auto& handle = get_handle<PoolHandle>(info, 0);
  if (!handle->pool) return;
  handle->pool->shut_down();
  handle->pool.reset();
}

Napi::Value create_memory(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!info[0].IsArray()) throw_status(env, error(Code::invalid_argument, "arenaBytes must be an array"));
  const Napi::Array list = info[0].As<Napi::Array>();
  auto backend = info[1].IsUndefined() ? open_backend("cpu") : get_handle<DeviceHandle>(info, 1)->backend;
  check(env, backend.status());
  uint64_t sizes[plan::kArenaCount] = {};
  uint64_t total = 0;
  for (uint32_t i = 0; i < list.Length() && i < plan::kArenaCount; ++i) {
    sizes[i] = static_cast<uint64_t>(get_number(env, list.Get(i), "arenaBytes", 0, 4e12));
    total += sizes[i];
  }
  const uint64_t limit =
      info[2].IsUndefined() ? Budget::kNoLimit : static_cast<uint64_t>(get_number(env, info[2], "limit", 0, 9e15));
  auto memory = backend.value()->create_memory(sizes, limit);
  check(env, memory.status());
  auto handle = std::make_shared<MemoryHandle>(env);
  handle->backend = backend.value();
  handle->memory = memory.value();
  handle->accounted.set(total);
  return make_handle(env, std::move(handle));
}

// A snapshot in work reads, too, so nothing waits for it.
void read_arena(const Napi::CallbackInfo& info) {
  const auto memory = open_memory(info, 0);
  require_no_step(info.Env(), *memory);
  const Bytes into = get_bytes(info.Env(), info[3], "into");
  check(info.Env(), memory->read(get_arena(info, 1, "arena"), get_offset(info, 2), {into.data, into.size}));
}

void write_arena(const Napi::CallbackInfo& info) {
  const auto memory = open_memory(info, 0);
  require_no_step(info.Env(), *memory);
  memory->wait_unpinned();
  const Bytes from = get_bytes(info.Env(), info[3], "bytes");
  check(info.Env(), memory->write(get_arena(info, 1, "arena"), get_offset(info, 2), {from.data, from.size}));
}

// Runs `work` on the arenas off the event loop: refused while a step runs, after the snapshots in work; a step that is
// asked for meanwhile waits.
Napi::Value change_memory(const Napi::CallbackInfo& info, std::function<Status(Memory&)> work) {
  Napi::Env env = info.Env();
  const auto memory = open_memory(info, 0);
  auto change = ChangeMark::begin(env, memory);
  const std::weak_ptr<MemoryHandle> handle = get_handle<MemoryHandle>(info, 0);
  const Completion completion = Completion::create(env);
  io::run_task([completion, memory, handle, change, work = std::move(work)]() mutable {
    memory->wait_snapshots();
    uint64_t total = 0;
    const Status status = caught([&] {
      const std::unique_lock lock(memory->arenas);
      EFF_RETURN_IF_ERROR(work(*memory));
      for (int i = 0; i < plan::kArenaCount; ++i) total += memory->bytes(static_cast<plan::Arena>(i));
      return ok_status();
    });
    change->end();
    if (!status.ok()) return completion.reject(status);
    completion.resolve([handle, total](Napi::Env e) {
      if (const auto open = handle.lock(); open && open->memory) open->accounted.set(total);
      return e.Undefined();
    });
  });
  return completion.promise();
}

Napi::Value ensure_arena(const Napi::CallbackInfo& info) {
  const plan::Arena arena = get_arena(info, 1, "arena");
  const auto bytes = static_cast<uint64_t>(get_number(info.Env(), info[2], "bytes", 0, 4e12));
  return change_memory(info, [=](Memory& memory) { return memory.ensure(arena, bytes); });
}

Napi::Value copy_arena(const Napi::CallbackInfo& info) {
  const bool zero = get_number(info.Env(), info[1], "from", -1, static_cast<int>(plan::Arena::activations)) < 0;
  const plan::Arena from = zero ? plan::Arena::weights : get_arena(info, 1, "from"), to = get_arena(info, 2, "to");
  return change_memory(info, [=](Memory& memory) { return zero ? memory.clear(to) : memory.copy(from, to); });
}

Napi::Value swap_arenas(const Napi::CallbackInfo& info) {
  const plan::Arena a = get_arena(info, 1, "a"), b = get_arena(info, 2, "b");
  return change_memory(info, [=](Memory& memory) { return memory.swap(a, b); });
}

Napi::Value memory_budget(const Napi::CallbackInfo& info) {
  const std::shared_ptr<Budget> budget = open_memory(info, 0)->budget();
  const bool limited = budget->limit() != Budget::kNoLimit;
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("limit", limited ? static_cast<double>(budget->limit()) : std::numeric_limits<double>::infinity());
  object.Set("used", static_cast<double>(budget->used()));
  return object;
}

void close_memory(const Napi::CallbackInfo& info) {
  const auto& handle = get_handle<MemoryHandle>(info, 0);
  handle->memory.reset();
  handle->accounted.set(0);
}

Napi::Value loss_scale(const Napi::CallbackInfo& info) {
  const auto memory = open_memory(info, 0);
  require_no_step(info.Env(), *memory);
  const LossScale now = memory->loss_scale();
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("scale", now.scale);
  object.Set("growth", now.growth);
  object.Set("skipped", now.skipped);
  return object;
}

void set_loss_scale(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto memory = open_memory(info, 0);
  require_no_step(env, *memory);
  const Napi::Object given = info[1].ToObject();
  const auto count = [&](const char* name) {
    return static_cast<uint32_t>(get_number(env, given.Get(name), name, 0, 4294967295.0));
  };
  const auto scale = static_cast<float>(get_number(env, given.Get("scale"), "scale", 1e-30, 1e30));
  check(env, memory->set_loss_scale({scale, count("growth"), count("skipped")}));
}

// Marks a memory busy for as long as it lives.
struct BusyMark {
  explicit BusyMark(std::shared_ptr<Memory> m) : memory(std::move(m)) { ++memory->busy; }
  ~BusyMark() { --memory->busy; }
  std::shared_ptr<Memory> memory;
};

Napi::Value verify_plan(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const Bytes bytes = get_bytes(env, info[0], "plan");
  const auto plan = plan::Plan::load({bytes.data, bytes.size});
  check(env, plan.status());
  Napi::Object object = Napi::Object::New(env);
  object.Set("ops", static_cast<double>(plan.value()->ops().size()));
  object.Set("tensors", static_cast<double>(plan.value()->tensors().size()));
  Napi::Array arenas = Napi::Array::New(env, plan::kArenaCount);
  for (uint32_t i = 0; i < plan::kArenaCount; ++i)
    arenas.Set(i, static_cast<double>(plan.value()->arena_bytes(static_cast<plan::Arena>(i))));
  object.Set("arenaBytes", arenas);
  return object;
}

// { measure, choices, begins? }, or undefined.
Tuning get_tuning(Napi::Env env, Napi::Value value) {
  Tuning tuning;
  if (!value.IsObject()) return tuning;
  const Napi::Object given = value.As<Napi::Object>();
  tuning.measure = given.Get("measure").ToBoolean().Value();
  if (const Napi::Value begins = given.Get("begins"); begins.IsFunction()) {
    const auto function =
        keep_on_js_thread(env, new Napi::FunctionReference(Napi::Persistent(begins.As<Napi::Function>())));
    tuning.begins = [function, mailbox = EnvState::of(env).mailbox()](int ops) {
      mailbox->post([function, ops](Napi::Env e) {
        try {
          function->Call({Napi::Number::New(e, ops)});
        } catch (const Napi::Error&) {
          // It only tells; the binding goes on.
        }
      });
    };
  }
  if (!given.Get("choices").IsObject()) return tuning;
  const Napi::Object choices = given.Get("choices").As<Napi::Object>();
  const Napi::Array names = choices.GetPropertyNames();
  for (uint32_t i = 0; i < names.Length(); ++i) {
    const std::string signature = names.Get(i).ToString().Utf8Value();
    tuning.kept[signature] = get_string(env, choices.Get(signature), "choice");
  }
  return tuning;
}

Napi::Value tuning_report(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const TuningReport report = open_executable(info, 0)->tuning();
  Napi::Object choices = Napi::Object::New(env);
  for (const auto& [signature, choice] : report.choices) choices.Set(signature, choice);
  Napi::Object object = Napi::Object::New(env);
  object.Set("choices", choices);
  object.Set("measured", report.measured);
  object.Set("refused", report.refused);
  return object;
}

Napi::Value bind(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto pool = get_handle<PoolHandle>(info, 0)->pool;
  if (!pool) throw_closed(env, "pool");
  auto memory = open_memory(info, 1);
  auto backend = get_handle<MemoryHandle>(info, 1)->backend;
  const Bytes plan = get_bytes(env, info[2], "plan");
  auto tuning = get_tuning(env, info[3]);
  auto copy = std::make_shared<std::vector<std::byte>>(plan.data, plan.data + plan.size);
  auto busy = std::make_shared<BusyMark>(memory);
  const Completion completion = Completion::create(env);
  const bool queued = pool->submit([completion, pool, backend, memory, copy, busy, tuning]() mutable {
    auto bound = caught([&] {
      const std::shared_lock lock(memory->arenas);
      return backend->bind(pool, memory, *copy, tuning);
    });
    busy.reset();
    backend.reset();
    memory.reset();  // before anyone hears: whoever closes then finds the bytes given back
    pool.reset();
    if (!bound.ok()) return completion.reject(bound.status());
    completion.resolve([executable = std::move(bound.value())](Napi::Env e) {
      auto handle = std::make_shared<ExecutableHandle>(e);
      handle->executable = executable;
      handle->accounted.set(executable->owned_bytes());
      return make_handle(e, std::move(handle));
    });
  });
  if (!queued) completion.reject(error(Code::closed, "the pool has been closed"));
  return completion.promise();
}

// On a pool of its own: what a model's threads are doing is not in its way, and it is gone afterwards.
Napi::Value measure_peaks(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const double threads = get_number(env, info[0], "threads", 1, 256);
  auto backend = info[1].IsUndefined() ? open_backend("cpu") : get_handle<DeviceHandle>(info, 1)->backend;
  check(env, backend.status());
  std::shared_ptr<ThreadPool> pool;
  try {
    pool = make_pool(static_cast<int>(threads));
  } catch (const std::system_error& e) {
    throw_status(env, error(Code::oom, "no %d threads to measure with: %s", static_cast<int>(threads), e.what()));
  }
  const Completion completion = Completion::create(env);
  const bool queued = pool->submit([completion, pool, backend = backend.value()] {
    const auto peaks = caught([&] { return backend->measure_peaks(*pool); });
    if (!peaks.ok()) return completion.reject(peaks.status());
    completion.resolve([p = peaks.value()](Napi::Env e) {
      Napi::Object object = Napi::Object::New(e);
      object.Set("fp32Flops", p.fp32_flops);
      object.Set("bf16Flops", p.bf16_flops);
      object.Set("bytes", p.bytes);
      return object;
    });
  });
  if (!queued) completion.reject(error(Code::closed, "the pool has been closed"));
  return completion.promise();
}

Napi::Value dump(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto executable = open_executable(info, 0);
  require_no_step(env, *executable->memory());
  const auto rows = executable->report();
  Napi::Array list = Napi::Array::New(env, rows.size());
  for (uint32_t i = 0; i < rows.size(); ++i) {
    Napi::Object row = Napi::Object::New(env);
    row.Set("name", rows[i].name);
    row.Set("op", rows[i].op);
    row.Set("kernel", rows[i].kernel);
    row.Set("flags", rows[i].flags);
    row.Set("flops", rows[i].flops);
    row.Set("bytes", rows[i].bytes);
    row.Set("ms", rows[i].ms);
    list.Set(i, row);
  }
  return list;
}

void set_profiling(const Napi::CallbackInfo& info) {
  open_executable(info, 0)->profiling = info[1].ToBoolean().Value();
}

StepScalars get_scalars(Napi::Env env, Napi::Value value) {
  const Bytes bytes = get_bytes(env, value, "scalars");
  StepScalars scalars;
  static_assert(sizeof scalars == kStepScalarCount * sizeof(double));
  if (bytes.size != sizeof scalars)
    throw_status(env, error(Code::invalid_argument, "scalars must hold %d numbers", kStepScalarCount));
  std::memcpy(&scalars, bytes.data, sizeof scalars);
  return scalars;
}

// The input of a step, held until it has run.
struct StepJob {
  std::shared_ptr<io::Batch> batch;
  // Of JavaScript, which keeps it unchanged until the step has run; its completion keeps it alive.
  const std::byte* given = nullptr;
  size_t given_bytes = 0;
  uint64_t ticket = 0;  // of `prefetch`, where that took the same input
  bool claimed = false;
  std::vector<std::byte> aligned;
  std::vector<std::byte> output;
  std::optional<BusyMark> busy;
  StepScalars scalars;

  bool on_device() const { return batch && batch->device; }
  // Before a step or a look through one.
  Status bring(Executable& executable) {
    claimed = ticket && executable.claim(ticket);
    return claimed || !on_device() ? ok_status() : executable.take(*batch->device);
  }

  // On the engine's thread. The plan reads rows at 64-byte aligned offsets; kernels take inputs from 16-byte aligned
  // blocks, which a view into a larger buffer need not be.
  const std::byte* data() {
    if (claimed || on_device()) return nullptr;
    if (batch) return batch->data();
    if (reinterpret_cast<uintptr_t>(given) % 16 == 0) return given;
    aligned.assign(given, given + given_bytes);
    return aligned.data();
  }
};

// Arguments: executable, input. `keep` gets what must outlive the call.
std::shared_ptr<StepJob> input_job(const Napi::CallbackInfo& info, const Executable& executable,
                                   std::vector<Napi::Value>& keep) {
  Napi::Env env = info.Env();
  const Napi::Object input = info[1].ToObject();
  const uint64_t needed = executable.plan().arena_bytes(plan::Arena::input);
  auto job = std::make_shared<StepJob>();
  if (const Napi::Value ticket = input.Get("ticket"); !ticket.IsUndefined())
    job->ticket = static_cast<uint64_t>(get_number(env, ticket, "ticket", 1, 9007199254740991.0));
  size_t given;
  if (const Napi::Value batch = input.Get("batch"); !batch.IsUndefined()) {
    job->batch = open_batch(env, batch);
    given = job->batch->bytes();
  } else {
    keep.push_back(input.Get("bytes"));
    const Bytes bytes = get_bytes(env, keep.back(), "input");
    job->given = bytes.data;
    given = job->given_bytes = bytes.size;
  }
  if (given < needed)
    throw_status(env, error(Code::invalid_argument, "the input has %zu bytes, the plan reads %llu", given,
                            static_cast<unsigned long long>(needed)));
  return job;
}

// With a third argument, the scalars.
std::shared_ptr<StepJob> step_job(const Napi::CallbackInfo& info, const Executable& executable,
                                  std::vector<Napi::Value>& keep) {
  const StepScalars scalars = get_scalars(info.Env(), info[2]);
  auto job = input_job(info, executable, keep);
  job->scalars = scalars;
  return job;
}

// Beside the steps, so not on the engine's thread.
Napi::Value prefetch(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto executable = open_executable(info, 0);
  std::vector<Napi::Value> keep;
  auto job = input_job(info, *executable, keep);
  const Completion completion = Completion::create(env, keep);
  io::run_task([completion, executable, job]() mutable {
    const auto taken = caught([&] {
      return job->on_device() ? executable->prefetch(*job->batch->device) : executable->prefetch(job->data());
    });
    job->batch.reset();
    executable.reset();  // before anyone hears: whoever closes then finds the bytes given back
    if (!taken.ok()) return completion.reject(taken.status());
    completion.resolve(
        [ticket = taken.value()](Napi::Env e) { return Napi::Number::New(e, static_cast<double>(ticket)); });
  });
  return completion.promise();
}

Napi::Value step(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto executable = open_executable(info, 0);
  std::vector<Napi::Value> keep;
  auto job = step_job(info, *executable, keep);
  job->output.resize(executable->plan().arena_bytes(plan::Arena::output));
  job->busy.emplace(executable->memory());
  const Completion completion = Completion::create(env, keep);
  const bool queued = executable->pool()->submit([completion, executable, job]() mutable {
    const Status status = caught([&] {
      EFF_RETURN_IF_ERROR(job->bring(*executable));
      return executable->step(job->data(), job->scalars, job->output.data());
    });
    job->batch.reset();
    job->busy.reset();
    executable.reset();  // before anyone hears: whoever closes then finds the bytes given back
    if (!status.ok()) return completion.reject(status);
    completion.resolve([job](Napi::Env e) {
      auto buffer = Napi::ArrayBuffer::New(e, job->output.size());
      if (!job->output.empty()) std::memcpy(buffer.Data(), job->output.data(), job->output.size());
      return Napi::Uint8Array::New(e, job->output.size(), buffer, 0);
    });
  });
  if (!queued) {
    job->busy.reset();
    completion.reject(error(Code::closed, "the pool has been closed"));
  }
  return completion.promise();
}

Napi::Value find_nonfinite(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto executable = open_executable(info, 0);
  std::vector<Napi::Value> keep;
  auto job = step_job(info, *executable, keep);
  job->busy.emplace(executable->memory());
  const Completion completion = Completion::create(env, keep);
  const bool queued = executable->pool()->submit([completion, executable, job]() mutable {
    auto found = caught([&]() -> StatusOr<std::optional<NonFinite>> {
      EFF_RETURN_IF_ERROR(job->bring(*executable));
      return executable->find_nonfinite(job->data(), job->scalars);
    });
    job->batch.reset();
    job->busy.reset();
    executable.reset();
    if (!found.ok()) return completion.reject(found.status());
    completion.resolve([first = std::move(found.value())](Napi::Env e) -> Napi::Value {
      if (!first) return e.Null();
      Napi::Object object = Napi::Object::New(e);
      object.Set("part", first->part);
      object.Set("op", first->op);
      object.Set("layer", first->layer);
      object.Set("tensor", first->tensor);
      return object;
    });
  });
  if (!queued) {
    job->busy.reset();
    completion.reject(error(Code::closed, "the pool has been closed"));
  }
  return completion.promise();
}

double get_whole(Napi::Env env, Napi::Value value, const char* what, double low, double high) {
  const double number = get_number(env, value, what, low, high);
  if (number != std::trunc(number))
    throw_status(env, error(Code::invalid_argument, "%s is %g, not a whole number", what, number));
  return number;
}

// Arguments: into, distribution, seed, stream, begin, end.
void fill_random(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (const char* reason = cpu::unsupported_cpu_reason()) throw_status(env, error(Code::backend_missing, "%s", reason));
  if (!info[1].IsObject()) throw_status(env, error(Code::invalid_argument, "the distribution must be an object"));
  const Napi::Object distribution = info[1].As<Napi::Object>();
  const std::string kind = get_string(env, distribution.Get("kind"), "kind");
  cpu::Draw draw;
  if (kind == "normal") {
    draw = cpu::Draw::normal;
  } else if (kind == "truncated") {
    draw = cpu::Draw::truncated;
  } else if (kind == "uniform") {
    draw = cpu::Draw::uniform;
  } else {
    throw_status(
        env, error(Code::invalid_argument, "kind is \"%.40s\", expected normal, truncated or uniform", kind.c_str()));
  }
  const char* scale_name = draw == cpu::Draw::uniform ? "bound" : "std";
  const double scale = get_number(env, distribution.Get(scale_name), scale_name, 0, std::numeric_limits<float>::max());
  const cpu::RandomKey key{static_cast<uint64_t>(get_whole(env, info[2], "seed", 0, kMaxInteger)),
                           static_cast<uint32_t>(get_whole(env, info[3], "stream", 0, UINT32_MAX))};
  // Last: a getter of the distribution may have detached the array.
  if (!info[0].IsTypedArray() || info[0].As<Napi::TypedArray>().TypedArrayType() != napi_float32_array)
    throw_status(env, error(Code::invalid_argument, "values must be a Float32Array"));
  auto into = info[0].As<Napi::Float32Array>();
  const double end = get_whole(env, info[5], "end", 0, static_cast<double>(into.ElementLength()));
  const double begin = get_whole(env, info[4], "begin", 0, end);
  if (std::fmod(begin, 4) != 0)
    throw_status(env, error(Code::invalid_argument, "begin is %.0f, not a multiple of 4", begin));
  cpu::fill_random(into.Data(), draw, scale, key, static_cast<size_t>(begin), static_cast<size_t>(end));
}

void invalidate(const Napi::CallbackInfo& info) { open_executable(info, 0)->weights_changed = true; }

void close_executable(const Napi::CallbackInfo& info) {
  const auto& handle = get_handle<ExecutableHandle>(info, 0);
  handle->executable.reset();
  handle->accounted.set(0);
}

Napi::Value read_tensor(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto executable = open_executable(info, 0);
  require_no_step(env, *executable->memory());
  const std::string name = get_string(env, info[1], "name");
  const plan::Tensor* tensor = executable->plan().find(name);
  if (!tensor || tensor->arena == plan::Arena::input)
    throw_status(env, error(Code::invalid_argument, "the plan has no tensor %s to read", name.c_str()));
  auto buffer = Napi::ArrayBuffer::New(env, tensor->bytes);
  check(env, executable->read(*tensor, {static_cast<std::byte*>(buffer.Data()), tensor->bytes}));
  return Napi::Uint8Array::New(env, tensor->bytes, buffer, 0);
}

}  // namespace

std::shared_ptr<Memory> open_memory(Napi::Env env, Napi::Value value) {
  const auto& handle = get_handle<MemoryHandle>(env, value);
  if (!handle->memory) throw_closed(env, "memory");
  return handle->memory;
}
std::shared_ptr<Memory> open_memory(const Napi::CallbackInfo& info, size_t index) {
  return open_memory(info.Env(), info[index]);
}

void require_no_step(Napi::Env env, const Memory& memory) {
  if (memory.busy.load() > 0) throw_status(env, error(Code::closed, "the memory is in use by a step; await it first"));
}

std::shared_ptr<ChangeMark> ChangeMark::begin(Napi::Env env, const std::shared_ptr<Memory>& memory) {
  if (!memory->begin_change()) throw_status(env, error(Code::closed, "the memory is in use by a step; await it first"));
  return std::shared_ptr<ChangeMark>(new ChangeMark(memory));
}

std::shared_ptr<io::Batch> open_batch(Napi::Env env, Napi::Value value) {
  const auto& handle = get_handle<BatchHandle>(env, value);
  if (!handle->batch) throw_closed(env, "batch");
  return handle->batch;
}

void register_engine(Napi::Env env, Napi::Object exports) {
  export_function(env, exports, "cpuInfo", cpu_info);
  export_function(env, exports, "fillRandom", fill_random);
  export_function(env, exports, "openDevice", open_device);
  export_function(env, exports, "deviceInfo", device_info);
  export_function(env, exports, "cudaInfo", cuda_info);
  export_function(env, exports, "memoryUsage", memory_usage);
  export_function(env, exports, "createPool", create_pool);
  export_function(env, exports, "closePool", close_pool);
  export_function(env, exports, "createMemory", create_memory);
  export_function(env, exports, "ensureArena", ensure_arena);
  export_function(env, exports, "verifyPlan", verify_plan);
  export_function(env, exports, "readArena", read_arena);
  export_function(env, exports, "writeArena", write_arena);
  export_function(env, exports, "copyArena", copy_arena);
  export_function(env, exports, "swapArenas", swap_arenas);
  export_function(env, exports, "memoryBudget", memory_budget);
  export_function(env, exports, "closeMemory", close_memory);
  export_function(env, exports, "bind", bind);
  export_function(env, exports, "measurePeaks", measure_peaks);
  export_function(env, exports, "tuning", tuning_report);
  export_function(env, exports, "dump", dump);
  export_function(env, exports, "setProfiling", set_profiling);
  export_function(env, exports, "step", step);
  export_function(env, exports, "lossScale", loss_scale);
  export_function(env, exports, "setLossScale", set_loss_scale);
  export_function(env, exports, "pageLocked", page_locked);
  export_function(env, exports, "unlockedBytes", unlocked_bytes);
  export_function(env, exports, "prefetch", prefetch);
  export_function(env, exports, "findNonFinite", find_nonfinite);
  export_function(env, exports, "invalidate", invalidate);
  export_function(env, exports, "closeExecutable", close_executable);
  export_function(env, exports, "readTensor", read_tensor);
}

}  // namespace effnet::napi
