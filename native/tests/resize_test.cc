// The resampler against Pillow, bit for bit (test/fixtures/io/resize.tsv), and crops and transforms built on it.
#include <gtest/gtest.h>

#include <cmath>

#include "io/resize.h"
#include "io/transform.h"
#include "tests/io_fixtures.h"

namespace effnet {
namespace {

using namespace io;
using test::read_table;

Filter filter_named(const std::string& name) { return name == "bilinear" ? Filter::bilinear : Filter::bicubic; }

TEST(Resize, EqualsPillow) {
  Resizer resizer;
  const auto rows = read_table(test::fixture_dir() / "resize.tsv");
  ASSERT_EQ(rows.size(), 30u);
  for (const auto& row : rows) {
    const int width = std::stoi(row[0]), height = std::stoi(row[1]);
    const Box box{std::stof(row[2]), std::stof(row[3]), std::stof(row[4]), std::stof(row[5])};
    const int out_width = std::stoi(row[6]), out_height = std::stoi(row[7]);
    const auto image = test::made_up(width, height);
    std::vector<uint8_t> out(static_cast<size_t>(out_width) * out_height * 3);
    const Status status = resizer.run({image.data(), width, height, static_cast<size_t>(width) * 3, 0}, box, out_width,
                                      out_height, {0, 0, out_width, out_height}, filter_named(row[8]), false,
                                      out.data(), static_cast<size_t>(out_width) * 3);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(test::sha256(out), row[9]) << width << "x" << height << " to " << out_width << "x" << out_height << " "
                                         << row[8];
  }
}

TEST(Resize, WindowAndMirrorArePartsOfTheWhole) {
  Resizer resizer;
  const int width = 83, height = 57, ow = 61, oh = 40;
  const auto image = test::made_up(width, height);
  const View view{image.data(), width, height, static_cast<size_t>(width) * 3, 0};
  const Box box{0, 0, 83, 57};
  std::vector<uint8_t> whole(ow * oh * 3);
  ASSERT_TRUE(resizer.run(view, box, ow, oh, {0, 0, ow, oh}, Filter::bicubic, false, whole.data(), ow * 3).ok());
  for (const Rect window : {Rect{0, 0, 1, 1}, Rect{60, 39, 1, 1}, Rect{7, 3, 40, 20}, Rect{0, 11, 61, 29}}) {
    for (const bool mirror : {false, true}) {
      std::vector<uint8_t> part(static_cast<size_t>(window.width) * window.height * 3);
      ASSERT_TRUE(resizer
                      .run(view, box, ow, oh, window, Filter::bicubic, mirror, part.data(),
                           static_cast<size_t>(window.width) * 3)
                      .ok());
      for (int y = 0; y < window.height; ++y)
        for (int x = 0; x < window.width; ++x)
          for (int c = 0; c < 3; ++c) {
            const int from = window.x + (mirror ? window.width - 1 - x : x);
            ASSERT_EQ(part[(y * window.width + x) * 3 + c], whole[((window.y + y) * ow + from) * 3 + c]);
          }
    }
  }
}

TEST(Resize, RefusesBoxesAndWindowsOutside) {
  Resizer resizer;
  const auto image = test::made_up(8, 8);
  const View view{image.data(), 8, 8, 24, 0};
  uint8_t out[8 * 8 * 3];
  const auto code = [&](Box box, Rect window) {
    return resizer.run(view, box, 8, 8, window, Filter::bicubic, false, out, 24).code();
  };
  EXPECT_EQ(code({0, 0, 8, 8}, {0, 0, 8, 8}), Code::ok);
  EXPECT_EQ(code({-1, 0, 8, 8}, {0, 0, 8, 8}), Code::invalid_argument);
  EXPECT_EQ(code({0, 0, 8.5f, 8}, {0, 0, 8, 8}), Code::invalid_argument);
  EXPECT_EQ(code({4, 0, 4, 8}, {0, 0, 8, 8}), Code::invalid_argument);
  EXPECT_EQ(code({0, 0, NAN, 8}, {0, 0, 8, 8}), Code::invalid_argument);
  EXPECT_EQ(code({0, 0, 8, 8}, {1, 0, 8, 8}), Code::invalid_argument);
  EXPECT_EQ(code({0, 0, 8, 8}, {0, 0, 0, 8}), Code::invalid_argument);
}

TEST(RandomCrop, DrawsAsTorchvisionFromPhilox) {
  const auto rows = read_table(test::fixture_dir() / "random_crop.tsv");
  ASSERT_EQ(rows.size(), 144u);
  for (const auto& row : rows) {
    TransformOptions options;
    options.mode = Mode::train;
    options.scale_min = std::stod(row[2]);
    options.scale_max = std::stod(row[3]);
    options.ratio_min = std::stod(row[4]);
    options.ratio_max = std::stod(row[5]);
    options.hflip = std::stod(row[6]);
    const SampleKey key{std::stoull(row[7]), std::stoull(row[8]), static_cast<uint32_t>(std::stoul(row[9]))};
    const RandomCrop crop = random_crop(std::stoi(row[0]), std::stoi(row[1]), options, key);
    EXPECT_EQ(crop.box.x, std::stoi(row[10]));
    EXPECT_EQ(crop.box.y, std::stoi(row[11]));
    EXPECT_EQ(crop.box.width, std::stoi(row[12]));
    EXPECT_EQ(crop.box.height, std::stoi(row[13]));
    EXPECT_EQ(crop.flip, row[14] == "1");
  }
}

TEST(Transform, EvalEqualsPillow) {
  Transformer transformer;
  for (const auto& row : read_table(test::fixture_dir() / "eval.tsv")) {
    TransformOptions options;
    options.resize_to = std::stoi(row[1]);
    options.size = std::stoi(row[2]);
    options.filter = filter_named(row[3]);
    const auto file = test::read_bytes(test::fixture_dir() / row[0]);
    std::vector<uint8_t> out(static_cast<size_t>(options.size) * options.size * 3);
    const Status status = transformer.jpeg(file.data(), file.size(), options, {}, out.data());
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(test::sha256(out), row[4]) << row[0] << " " << row[1] << " " << row[3];
  }
}

// Crop of the file's stored pixels, turned upright, resized and mirrored: what training does at full scale.
TEST(Transform, CropEqualsPillow) {
  for (const auto& row : read_table(test::fixture_dir() / "crop.tsv")) {
    const auto file = test::read_bytes(test::fixture_dir() / row[0]);
    JpegReader reader;
    ASSERT_TRUE(reader.open(file.data(), file.size(), {}).ok());
    const JpegInfo& info = reader.info();
    const Rect box{std::stoi(row[1]), std::stoi(row[2]), std::stoi(row[3]), std::stoi(row[4])};
    const Rect stored = stored_rect(box, info.width, info.height, info.orientation);
    ByteBuffer decoded, upright;
    View view;
    ASSERT_TRUE(reader.decode(8, &stored, decoded, view).ok());
    if (info.orientation != 1) {
      ASSERT_TRUE(apply_orientation(view, info.orientation, upright, view).ok());
    }
    ASSERT_EQ(view.width, box.width);
    ASSERT_EQ(view.height, box.height);
    const int size = std::stoi(row[5]);
    std::vector<uint8_t> out(static_cast<size_t>(size) * size * 3);
    Resizer resizer;
    ASSERT_TRUE(resizer
                    .run(view, {0, 0, static_cast<float>(box.width), static_cast<float>(box.height)}, size, size,
                         {0, 0, size, size}, filter_named(row[6]), row[7] == "1", out.data(),
                         static_cast<size_t>(size) * 3)
                    .ok());
    EXPECT_EQ(test::sha256(out), row[8]) << row[0] << " " << box.x << "," << box.y;
  }
}

// The training path (window decode, DCT scaling where the crop allows it) beside crop and resize of the whole image.
TEST(Transform, TrainFromWindowEqualsOrApproachesTrainFromPixels) {
  Transformer transformer;
  for (const auto& row : read_table(test::fixture_dir() / "jpeg.tsv")) {
    const auto file = test::read_bytes(test::fixture_dir() / row[0]);
    TransformOptions full;
    full.mode = Mode::full;
    View whole;
    ASSERT_TRUE(transformer.decode(file.data(), file.size(), full, whole).ok());
    const std::vector<uint8_t> copy(whole.data, whole.data + whole.stride * static_cast<size_t>(whole.height));
    const View image{copy.data(), whole.width, whole.height, whole.stride, 0};
    for (uint32_t index = 0; index < 12; ++index) {
      TransformOptions options;
      options.mode = Mode::train;
      options.size = 24;
      const SampleKey key{7, 3, index};
      const RandomCrop crop = random_crop(image.width, image.height, options, key);
      const bool scaled = std::min(crop.box.width, crop.box.height) >= 2 * options.size;
      std::vector<uint8_t> a(24 * 24 * 3), b(24 * 24 * 3);
      ASSERT_TRUE(transformer.jpeg(file.data(), file.size(), options, key, a.data()).ok());
      ASSERT_TRUE(transformer.pixels(image, options, key, b.data()).ok());
      double difference = 0;
      for (size_t i = 0; i < a.size(); ++i) difference += std::abs(a[i] - b[i]);
      difference /= static_cast<double>(a.size());
      if (scaled)
        EXPECT_LT(difference, 8) << row[0] << " sample " << index;
      else
        EXPECT_EQ(a, b) << row[0] << " sample " << index;
    }
  }
}

TEST(Transform, ChecksOptions) {
  TransformOptions options;
  EXPECT_TRUE(options.check().ok());
  options.resize_to = 200;
  EXPECT_EQ(options.check().code(), Code::invalid_argument);
  options = {};
  options.mode = Mode::train;
  options.scale_min = 0;
  EXPECT_EQ(options.check().code(), Code::invalid_argument);
  options.scale_min = 0.5;
  options.hflip = NAN;
  EXPECT_EQ(options.check().code(), Code::invalid_argument);
}

TEST(Transform, RefusesImagesWhoseResizedSideIsNoInt) {
  TransformOptions options;
  options.size = 8;
  std::vector<uint8_t> out(8 * 8 * 3);
  Transformer transformer;
  const auto status_of = [&](int length, int resize_to, bool tall) {
    options.resize_to = resize_to;
    const std::vector<uint8_t> line(static_cast<size_t>(length) * 3);
    const View view{line.data(), tall ? 1 : length, tall ? length : 1, tall ? 3 : line.size(), 0};
    return transformer.pixels(view, options, {}, out.data());
  };
  for (const bool tall : {false, true}) {
    EXPECT_TRUE(status_of((1 << 16) - 1, 1 << 15, tall).ok());
    // 2^31; and 2^32, the centre of which would wrap round to a place inside.
    for (const int length : {1 << 16, 1 << 17}) {
      const Status status = status_of(length, 1 << 15, tall);
      const std::string size = tall ? "1x" + std::to_string(length) : std::to_string(length) + "x1";
      EXPECT_EQ(status.code(), Code::data_limit);
      EXPECT_NE(status.message().find(size), std::string::npos) << status.message();
    }
  }
}

}  // namespace
}  // namespace effnet
