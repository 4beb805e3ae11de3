#include "cuda/providers/nvjpeg.h"

#include <dlfcn.h>

#include <vector>

#include "cuda/providers/library.h"

namespace effnet::cuda {
namespace {

namespace nj = nvjpeg;

constexpr int kCpuThreads = 1;  // of its own in a batch; files of a batch are parsed by the caller's thread

Status jpeg_status(const char* call, int result) {
  switch (result) {
    case nj::kSuccess:
      return ok_status();
    case nj::kBadJpeg:
    case nj::kJpegNotSupported:
    case nj::kImplementationNotSupported:
    case nj::kIncompleteBitstream:
      return error(Code::data_decode, "nvJPEG does not take it: %s says %d", call, result);
    case nj::kAllocatorFailure:
      return error(Code::oom, "%s failed with status %d", call, result);
    default:
      return error(Code::internal, "%s failed with status %d", call, result);
  }
}

#define EFF_NJ(call, ...) EFF_RETURN_IF_ERROR(jpeg_status(#call, functions_.call(__VA_ARGS__)))

const unsigned char* bytes(NvJpeg::File file) { return reinterpret_cast<const unsigned char*>(file.data()); }

}  // namespace

StatusOr<std::unique_ptr<NvJpeg>> NvJpeg::create(const Memory* memory) {
  const auto found = open_library(kNvJpeg);
  if (!found.ok()) return found.status();
  std::unique_ptr<NvJpeg> made(new NvJpeg());
  nj::Functions& functions = made->functions_;
#define X(name, ...) functions.name = reinterpret_cast<decltype(functions.name)>(dlsym(found.value().handle, #name));
  EFF_NVJPEG(X)
#undef X
  if (memory) made->memory_ = *memory;
  nj::Allocator *device = memory ? &made->memory_.device : nullptr, *host = memory ? &made->memory_.host : nullptr;
  if (const int result =
          functions.nvjpegCreateExV2(nj::kBackendDefault, device, host, nj::kInterpolatedChroma, &made->handle_);
      result != nj::kSuccess) {
    made->handle_ = nullptr;
    if (result == nj::kAllocatorFailure) return jpeg_status("nvjpegCreateExV2", result);
    return does_not_start(kNvJpeg, "nvjpegCreateExV2", result, false);
  }
  if (const int result = functions.nvjpegJpegStateCreate(made->handle_, &made->state_); result != nj::kSuccess) {
    made->state_ = nullptr;
    return jpeg_status("nvjpegJpegStateCreate", result);
  }
  return made;
}

NvJpeg::~NvJpeg() {
  if (state_) functions_.nvjpegJpegStateDestroy(state_);
  if (handle_) functions_.nvjpegDestroy(handle_);
}

StatusOr<NvJpeg::Size> NvJpeg::size(File file) const {
  int components = 0, subsampling = 0, widths[4] = {}, heights[4] = {};
  EFF_NJ(nvjpegGetImageInfo, handle_, bytes(file), file.size(), &components, &subsampling, widths, heights);
  // CMYK would come out as RGB of another convention than Pillow's.
  if (components != 1 && components != 3)
    return error(Code::data_decode, "nvJPEG does not take it: %d components", components);
  if (widths[0] <= 0 || heights[0] <= 0) return error(Code::data_decode, "nvJPEG does not take it: it has no size");
  return Size{widths[0], heights[0]};
}

Status NvJpeg::decode(std::span<const File> files, std::span<const Place> into, void* stream) {
  if (files.size() != into.size()) return error(Code::invalid_argument, "as many files as places for them");
  if (files.empty()) return ok_status();
  if (batch_ != files.size()) {
    batch_ = 0;
    EFF_NJ(nvjpegDecodeBatchedInitialize, handle_, state_, static_cast<int>(files.size()), kCpuThreads,
           nj::kOutputRgbInterleaved);
    batch_ = files.size();
  }
  std::vector<const unsigned char*> data;
  std::vector<size_t> sizes;
  std::vector<nj::Image> images;
  for (size_t i = 0; i < files.size(); ++i) {
    data.push_back(bytes(files[i]));
    sizes.push_back(files[i].size());
    images.push_back({{static_cast<unsigned char*>(into[i].data)}, {into[i].pitch}});
  }
  const int result = functions_.nvjpegDecodeBatched(handle_, state_, data.data(), sizes.data(), images.data(), stream);
  if (result == nj::kSuccess) return ok_status();
  batch_ = 0;  // a state that has failed is prepared again before it decodes
  if (result == nj::kExecutionFailed || result == nj::kInternalError)
    return error(Code::data_decode, "nvJPEG cannot decode it: nvjpegDecodeBatched says %d", result);
  return jpeg_status("nvjpegDecodeBatched", result);
}

}  // namespace effnet::cuda
