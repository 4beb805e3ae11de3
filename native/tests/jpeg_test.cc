// The JPEG decoder against Pillow: bit for bit on the fixtures, the whole torture set by size and mean.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "io/jpeg.h"
#include "tests/io_fixtures.h"

namespace effnet {
namespace {

using namespace io;
using test::read_bytes;
using test::read_table;

struct Decoded {
  Status status;
  JpegInfo info;
  ByteBuffer buffer, upright;
  View view;
};

void decode(const std::vector<uint8_t>& file, Decoded& out, bool orient = false, const DecodeLimits& limits = {}) {
  JpegReader reader;
  out.status = reader.open(file.data(), file.size(), limits);
  if (!out.status.ok()) return;
  out.info = reader.info();
  out.status = reader.decode(8, nullptr, out.buffer, out.view);
  if (out.status.ok() && orient && out.info.orientation != 1)
    out.status = apply_orientation(out.view, out.info.orientation, out.upright, out.view);
}

double mean(const View& view) {
  double sum = 0;
  for (int y = 0; y < view.height; ++y)
    for (int i = 0; i < view.width * 3; ++i) sum += view.row(y)[i];
  return sum / (static_cast<double>(view.width) * view.height * 3);
}

TEST(Jpeg, EqualsPillow) {
  const auto rows = read_table(test::fixture_dir() / "jpeg.tsv");
  ASSERT_EQ(rows.size(), 16u);
  for (const auto& row : rows) {
    const auto file = read_bytes(test::fixture_dir() / row[0]);
    Decoded stored, upright;
    decode(file, stored);
    ASSERT_TRUE(stored.status.ok()) << row[0] << ": " << stored.status.message();
    EXPECT_EQ(stored.view.width, std::stoi(row[1]));
    EXPECT_EQ(stored.view.height, std::stoi(row[2]));
    EXPECT_EQ(test::sha256(stored.view), row[3]) << row[0];
    decode(file, upright, true);
    EXPECT_EQ(test::sha256(upright.view), row[4]) << row[0];
  }
}

TEST(Jpeg, WindowEqualsThatPartOfTheWhole) {
  for (const auto& row : read_table(test::fixture_dir() / "jpeg.tsv")) {
    const auto file = read_bytes(test::fixture_dir() / row[0]);
    for (const int eighths : {1, 2, 4, 8}) {
      JpegReader reader;
      ASSERT_TRUE(reader.open(file.data(), file.size(), {}).ok());
      ByteBuffer buffer;
      View whole;
      ASSERT_TRUE(reader.decode(eighths, nullptr, buffer, whole).ok());
      const int w = whole.width, h = whole.height;
      ASSERT_EQ(w, JpegReader::scaled(reader.info().width, eighths));
      ASSERT_EQ(h, JpegReader::scaled(reader.info().height, eighths));
      for (const Rect r : {Rect{0, 0, w, h}, Rect{w / 3, h / 4, w - w / 3 - w / 5, h / 2}, Rect{w - 1, h - 1, 1, 1},
                           Rect{0, 0, 1, 1}, Rect{w / 2, 0, w - w / 2, h}}) {
        JpegReader again;
        ASSERT_TRUE(again.open(file.data(), file.size(), {}).ok());
        ByteBuffer part_buffer;
        View part;
        const Status status = again.decode(eighths, &r, part_buffer, part);
        ASSERT_TRUE(status.ok()) << row[0] << ": " << status.message();
        ASSERT_EQ(part.width, r.width);
        ASSERT_EQ(part.height, r.height);
        for (int y = 0; y < r.height; ++y)
          ASSERT_EQ(std::memcmp(part.row(y), whole.row(r.y + y) + r.x * 3, static_cast<size_t>(r.width) * 3), 0)
              << row[0] << " at " << eighths << "/8, window " << r.x << "," << r.y << " row " << y;
      }
    }
  }
}

TEST(Jpeg, EveryTruncationIsAnError) {
  for (const char* name : {"420.jpg", "progressive.jpg", "cmyk.jpg"}) {
    const auto file = read_bytes(test::fixture_dir() / name);
    for (size_t size = 0; size < file.size(); ++size) {
      // An exact-size copy, so that sanitizers see any read behind the end.
      const std::vector<uint8_t> cut(file.begin(), file.begin() + static_cast<ptrdiff_t>(size));
      Decoded whole;
      decode(cut, whole);
      ASSERT_EQ(whole.status.code(), Code::data_decode) << name << " cut at " << size;
      JpegReader reader;
      Status status = reader.open(cut.data(), cut.size(), {});
      if (status.ok()) {
        const Rect corner{0, 0, 8, 8};
        status = reader.decode(8, &corner, whole.buffer, whole.view);
      }
      ASSERT_EQ(status.code(), Code::data_decode) << name << " cut at " << size;
    }
  }
  Decoded cut;
  auto file = read_bytes(test::fixture_dir() / "420.jpg");
  file.resize(1500);
  decode(file, cut);
  EXPECT_EQ(cut.status.message(), "JPEG ends early at byte 1500 (marker EOI missing)");
}

TEST(Jpeg, DamagedBytesNeverCrash) {
  uint32_t random = 1;
  auto next = [&] { return (random = random * 1664525u + 1013904223u) >> 8; };
  for (const char* name : {"420.jpg", "422.jpg", "progressive.jpg", "cmyk.jpg", "gray.jpg", "orientation6.jpg"}) {
    const auto file = read_bytes(test::fixture_dir() / name);
    for (int round = 0; round < 150; ++round) {
      auto damaged = file;
      for (uint32_t hits = 1 + next() % 4; hits > 0; --hits)
        damaged[next() % damaged.size()] = static_cast<uint8_t>(next());
      Decoded out;
      decode(damaged, out, true, {.max_pixels = 1 << 22, .max_scans = 100});
      JpegReader reader;
      if (!reader.open(damaged.data(), damaged.size(), {.max_pixels = 1 << 22, .max_scans = 100}).ok()) continue;
      const Rect window{reader.info().width / 3, reader.info().height / 3, (reader.info().width + 2) / 3,
                        (reader.info().height + 2) / 3};
      (void)reader.decode(8, &window, out.buffer, out.view);
    }
  }
}

TEST(Jpeg, Limits) {
  const auto file = read_bytes(test::fixture_dir() / "progressive.jpg");
  Decoded out;
  decode(file, out, false, {.max_pixels = 97 * 61 - 1, .max_scans = 100});
  EXPECT_EQ(out.status.code(), Code::data_limit);
  EXPECT_EQ(out.status.message(), "image of 97x61 = 5917 pixels, the limit is 5916");
  decode(file, out, false, {.max_pixels = 97 * 61, .max_scans = 100});
  EXPECT_EQ(out.status.code(), Code::ok);
  decode(file, out, false, {.max_pixels = 97 * 61, .max_scans = 3});
  EXPECT_EQ(out.status.code(), Code::data_limit);
}

TEST(Jpeg, AbortsWhileDecoding) {
  const auto file = read_bytes(test::fixture_dir() / "large.jpg");
  const std::atomic<bool> abort{true};
  JpegReader reader;
  ASSERT_TRUE(reader.open(file.data(), file.size(), {}, &abort).ok());
  ByteBuffer buffer;
  View view;
  EXPECT_EQ(reader.decode(8, nullptr, buffer, view).code(), Code::aborted);
}

TEST(Jpeg, KnowsOtherFormatsByContent) {
  auto kind = [](std::string_view text) {
    return file_kind(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  };
  EXPECT_EQ(kind(""), FileKind::empty);
  EXPECT_EQ(kind("\xff\xd8\xff\xe0"), FileKind::jpeg);
  EXPECT_EQ(kind("\xff\xd8"), FileKind::unknown);
  EXPECT_EQ(kind("hello"), FileKind::unknown);
}

// Sizes and errors as Pillow 12.3 has them, means within the rounding of the table; no exceptions.
TEST(Jpeg, TortureSetFollowsPillow) {
  if (test::test_data().empty()) GTEST_SKIP() << "EFFNET_TEST_DATA names no folder";
  const auto folder = test::test_data() / "jpeg-torture";
  const auto rows = read_table(folder / "index.tsv");
  ASSERT_GT(rows.size(), 100u);
  for (size_t i = 1; i < rows.size(); ++i) {
    const auto& row = rows[i];
    const std::string &name = row[0], &orientation = row[4], &size = row[6], &expected_mean = row[7];
    const auto file = read_bytes(folder / name);
    ASSERT_EQ(std::to_string(file.size()), row[3]) << name;
    Decoded out;
    decode(file, out);
    if (row[1] == "other") {
      EXPECT_FALSE(out.status.ok()) << name;
      const FileKind kind = file_kind(file.data(), file.size());
      EXPECT_TRUE(kind != FileKind::jpeg && kind != FileKind::unknown && kind != FileKind::empty) << name;
      continue;
    }
    if (size.starts_with("ERR")) {
      EXPECT_FALSE(out.status.ok()) << name << " should fail: " << size;
      continue;
    }
    if (!out.status.ok()) {
      ADD_FAILURE() << name << ": " << out.status.message();
      continue;
    }
    EXPECT_EQ(std::to_string(out.view.width) + "x" + std::to_string(out.view.height) + "x3", size) << name;
    EXPECT_NEAR(mean(out.view), std::stod(expected_mean), 0.0051) << name;
    if (!orientation.empty()) {
      EXPECT_EQ(std::to_string(out.info.orientation), orientation) << name;
    }
  }
}

}  // namespace
}  // namespace effnet
