// The module: one instance per environment (main thread and every worker thread).
#include "cpu/onednn/adapter.h"
#include "napi/common.h"
#include "napi/handles.h"
#include "napi/io.h"
#include "napi/process.h"

namespace effnet::napi {
namespace {

#define EFF_OP_TABLE_HASH_ONLY
#include "plan/op_table.inc"
#undef EFF_OP_TABLE_HASH_ONLY

Napi::Value version(const Napi::CallbackInfo& info) {
  Napi::Object object = Napi::Object::New(info.Env());
  object.Set("addon", EFFNET_VERSION);
  object.Set("onednn", onednn::version());
  object.Set("opTableHash", static_cast<double>(kOpTableHash));
  object.Set("build", EFFNET_BUILD);
  return object;
}

void set_error_factory(const Napi::CallbackInfo& info) {
  EnvState::of(info.Env()).error_factory = Napi::Persistent(info[0].As<Napi::Function>());
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  EnvState::attach(env);
  exports.Set("version", Napi::Function::New(env, version, "version"));
  exports.Set("setErrorFactory", Napi::Function::New(env, set_error_factory, "setErrorFactory"));
  register_engine(env, exports);
  register_io(env, exports);
  register_process(env, exports);
  return exports;
}

}  // namespace
}  // namespace effnet::napi

static Napi::Object init_module(Napi::Env env, Napi::Object exports) { return effnet::napi::init(env, exports); }
NODE_API_MODULE(effnet, init_module)
