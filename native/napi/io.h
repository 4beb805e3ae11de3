// The image and file functions of the addon: decoding, loaders, tensors of files.
#pragma once

#include <napi.h>

namespace effnet::napi {

void register_io(Napi::Env env, Napi::Object exports);

}  // namespace effnet::napi
