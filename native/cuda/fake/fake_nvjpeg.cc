// A libnvjpeg.so.13 without a GPU, for tests: it decodes with libjpeg-turbo, on the streams of the fake driver, and
// refuses wrong sequences. Pixels are the CPU's: a GPU's differ by what its inverse DCT and upsampling round.
//
//   - A batch has the size that the state was prepared for; every image has an address and rows wide enough.
//   - A state whose decode has failed is prepared again before the next.
//   - Files are read when the stream comes to them, and once at the call; then images are written. With
//     FAKE_NVJPEG_AT_ONCE they are written at the call, whatever the stream still has to do, as hardware engines may.
//   - Memory of its own comes from the handle's allocators: for each image of a batch FAKE_NVJPEG_MEMORY bytes (4096)
//     of the device and as many of the host; it grows with the batch, and goes with the state.
//   - FAKE_NVJPEG_REFUSE=name:width:status makes a function refuse images of that width.
//   - FAKE_NVJPEG_FAIL=name:nth:status makes the nth call of a function fail; FAKE_NVJPEG_VERSION is what it says it is
//     (130000).
//   - fake_nvjpeg_live() counts handles and states, fake_nvjpeg_calls(name) calls, fake_nvjpeg_misuse() is what it was
//     last given that it should not have been; fake_nvjpeg_reset() forgets calls and misuse.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cuda/fake/fake_calls.h"
#include "cuda/providers/nvjpeg_api.h"
#include "io/jpeg.h"

namespace {

using namespace effnet::cuda::nvjpeg;
using effnet::fake::Calls;
using effnet::fake::queue_kernel;
using effnet::fake::run_at_once;

struct Block {
  const Allocator* from = nullptr;
  void* data = nullptr;
  size_t bytes = 0;
  bool hold(size_t wanted) {
    if (!from || wanted <= bytes) return true;
    give_back();
    if (from->allocate(from->context, &data, wanted, nullptr) != 0) return false;
    bytes = wanted;
    return true;
  }
  void give_back() {
    if (bytes) from->free(from->context, data, std::exchange(bytes, 0), nullptr);
  }
};
struct Memory {
  Block device, host;
};

struct Fake {
  std::mutex mutex;
  std::map<void*, int> live;       // handles and states; of a state the size of its batches
  std::map<void*, Memory> memory;  // of handles, empty, and of states
  Calls calls{"FAKE_NVJPEG_FAIL"};
};
Fake& fake() {
  static Fake* const one = new Fake;
  return *one;
}

int wrong(const std::string& what) {
  fake().calls.misuse = what;
  return kInvalidParameter;
}

int refused(const char* name, int width) {
  const char* refuse = std::getenv("FAKE_NVJPEG_REFUSE");
  char who[64] = {};
  int of_width = 0, status = 0;
  if (refuse && std::sscanf(refuse, "%63[^:]:%d:%d", who, &of_width, &status) == 3 && std::string(who) == name &&
      width == of_width)
    return status;
  return kSuccess;
}

template <class Object>
int create(Object* into) {
  *into = reinterpret_cast<Object>(new char);
  fake().live[*into] = 0;
  return kSuccess;
}
int destroy(void* object) {
  if (!fake().live.erase(object)) return wrong("something is destroyed that is not there");
  delete static_cast<char*>(object);
  return kSuccess;
}

// The pixels of a file, [height][width][3]; nullptr where it cannot be read.
struct Decoded {
  effnet::io::ByteBuffer buffer;
  effnet::io::View view;
};
std::shared_ptr<Decoded> decode(const unsigned char* data, size_t bytes) {
  effnet::io::JpegReader reader;
  auto decoded = std::make_shared<Decoded>();
  if (!reader.open(data, bytes, {}).ok() || !reader.decode(8, nullptr, decoded->buffer, decoded->view).ok())
    return nullptr;
  return decoded;
}

}  // namespace

#define EFF_ENTER(name)                                 \
  const std::lock_guard<std::mutex> lock(fake().mutex); \
  if (const int failed = fake().calls.enter(#name)) return failed;

EFF_EXPORT int nvjpegGetProperty(int which, int* value) {
  const char* text = std::getenv("FAKE_NVJPEG_VERSION");
  const int version = text ? std::atoi(text) : 130000, parts[] = {version / 10000, version / 100 % 100, version % 100};
  *value = parts[which];
  return kSuccess;
}
EFF_EXPORT int nvjpegCreateExV2(int, Allocator* device, Allocator* pinned, unsigned flags, Handle* handle) {
  EFF_ENTER(nvjpegCreateExV2)
  if (flags != kInterpolatedChroma) return wrong("chroma that this one, which is libjpeg, does not make");
  create(handle);
  fake().memory[*handle] = {{device}, {pinned}};
  return kSuccess;
}
EFF_EXPORT int nvjpegDestroy(Handle handle) {
  EFF_ENTER(nvjpegDestroy)
  fake().memory.erase(handle);
  return destroy(handle);
}
EFF_EXPORT int nvjpegJpegStateCreate(Handle handle, State* state) {
  EFF_ENTER(nvjpegJpegStateCreate)
  if (!fake().live.count(handle)) return wrong("a state of no handle");
  create(state);
  fake().memory[*state] = fake().memory[handle];
  return kSuccess;
}
EFF_EXPORT int nvjpegJpegStateDestroy(State state) {
  EFF_ENTER(nvjpegJpegStateDestroy)
  if (const auto of_state = fake().memory.extract(state)) {
    Memory memory = of_state.mapped();
    memory.device.give_back();
    memory.host.give_back();
  }
  return destroy(state);
}
EFF_EXPORT int nvjpegGetImageInfo(Handle handle, const unsigned char* data, size_t bytes, int* components,
                                  int* subsampling, int* widths, int* heights) {
  EFF_ENTER(nvjpegGetImageInfo)
  if (!fake().live.count(handle)) return wrong("no such handle");
  effnet::io::JpegReader reader;
  if (!reader.open(data, bytes, {}).ok()) return kBadJpeg;
  if (const int status = refused("nvjpegGetImageInfo", reader.info().width)) return status;
  *components = reader.info().components;
  *subsampling = 0;
  for (int i = 0; i < 4; ++i) {
    widths[i] = i < *components ? reader.info().width : 0;
    heights[i] = i < *components ? reader.info().height : 0;
  }
  return kSuccess;
}
EFF_EXPORT int nvjpegDecodeBatchedInitialize(Handle handle, State state, int images, int cpu_threads, int format) {
  EFF_ENTER(nvjpegDecodeBatchedInitialize)
  if (!fake().live.count(handle) || !fake().live.count(state)) return wrong("a batch of no state");
  if (images < 1 || cpu_threads < 1 || format != kOutputRgbInterleaved) return wrong("a batch of no images");
  const char* text = std::getenv("FAKE_NVJPEG_MEMORY");
  const size_t needed = static_cast<size_t>(images) * (text ? std::strtoull(text, nullptr, 10) : 4096);
  Memory& memory = fake().memory[state];
  if (!memory.device.hold(needed) || !memory.host.hold(needed)) return kAllocatorFailure;
  fake().live[state] = images;
  return kSuccess;
}
EFF_EXPORT int nvjpegDecodeBatched(Handle handle, State state, const unsigned char* const* data, const size_t* bytes,
                                   Image* into, Stream stream) {
  const std::lock_guard<std::mutex> lock(fake().mutex);
  if (!fake().live.count(handle) || !fake().live.count(state)) return wrong("a batch of no state");
  const int images = std::exchange(fake().live[state], 0);  // until it has not failed
  if (images == 0) return wrong("a batch that was not prepared");
  if (const int failed = fake().calls.enter("nvjpegDecodeBatched")) return failed;
  struct Job {
    const unsigned char* data;
    size_t bytes;
    Image place;
  };
  std::vector<Job> jobs;
  for (int i = 0; i < images; ++i) {
    const auto decoded = decode(data[i], bytes[i]);
    if (!decoded) return kBadJpeg;
    if (const int status = refused("nvjpegDecodeBatched", decoded->view.width)) return status;
    if (!into[i].channel[0] || into[i].pitch[0] < static_cast<size_t>(decoded->view.width) * 3)
      return wrong("an image without room");
    jobs.push_back({data[i], bytes[i], into[i]});
  }
  const auto write = [jobs] {
    for (const Job& job : jobs) {
      const auto decoded = decode(job.data, job.bytes);
      for (int y = 0; decoded && y < decoded->view.height; ++y)
        std::memcpy(job.place.channel[0] + static_cast<size_t>(y) * job.place.pitch[0], decoded->view.row(y),
                    static_cast<size_t>(decoded->view.width) * 3);
    }
  };
  if (!(std::getenv("FAKE_NVJPEG_AT_ONCE") ? run_at_once(write) : queue_kernel(stream, "nvjpeg", write)))
    return kExecutionFailed;
  fake().live[state] = images;
  return kSuccess;
}

EFF_EXPORT int fake_nvjpeg_live() {
  const std::lock_guard<std::mutex> lock(fake().mutex);
  return static_cast<int>(fake().live.size());
}
EFF_FAKE_CALLS(nvjpeg)
