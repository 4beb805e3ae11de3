// The loader: contents by order alone, whatever the workers do; bad samples, tails, restarts, other formats, closing.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <future>
#include <mutex>
#include <thread>

#include "io/loader.h"
#include "tests/io_fixtures.h"

namespace effnet {
namespace {

using namespace io;
using Result = StatusOr<std::optional<LoadedBatch>>;

constexpr int kSize = 32;
const char* const kFiles[] = {"420.jpg",          "422.jpg",          "444.jpg",          "progressive.jpg",
                              "gray.jpg",         "cmyk.jpg",         "large.jpg",        "orientation3.jpg",
                              "orientation6.jpg", "orientation8.jpg", "orientation2.jpg", "restarts.jpg"};

LoaderOptions options_of(int batch_size, int workers) {
  LoaderOptions options;
  for (const char* name : kFiles) {
    options.labels.push_back(static_cast<int32_t>(options.files.size()) + 100);
    options.files.push_back((test::fixture_dir() / name).string());
  }
  options.batch_size = batch_size;
  options.workers = workers;
  options.transform.mode = Mode::train;
  options.transform.size = kSize;
  return options;
}

std::unique_ptr<Loader> create(LoaderOptions options) {
  auto loader = Loader::create(std::move(options));
  EXPECT_TRUE(loader.ok()) << loader.status().message();
  return std::move(loader.value());
}

Result next(Loader& loader) {
  std::promise<Result> answer;
  loader.next([&](Result result) { answer.set_value(std::move(result)); });
  return answer.get_future().get();
}

// What a batch holds, as text that can be compared.
std::string describe(const LoadedBatch& batch, int batch_size) {
  std::vector<uint8_t> bytes(batch.batch->bytes());
  std::memcpy(bytes.data(), batch.batch->data(), bytes.size());
  std::ostringstream text;
  text << test::sha256(bytes) << " " << batch.count;
  for (const uint32_t index : batch.indices) text << " " << index;
  for (const BadSample& bad : batch.bad) text << " bad " << bad.index << " " << bad.status.message();
  EXPECT_EQ(batch.batch->labels_offset % 64, 0u);
  EXPECT_EQ(batch.batch->bytes(), (batch.batch->labels_offset + static_cast<size_t>(batch_size) * 4 + 63) / 64 * 64);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(batch.batch->data()) % 64, 0u);
  return text.str();
}

std::vector<std::string> run_epoch(Loader& loader, int batch_size) {
  std::vector<std::string> batches;
  for (;;) {
    Result result = next(loader);
    EXPECT_TRUE(result.ok()) << result.status().message();
    if (!result.ok() || !result.value()) return batches;
    batches.push_back(describe(*result.value(), batch_size));
  }
}

std::vector<uint32_t> repeated_order(size_t n) {
  std::vector<uint32_t> order;
  for (size_t i = 0; i < n; ++i) order.push_back(static_cast<uint32_t>(i * 7 % std::size(kFiles)));
  return order;
}

int32_t label_at(const LoadedBatch& batch, int slot) {
  int32_t label;
  std::memcpy(&label, batch.batch->data() + batch.batch->labels_offset + slot * 4, 4);
  return label;
}

TEST(Loader, ContentsDoNotDependOnWorkersOrPrefetch) {
  std::vector<std::string> expected;
  for (const int workers : {1, 2, 5})
    for (const int prefetch : {1, 3}) {
      LoaderOptions options = options_of(5, workers);
      options.prefetch = prefetch;
      const auto loader = create(std::move(options));
      ASSERT_TRUE(loader->start(repeated_order(48), 0, 3, 11, false).ok());
      const auto batches = run_epoch(*loader, 5);
      ASSERT_EQ(batches.size(), 10u);
      if (expected.empty()) expected = batches;
      EXPECT_EQ(batches, expected);
    }
}

TEST(Loader, EqualsTheTransformAlone) {
  const auto options = options_of(4, 2);
  const auto loader = create(options);
  ASSERT_TRUE(loader->start({3, 0, 6, 9}, 0, 2, 5, true).ok());
  const Result result = next(*loader);
  const LoadedBatch& batch = *result.value();
  Transformer transformer;
  for (int slot = 0; slot < 4; ++slot) {
    const uint32_t index = batch.indices[static_cast<size_t>(slot)];
    const auto file = test::read_bytes(options.files[index]);
    std::vector<uint8_t> pixels(kSize * kSize * 3);
    ASSERT_TRUE(transformer.jpeg(file.data(), file.size(), options.transform, {5, 2, index}, pixels.data()).ok());
    EXPECT_EQ(
        std::memcmp(batch.batch->data() + static_cast<size_t>(slot) * pixels.size(), pixels.data(), pixels.size()), 0);
    EXPECT_EQ(label_at(batch, slot), static_cast<int32_t>(index) + 100);
  }
}

TEST(Loader, SeedAndEpochChangeTheContents) {
  const auto loader = create(options_of(12, 2));
  std::vector<std::string> seen;
  for (const auto& [epoch, seed] : {std::pair{0, 1}, {1, 1}, {0, 2}, {0, 1}}) {
    ASSERT_TRUE(loader->start(repeated_order(12), 0, epoch, seed, false).ok());
    seen.push_back(run_epoch(*loader, 12).at(0));
  }
  EXPECT_NE(seen[0], seen[1]);
  EXPECT_NE(seen[0], seen[2]);
  EXPECT_EQ(seen[0], seen[3]);
}

TEST(Loader, ResumesAtASample) {
  const auto loader = create(options_of(5, 2));
  ASSERT_TRUE(loader->start(repeated_order(40), 0, 1, 1, false).ok());
  const auto whole = run_epoch(*loader, 5);
  ASSERT_TRUE(loader->start(repeated_order(40), 15, 1, 1, false).ok());
  EXPECT_EQ(run_epoch(*loader, 5), std::vector<std::string>(whole.begin() + 3, whole.end()));
  ASSERT_TRUE(loader->start(repeated_order(40), 40, 1, 1, false).ok());
  EXPECT_TRUE(run_epoch(*loader, 5).empty());
}

TEST(Loader, TailIsPaddedOrDropped) {
  const auto loader = create(options_of(5, 2));
  ASSERT_TRUE(loader->start(repeated_order(12), 0, 0, 0, false).ok());
  ASSERT_TRUE(next(*loader).value());
  ASSERT_TRUE(next(*loader).value());
  const Result last = next(*loader);
  const LoadedBatch& tail = *last.value();
  EXPECT_EQ(tail.count, 2);
  EXPECT_NE(label_at(tail, 1), -1);
  for (int slot = 2; slot < 5; ++slot) EXPECT_EQ(label_at(tail, slot), -1);
  for (size_t i = 2 * kSize * kSize * 3; i < 5 * kSize * kSize * 3; ++i) ASSERT_EQ(tail.batch->data()[i], std::byte{0});
  EXPECT_FALSE(next(*loader).value());
  EXPECT_FALSE(next(*loader).value());  // and again

  ASSERT_TRUE(loader->start(repeated_order(12), 0, 0, 0, true).ok());
  EXPECT_EQ(run_epoch(*loader, 5).size(), 2u);
}

class Broken : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("effnet_loader_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string write(const char* name, const std::vector<uint8_t>& bytes) {
    const auto path = folder_ / name;
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return path.string();
  }
  std::filesystem::path folder_;
};

TEST_F(Broken, SamplesAreReportedAndReplacedByTheNextGoodOne) {
  auto cut = test::read_bytes(test::fixture_dir() / "420.jpg");
  cut.resize(1000);
  LoaderOptions options = options_of(4, 3);
  options.files[1] = write("cut.jpg", cut);
  options.files[4] = (folder_ / "missing.jpg").string();
  options.files[11] = write("empty.jpg", {});
  const auto loader = create(options);
  std::vector<uint32_t> order(12);
  for (uint32_t i = 0; i < 12; ++i) order[i] = i;

  ASSERT_TRUE(loader->start(order, 0, 0, 0, false).ok());
  Result first = next(*loader), second = next(*loader), third = next(*loader);
  EXPECT_EQ(first.value()->indices, (std::vector<uint32_t>{0, 2, 3, 5}));
  ASSERT_EQ(first.value()->bad.size(), 2u);
  EXPECT_EQ(first.value()->bad[0].index, 1u);
  EXPECT_EQ(first.value()->bad[0].status.code(), Code::data_decode);
  EXPECT_EQ(first.value()->bad[0].status.message(),
            options.files[1] + ": JPEG ends early at byte 1000 (marker EOI missing)");
  EXPECT_EQ(first.value()->bad[1].status.code(), Code::data_missing);
  EXPECT_EQ(second.value()->indices, (std::vector<uint32_t>{6, 7, 8, 9}));
  EXPECT_TRUE(second.value()->bad.empty());
  EXPECT_EQ(third.value()->count, 1);
  EXPECT_EQ(third.value()->bad.at(0).index, 11u);
  EXPECT_FALSE(next(*loader).value());

  // Bad files behind the last full batch come in a batch of their own.
  ASSERT_TRUE(loader->start({0, 2, 3, 5, 1, 4}, 0, 0, 0, true).ok());
  EXPECT_EQ(next(*loader).value()->count, 4);
  const Result rest = next(*loader);
  EXPECT_EQ(rest.value()->count, 0);
  EXPECT_EQ(rest.value()->bad.size(), 2u);
  EXPECT_EQ(label_at(*rest.value(), 0), -1);
  EXPECT_FALSE(next(*loader).value());
}

TEST_F(Broken, OtherFormatsAreDecodedElsewhereAndTransformedHere) {
  const std::vector<uint8_t> png = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n', 0, 0, 0, 0};
  for (const bool good : {true, false}) {
    LoaderOptions options = options_of(3, 2);
    options.files[1] = write("a.png", png);
    options.transform.mode = Mode::eval;
    options.transform.resize_to = kSize;
    const auto pixels = std::make_shared<std::vector<uint8_t>>(test::made_up(kSize, kSize));
    std::vector<std::thread> elsewhere;
    options.decode_other = [&](OtherRequest request) {
      EXPECT_EQ(request.path, options.files[1]);
      EXPECT_EQ(request.bytes, png);
      elsewhere.emplace_back([good, pixels, reply = std::move(request.reply)] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        if (good)
          reply(OtherPixels{{pixels->data(), kSize, kSize, kSize * 3, 0}, pixels});
        else
          reply(error(Code::data_decode, "no sharp"));
      });
    };
    const auto loader = create(options);
    ASSERT_TRUE(loader->start({0, 1, 2}, 0, 0, 0, false).ok());
    const Result result = next(*loader);
    const LoadedBatch& batch = *result.value();
    if (good) {
      EXPECT_EQ(batch.indices, (std::vector<uint32_t>{0, 1, 2}));
      EXPECT_EQ(std::memcmp(batch.batch->data() + pixels->size(), pixels->data(), pixels->size()), 0);
    } else {
      EXPECT_EQ(batch.indices, (std::vector<uint32_t>{0, 2}));
      EXPECT_EQ(batch.bad.at(0).status.message(), options.files[1] + ": no sharp");
    }
    loader->close();
    loader->wait_stopped();
    for (std::thread& thread : elsewhere) thread.join();
    EXPECT_EQ(pixels.use_count(), 1);
  }
}

// The reply may come before the request's worker is back, and another worker may have taken the sample up by then.
TEST_F(Broken, AnswersThatComeAtOnce) {
  LoaderOptions options = options_of(8, 4);
  options.files[1] = write("a.png", {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'});
  options.files[2] = write("b.png", {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'});
  options.transform.mode = Mode::eval;
  options.transform.resize_to = kSize;
  const auto pixels = std::make_shared<std::vector<uint8_t>>(test::made_up(kSize, kSize));
  options.decode_other = [&](OtherRequest request) {
    if (request.path == options.files[1])
      request.reply(OtherPixels{{pixels->data(), kSize, kSize, kSize * 3, 0}, pixels});
    else
      request.reply(error(Code::data_decode, "a message that is too long to lie in the string itself"));
    std::this_thread::yield();
  };
  const auto loader = create(options);
  std::vector<uint32_t> order;
  for (uint32_t i = 0; i < 400; ++i) order.push_back(i % 3);
  ASSERT_TRUE(loader->start(order, 0, 0, 0, false).ok());
  size_t good = 0, bad = 0;
  for (;;) {
    const Result result = next(*loader);
    ASSERT_TRUE(result.ok());
    if (!result.value()) break;
    const LoadedBatch& batch = *result.value();
    for (size_t slot = 0; slot < batch.indices.size(); ++slot) {
      EXPECT_NE(batch.indices[slot], 2u);
      if (batch.indices[slot] != 1) continue;
      ++good;
      EXPECT_EQ(std::memcmp(batch.batch->data() + slot * pixels->size(), pixels->data(), pixels->size()), 0);
    }
    for (const BadSample& sample : batch.bad) {
      ++bad;
      EXPECT_EQ(sample.index, 2u);
      EXPECT_EQ(sample.status.message(), options.files[2] + ": a message that is too long to lie in the string itself");
    }
  }
  EXPECT_EQ(good, 133u);
  EXPECT_EQ(bad, 133u);
  loader->close();
  loader->wait_stopped();
  EXPECT_EQ(pixels.use_count(), 1);
}

TEST(Loader, BatchesOutliveTheLoaderAndTheirMemoryIsReused) {
  const uint64_t before = native_bytes(Block::Kind::batch);
  {
    auto loader = create(options_of(4, 2));
    std::shared_ptr<Batch> kept;
    for (int epoch = 0; epoch < 3; ++epoch) {
      ASSERT_TRUE(loader->start(repeated_order(48), 0, epoch, 0, false).ok());
      while (true) {
        Result result = next(*loader);
        if (!result.value()) break;
        kept = result.value()->batch;
        // prefetch + 1 in the ring, one here, one being handed over
        EXPECT_LE(native_bytes(Block::Kind::batch) - before, 5 * loader->batch_bytes());
      }
    }
    loader->close();
    loader->wait_stopped();
    loader.reset();
    EXPECT_EQ(native_bytes(Block::Kind::batch) - before, kept->bytes());
    std::memset(kept->data(), 1, kept->bytes());
  }
  EXPECT_EQ(native_bytes(Block::Kind::batch), before);
}

TEST(Loader, BatchesLieWhereTheyAreAskedTo) {
  const auto epoch_bytes = [](LoaderOptions options) {
    auto loader = create(std::move(options));
    EXPECT_TRUE(loader->start(repeated_order(24), 0, 0, 0, false).ok());
    std::vector<std::byte> all;
    for (Result result = next(*loader); result.value(); result = next(*loader)) {
      const Batch& batch = *result.value()->batch;
      all.insert(all.end(), batch.data(), batch.data() + batch.bytes());
    }
    loader->close();
    loader->wait_stopped();
    return all;
  };
  const auto lent = std::make_shared<std::atomic<int>>(0);
  LoaderOptions options = options_of(4, 2);
  options.batch_memory = [lent](uint64_t bytes) -> StatusOr<std::shared_ptr<std::byte>> {
    auto* const memory = new std::byte[bytes];
    std::memset(memory, 0xff, bytes);  // the loader's batches begin as zeros
    ++*lent;
    return std::shared_ptr<std::byte>(memory, [lent](std::byte* p) {
      delete[] p;
      --*lent;
    });
  };
  const uint64_t before = native_bytes(Block::Kind::batch);
  EXPECT_TRUE(epoch_bytes(options_of(4, 2)) == epoch_bytes(options));
  EXPECT_EQ(*lent, 0);
  EXPECT_EQ(native_bytes(Block::Kind::batch), before);

  options.batch_memory = [](uint64_t) -> StatusOr<std::shared_ptr<std::byte>> {
    return error(Code::oom, "no page-locked memory");
  };
  auto loader = create(options);
  ASSERT_TRUE(loader->start(repeated_order(24), 0, 0, 0, false).ok());
  EXPECT_EQ(next(*loader).status().code(), Code::oom);
}

TEST(Loader, ClosesAndRestartsWithWorkInFlight) {
  for (int round = 0; round < 40; ++round) {
    const auto loader = create(options_of(3, 3));
    std::mutex mutex;
    std::vector<Code> codes;
    auto note = [&](Result result) {
      std::lock_guard lock(mutex);
      codes.push_back(result.ok() ? Code::ok : result.status().code());
    };
    ASSERT_TRUE(loader->start(repeated_order(24), 0, 0, 0, false).ok());
    for (int i = 0; i < 4; ++i) loader->next(note);
    if (round % 2) {
      std::this_thread::sleep_for(std::chrono::microseconds(round * 50));
      ASSERT_TRUE(loader->start(repeated_order(24), 6, 1, 0, false).ok());
      for (int i = 0; i < 4; ++i) loader->next(note);
    }
    loader->close();
    loader->close();
    loader->wait_stopped();
    std::lock_guard lock(mutex);
    EXPECT_EQ(codes.size(), round % 2 ? 8u : 4u);
    for (const Code code : codes) EXPECT_TRUE(code == Code::ok || code == Code::closed || code == Code::aborted);
    EXPECT_EQ(loader->start({0}, 0, 0, 0, false).code(), Code::closed);
  }
}

TEST(Loader, RefusesNonsense) {
  auto code = [](auto change) {
    LoaderOptions options = options_of(2, 1);
    change(options);
    return Loader::create(std::move(options)).status().code();
  };
  EXPECT_EQ(code([](LoaderOptions&) {}), Code::ok);
  EXPECT_EQ(code([](LoaderOptions& o) { o.labels.pop_back(); }), Code::invalid_argument);
  EXPECT_EQ(code([](LoaderOptions& o) { o.batch_size = 0; }), Code::invalid_argument);
  EXPECT_EQ(code([](LoaderOptions& o) { o.workers = 0; }), Code::invalid_argument);
  EXPECT_EQ(code([](LoaderOptions& o) { o.transform.mode = Mode::full; }), Code::invalid_argument);
  const auto loader = create(options_of(2, 1));
  EXPECT_EQ(next(*loader).status().code(), Code::invalid_argument);
  EXPECT_EQ(loader->start({0, 12}, 0, 0, 0, false).code(), Code::invalid_argument);
  EXPECT_EQ(loader->start({0}, 2, 0, 0, false).code(), Code::invalid_argument);
  ASSERT_TRUE(loader->start({}, 0, 0, 0, false).ok());
  EXPECT_FALSE(next(*loader).value());
}

}  // namespace
}  // namespace effnet
