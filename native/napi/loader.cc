// Loaders and their batches.
#include <chrono>
#include <cstring>

#include "io/loader.h"
#include "napi/handles.h"
#include "napi/io_values.h"

namespace effnet::napi {

struct LoaderHandle {
  static const napi_type_tag kTag;
  static constexpr const char* kKind = "loader";
  explicit LoaderHandle(Napi::Env env) : accounted(env) {}
  // Collected or closed.
  ~LoaderHandle() { close(); }
  void close() {
    if (!loader) return;
    loader->close();
    loader.reset();
    accounted.set(0);
  }

  std::shared_ptr<io::Loader> loader;  // empty after close
  ExternalBytes accounted;             // of the batches that wait to be taken; those handed out count by themselves
};
const napi_type_tag LoaderHandle::kTag = {0x6b1c2f0e94d84a55, 0x9c7d3e51a6f20b18};

namespace {

using namespace io;
using Clock = std::chrono::steady_clock;

Status status_of_error(Napi::Value value) {
  Code code = Code::data_decode;
  std::string message = "decodeOther failed";
  if (value.IsObject()) {
    const Napi::Object object = value.As<Napi::Object>();
    if (const Napi::Value text = object.Get("message"); text.IsString()) message = text.As<Napi::String>().Utf8Value();
    if (const Napi::Value name = object.Get("code"); name.IsString()) {
      const std::string text = name.As<Napi::String>().Utf8Value();
      if (text == "EFF_DATA_LIMIT") code = Code::data_limit;
      if (text == "EFF_DATA_MISSING") code = Code::data_missing;
    }
  }
  return Status(code, message);
}

StatusOr<OtherPixels> pixels_of(Napi::Env env, Napi::Value value, const DecodeLimits& limits) {
  try {
    const PixelsArgument pixels = get_pixels(env, value);
    EFF_RETURN_IF_ERROR(check_pixels(pixels, limits));
    auto* reference = new Napi::Reference<Napi::Value>(Napi::Persistent(pixels.array));
    return OtherPixels{pixels.view, keep_on_js_thread(env, reference)};
  } catch (const Napi::Error& e) {
    return status_of_error(e.Value());
  }
}

// On the JavaScript thread: calls decodeOther(bytes, path) and answers the request when its promise settles.
void call_decode_other(Napi::Env env, const Napi::FunctionReference& function,
                       const std::shared_ptr<OtherRequest>& request, const DecodeLimits& limits) {
  try {
    const Napi::Value result =
        function.Call({make_bytes(env, std::move(request->bytes)), Napi::String::New(env, request->path)});
    if (!result.IsPromise()) return request->reply(pixels_of(env, result, limits));
    const auto good = Napi::Function::New(env, [request, limits](const Napi::CallbackInfo& info) {
      request->reply(pixels_of(info.Env(), info[0], limits));
    });
    const auto bad = Napi::Function::New(
        env, [request](const Napi::CallbackInfo& info) { request->reply(status_of_error(info[0])); });
    const Napi::Object promise = result.As<Napi::Object>();
    promise.Get("then").As<Napi::Function>().Call(promise, {good, bad});
  } catch (const Napi::Error& e) {
    request->reply(status_of_error(e.Value()));
  }
}

LoaderOptions get_loader_options(Napi::Env env, const Napi::Object& object) {
  LoaderOptions options;
  const Napi::Value files = object.Get("files");
  if (!files.IsArray()) throw_status(env, error(Code::invalid_argument, "files must be an array"));
  const auto list = files.As<Napi::Array>();
  options.files.reserve(list.Length());
  for (uint32_t n = 0; n < list.Length(); ++n) {
    Napi::HandleScope scope(env);
    options.files.push_back(get_string(env, list.Get(n), "files"));
  }
  const Napi::Value labels = object.Get("labels");
  if (!labels.IsTypedArray() || labels.As<Napi::TypedArray>().TypedArrayType() != napi_int32_array)
    throw_status(env, error(Code::invalid_argument, "labels must be an Int32Array"));
  const auto array = labels.As<Napi::Int32Array>();
  options.labels.assign(array.Data(), array.Data() + array.ElementLength());
  options.transform = get_decode_options(env, object.Get("decode")).options;
  options.batch_size = static_cast<int>(get_number(env, object.Get("batchSize"), "batchSize", 1, 1 << 20));
  options.workers = static_cast<int>(get_number(env, object.Get("workers"), "workers", 1, 1024));
  options.prefetch = static_cast<int>(get_number(env, object.Get("prefetch"), "prefetch", 1, 1024));
  if (const Napi::Value device = object.Get("device"); !device.IsUndefined()) {
    std::shared_ptr<Budget> budget;
    if (const Napi::Value memory = object.Get("memory"); !memory.IsUndefined())
      budget = open_memory(env, memory)->budget();
    options.device = [backend = get_handle<DeviceHandle>(env, device)->backend, budget](DeviceImages::Options wanted) {
      wanted.budget = budget;
      return backend->create_images(wanted);
    };
  }
  if (const Napi::Value near = object.Get("pageLockedFor"); !near.IsUndefined()) {
    options.batch_memory = [backend = get_handle<DeviceHandle>(env, near)->backend](uint64_t bytes) {
      return backend->page_locked(bytes);
    };
  }
  if (const Napi::Value other = object.Get("decodeOther"); other.IsFunction()) {
    const auto function =
        keep_on_js_thread(env, new Napi::FunctionReference(Napi::Persistent(other.As<Napi::Function>())));
    options.decode_other = [function, mailbox = EnvState::of(env).mailbox(),
                            limits = options.transform.limits](OtherRequest request) {
      auto shared = std::make_shared<OtherRequest>(std::move(request));
      mailbox->post([function, shared, limits](Napi::Env e) { call_decode_other(e, *function, shared, limits); });
    };
  }
  return options;
}

Napi::Value create_loader(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!info[0].IsObject()) throw_status(env, error(Code::invalid_argument, "loader options must be an object"));
  LoaderOptions options = get_loader_options(env, info[0].As<Napi::Object>());
  // Of the host's memory.
  const uint64_t kept_batches = options.device ? 0 : static_cast<uint64_t>(options.prefetch) + 1;
  auto created = Loader::create(std::move(options));
  check(env, created.status());
  auto handle = std::make_shared<LoaderHandle>(env);
  handle->loader = std::move(created.value());
  handle->accounted.set(handle->loader->batch_bytes() * kept_batches);
  EnvState::of(env).at_teardown(handle->loader, &Loader::close);
  return make_handle(env, std::move(handle));
}

std::shared_ptr<Loader> open_loader(const Napi::CallbackInfo& info) {
  const auto& handle = get_handle<LoaderHandle>(info, 0);
  if (!handle->loader) throw_status(info.Env(), error(Code::closed, "the loader has been closed"));
  return handle->loader;
}

void loader_start(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto loader = open_loader(info);
  if (!info[1].IsTypedArray() || info[1].As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array)
    throw_status(env, error(Code::invalid_argument, "order must be a Uint32Array"));
  const auto array = info[1].As<Napi::Uint32Array>();
  std::vector<uint32_t> order(array.Data(), array.Data() + array.ElementLength());
  const auto start = static_cast<uint64_t>(get_number(env, info[2], "start", 0, 4294967295.0));
  const auto epoch = static_cast<uint64_t>(get_number(env, info[3], "epoch", 0, kMaxInteger));
  const auto seed = static_cast<uint64_t>(get_number(env, info[4], "seed", 0, kMaxInteger));
  check(env, loader->start(std::move(order), start, epoch, seed, info[5].ToBoolean().Value()));
}

Napi::Value loaded_batch_object(Napi::Env env, const LoadedBatch& loaded, double wait_ms) {
  auto handle = std::make_shared<BatchHandle>(env);
  handle->batch = loaded.batch;
  handle->accounted.set(loaded.batch->block.bytes());
  Napi::Object object = Napi::Object::New(env);
  object.Set("batch", make_handle(env, std::move(handle)));
  object.Set("count", loaded.count);
  const auto array = [&](const std::vector<uint32_t>& from) {
    auto copy = Napi::Uint32Array::New(env, from.size());
    std::copy(from.begin(), from.end(), copy.Data());
    return copy;
  };
  object.Set("indices", array(loaded.indices));
  object.Set("onCpu", array(loaded.on_cpu));
  Napi::Array bad = Napi::Array::New(env, loaded.bad.size());
  for (uint32_t n = 0; n < loaded.bad.size(); ++n) {
    const BadSample& sample = loaded.bad[n];
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("index", sample.index);
    entry.Set("code", EnvState::of(env).make_error(env, sample.status).Value().Get("code"));
    entry.Set("message", sample.status.message());
    bad.Set(n, entry);
  }
  object.Set("bad", bad);
  object.Set("waitMs", wait_ms);
  return object;
}

Napi::Value loader_next(const Napi::CallbackInfo& info) {
  const auto loader = open_loader(info);
  const Completion completion = Completion::create(info.Env());
  loader->next([completion, asked = Clock::now()](StatusOr<std::optional<LoadedBatch>> result) {
    const double wait_ms = std::chrono::duration<double, std::milli>(Clock::now() - asked).count();
    if (!result.ok()) return completion.reject(result.status());
    if (!result.value()) return completion.resolve([](Napi::Env env) { return env.Null(); });
    completion.resolve([loaded = std::move(*result.value()), wait_ms](Napi::Env env) {
      return loaded_batch_object(env, loaded, wait_ms);
    });
  });
  return completion.promise();
}

void release_batch(const Napi::CallbackInfo& info) {
  const auto& handle = get_handle<BatchHandle>(info, 0);
  handle->batch.reset();
  handle->accounted.set(0);
}

Napi::Value read_batch(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto batch = open_batch(env, info[0]);
  auto buffer = Napi::ArrayBuffer::New(env, batch->bytes());
  if (batch->device)
    check(env, batch->device->read({static_cast<std::byte*>(buffer.Data()), batch->bytes()}));
  else
    std::memcpy(buffer.Data(), batch->data(), batch->bytes());
  return Napi::Uint8Array::New(env, batch->bytes(), buffer, 0);
}

void close_loader(const Napi::CallbackInfo& info) { get_handle<LoaderHandle>(info, 0)->close(); }

}  // namespace

void register_loader(Napi::Env env, Napi::Object exports) {
  export_function(env, exports, "createLoader", create_loader);
  export_function(env, exports, "loaderStart", loader_start);
  export_function(env, exports, "loaderNext", loader_next);
  export_function(env, exports, "releaseBatch", release_batch);
  export_function(env, exports, "readBatch", read_batch);
  export_function(env, exports, "closeLoader", close_loader);
}

}  // namespace effnet::napi
