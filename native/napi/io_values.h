// JavaScript values of the image functions.
#pragma once

#include <napi.h>

#include <vector>

#include "io/transform.h"
#include "napi/common.h"

namespace effnet::napi {

inline constexpr double kMaxInteger = 9007199254740991.0;  // Number.MAX_SAFE_INTEGER

struct DecodeRequest {
  io::TransformOptions options;
  io::SampleKey key;
};
// DecodeOptions of ts/binding.ts; throws EFF_INVALID_ARGUMENT naming the option.
DecodeRequest get_decode_options(Napi::Env env, Napi::Value value);

// A DecodedImage given by JavaScript: `view` looks into `array`, which must be kept alive.
struct PixelsArgument {
  Napi::Value array;
  io::View view;
};
PixelsArgument get_pixels(Napi::Env env, Napi::Value value);
Status check_pixels(const PixelsArgument& pixels, const io::DecodeLimits& limits);

// A Uint8Array over the vector's memory, or a copy where the runtime refuses that or it is small.
Napi::Value make_bytes(Napi::Env env, std::vector<uint8_t>&& bytes);

void register_loader(Napi::Env env, Napi::Object exports);

}  // namespace effnet::napi
