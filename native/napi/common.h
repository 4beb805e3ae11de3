// What every file of the addon needs: errors, tagged handles, and promises settled from engine threads.
// The only folder with Node headers.
#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "core/caught.h"
#include "core/status.h"

namespace effnet::napi {

// Per environment (main thread or worker thread). No static references: workers come and go.
class EnvState {
 public:
  // Creates the state as instance data and registers its teardown.
  static void attach(Napi::Env env);
  static EnvState& of(Napi::Env env) { return *env.GetInstanceData<EnvState>(); }

  explicit EnvState(Napi::Env env);
  ~EnvState();

  // An EffnetError with code and message (the class is handed over by TypeScript at load).
  Napi::Error make_error(Napi::Env env, const Status& status);
  Napi::FunctionReference error_factory;

  // Calls (object->*end)() at teardown, before the environment goes, if the object is still there: it stops its
  // threads.
  template <class T>
  void at_teardown(const std::shared_ptr<T>& object, void (T::*end)()) {
    add_teardown(object, [end](void* p) { (static_cast<T*>(p)->*end)(); });
  }

  // The way back to the JavaScript thread; shared with engine threads that may outlive the environment.
  class Mailbox {
   public:
    // Any thread. Runs `work` on the JavaScript thread; after teardown it is dropped (destroyed here).
    void post(std::function<void(Napi::Env)> work);
    // JavaScript thread only: while work is expected the event loop stays alive.
    void expect(Napi::Env env);
    void settled(Napi::Env env);

   private:
    friend class EnvState;
    std::mutex mutex_;
    napi_threadsafe_function function_ = nullptr;  // null once the environment is going away
    int expected_ = 0;                             // JavaScript thread only
  };
  const std::shared_ptr<Mailbox>& mailbox() const { return mailbox_; }

 private:
  struct Hook {
    std::weak_ptr<void> object;
    std::function<void(void*)> end;
  };
  void add_teardown(std::weak_ptr<void> object, std::function<void(void*)> end);
  void tear_down();
  std::shared_ptr<Mailbox> mailbox_;
  std::vector<Hook> hooks_;  // JavaScript thread only
};

[[noreturn]] inline void throw_status(Napi::Env env, const Status& status) {
  throw EnvState::of(env).make_error(env, status);
}
inline void check(Napi::Env env, const Status& status) {
  if (!status.ok()) throw_status(env, status);
}

// work(), where what the standard library throws becomes an EffnetError: on the JavaScript thread.
template <class F>
auto guarded(Napi::Env env, F&& work) -> decltype(work()) {
  try {
    return work();
  } catch (const Napi::Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw_status(env, error(Code::oom, "not enough memory"));
  } catch (const std::exception& e) {
    throw_status(env, error(Code::internal, "%s", e.what()));
  }
}

// Makes a function of the addon.
template <class Result>
void export_function(Napi::Env env, Napi::Object exports, const char* name,
                     Result (*function)(const Napi::CallbackInfo&)) {
  const auto call = [function](const Napi::CallbackInfo& info) {
    return guarded(info.Env(), [&] { return function(info); });
  };
  exports.Set(name, Napi::Function::New(env, call, name));
}

// Something that only the JavaScript thread may delete, held by engine threads. After teardown it is leaked on purpose.
template <class T>
std::shared_ptr<T> keep_on_js_thread(Napi::Env env, T* object) {
  return std::shared_ptr<T>(
      object, [mailbox = EnvState::of(env).mailbox()](T* p) { mailbox->post([p](Napi::Env) { delete p; }); });
}

// A promise that an engine thread settles. Copyable; exactly one of resolve/reject must be called, from any thread.
// `keep` holds JavaScript values (buffers) alive until then.
class Completion {
 public:
  static Completion create(Napi::Env env, std::vector<Napi::Value> keep = {});
  Napi::Promise promise() const;
  void reject(Status status) const;
  // `make` runs on the JavaScript thread and gives the promise's value.
  void resolve(std::function<Napi::Value(Napi::Env)> make) const;
  // Shorthand: resolve with undefined when ok.
  void settle(const Status& status) const {
    if (status.ok())
      resolve([](Napi::Env env) { return env.Undefined(); });
    else
      reject(status);
  }

 private:
  struct State;
  std::shared_ptr<State> state_;
};

// Opaque handles: an External with a type tag per kind, so that a wrong object throws instead of corrupting memory.
// T needs `static const napi_type_tag kTag` and `static constexpr const char* kKind`. The JavaScript object owns a
// shared_ptr<T>; native code that works on it holds another.
template <class T>
Napi::Value make_handle(Napi::Env env, std::shared_ptr<T> object) {
  auto* box = new std::shared_ptr<T>(std::move(object));
  auto handle = Napi::External<std::shared_ptr<T>>::New(env, box, [](Napi::Env, std::shared_ptr<T>* b) { delete b; });
  handle.TypeTag(&T::kTag);
  return handle;
}

template <class T>
const std::shared_ptr<T>& get_handle(Napi::Env env, Napi::Value value) {
  if (value.IsExternal()) {
    auto handle = value.As<Napi::External<std::shared_ptr<T>>>();
    if (handle.CheckTypeTag(&T::kTag)) return *handle.Data();
  }
  throw_status(env, error(Code::invalid_argument, "expected a %s handle", T::kKind));
}

template <class T>
const std::shared_ptr<T>& get_handle(const Napi::CallbackInfo& info, size_t index) {
  return get_handle<T>(info.Env(), info[index]);
}

// Argument readers; each throws EFF_INVALID_ARGUMENT naming the argument.
double get_number(Napi::Env env, Napi::Value value, const char* what, double low, double high);
std::string get_string(Napi::Env env, Napi::Value value, const char* what);
struct Bytes {
  std::byte* data;
  size_t size;
};
// Of a Uint8Array (or any view).
Bytes get_bytes(Napi::Env env, Napi::Value value, const char* what);

}  // namespace effnet::napi
