// What the addon does with the process that it is in.
#pragma once

#include <napi.h>

namespace effnet::napi {

void register_process(Napi::Env env, Napi::Object exports);

}  // namespace effnet::napi
