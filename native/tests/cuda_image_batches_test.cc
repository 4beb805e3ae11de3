// Batches made on a GPU, from files to where a step reads them, on a driver and an nvJPEG without one
// (native/cuda/fake): beside the CPU's transform of the same decoded pixels, which they must equal, and beside the
// CPU's whole pipeline.
#include <dlfcn.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <future>
#include <thread>

#include "cuda/image_batches.h"
#include "io/loader.h"
#include "tests/io_fixtures.h"

namespace effnet::test {
namespace {

using namespace io;
using Result = StatusOr<std::optional<LoadedBatch>>;

constexpr int kSize = 24, kBatch = 5;
constexpr size_t kSquare = kSize * kSize * 3;
const char* const kFiles[] = {"420.jpg",          "422.jpg",          "444.jpg",          "progressive.jpg",
                              "gray.jpg",         "cmyk.jpg",         "large.jpg",        "orientation3.jpg",
                              "orientation6.jpg", "orientation8.jpg", "orientation2.jpg", "restarts.jpg"};
constexpr uint32_t kCmyk = 5, kLarge = 6;

template <class F>
F* of_fake(const char* library, const char* name) {
  void* handle = dlopen((std::string(FAKE_NVIDIA_FOLDER "/") + library).c_str(), RTLD_NOW | RTLD_GLOBAL);
  return reinterpret_cast<F*>(dlsym(handle, name));
}
int live() { return of_fake<int()>("libcuda.so.1", "fake_cuda_live")(); }
int calls(const char* name) { return of_fake<int(const char*)>("libcuda.so.1", "fake_cuda_calls")(name); }
void reset() { of_fake<void()>("libcuda.so.1", "fake_cuda_reset")(); }

class Setting {
 public:
  Setting(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~Setting() { unsetenv(name_); }

 private:
  const char* name_;
};

class CudaImages : public testing::Test {
 protected:
  static void SetUpTestSuite() { setenv("EFFNET_LIB_DIR", FAKE_NVIDIA_FOLDER, 1); }
  void SetUp() override {
    reset();
    auto opened = cuda::Device::open(0);
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    device = opened.value();
    before = live();
  }
  void TearDown() override {
    if (!context_lost) {
      EXPECT_EQ(live(), before);
    }
    EXPECT_STREQ(of_fake<const char*()>("libnvjpeg.so.13", "fake_nvjpeg_misuse")(), "");
    EXPECT_EQ(of_fake<int()>("libnvjpeg.so.13", "fake_nvjpeg_live")(), 0);
  }

  LoaderOptions options(Mode mode, bool on_device, uint64_t scratch = uint64_t{1} << 30) const {
    LoaderOptions options;
    for (const char* name : kFiles) {
      options.labels.push_back(static_cast<int32_t>(options.files.size()) + 100);
      options.files.push_back((fixture_dir() / name).string());
    }
    options.batch_size = kBatch;
    options.workers = 3;
    options.transform.mode = mode;
    options.transform.size = kSize;
    options.transform.resize_to = kSize + 4;
    if (on_device)
      options.device = [device = device,
                        scratch](DeviceImages::Options wanted) -> StatusOr<std::unique_ptr<DeviceImages>> {
        wanted.scratch_bytes = scratch;
        auto made = cuda::ImageBatches::create(device, wanted);
        if (!made.ok()) return made.status();
        return std::unique_ptr<DeviceImages>(std::move(made.value()));
      };
    return options;
  }

  std::shared_ptr<cuda::Device> device;
  int before = 0;
  bool context_lost = false;  // a fault has ended it: nothing can be given back
};

// Its threads are gone with it, and what they held.
struct LoaderDeleter {
  void operator()(Loader* loader) const {
    loader->close();
    loader->wait_stopped();
    delete loader;
    // The last thread lets go of what all share just behind that.
    for (int i = 0; i < 200 && of_fake<int()>("libnvjpeg.so.13", "fake_nvjpeg_live")() > 0; ++i) usleep(1000);
  }
};
using LoaderPtr = std::unique_ptr<Loader, LoaderDeleter>;

LoaderPtr create(LoaderOptions options) {
  auto loader = Loader::create(std::move(options));
  EXPECT_TRUE(loader.ok()) << loader.status().message();
  return LoaderPtr(loader.value().release());
}

Result next(Loader& loader) {
  std::promise<Result> answer;
  loader.next([&](Result result) { answer.set_value(std::move(result)); });
  return answer.get_future().get();
}

using Bytes = std::vector<uint8_t>;
Bytes bytes_of(const Batch& batch) {
  Bytes bytes(batch.bytes());
  if (batch.device)
    EXPECT_TRUE(batch.device->read({reinterpret_cast<std::byte*>(bytes.data()), bytes.size()}).ok());
  else
    std::memcpy(bytes.data(), batch.data(), bytes.size());
  return bytes;
}
int32_t label_at(const Batch& batch, const Bytes& bytes, int slot) {
  int32_t label;
  std::memcpy(&label, bytes.data() + batch.labels_offset + static_cast<size_t>(slot) * 4, 4);
  return label;
}

// Everything of an epoch that can be compared.
struct Epoch {
  std::vector<Bytes> bytes;
  std::vector<std::vector<uint32_t>> indices;
  std::vector<uint32_t> on_cpu, bad;
  std::vector<std::string> messages;
};
Epoch epoch_of(Loader& loader, const std::vector<uint32_t>& order, bool drop_last = false) {
  EXPECT_TRUE(loader.start(order, 0, 1, 11, drop_last).ok());
  Epoch epoch;
  for (;;) {
    const Result result = next(loader);
    EXPECT_TRUE(result.ok()) << result.status().message();
    if (!result.ok() || !result.value()) break;
    const LoadedBatch& batch = *result.value();
    if (batch.count > 0) {
      epoch.bytes.push_back(bytes_of(*batch.batch));
      for (int slot = 0; slot < kBatch; ++slot) {
        EXPECT_EQ(label_at(*batch.batch, epoch.bytes.back(), slot),
                  slot < batch.count ? static_cast<int32_t>(batch.indices[static_cast<size_t>(slot)]) + 100 : -1);
      }
    }
    epoch.indices.push_back(batch.indices);
    epoch.on_cpu.insert(epoch.on_cpu.end(), batch.on_cpu.begin(), batch.on_cpu.end());
    for (const BadSample& bad : batch.bad) {
      epoch.bad.push_back(bad.index);
      epoch.messages.push_back(bad.status.message());
    }
  }
  return epoch;
}

std::vector<uint32_t> all(size_t n = std::size(kFiles)) {
  std::vector<uint32_t> order;
  for (size_t i = 0; i < n; ++i) order.push_back(static_cast<uint32_t>(i * 7 % std::size(kFiles)));
  return order;
}

TEST_F(CudaImages, EqualTheTransformOfTheWholeDecodedImage) {
  for (const Mode mode : {Mode::train, Mode::eval})
    for (const char* order : {"0", "3", "7"}) {
      const Setting legal("FAKE_CUDA_ORDER", order);
      const LoaderOptions with = options(mode, true);
      const auto loader = create(with);
      const Epoch epoch = epoch_of(*loader, all());
      ASSERT_EQ(epoch.bytes.size(), 3u);
      EXPECT_EQ(epoch.on_cpu, std::vector<uint32_t>{kCmyk});
      Transformer transformer;
      for (size_t b = 0; b < epoch.bytes.size(); ++b)
        for (size_t slot = 0; slot < epoch.indices[b].size(); ++slot) {
          const uint32_t index = epoch.indices[b][slot];
          const auto file = read_bytes(with.files[index]);
          Bytes want(kSquare);
          if (index == kCmyk) {
            ASSERT_TRUE(transformer.jpeg(file.data(), file.size(), with.transform, {11, 1, index}, want.data()).ok());
          } else {
            View whole;
            Transformer decoder;
            ASSERT_TRUE(decoder.decode(file.data(), file.size(), with.transform, whole).ok());
            ASSERT_TRUE(transformer.pixels(whole, with.transform, {11, 1, index}, want.data()).ok());
          }
          EXPECT_TRUE(std::equal(want.begin(), want.end(),
                                 epoch.bytes[b].begin() + static_cast<std::ptrdiff_t>(slot * kSquare)))
              << kFiles[index];
        }
      const Bytes& tail = epoch.bytes.back();
      EXPECT_TRUE(
          std::all_of(tail.begin() + 2 * kSquare, tail.begin() + kBatch * kSquare, [](uint8_t v) { return v == 0; }));
    }
}

TEST_F(CudaImages, OrderSkipsAndTailsAreTheCpuPipelines) {
  for (const bool drop_last : {false, true}) {
    const auto there = create(options(Mode::train, true)), here = create(options(Mode::train, false));
    const Epoch device_epoch = epoch_of(*there, all(28), drop_last), cpu = epoch_of(*here, all(28), drop_last);
    EXPECT_EQ(device_epoch.indices, cpu.indices);
    EXPECT_TRUE(cpu.on_cpu.empty());
    ASSERT_EQ(there->batch_bytes(), here->batch_bytes());
    // Begun in the middle it goes on with the same.
    ASSERT_TRUE(there->start(all(28), 10, 1, 11, drop_last).ok());
    const Result third = next(*there);
    ASSERT_TRUE(third.ok() && third.value());
    EXPECT_TRUE(bytes_of(*third.value()->batch) == device_epoch.bytes[2]);
  }
}

// The evaluation's transform decodes whole images here and there: there the fake decodes as the CPU does.
TEST_F(CudaImages, EvaluationEqualsTheCpuPipelineBitForBit) {
  const auto there = create(options(Mode::eval, true)), here = create(options(Mode::eval, false));
  EXPECT_TRUE(epoch_of(*there, all()).bytes == epoch_of(*here, all()).bytes);
}

TEST_F(CudaImages, PartsOfABatchGiveTheSame) {
  const auto whole = create(options(Mode::train, true));
  const Epoch want = epoch_of(*whole, all());
  for (const uint64_t scratch : {uint64_t{1}, uint64_t{200} << 10}) {
    const auto parts = create(options(Mode::train, true, scratch));
    EXPECT_TRUE(epoch_of(*parts, all()).bytes == want.bytes);
  }
}

TEST_F(CudaImages, ABatchAllocatesNothingOnceWarm) {
  const LoaderOptions with = options(Mode::train, true);
  const auto loader = create(with);
  {
    // As many as there may be at once.
    std::vector<Result> held;
    ASSERT_TRUE(loader->start(all(60), 0, 1, 11, false).ok());
    for (int i = 0; i <= with.prefetch; ++i) held.push_back(next(*loader));
  }
  // Of an odd number of batches, so that both halves of the staging meet all of them.
  for (int i = 0; i < 2; ++i) epoch_of(*loader, all(55));
  const int device_blocks = calls("cuMemAlloc"), host_blocks = calls("cuMemHostAlloc"), events = calls("cuEventCreate");
  for (int i = 0; i < 2; ++i) epoch_of(*loader, all(55));
  EXPECT_EQ(calls("cuMemAlloc"), device_blocks);
  EXPECT_EQ(calls("cuMemHostAlloc"), host_blocks);
  EXPECT_EQ(calls("cuEventCreate"), events);
}

// Of what nvJPEG refuses, at its header or when it decodes, the CPU makes the pixels.
TEST_F(CudaImages, RefusedFilesAreTheCpus) {
  const auto cpu = create(options(Mode::train, false));
  const Epoch here = epoch_of(*cpu, all());
  for (const char* refused : {"nvjpegGetImageInfo:300:4", "nvjpegDecodeBatched:300:4", "nvjpegDecodeBatched:300:6",
                              "nvjpegDecodeBatched:300:8", "nvjpegDecodeBatched:300:10"}) {
    const Setting setting("FAKE_NVJPEG_REFUSE", refused);
    const auto loader = create(options(Mode::train, true));
    const Epoch there = epoch_of(*loader, all());
    EXPECT_EQ(there.indices, here.indices);
    std::vector<uint32_t> on_cpu = there.on_cpu;
    std::sort(on_cpu.begin(), on_cpu.end());
    EXPECT_EQ(on_cpu, (std::vector<uint32_t>{kCmyk, kLarge})) << refused;
    for (size_t b = 0; b < here.bytes.size(); ++b)
      for (size_t slot = 0; slot < here.indices[b].size(); ++slot) {
        if (here.indices[b][slot] != kLarge) continue;
        const auto at = static_cast<std::ptrdiff_t>(slot * kSquare);
        EXPECT_TRUE(
            std::equal(here.bytes[b].begin() + at, here.bytes[b].begin() + at + kSquare, there.bytes[b].begin() + at));
      }
  }
}

// A decode that fails for the device is no file's failure: the stream says so.
TEST_F(CudaImages, AFaultIsNoRefusal) {
  of_fake<void()>("libnvjpeg.so.13", "fake_nvjpeg_reset")();
  const Setting fails("FAKE_NVJPEG_FAIL", "nvjpegDecodeBatched:1:6"),
      fault("FAKE_CUDA_FAIL", "cuStreamSynchronize:3:719");  // after that of the room for images and before the decode
  {
    const auto loader = create(options(Mode::train, true));
    ASSERT_TRUE(loader->start(all(), 0, 1, 1, false).ok());
    Status status;
    for (int i = 0; i < 4 && status.ok(); ++i) status = next(*loader).status();
    EXPECT_EQ(status.code(), Code::gpu_fault);
    EXPECT_NE(status.message().find("(719)"), std::string::npos) << status.message();
  }
  context_lost = true;
  reset();
}

// RGB that is not YCbCr: so named by its components, or by an Adobe marker. What nvJPEG makes of it is not asked.
TEST_F(CudaImages, OtherColoursAreTheCpus) {
  char folder[] = "/tmp/effnet-colours-XXXXXX";
  ASSERT_TRUE(mkdtemp(folder));
  const Bytes file = read_bytes(fixture_dir() / "444.jpg");
  const auto segment = [](const Bytes& in, uint8_t marker) {  // where one begins
    size_t at = 2;
    while (in[at + 1] != marker) at += 2u + in[at + 2] * 256u + in[at + 3];
    return at;
  };
  Bytes named = file;
  named[segment(named, 0xe0) + 1] = 0xec;  // JFIF would mean YCbCr
  const size_t frame = segment(named, 0xc0), scan = segment(named, 0xda);
  for (size_t c = 0; c < 3; ++c) named[frame + 10 + 3 * c] = named[scan + 5 + 2 * c] = static_cast<uint8_t>("RGB"[c]);
  Bytes marked = file;
  marked[segment(marked, 0xe0) + 1] = 0xec;
  const uint8_t adobe[] = {0xff, 0xee, 0, 14, 'A', 'd', 'o', 'b', 'e', 0, 100, 0, 0, 0, 0, 0};
  marked.insert(marked.begin() + 2, std::begin(adobe), std::end(adobe));
  std::vector<Epoch> epochs;
  for (const bool on_device : {false, true}) {
    LoaderOptions with = options(Mode::eval, on_device);
    for (const Bytes& bytes : {named, marked}) {
      const std::string path = std::string(folder) + "/" + std::to_string(with.files.size()) + ".jpg";
      std::ofstream(path, std::ios::binary)
          .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
      with.labels.push_back(static_cast<int32_t>(with.files.size()) + 100);
      with.files.push_back(path);
    }
    const auto loader = create(std::move(with));
    epochs.push_back(epoch_of(*loader, {2, 12, 13, 4}));
  }
  EXPECT_TRUE(epochs[1].bytes == epochs[0].bytes);
  EXPECT_TRUE(epochs[1].bad.empty());
  EXPECT_EQ(epochs[1].on_cpu, (std::vector<uint32_t>{12, 13}));
  std::filesystem::remove_all(folder);
}

TEST_F(CudaImages, UnreadableFilesAreSkippedAsOnTheCpu) {
  char folder[] = "/tmp/effnet-images-XXXXXX";
  ASSERT_TRUE(mkdtemp(folder));
  const auto write = [&](const char* name, const Bytes& bytes) {
    const std::string path = std::string(folder) + "/" + name;
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return path;
  };
  const Bytes good = read_bytes(fixture_dir() / "444.jpg");
  Bytes cut(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(good.size() / 2));
  // Sound to its header and at its end; tables that the scan needs are not there, which is found when it is decoded.
  Bytes tableless = good;
  for (size_t i = 0; i + 4 < tableless.size(); ++i)
    if (tableless[i] == 0xff && tableless[i + 1] == 0xdb) tableless[i + 1] = 0xec;  // DQT to APP12
  const std::vector<std::string> bad = {write("cut.jpg", cut), write("empty.jpg", {}), write("none.jpg", Bytes(500, 7)),
                                        write("tableless.jpg", tableless), std::string(folder) + "/missing.jpg"};
  // Bad ones early, in a whole batch, and alone in the tail.
  for (const auto& order : {std::vector<uint32_t>{0, 12, 1, 13, 2, 15, 3, 4, 14, 6, 7, 15, 8, 16, 9},
                            std::vector<uint32_t>{0, 1, 2, 3, 4, 15}, std::vector<uint32_t>{15, 12}}) {
    std::vector<Epoch> epochs;
    for (const bool on_device : {false, true}) {
      LoaderOptions with = options(Mode::eval, on_device);
      for (const std::string& path : bad) {
        with.files.push_back(path);
        with.labels.push_back(static_cast<int32_t>(with.files.size()) + 99);
      }
      const auto loader = create(std::move(with));
      epochs.push_back(epoch_of(*loader, order));
    }
    EXPECT_EQ(epochs[1].indices, epochs[0].indices);
    EXPECT_TRUE(epochs[1].bytes == epochs[0].bytes);
    std::vector<std::string> here = epochs[0].messages, there = epochs[1].messages;
    std::sort(here.begin(), here.end());
    std::sort(there.begin(), there.end());
    EXPECT_EQ(there, here);
    EXPECT_FALSE(here.empty());
  }
  std::filesystem::remove_all(folder);
}

TEST_F(CudaImages, WhatIsBeingMadeMayBeDropped) {
  const auto loader = create(options(Mode::train, true));
  const Epoch want = epoch_of(*loader, all(28));
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(loader->start(all(28), 0, 2, 5, false).ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(i));
  }
  EXPECT_TRUE(epoch_of(*loader, all(28)).bytes == want.bytes);
}

TEST_F(CudaImages, FailingCallsEndTheEpochAndLeaveNothing) {
  for (const char* fail : {"cuMemAlloc:3:2", "cuMemHostAlloc:1:1", "cuLaunchKernelEx:1:1", "cuMemcpyHtoDAsync:1:1"}) {
    reset();
    const Setting setting("FAKE_CUDA_FAIL", fail);
    const auto loader = create(options(Mode::train, true));
    ASSERT_TRUE(loader->start(all(), 0, 1, 1, false).ok());
    Status status;
    for (int i = 0; i < 4 && status.ok(); ++i) status = next(*loader).status();
    EXPECT_FALSE(status.ok()) << fail;
  }
}

TEST_F(CudaImages, WithoutRoomItSaysWhatForAndTheMend) {
  const Setting fail("FAKE_CUDA_FAIL", "cuMemAlloc:1:2");
  const auto loader = create(options(Mode::train, true));
  ASSERT_TRUE(loader->start(all(), 0, 1, 1, false).ok());
  const Status status = next(*loader).status();
  EXPECT_EQ(status.code(), Code::oom);
  for (const char* said : {" are free", "images decoded on the GPU"})
    EXPECT_NE(status.message().find(said), std::string::npos) << status.message();
}

size_t device_bytes() { return of_fake<size_t()>("libcuda.so.1", "fake_cuda_bytes")(); }

LoaderOptions within(LoaderOptions options, const std::shared_ptr<Budget>& budget) {
  options.device = [make = options.device, budget](DeviceImages::Options wanted) {
    wanted.budget = budget;
    return make(wanted);
  };
  return options;
}

// Batches, decoded images, tables and nvJPEG's own memory; what can be told is taken at the start.
TEST_F(CudaImages, ALimitHoldsForAllThatDecodingTakes) {
  const Epoch want = epoch_of(*create(options(Mode::train, true)), all());
  const auto budget = std::make_shared<Budget>(uint64_t{400} << 20);
  const Setting own("FAKE_NVJPEG_MEMORY", "1000000");
  const size_t others = device_bytes();
  {
    const LoaderOptions with = within(options(Mode::train, true), budget);
    const auto loader = create(with);
    const uint64_t first = budget->used();
    EXPECT_EQ(first, device_bytes() - others);
    EXPECT_GE(first, (uint64_t{400} << 20) / 16 + static_cast<uint64_t>(with.prefetch + 1) * kBatch * kSquare);
    EXPECT_TRUE(epoch_of(*loader, all()).bytes == want.bytes);
    EXPECT_EQ(budget->used(), device_bytes() - others);
    // Tables beside it.
    EXPECT_GE(budget->used(), first + kBatch * uint64_t{1000000});
    EXPECT_LT(budget->used(), first + kBatch * uint64_t{1000000} + (uint64_t{1} << 20));
  }
  EXPECT_EQ(budget->used(), 0u);
  EXPECT_EQ(device_bytes(), others);
}

TEST_F(CudaImages, ALimitWithoutRoomForDecodingIsSaidInNumbers) {
  const auto expect = [](const Status& status, const char* limit) {
    EXPECT_EQ(status.code(), Code::oom);
    for (const std::string said : {std::string("the limit of ") + limit + " leaves ", std::string("were needed"),
                                   std::string(", for images decoded on the GPU, which take ")})
      EXPECT_NE(status.message().find(said), std::string::npos) << status.message();
  };
  expect(Loader::create(within(options(Mode::train, true), std::make_shared<Budget>(4 << 20))).status(), "4.0 MiB");
  // nvJPEG's own comes with the first batch.
  const Setting own("FAKE_NVJPEG_MEMORY", "1000000");
  const auto budget = std::make_shared<Budget>(uint64_t{20} << 20);
  const auto loader = create(within(options(Mode::train, true), budget));
  ASSERT_TRUE(loader->start(all(), 0, 1, 1, false).ok());
  expect(next(*loader).status(), "20.0 MiB");
}

// Without it the GPU's images are the same.
TEST_F(CudaImages, AHostWithoutPageLockedMemoryMakesTheSame) {
  const Epoch want = epoch_of(*create(options(Mode::train, true)), all());
  const Setting none("FAKE_CUDA_LOCKABLE", "0");
  for (const char* order : {"0", "3"}) {
    const Setting legal("FAKE_CUDA_ORDER", order);
    EXPECT_TRUE(epoch_of(*create(options(Mode::train, true)), all()).bytes == want.bytes);
  }
  EXPECT_GT(device->unlocked_bytes(), 0u);
}

std::vector<std::string> files_in(const std::filesystem::path& folder) {
  std::vector<std::string> files;
  if (test_data().empty()) return files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
    if (const auto extension = entry.path().extension(); extension == ".jpg" || extension == ".jpeg")
      files.push_back(entry.path().string());
  std::sort(files.begin(), files.end());
  return files;
}

// Damaged, cut, of odd sampling, progressive, huge: what can be read, and what is said of the rest.
TEST_F(CudaImages, AwkwardFilesAreReadOrNotAsOnTheCpu) {
  const auto files = files_in(test_data() / "jpeg-torture");
  if (files.empty()) GTEST_SKIP() << "EFFNET_TEST_DATA is not set";
  ASSERT_GE(files.size(), 50u);
  std::vector<uint32_t> order;
  for (uint32_t i = 0; i < files.size(); ++i) order.push_back(i);
  for (const Mode mode : {Mode::eval, Mode::train}) {
    std::vector<Epoch> epochs;
    for (const bool on_device : {false, true}) {
      LoaderOptions with = options(mode, on_device);
      with.files = files;
      with.labels.clear();
      for (const uint32_t index : order) with.labels.push_back(static_cast<int32_t>(index) + 100);
      const auto loader = create(std::move(with));
      epochs.push_back(epoch_of(*loader, order));
    }
    EXPECT_EQ(epochs[1].indices, epochs[0].indices);
    for (Epoch& epoch : epochs) std::sort(epoch.messages.begin(), epoch.messages.end());
    EXPECT_EQ(epochs[1].messages, epochs[0].messages);
    EXPECT_FALSE(epochs[0].messages.empty());
    if (mode == Mode::eval) {
      EXPECT_TRUE(epochs[1].bytes == epochs[0].bytes);
    }
    EXPECT_LT(epochs[1].on_cpu.size(), files.size() / 2);
  }
}

// The CPU's training transform decodes no more of a file than it needs: at a half, a quarter or an eighth of its size
// where the crop stays large enough. Here the whole image is decoded, then resized: the same crop, by another filter.
TEST_F(CudaImages, PhotosAreTheCpuPipelinesWithinATolerance) {
  const auto files = files_in(test_data() / "imagenet-samples");
  if (files.empty()) GTEST_SKIP() << "EFFNET_TEST_DATA is not set";
  ASSERT_GE(files.size(), 3u);
  for (const int size : {224, 64}) {
    const size_t square = static_cast<size_t>(size) * size * 3;
    double worst_mean = 0, mean = 0;
    int worst = 0;
    std::vector<Bytes> epochs[2];
    for (const bool on_device : {false, true}) {
      LoaderOptions with = options(Mode::train, on_device);
      with.files = files;
      with.labels.assign(files.size(), 100);
      with.transform.size = size;
      const auto loader = create(std::move(with));
      std::vector<uint32_t> order;
      for (uint32_t i = 0; i < files.size(); ++i) order.push_back(i);
      ASSERT_TRUE(loader->start(order, 0, 1, 7, false).ok());
      for (;;) {
        const Result result = next(*loader);
        ASSERT_TRUE(result.ok()) << result.status().message();
        if (!result.value()) break;
        EXPECT_TRUE(result.value()->bad.empty());
        epochs[on_device].push_back(bytes_of(*result.value()->batch));
      }
    }
    ASSERT_EQ(epochs[0].size(), epochs[1].size());
    for (size_t i = 0; i < files.size(); ++i) {
      const uint8_t* here = epochs[0][i / kBatch].data() + i % kBatch * square;
      const uint8_t* there = epochs[1][i / kBatch].data() + i % kBatch * square;
      double sum = 0;
      for (size_t b = 0; b < square; ++b) {
        const int apart = std::abs(here[b] - there[b]);
        sum += apart;
        worst = std::max(worst, apart);
      }
      worst_mean = std::max(worst_mean, sum / static_cast<double>(square));
      mean += sum / static_cast<double>(square * files.size());
    }
    // At 224 px these photos are too small to be decoded at a half.
    SCOPED_TRACE(size);
    EXPECT_LE(mean, size == 224 ? 0 : 2.0);
    EXPECT_LE(worst_mean, size == 224 ? 0 : 6.0);
    EXPECT_LE(worst, size == 224 ? 0 : 64);
    RecordProperty("mean_" + std::to_string(size), std::to_string(mean));
  }
}

// ---- the copy to where a step reads it -----------------------------------------------------------------------------

// Eight batches of files that nvJPEG takes.
std::vector<uint32_t> taken() {
  std::vector<uint32_t> order;
  for (const uint32_t index : all(48))
    if (index != kCmyk && order.size() < 8 * kBatch) order.push_back(index);
  return order;
}

// Copies of the batches of an epoch as a step takes them: on another stream, each batch let go of at once.
StatusOr<std::vector<Bytes>> copies(const std::shared_ptr<cuda::Device>& device, Loader& loader,
                                    const std::vector<uint32_t>& order = taken()) {
  const cuda::Driver& driver = device->driver();
  EFF_RETURN_IF_ERROR(device->enter());
  CUstream stream = nullptr;
  EFF_CUDA(driver, cuStreamCreateWithPriority, &stream, CU_STREAM_NON_BLOCKING, 0);
  std::vector<cuda::DeviceBlock> blocks;
  Status status = loader.start(order, 0, 1, 11, true);
  for (size_t i = 0; i < order.size() / kBatch && status.ok(); ++i) {
    const Result result = next(loader);
    status = result.status();
    if (!status.ok()) break;
    const auto& batch = static_cast<const cuda::DeviceBatch&>(*result.value()->batch->device);
    auto block = cuda::DeviceBlock::allocate(device, batch.bytes(), stream);
    status = block.status();
    if (!status.ok()) break;
    blocks.push_back(std::move(block.value()));
    status = batch.copy_to(blocks.back().address(), batch.bytes(), stream);
  }
  std::vector<Bytes> all;
  // Both ways of waiting: a test may plant that one of them is missing.
  CUevent end = nullptr;
  if (status.ok())
    status = [&]() -> Status {
      EFF_CUDA(driver, cuEventCreate, &end, CU_EVENT_DISABLE_TIMING);
      EFF_CUDA(driver, cuEventRecord, end, stream);
      EFF_CUDA(driver, cuEventSynchronize, end);
      EFF_CUDA(driver, cuStreamSynchronize, stream);
      return ok_status();
    }();
  if (end) driver.cuEventDestroy(end);
  for (const cuda::DeviceBlock& block : blocks)
    all.emplace_back(
        reinterpret_cast<const uint8_t*>(block.data()),
        reinterpret_cast<const uint8_t*>(block.data()) + block.bytes());  // the fake's memory is the host's
  driver.cuStreamDestroy(stream);
  if (!status.ok()) return status;
  return all;
}

TEST_F(CudaImages, CopiesAreOrderedWithTheNextBatch) {
  const auto reference = create(options(Mode::train, true));
  const Epoch want = epoch_of(*reference, taken(), true);
  for (const char* order : {"0", "3", "4", "7"}) {
    const Setting legal("FAKE_CUDA_ORDER", order);
    const auto loader = create(options(Mode::train, true));
    const auto got = copies(device, *loader);
    ASSERT_TRUE(got.ok()) << got.status().message();
    EXPECT_TRUE(got.value() == want.bytes) << "order " << order;
  }
}

// A hardware engine writes decoded images without regard to what the stream still has to do.
TEST_F(CudaImages, DecodedAtOnceIsTheSame) {
  const auto reference = create(options(Mode::train, true));
  const Epoch want = epoch_of(*reference, taken(), true);
  const Setting at_once("FAKE_NVJPEG_AT_ONCE", "1");
  for (const uint64_t scratch : {uint64_t{1} << 30, uint64_t{200} << 10})
    for (const char* order : {"0", "3", "4", "7"}) {
      const Setting legal("FAKE_CUDA_ORDER", order);
      const auto loader = create(options(Mode::train, true, scratch));
      const auto got = copies(device, *loader);
      ASSERT_TRUE(got.ok()) << got.status().message();
      EXPECT_TRUE(got.value() == want.bytes) << "order " << order;
    }
}

// Planted: nobody waits before a decode. In the order in which nothing runs before it must.
TEST_F(CudaImages, DecodedTooEarlyShows) {
  const auto reference = create(options(Mode::train, true));
  const Epoch want = epoch_of(*reference, taken(), true);
  const Setting at_once("FAKE_NVJPEG_AT_ONCE", "1"), planted("FAKE_CUDA_IGNORE", "cuStreamSynchronize"),
      lazy("FAKE_CUDA_ORDER", "0");
  reset();
  const auto loader = create(options(Mode::train, true));
  const auto got = copies(device, *loader);
  ASSERT_TRUE(got.ok()) << got.status().message();
  EXPECT_FALSE(got.value() == want.bytes);
}

// What copies of a batch hold, on streams of their own, when its memory was written again after they were asked for.
StatusOr<std::vector<int>> copies_of_a_batch_written_again(const std::shared_ptr<cuda::Device>& device, int first) {
  const cuda::Driver& driver = device->driver();
  EFF_RETURN_IF_ERROR(device->enter());
  CUstream streams[3] = {};
  for (CUstream& stream : streams) EFF_CUDA(driver, cuStreamCreateWithPriority, &stream, CU_STREAM_NON_BLOCKING, 0);
  const CUstream maker = streams[2];
  std::vector<int> held;
  {
    auto batch = cuda::DeviceBatch::create(device, 64, maker, nullptr);
    EFF_RETURN_IF_ERROR(batch.status());
    cuda::DeviceBlock copies[2];
    for (cuda::DeviceBlock& copy : copies) {
      auto block = cuda::DeviceBlock::allocate(device, 64, maker);
      EFF_RETURN_IF_ERROR(block.status());
      copy = std::move(block.value());
    }
    for (const unsigned char value : {1, 2}) {
      EFF_RETURN_IF_ERROR(batch.value()->begin());
      EFF_CUDA(driver, cuMemsetD8Async, batch.value()->address(), value, 64, maker);
      EFF_RETURN_IF_ERROR(batch.value()->end());
      // As a decode does (ImageBatches): the copies' streams go on by themselves.
      EFF_CUDA(driver, cuStreamSynchronize, maker);
      if (value == 1)
        for (const int s : {first, 1 - first})
          EFF_RETURN_IF_ERROR(batch.value()->copy_to(copies[s].address(), 64, streams[s]));
    }
    for (const CUstream stream : {streams[0], streams[1]}) EFF_CUDA(driver, cuStreamSynchronize, stream);
    for (const cuda::DeviceBlock& copy : copies) held.push_back(static_cast<int>(*copy.data()));
  }
  for (const CUstream stream : streams) EFF_CUDA(driver, cuStreamDestroy, stream);
  return held;
}

// Whoever makes the next batch waits for all copies of this one, whatever streams they are on.
TEST_F(CudaImages, CopiesOnSeveralStreamsAreWaitedFor) {
  for (const char* order : {"0", "1", "2", "3", "4", "5", "6", "7"})
    for (const int first : {0, 1}) {
      const Setting legal("FAKE_CUDA_ORDER", order);
      const auto held = copies_of_a_batch_written_again(device, first);
      ASSERT_TRUE(held.ok()) << held.status().message();
      EXPECT_EQ(held.value(), (std::vector<int>{1, 1})) << "order " << order;
    }
}

// Planted: a batch's memory is used again while copies of it are pending. In the order in which a stream runs no
// earlier than it must; the loader's batches would show it or not as its threads happen to run.
TEST_F(CudaImages, AMissingWaitShows) {
  const Setting lazy("FAKE_CUDA_ORDER", "0"), planted("FAKE_CUDA_IGNORE", "cuStreamWaitEvent");
  reset();
  const auto held = copies_of_a_batch_written_again(device, 0);
  ASSERT_TRUE(held.ok()) << held.status().message();
  EXPECT_EQ(held.value(), (std::vector<int>{2, 2}));
}

// Planted: labels and pixels of the next batch are written while those of an earlier one wait for their copy. Of files
// that the CPU decodes: before a decode all is waited for.
TEST_F(CudaImages, StagedTooEarlyShows) {
  const Setting planted("FAKE_CUDA_IGNORE", "cuEventSynchronize"),
      refuse("FAKE_NVJPEG_REFUSE", "nvjpegGetImageInfo:97:4");
  std::vector<uint32_t> order;
  for (const uint32_t index : all(80))
    if (index <= kCmyk) order.push_back(index);
  Status status;
  {
    const auto loader = create(options(Mode::train, true));
    status = copies(device, *loader, order).status();
  }
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find("(719)"), std::string::npos) << status.message();
  context_lost = true;
  reset();
}

TEST_F(CudaImages, WithoutNvJpegSaysWhatIsMissingAndTheMend) {
  const DeviceImages::Options wanted{kBatch, kSize, 1 << 16, 0, 2};
  ASSERT_TRUE(cuda::ImageBatches::create(device, wanted).ok());
  const Setting fail("FAKE_NVJPEG_FAIL", "nvjpegCreateExV2:1:6");
  of_fake<void()>("libnvjpeg.so.13", "fake_nvjpeg_reset")();
  const auto none = cuda::ImageBatches::create(device, wanted);
  EXPECT_EQ(none.status().code(), Code::backend_missing);
  EXPECT_NE(none.status().message().find("nvJPEG"), std::string::npos) << none.status().message();
}

}  // namespace
}  // namespace effnet::test
