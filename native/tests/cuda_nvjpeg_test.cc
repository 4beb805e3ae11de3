// Batches of JPEG files by nvJPEG, on a library without a GPU (native/cuda/fake/fake_nvjpeg.cc), which decodes them as
// the CPU does.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "cuda/providers/nvjpeg.h"
#include "io/jpeg.h"

namespace effnet::test {
namespace {

using cuda::NvJpeg;

template <class F>
F* of_fake(const char* name) {
  void* library = dlopen(FAKE_NVIDIA_FOLDER "/libnvjpeg.so.13", RTLD_NOW);
  return reinterpret_cast<F*>(dlsym(library, name));
}
int live_objects() { return of_fake<int()>("fake_nvjpeg_live")(); }
int calls(const char* name) { return of_fake<int(const char*)>("fake_nvjpeg_calls")(name); }
std::string misuse() { return of_fake<const char*()>("fake_nvjpeg_misuse")(); }

using Bytes = std::vector<uint8_t>;

// Photos of the demo, in the order of their names.
const std::vector<Bytes>& photos() {
  static const std::vector<Bytes> all = [] {
    std::vector<std::filesystem::path> paths;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(DEMO_FOLDER))
      if (entry.path().extension() == ".jpg") paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());
    if (paths.size() > 5) paths.resize(5);
    std::vector<Bytes> files;
    for (const auto& path : paths) {
      std::ifstream file(path, std::ios::binary);
      files.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    return files;
  }();
  return all;
}

NvJpeg::File view(const Bytes& bytes) { return std::as_bytes(std::span(bytes)); }

class CudaNvJpeg : public testing::Test {
 protected:
  static void SetUpTestSuite() { setenv("EFFNET_LIB_DIR", FAKE_NVIDIA_FOLDER, 1); }
  void SetUp() override {
    of_fake<void()>("fake_nvjpeg_reset")();
    ASSERT_GE(photos().size(), 3u);
  }
  void TearDown() override {
    unsetenv("FAKE_NVJPEG_FAIL");
    EXPECT_EQ(live_objects(), 0);
    EXPECT_EQ(misuse(), "");
  }
};

// As the loader decodes, with 2 bytes between rows that stay as they were.
Status decode(NvJpeg& decoder, const std::vector<Bytes>& files, std::vector<Bytes>& images) {
  std::vector<NvJpeg::File> views;
  std::vector<NvJpeg::Place> places;
  images.clear();
  for (const Bytes& file : files) {
    const auto size = decoder.size(view(file));
    if (!size.ok()) return size.status();
    const size_t pitch = static_cast<size_t>(size.value().width) * 3 + 2;
    images.emplace_back(pitch * static_cast<size_t>(size.value().height), uint8_t{0xab});
    views.push_back(view(file));
    places.push_back({images.back().data(), pitch});
  }
  return decoder.decode(views, places, nullptr);
}

TEST_F(CudaNvJpeg, BatchesOfSeveralSizes) {
  auto decoder = NvJpeg::create();
  ASSERT_TRUE(decoder.ok()) << decoder.status().message();
  for (const size_t count : {photos().size(), size_t{1}, size_t{2}, size_t{2}}) {
    const std::vector<Bytes> files(photos().begin(), photos().begin() + static_cast<std::ptrdiff_t>(count));
    std::vector<Bytes> images;
    const Status status = decode(*decoder.value(), files, images);
    ASSERT_TRUE(status.ok()) << status.message() << " " << misuse();
    for (size_t i = 0; i < count; ++i) {
      io::JpegReader reader;
      io::ByteBuffer buffer;
      io::View want;
      ASSERT_TRUE(reader.open(files[i].data(), files[i].size(), {}).ok());
      ASSERT_TRUE(reader.decode(8, nullptr, buffer, want).ok());
      const size_t row = static_cast<size_t>(want.width) * 3, pitch = row + 2;
      ASSERT_EQ(images[i].size(), pitch * static_cast<size_t>(want.height));
      for (int y = 0; y < want.height; ++y) {
        const uint8_t* got = images[i].data() + static_cast<size_t>(y) * pitch;
        ASSERT_TRUE(std::equal(got, got + row, want.row(y))) << "image " << i << " row " << y;
        ASSERT_EQ(got[row] + got[row + 1], 2 * 0xab);
      }
    }
  }
  EXPECT_EQ(calls("nvjpegDecodeBatchedInitialize"), 3) << "once for each size of batch";
  EXPECT_TRUE(decoder.value()->decode({}, {}, nullptr).ok());
}

TEST_F(CudaNvJpeg, FilesThatItDoesNotTake) {
  auto decoder = NvJpeg::create();
  ASSERT_TRUE(decoder.ok());
  EXPECT_EQ(decoder.value()->size(view(Bytes{})).status().code(), Code::data_decode);
  EXPECT_EQ(decoder.value()->size(view(Bytes(100, 7))).status().code(), Code::data_decode);
  Bytes torn = photos()[0];
  torn.resize(torn.size() / 2);
  const auto size = decoder.value()->size(view(torn));
  ASSERT_TRUE(size.ok()) << "its header is whole";
  Bytes image(static_cast<size_t>(size.value().width) * 3 * static_cast<size_t>(size.value().height));
  const NvJpeg::File file = view(torn);
  const NvJpeg::Place place{image.data(), static_cast<size_t>(size.value().width) * 3};
  EXPECT_EQ(decoder.value()->decode({&file, 1}, {&place, 1}, nullptr).code(), Code::data_decode);
  // The next batch of as many is none the worse for it.
  std::vector<Bytes> images;
  const Status after = decode(*decoder.value(), {photos()[1]}, images);
  EXPECT_TRUE(after.ok()) << after.message() << " " << misuse();
}

// What it says of a damaged scan differs by what decodes it.
TEST_F(CudaNvJpeg, AFailedDecodeIsTheFiles) {
  auto decoder = NvJpeg::create();
  ASSERT_TRUE(decoder.ok());
  for (const auto& [status, code] : {std::pair{3, Code::data_decode},
                                     {5, Code::oom},
                                     {6, Code::data_decode},
                                     {8, Code::data_decode},
                                     {1, Code::internal}}) {
    of_fake<void()>("fake_nvjpeg_reset")();
    setenv("FAKE_NVJPEG_FAIL", ("nvjpegDecodeBatched:1:" + std::to_string(status)).c_str(), 1);
    std::vector<Bytes> images;
    EXPECT_EQ(decode(*decoder.value(), {photos()[0]}, images).code(), code) << status;
    const Status after = decode(*decoder.value(), {photos()[0]}, images);
    EXPECT_TRUE(after.ok()) << after.message() << " " << misuse();
  }
}

TEST_F(CudaNvJpeg, EveryFailingCallIsAnErrorAndLeavesNothing) {
  const auto run = [] {
    auto decoder = NvJpeg::create();
    if (!decoder.ok()) return decoder.status();
    std::vector<Bytes> images;
    return decode(*decoder.value(), {photos()[0], photos()[1]}, images);
  };
  ASSERT_TRUE(run().ok());
#define EFF_NAME(name, ...) #name,
  for (const std::string name : {EFF_NVJPEG(EFF_NAME)}) {
    if (name.find("Destroy") != std::string::npos) continue;
    of_fake<void()>("fake_nvjpeg_reset")();
    setenv("FAKE_NVJPEG_FAIL", (name + ":1:5").c_str(), 1);
    const Status status = run();
    EXPECT_EQ(status.code(), Code::oom) << name;
    EXPECT_NE(status.message().find(name), std::string::npos) << status.message();
    EXPECT_EQ(live_objects(), 0) << name;
  }
#undef EFF_NAME
}

}  // namespace
}  // namespace effnet::test
