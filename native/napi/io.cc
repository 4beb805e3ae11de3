// Single images, and tensors of files.
#include "napi/io.h"

#include <cmath>
#include <cstring>
#include <shared_mutex>

#include "io/fault.h"
#include "io/task_pool.h"
#include "io/transfer.h"
#include "napi/handles.h"
#include "napi/io_values.h"

namespace effnet::napi {
namespace {

using namespace io;

struct Image {
  int width = 0, height = 0;
  std::vector<uint8_t> data;
};

// Each thread of the task pool keeps its buffers.
Transformer& thread_transformer() {
  static thread_local Transformer transformer;
  return transformer;
}

void pack(const View& view, Image& image) {
  image.width = view.width;
  image.height = view.height;
  const size_t row_bytes = static_cast<size_t>(view.width) * 3;
  image.data.resize(row_bytes * static_cast<size_t>(view.height));
  for (int y = 0; y < view.height; ++y)
    std::memcpy(image.data.data() + static_cast<size_t>(y) * row_bytes, view.row(y), row_bytes);
}

// Runs `work`, which fills an image, on a thread of ours and settles the promise.
template <class F>
void run_image_task(const Completion& completion, F work) {
  run_task([completion, work = std::move(work)]() mutable {
    auto image = std::make_shared<Image>();
    const Status status = caught([&] { return work(*image); });
    thread_transformer().trim();
    if (!status.ok()) return completion.reject(status);
    completion.resolve([image](Napi::Env env) {
      Napi::Object object = Napi::Object::New(env);
      object.Set("width", image->width);
      object.Set("height", image->height);
      object.Set("data", make_bytes(env, std::move(image->data)));
      return object;
    });
  });
}

Napi::Value decode_jpeg(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const Bytes bytes = get_bytes(env, info[0], "bytes");
  const DecodeRequest request = get_decode_options(env, info[1]);
  // A copy: the caller may change or detach its buffer while we decode.
  auto file = std::make_shared<std::vector<uint8_t>>(reinterpret_cast<const uint8_t*>(bytes.data),
                                                     reinterpret_cast<const uint8_t*>(bytes.data) + bytes.size);
  const Completion completion = Completion::create(env);
  run_image_task(completion, [file, request](Image& image) -> Status {
    const FileKind kind = file_kind(file->data(), file->size());
    if (kind == FileKind::empty) return error(Code::data_decode, "the file is empty");
    if (kind != FileKind::jpeg) return error(Code::data_decode, "%s, not a JPEG", file_kind_name(kind));
    Transformer& transformer = thread_transformer();
    if (request.options.mode == Mode::full) {
      View view;
      EFF_RETURN_IF_ERROR(transformer.decode(file->data(), file->size(), request.options, view));
      pack(view, image);
      return ok_status();
    }
    image.width = image.height = request.options.size;
    image.data.resize(static_cast<size_t>(image.width) * image.width * 3);
    return transformer.jpeg(file->data(), file->size(), request.options, request.key, image.data.data());
  });
  return completion.promise();
}

Napi::Value transform_pixels(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const PixelsArgument pixels = get_pixels(env, info[0]);
  const DecodeRequest request = get_decode_options(env, info[1]);
  check(env, check_pixels(pixels, request.options.limits));
  const Completion completion = Completion::create(env, {pixels.array});
  run_image_task(completion, [view = pixels.view, request](Image& image) -> Status {
    if (request.options.mode == Mode::full) {
      pack(view, image);
      return ok_status();
    }
    image.width = image.height = request.options.size;
    image.data.resize(static_cast<size_t>(image.width) * image.width * 3);
    return thread_transformer().pixels(view, request.options, request.key, image.data.data());
  });
  return completion.promise();
}

TensorTransfer get_transfer(Napi::Env env, Napi::Value value) {
  const Napi::Object object = value.ToObject();
  TensorTransfer t;
  t.arena = static_cast<plan::Arena>(get_number(env, object.Get("arena"), "arena", 0, plan::kArenaCount - 1));
  t.offset = static_cast<uint64_t>(get_number(env, object.Get("offset"), "offset", 0, kMaxInteger));
  t.file_offset = static_cast<uint64_t>(get_number(env, object.Get("fileOffset"), "fileOffset", 0, kMaxInteger));
  const std::string dtype = get_string(env, object.Get("dtype"), "dtype");
  if (dtype == "F32")
    t.dtype = FileDType::f32;
  else if (dtype == "F16")
    t.dtype = FileDType::f16;
  else if (dtype == "BF16")
    t.dtype = FileDType::bf16;
  else if (dtype == "F64")
    t.dtype = FileDType::f64;
  else
    throw_status(env, error(Code::invalid_argument, "dtype is %s, expected F32, F16, BF16 or F64", dtype.c_str()));
  const std::string permute = get_string(env, object.Get("permute"), "permute");
  if (permute == "ohwi")
    t.permute = Permute::ohwi;
  else if (permute == "hwc")
    t.permute = Permute::hwc;
  else if (permute != "none")
    throw_status(env, error(Code::invalid_argument, "permute is %s, expected none, ohwi or hwc", permute.c_str()));
  const Napi::Value shape_value = object.Get("shape");
  if (!shape_value.IsArray()) throw_status(env, error(Code::invalid_argument, "shape must be an array"));
  const auto shape = shape_value.As<Napi::Array>();
  uint32_t* const dims[4] = {&t.o, &t.i, &t.kh, &t.kw};
  const bool whole = t.permute == Permute::none ? shape.Length() <= 4 : shape.Length() == 4;
  if (!whole)
    throw_status(
        env, error(Code::invalid_argument, "shape of %u dimensions for permute %s", shape.Length(), permute.c_str()));
  for (uint32_t d = 0; d < shape.Length(); ++d)
    *dims[d] = static_cast<uint32_t>(get_number(env, shape.Get(d), "shape", 0, 4294967295.0));
  return t;
}

std::vector<TensorTransfer> get_transfers(Napi::Env env, Napi::Value value) {
  if (!value.IsArray()) throw_status(env, error(Code::invalid_argument, "tensors must be an array"));
  const auto list = value.As<Napi::Array>();
  std::vector<TensorTransfer> tensors;
  tensors.reserve(list.Length());
  for (uint32_t n = 0; n < list.Length(); ++n) tensors.push_back(get_transfer(env, list.Get(n)));
  return tensors;
}

Napi::Value load_tensors_of(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto memory = open_memory(info, 0);
  const std::string path = get_string(env, info[1], "path");
  const auto data_start = static_cast<uint64_t>(get_number(env, info[2], "dataStart", 0, kMaxInteger));
  auto tensors = get_transfers(env, info[3]);
  auto change = ChangeMark::begin(env, memory);
  const Completion completion = Completion::create(env);
  run_task([completion, memory, path, data_start, change, tensors = std::move(tensors)]() mutable {
    memory->wait_snapshots();
    const Status status = caught([&] {
      const std::shared_lock lock(memory->arenas);
      return load_tensors(*memory, path, data_start, tensors);
    });
    change->end();
    completion.settle(status);
  });
  return completion.promise();
}

Napi::Object written_object(Napi::Env env, const WrittenFile& file) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("bytes", static_cast<double>(file.bytes));
  object.Set("sha256", file.sha256);
  if (!file.tensors.empty()) object.Set("tensors", file.tensors);
  return object;
}

Napi::Value save_tensors(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto memory = open_memory(info, 0);
  if (!info[1].IsArray()) throw_status(env, error(Code::invalid_argument, "files must be an array"));
  const auto list = info[1].As<Napi::Array>();
  require_no_step(env, *memory);
  std::vector<FileSpec> files(list.Length());
  for (uint32_t n = 0; n < list.Length(); ++n) {
    const Napi::Object object = list.Get(n).ToObject();
    files[n].path = get_string(env, object.Get("path"), "path");
    const Bytes header = get_bytes(env, object.Get("header"), "header");
    const auto* bytes = reinterpret_cast<const uint8_t*>(header.data);
    files[n].header.assign(bytes, bytes + header.size);
    files[n].data_bytes = static_cast<uint64_t>(get_number(env, object.Get("dataBytes"), "dataBytes", 0, kMaxInteger));
    files[n].tensors = get_transfers(env, object.Get("tensors"));
    check(env, check_transfers(*memory, files[n].tensors, files[n].data_bytes));
  }
  // From here on writers wait until the snapshot is taken, so that the caller may queue the next step at once.
  auto pin = std::make_shared<PinMark>(memory);
  const Completion completion = Completion::create(env);
  run_task([completion, memory, pin, files = std::move(files)]() mutable {
    auto snapshot = caught([&] { return take_snapshot(*memory, files); });
    pin->end();
    if (!snapshot.ok()) return completion.reject(snapshot.status());
    auto written = caught([&] { return write_snapshot(*snapshot.value()); });
    if (!written.ok()) return completion.reject(written.status());
    completion.resolve([written = std::move(written.value())](Napi::Env e) {
      Napi::Array result = Napi::Array::New(e, written.size());
      for (uint32_t n = 0; n < written.size(); ++n) result.Set(n, written_object(e, written[n]));
      return result;
    });
  });
  return completion.promise();
}

Napi::Value fsync_of(const Napi::CallbackInfo& info) {
  const std::string path = get_string(info.Env(), info[0], "path");
  const Completion completion = Completion::create(info.Env());
  run_task([completion, path] { completion.settle(caught([&] { return fsync_path(path); })); });
  return completion.promise();
}

// The TypeScript side of a save counts its operations with ours.
Napi::Value save_operation_of(const Napi::CallbackInfo& info) {
  const std::string operation = get_string(info.Env(), info[0], "operation");
  const char* names[] = {"none", "torn", "ENOSPC", "EIO"};
  const Fault fault = save_operation(operation.c_str(), get_string(info.Env(), info[1], "path"));
  return Napi::String::New(info.Env(), names[static_cast<int>(fault)]);
}

Napi::Value hash_file_of(const Napi::CallbackInfo& info) {
  const std::string path = get_string(info.Env(), info[0], "path");
  const Completion completion = Completion::create(info.Env());
  run_task([completion, path] {
    const auto hash = caught([&] { return hash_file(path); });
    if (!hash.ok()) return completion.reject(hash.status());
    completion.resolve([file = hash.value()](Napi::Env env) { return written_object(env, file); });
  });
  return completion.promise();
}

}  // namespace

void register_io(Napi::Env env, Napi::Object exports) {
  export_function(env, exports, "decodeJpeg", decode_jpeg);
  export_function(env, exports, "transformPixels", transform_pixels);
  export_function(env, exports, "loadTensors", load_tensors_of);
  export_function(env, exports, "saveTensors", save_tensors);
  export_function(env, exports, "fsync", fsync_of);
  export_function(env, exports, "saveOperation", save_operation_of);
  export_function(env, exports, "hashFile", hash_file_of);
  register_loader(env, exports);
}

}  // namespace effnet::napi
