#include "napi/common.h"

#include <cmath>

namespace effnet::napi {
namespace {

const char* code_text(Code code) {
  switch (code) {
    case Code::ok:
      break;
    case Code::plan_invalid:
      return "EFF_PLAN_INVALID";
    case Code::oom:
      return "EFF_OOM";
    case Code::data_decode:
      return "EFF_DATA_DECODE";
    case Code::data_missing:
      return "EFF_DATA_MISSING";
    case Code::data_limit:
      return "EFF_DATA_LIMIT";
    case Code::io:
      return "EFF_IO";
    case Code::no_space:
      return "EFF_CKPT_NO_SPACE";
    case Code::backend_missing:
      return "EFF_BACKEND_MISSING";
    case Code::gpu_fault:
      return "EFF_GPU_FAULT";
    case Code::aborted:
      return "EFF_ABORTED";
    case Code::closed:
      return "EFF_CLOSED";
    case Code::nan:
      return "EFF_NAN";
    case Code::invalid_argument:
      return "EFF_INVALID_ARGUMENT";
    case Code::internal:
      break;
  }
  return "EFF_INTERNAL";
}

void call_posted(napi_env raw, napi_value, void*, void* data) {
  std::unique_ptr<std::function<void(Napi::Env)>> work(static_cast<std::function<void(Napi::Env)>*>(data));
  if (!raw) return;  // the environment is going away: only free
  Napi::Env env(raw);
  Napi::HandleScope scope(env);
  try {
    (*work)(env);
  } catch (const std::exception& e) {
    // A promise could not be settled because the environment terminates; nobody is left to hear it.
  }
}

}  // namespace

void EnvState::attach(Napi::Env env) {
  auto* state = new EnvState(env);
  env.SetInstanceData(state);
  env.AddCleanupHook([state] { state->tear_down(); });
}

EnvState::EnvState(Napi::Env env) : mailbox_(std::make_shared<Mailbox>()) {
  napi_value name;
  napi_create_string_utf8(env, "effnet", NAPI_AUTO_LENGTH, &name);
  napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, nullptr, call_posted,
                                  &mailbox_->function_);
  napi_unref_threadsafe_function(env, mailbox_->function_);
}

EnvState::~EnvState() = default;

void EnvState::add_teardown(std::weak_ptr<void> object, std::function<void(void*)> end) {
  std::erase_if(hooks_, [](const Hook& hook) { return hook.object.expired(); });
  hooks_.push_back({std::move(object), std::move(end)});
}

void EnvState::tear_down() {
  napi_threadsafe_function function;
  {
    std::lock_guard lock(mailbox_->mutex_);
    function = std::exchange(mailbox_->function_, nullptr);
  }
  const std::vector<Hook> hooks = std::exchange(hooks_, {});
  for (auto it = hooks.rbegin(); it != hooks.rend(); ++it)
    if (const auto object = it->object.lock()) it->end(object.get());
  if (function) napi_release_threadsafe_function(function, napi_tsfn_abort);
}

Napi::Error EnvState::make_error(Napi::Env env, const Status& status) {
  if (!error_factory.IsEmpty()) {
    const Napi::Value value = error_factory.Call(
        {Napi::String::New(env, code_text(status.code())), Napi::String::New(env, status.message())});
    if (value.IsObject()) return Napi::Error(env, value);
  }
  Napi::Error plain = Napi::Error::New(env, status.message());
  plain.Set("code", Napi::String::New(env, code_text(status.code())));
  return plain;
}

void EnvState::Mailbox::post(std::function<void(Napi::Env)> work) {
  auto* boxed = new std::function<void(Napi::Env)>(std::move(work));
  {
    std::lock_guard lock(mutex_);
    if (function_ && napi_call_threadsafe_function(function_, boxed, napi_tsfn_nonblocking) == napi_ok) return;
  }
  delete boxed;  // outside the lock: what it owns may post in its turn
}

void EnvState::Mailbox::expect(Napi::Env env) {
  std::lock_guard lock(mutex_);
  if (expected_++ == 0 && function_) napi_ref_threadsafe_function(env, function_);
}

void EnvState::Mailbox::settled(Napi::Env env) {
  std::lock_guard lock(mutex_);
  if (--expected_ == 0 && function_) napi_unref_threadsafe_function(env, function_);
}

// The deferred and the references belong to the JavaScript thread; they are freed there, or leaked on purpose when the
// environment has gone (releasing them from another thread would be a use after free).
struct Completion::State {
  State(Napi::Env env) : deferred(Napi::Promise::Deferred::New(env)) {}
  Napi::Promise::Deferred deferred;
  std::vector<Napi::Reference<Napi::Value>> keep;
  std::shared_ptr<EnvState::Mailbox> mailbox;
};

Completion Completion::create(Napi::Env env, std::vector<Napi::Value> keep) {
  Completion completion;
  auto* state = new State(env);
  // The last owner may be an engine thread; only finish() below, on the JavaScript thread, deletes the state.
  completion.state_ = std::shared_ptr<State>(state, [](State*) {});
  for (const Napi::Value& value : keep) state->keep.push_back(Napi::Persistent(value));
  state->mailbox = EnvState::of(env).mailbox();
  state->mailbox->expect(env);
  return completion;
}

Napi::Promise Completion::promise() const { return state_->deferred.Promise(); }

void Completion::reject(Status status) const {
  state_->mailbox->post([state = state_.get(), status = std::move(status)](Napi::Env env) {
    std::unique_ptr<State> owned(state);
    owned->mailbox->settled(env);
    owned->deferred.Reject(EnvState::of(env).make_error(env, status).Value());
  });
}

void Completion::resolve(std::function<Napi::Value(Napi::Env)> make) const {
  state_->mailbox->post([state = state_.get(), make = std::move(make)](Napi::Env env) {
    std::unique_ptr<State> owned(state);
    owned->mailbox->settled(env);
    try {
      owned->deferred.Resolve(guarded(env, [&] { return make(env); }));
    } catch (const Napi::Error& e) {
      owned->deferred.Reject(e.Value());
    }
  });
}

double get_number(Napi::Env env, Napi::Value value, const char* what, double low, double high) {
  if (value.IsNumber()) {
    const double number = value.As<Napi::Number>().DoubleValue();
    if (number >= low && number <= high) return number;
    throw_status(env, error(Code::invalid_argument, "%s is %g, expected %g to %g", what, number, low, high));
  }
  throw_status(env, error(Code::invalid_argument, "%s must be a number", what));
}

std::string get_string(Napi::Env env, Napi::Value value, const char* what) {
  if (!value.IsString()) throw_status(env, error(Code::invalid_argument, "%s must be a string", what));
  return value.As<Napi::String>().Utf8Value();
}

Bytes get_bytes(Napi::Env env, Napi::Value value, const char* what) {
  if (value.IsTypedArray()) {
    const auto array = value.As<Napi::TypedArray>();
    auto buffer = array.ArrayBuffer();
    return {static_cast<std::byte*>(buffer.Data()) + array.ByteOffset(), array.ByteLength()};
  }
  throw_status(env, error(Code::invalid_argument, "%s must be a typed array", what));
}

}  // namespace effnet::napi
