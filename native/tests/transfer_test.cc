// Tensors between files and arenas, hashes, file errors.
#include <gtest/gtest.h>

#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <fstream>
#include <limits>
#include <numeric>

#include "io/sha256.h"
#include "io/task_pool.h"
#include "io/transfer.h"
#include "tests/io_fixtures.h"

namespace effnet {
namespace {

using namespace io;
using plan::Arena;

std::string hash_of(const std::string& text) {
  Sha256 hash;
  hash.update(text.data(), text.size());
  return hash.finish();
}

// FIPS 180-4 examples (NIST).
TEST(Sha256, NistVectors) {
  EXPECT_EQ(hash_of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hash_of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hash_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(hash_of(std::string(1000000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Half, AllValuesRoundTripAndRoundToEven) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = half_to_float(static_cast<uint16_t>(bits));
    const uint16_t again = float_to_half(value);
    if (std::isnan(value))
      EXPECT_TRUE((again & 0x7c00) == 0x7c00 && (again & 0x3ff) != 0);
    else
      EXPECT_EQ(again, bits);
  }
  // Against the definition: the nearest representable value, ties to the even mantissa.
  for (uint32_t bits = 0; bits + 1 < 0x7c00; ++bits) {
    const float low = half_to_float(static_cast<uint16_t>(bits)), high = half_to_float(static_cast<uint16_t>(bits + 1));
    const float middle = low + (high - low) / 2;
    EXPECT_EQ(float_to_half(middle), bits % 2 ? bits + 1 : bits);
    EXPECT_EQ(float_to_half(std::nextafter(middle, 1e9f)), bits + 1);
    EXPECT_EQ(float_to_half(-std::nextafter(middle, 0.0f)), bits | 0x8000);
  }
  EXPECT_EQ(float_to_half(65519.99f), 0x7bff);
  EXPECT_EQ(float_to_half(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_half(std::numeric_limits<float>::infinity()), 0x7c00);
  EXPECT_EQ(float_to_half(1e-9f), 0);
}

class Transfer : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("effnet_transfer_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    uint64_t sizes[plan::kArenaCount] = {};
    sizes[0] = sizes[4] = 4096;
    memory_ = HostMemory::create(sizes).value();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  float* weights() { return reinterpret_cast<float*>(memory_->arena(Arena::weights)); }
  float* ema() { return reinterpret_cast<float*>(memory_->arena(Arena::ema)); }
  std::string path(const char* name) const { return (folder_ / name).string(); }

  std::filesystem::path folder_;
  std::shared_ptr<HostMemory> memory_;
};

// arena[o][k][i] and arena[k][c] against file[o][i][k] and file[c][k], written out in plain loops.
TEST_F(Transfer, LayoutsOfTheFileArePyTorchs) {
  constexpr int kO = 3, kI = 5, kK = 6, kC = 7;
  for (int n = 0; n < kO * kI * kK; ++n) weights()[4 + n] = static_cast<float>(n);
  for (int n = 0; n < kC * kK; ++n) weights()[200 + n] = static_cast<float>(-n);
  FileSpec spec;
  spec.path = path("a");
  spec.header = {'h', 'e', 'a', 'd'};
  spec.data_bytes = 4 * (kO * kI * kK + kC * kK);
  spec.tensors = {{Arena::weights, 16, 0, FileDType::f32, Permute::ohwi, kO, kI, 2, 3},
                  {Arena::weights, 800, 4 * kO * kI * kK, FileDType::f32, Permute::hwc, kC, 1, 2, 3}};
  const auto snapshot = take_snapshot(*memory_, {spec});
  ASSERT_TRUE(snapshot.ok()) << snapshot.status().message();
  const auto written = write_snapshot(*snapshot.value());
  ASSERT_TRUE(written.ok()) << written.status().message();
  const auto bytes = test::read_bytes(spec.path);
  ASSERT_EQ(bytes.size(), 4 + spec.data_bytes);
  EXPECT_EQ(written.value()[0].bytes, bytes.size());
  EXPECT_EQ(written.value()[0].sha256, test::sha256(bytes));
  const auto part = [&](size_t begin, size_t end) {
    return test::sha256(
        std::vector<uint8_t>(bytes.begin() + static_cast<long>(4 + begin), bytes.begin() + static_cast<long>(4 + end)));
  };
  const size_t middle = 4 * kO * kI * kK;
  EXPECT_EQ(written.value()[0].tensors, part(0, middle).substr(0, 8) + part(middle, spec.data_bytes).substr(0, 8));
  EXPECT_EQ(hash_file(spec.path).value().sha256, test::sha256(bytes));
  EXPECT_EQ(std::string(bytes.begin(), bytes.begin() + 4), "head");
  auto value = [&](int index) {
    float v;
    std::memcpy(&v, bytes.data() + 4 + index * 4, 4);
    return v;
  };
  for (int o = 0; o < kO; ++o)
    for (int i = 0; i < kI; ++i)
      for (int k = 0; k < kK; ++k) ASSERT_EQ(value((o * kI + i) * kK + k), weights()[4 + (o * kK + k) * kI + i]);
  for (int c = 0; c < kC; ++c)
    for (int k = 0; k < kK; ++k) ASSERT_EQ(value(kO * kI * kK + c * kK + k), weights()[200 + k * kC + c]);

  // And back, into another arena.
  auto tensors = spec.tensors;
  for (auto& t : tensors) t.arena = Arena::ema;
  ASSERT_TRUE(load_tensors(*memory_, spec.path, 4, tensors).ok());
  EXPECT_EQ(std::memcmp(ema(), weights(), 4096), 0);
}

TEST_F(Transfer, TypesConvert) {
  const float values[] = {0.0f, -1.5f, 3.14159274f, 1e-5f, 65504.0f, -0.333333343f};
  constexpr int n = 6;
  std::memcpy(weights(), values, sizeof values);
  for (const FileDType dtype : {FileDType::f32, FileDType::f16, FileDType::bf16, FileDType::f64}) {
    FileSpec spec{path("t"), {}, n * dtype_bytes(dtype), {{Arena::weights, 0, 0, dtype, Permute::none, n}}};
    ASSERT_TRUE(write_snapshot(*take_snapshot(*memory_, {spec}).value()).ok());
    EXPECT_EQ(std::filesystem::file_size(spec.path), n * dtype_bytes(dtype));
    auto tensors = spec.tensors;
    tensors[0].arena = Arena::ema;
    tensors[0].offset = 64;
    ASSERT_TRUE(load_tensors(*memory_, spec.path, 0, tensors).ok());
    for (int i = 0; i < n; ++i) {
      const float expected = dtype == FileDType::f16 ? half_to_float(float_to_half(values[i]))
                             : dtype == FileDType::bf16
                                 ? std::bit_cast<float>((std::bit_cast<uint32_t>(values[i]) + 0x7fff +
                                                         (std::bit_cast<uint32_t>(values[i]) >> 16 & 1)) &
                                                        0xffff0000u)
                                 : values[i];
      EXPECT_EQ(ema()[16 + i], expected) << static_cast<int>(dtype) << " " << i;
    }
  }
}

TEST_F(Transfer, ASnapshotDoesNotFollowTheArena) {
  weights()[0] = 1;
  FileSpec spec{path("s"), {}, 4, {{Arena::weights, 0, 0, FileDType::f32, Permute::none, 1}}};
  const auto snapshot = take_snapshot(*memory_, {spec});
  weights()[0] = 2;
  ASSERT_TRUE(write_snapshot(*snapshot.value()).ok());
  ASSERT_TRUE(load_tensors(*memory_, spec.path, 0, spec.tensors).ok());
  EXPECT_EQ(weights()[0], 1);
}

TEST_F(Transfer, RangesAreChecked) {
  const auto code = [&](TensorTransfer t, uint64_t bytes = 4096) {
    return check_transfers(*memory_, {t}, bytes).code();
  };
  const TensorTransfer good{Arena::weights, 0, 0, FileDType::f32, Permute::none, 1024};
  EXPECT_EQ(code(good), Code::ok);
  EXPECT_EQ(code(good, 4095), Code::invalid_argument);
  TensorTransfer t = good;
  t.offset = 4;
  EXPECT_EQ(code(t), Code::invalid_argument);
  t.offset = 2;
  t.o = 1;
  EXPECT_EQ(code(t), Code::invalid_argument);  // not aligned
  t.offset = ~uint64_t{3};
  EXPECT_EQ(code(t), Code::invalid_argument);
  t = good;
  t.file_offset = ~uint64_t{0};
  EXPECT_EQ(code(t), Code::invalid_argument);
  t = {Arena::weights, 0, 0, FileDType::f32, Permute::ohwi, 1u << 31, 1u << 31, 1u << 31, 1u << 31};
  EXPECT_EQ(code(t), Code::invalid_argument);
  t = {Arena::weights, 0, 0, FileDType::f32, Permute::hwc, 2, 2, 1, 1};
  EXPECT_EQ(code(t), Code::invalid_argument);
  t = good;
  t.arena = Arena::activations;
  EXPECT_EQ(code(t), Code::invalid_argument);
}

TEST_F(Transfer, FileErrorsAreNamed) {
  const TensorTransfer t{Arena::weights, 0, 0, FileDType::f32, Permute::none, 2};
  Status status = load_tensors(*memory_, path("none"), 0, {t});
  EXPECT_EQ(status.code(), Code::io);
  EXPECT_EQ(status.message(), path("none") + ": open: No such file or directory");
  std::ofstream(path("short")) << "1234567";
  EXPECT_EQ(load_tensors(*memory_, path("short"), 0, {t}).code(), Code::invalid_argument);
  EXPECT_EQ(load_tensors(*memory_, path("short"), 8, {t}).code(), Code::io);
  EXPECT_EQ(hash_file(path("none")).status().code(), Code::io);
  EXPECT_EQ(hash_file(folder_.string()).status().code(), Code::io);
  EXPECT_EQ(fsync_path(path("none")).code(), Code::io);
  EXPECT_TRUE(fsync_path(folder_.string()).ok());
  std::vector<uint8_t> bytes;
  EXPECT_EQ(read_file(path("none"), bytes).code(), Code::data_missing);
  EXPECT_EQ(read_file(folder_.string(), bytes).code(), Code::io);
  const FileSpec spec{path("no/such/folder/a"), {}, 8, {t}};
  EXPECT_EQ(write_snapshot(*take_snapshot(*memory_, {spec}).value()).status().code(), Code::io);
}

TEST_F(Transfer, AFullDiskTellsWhatIsNeeded) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
  const FileSpec spec{"/dev/full", {}, 4096, {{Arena::weights, 0, 0, FileDType::f32, Permute::none, 1024}}};
  const auto written = write_snapshot(*take_snapshot(*memory_, {spec}).value());
  EXPECT_EQ(written.status().code(), Code::no_space);
  EXPECT_TRUE(written.status().message().find("needs 0.0 MB") != std::string::npos) << written.status().message();
  EXPECT_TRUE(std::filesystem::exists("/dev/full"));
}

TEST(Memory, APinHoldsWritersBack) {
  uint64_t sizes[plan::kArenaCount] = {64};
  const auto memory = HostMemory::create(sizes).value();
  memory->pin();
  std::atomic<bool> unpinned{false};
  run_task([&] {
    unpinned = true;
    memory->unpin();
  });
  memory->wait_unpinned();
  EXPECT_TRUE(unpinned);
}

TEST(TaskPool, RunsEveryJob) {
  std::atomic<int> left{200};
  std::mutex mutex;
  std::condition_variable done;
  for (int i = 0; i < 200; ++i)
    run_task([&] {
      if (--left == 0) {
        std::lock_guard lock(mutex);
        done.notify_one();
      }
    });
  std::unique_lock lock(mutex);
  done.wait(lock, [&] { return left == 0; });
}

// Found by fuzzing: copies of no bytes from and to no address.
TEST_F(Transfer, TensorsOfNoElementsAreNothing) {
  uint64_t none[plan::kArenaCount] = {};
  const auto memory = HostMemory::create(none).value();
  for (const FileDType dtype : {FileDType::f32, FileDType::f16}) {
    TensorTransfer empty;
    empty.dtype = dtype;
    empty.o = 0;
    const std::vector<FileSpec> specs = {{(folder_ / "empty").string(), {}, 0, {empty}}};
    const auto snapshot = take_snapshot(*memory, specs);
    ASSERT_TRUE(snapshot.ok()) << snapshot.status().message();
    ASSERT_TRUE(write_snapshot(*snapshot.value()).ok());
    const Status loaded = load_tensors(*memory, specs[0].path, 0, {empty});
    EXPECT_TRUE(loaded.ok()) << loaded.message();
  }
}

}  // namespace
}  // namespace effnet
