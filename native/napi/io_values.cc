#include "napi/io_values.h"

#include <cstring>
#include <memory>

namespace effnet::napi {
namespace {

constexpr size_t kCopyBelow = size_t{256} << 10;

double number_or(Napi::Env env, const Napi::Object& object, const char* name, double fallback, double low,
                 double high) {
  const Napi::Value value = object.Get(name);
  return value.IsUndefined() ? fallback : get_number(env, value, name, low, high);
}

}  // namespace

DecodeRequest get_decode_options(Napi::Env env, Napi::Value value) {
  if (!value.IsObject()) throw_status(env, error(Code::invalid_argument, "decode options must be an object"));
  const Napi::Object object = value.As<Napi::Object>();
  DecodeRequest request;
  io::TransformOptions& o = request.options;
  const std::string mode = get_string(env, object.Get("mode"), "mode");
  if (mode == "eval")
    o.mode = io::Mode::eval;
  else if (mode == "train")
    o.mode = io::Mode::train;
  else if (mode == "full")
    o.mode = io::Mode::full;
  else
    throw_status(env, error(Code::invalid_argument, "mode is %s, expected eval, train or full", mode.c_str()));
  if (o.mode != io::Mode::full) o.size = static_cast<int>(get_number(env, object.Get("size"), "size", 1, 16384));
  o.resize_to = static_cast<int>(number_or(env, object, "resizeTo", o.size, 1, 32768));
  o.squash = object.Get("squash").ToBoolean().Value();
  if (const Napi::Value filter = object.Get("interpolation"); !filter.IsUndefined()) {
    const std::string name = get_string(env, filter, "interpolation");
    if (name != "bicubic" && name != "bilinear")
      throw_status(env,
                   error(Code::invalid_argument, "interpolation is %s, expected bicubic or bilinear", name.c_str()));
    o.filter = name == "bicubic" ? io::Filter::bicubic : io::Filter::bilinear;
  }
  if (const Napi::Value exif = object.Get("exifOrientation"); !exif.IsUndefined())
    o.exif_orientation = exif.ToBoolean().Value();
  o.limits.max_pixels = static_cast<uint64_t>(
      number_or(env, object, "maxPixels", static_cast<double>(o.limits.max_pixels), 1, kMaxInteger));
  o.scale_min = number_or(env, object, "scaleMin", o.scale_min, 0, 1);
  o.scale_max = number_or(env, object, "scaleMax", o.scale_max, 0, 1);
  o.ratio_min = number_or(env, object, "ratioMin", o.ratio_min, 0, 1e4);
  o.ratio_max = number_or(env, object, "ratioMax", o.ratio_max, 0, 1e4);
  o.hflip = number_or(env, object, "hflip", o.hflip, 0, 1);
  request.key.seed = static_cast<uint64_t>(number_or(env, object, "seed", 0, 0, kMaxInteger));
  request.key.epoch = static_cast<uint64_t>(number_or(env, object, "epoch", 0, 0, kMaxInteger));
  request.key.index = static_cast<uint32_t>(number_or(env, object, "index", 0, 0, 4294967295.0));
  check(env, o.check());
  return request;
}

PixelsArgument get_pixels(Napi::Env env, Napi::Value value) {
  if (!value.IsObject()) throw_status(env, error(Code::invalid_argument, "an image must be {width, height, data}"));
  const Napi::Object object = value.As<Napi::Object>();
  PixelsArgument pixels;
  pixels.view.width = static_cast<int>(get_number(env, object.Get("width"), "width", 1, 1 << 24));
  pixels.view.height = static_cast<int>(get_number(env, object.Get("height"), "height", 1, 1 << 24));
  pixels.array = object.Get("data");
  const Bytes bytes = get_bytes(env, pixels.array, "data");
  pixels.view.stride = static_cast<size_t>(pixels.view.width) * 3;
  pixels.view.data = reinterpret_cast<const uint8_t*>(bytes.data);
  if (bytes.size != pixels.view.stride * static_cast<size_t>(pixels.view.height))
    throw_status(env,
                 error(Code::invalid_argument, "an RGB image of %dx%d has %zu bytes, not %zu", pixels.view.width,
                       pixels.view.height, pixels.view.stride * static_cast<size_t>(pixels.view.height), bytes.size));
  return pixels;
}

Status check_pixels(const PixelsArgument& pixels, const io::DecodeLimits& limits) {
  const auto count = static_cast<uint64_t>(pixels.view.width) * static_cast<uint64_t>(pixels.view.height);
  if (count <= limits.max_pixels) return ok_status();
  return error(Code::data_limit, "image of %dx%d = %llu pixels, the limit is %llu", pixels.view.width,
               pixels.view.height, static_cast<unsigned long long>(count),
               static_cast<unsigned long long>(limits.max_pixels));
}

Napi::Value make_bytes(Napi::Env env, std::vector<uint8_t>&& bytes) {
  const size_t size = bytes.size();
  if (size >= kCopyBelow) {
    auto owner = std::make_unique<std::vector<uint8_t>>(std::move(bytes));
    napi_value buffer;
    const auto release = [](napi_env, void*, void* hint) { delete static_cast<std::vector<uint8_t>*>(hint); };
    const napi_status status =
        napi_create_external_arraybuffer(env, owner->data(), size, release, owner.get(), &buffer);
    if (status == napi_ok) {
      owner.release();
      return Napi::Uint8Array::New(env, size, Napi::ArrayBuffer(env, buffer), 0);
    }
    bytes = std::move(*owner);  // napi_no_external_buffers_allowed
  }
  auto buffer = Napi::ArrayBuffer::New(env, size);
  if (size > 0) std::memcpy(buffer.Data(), bytes.data(), size);
  return Napi::Uint8Array::New(env, size, buffer, 0);
}

}  // namespace effnet::napi
