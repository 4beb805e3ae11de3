// Crop, resize and flip on the device beside the CPU's resampler, which is Pillow's bit for bit, and beside plain loops
// in float64.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <deque>

#include "cuda/ops/resample.h"
#include "io/transform.h"
#include "tests/aligned.h"
#include "tests/kernel_rig.h"

namespace effnet::test {
namespace {

#define ASSERT_STATUS_OK(call)                      \
  do {                                              \
    const Status outcome = call;                    \
    ASSERT_TRUE(outcome.ok()) << outcome.message(); \
  } while (false)

using io::Filter;
using io::Mode;
using io::TransformOptions;

struct Image {
  int width, height, orientation;
  size_t pitch;
  std::vector<uint8_t> stored;  // ends with its last pixel: what reads further is seen by ASan

  Image(int w, int h, int o, size_t gap = 0) : width(w), height(h), orientation(o), pitch(size_t(w) * 3 + gap) {
    stored.resize(pitch * size_t(h) - gap);
    uint32_t x = static_cast<uint32_t>(w * 7919 + h * 31 + o);
    for (uint8_t& byte : stored) byte = static_cast<uint8_t>((x = x * 1664525u + 1013904223u) >> 24);
  }
  io::View view() const { return {stored.data(), width, height, pitch, 0}; }
};

// A float64 filter of the source interval [0, in) to `out` positions at output `o`: calls tap(position, weight).
template <class Tap>
void taps_of(double in, double out, double o, bool bicubic, Tap tap) {
  const double scale = in / out, widened = std::max(scale, 1.0), center = (o + 0.5) * scale;
  const double reach = (bicubic ? 2 : 1) * widened;
  const auto weight = [&](double position) {
    const double d = std::abs(position + 0.5 - center) / widened;
    if (!bicubic) return std::max(0.0, 1 - d);
    return d < 1 ? 1.5 * d * d * d - 2.5 * d * d + 1 : d < 2 ? -0.5 * d * d * d + 2.5 * d * d - 4 * d + 2 : 0.0;
  };
  double sum = 0;
  const double first = std::max(0.0, std::floor(center - reach + 0.5)),
               end = std::min(in, std::floor(center + reach + 0.5));
  for (double p = first; p < end; ++p) sum += weight(p);
  for (double p = first; p < end; ++p) tap(static_cast<int>(p), weight(p) / sum);
}
uint8_t to_byte(double v) { return static_cast<uint8_t>(std::clamp(std::floor(v + 0.5), 0.0, 255.0)); }

// What the square should be, from the upright image.
std::vector<uint8_t> plain(const io::View& upright, const io::Placement& p, bool bicubic) {
  const int n = p.window.width;
  std::vector<uint8_t> middle(static_cast<size_t>(p.source.height) * n * 3), square(static_cast<size_t>(n) * n * 3);
  for (int y = 0; y < p.source.height; ++y)
    for (int x = 0; x < n; ++x)
      for (int c = 0; c < 3; ++c) {
        double sum = 0;
        taps_of(p.source.width, static_cast<double>(p.width), p.window.x + x, bicubic,
                [&](int at, double weight) { sum += weight * upright.row(p.source.y + y)[(p.source.x + at) * 3 + c]; });
        middle[(static_cast<size_t>(y) * n + (p.mirror ? n - 1 - x : x)) * 3 + c] = to_byte(sum);
      }
  for (int y = 0; y < n; ++y)
    for (int i = 0; i < n * 3; ++i) {
      double sum = 0;
      taps_of(p.source.height, static_cast<double>(p.height), p.window.y + y, bicubic,
              [&](int at, double weight) { sum += weight * middle[static_cast<size_t>(at) * n * 3 + i]; });
      square[static_cast<size_t>(y) * n * 3 + i] = to_byte(sum);
    }
  return square;
}

// All images in one launch of each pass.
void run(const std::vector<Image>& images, const TransformOptions& options, uint32_t seed) {
  const int size = options.size;
  const size_t square = static_cast<size_t>(size) * size * 3;
  std::vector<Resampling> hows;
  for (size_t i = 0; i < images.size(); ++i) {
    auto how = io::resampling(images[i].width, images[i].height, images[i].orientation, options,
                              {seed, 1, static_cast<uint32_t>(i)});
    ASSERT_TRUE(how.ok()) << how.status().message();
    hows.push_back(std::move(how.value()));
  }
  std::vector<uint8_t> first;
  for (int order = 0; order < backend::Runner::kOrders; ++order) {
    std::vector<uint8_t> batch(images.size() * square, 0xcd);
    const backend::Mirror squares(batch.data(), batch.size());
    ASSERT_STATUS_OK(squares.upload(batch.data()));
    std::vector<cuda::ResampleSource> sources;
    std::deque<backend::Mirror> pixels;
    size_t middle_bytes = 0;
    for (size_t i = 0; i < images.size(); ++i) {
      const backend::Mirror& stored = pixels.emplace_back(images[i].stored.data(), images[i].stored.size());
      ASSERT_STATUS_OK(stored.upload(images[i].stored.data()));
      sources.push_back(
          {&hows[i], images[i].width, images[i].height, stored.data(), images[i].pitch, squares.data() + i * square});
      middle_bytes += cuda::resample_middle_bytes(hows[i], size);
    }
    Aligned host(cuda::resample_table_bytes(sources, size));
    const backend::Mirror tables(host.data(), cuda::resample_table_bytes(sources, size)), middle(middle_bytes);
    std::vector<cuda::Launch> launches;
    cuda::record_resample(sources, size, host.data(), tables.data(), middle.data(), launches);
    ASSERT_STATUS_OK(tables.upload(host.data()));
    ASSERT_EQ(launches.size(), 2u);
    for (const cuda::Launch& launch : launches) ASSERT_STATUS_OK(backend::run(launch, order));
    ASSERT_STATUS_OK(squares.download(batch.data()));
    if (first.empty()) first = batch;
    ASSERT_TRUE(first == batch) << backend::Runner::order_name(order);
  }
  for (size_t i = 0; i < images.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "image " << i << ": " << images[i].width << "x" << images[i].height
                                    << " orientation " << images[i].orientation << " to " << size);
    const io::SampleKey key{seed, 1, static_cast<uint32_t>(i)};
    io::View upright = images[i].view();
    io::ByteBuffer turned;
    if (images[i].orientation != 1) {
      ASSERT_TRUE(io::apply_orientation(images[i].view(), images[i].orientation, turned, upright).ok());
    }
    std::vector<uint8_t> want(square);
    ASSERT_TRUE(io::Transformer().pixels(upright, options, key, want.data()).ok());
    const uint8_t* got = first.data() + i * square;
    ASSERT_TRUE(std::equal(want.begin(), want.end(), got));
    const auto placed = io::placement(upright.width, upright.height, options, key);
    const auto reference = plain(upright, placed.value(), options.filter == Filter::bicubic);
    // A byte of the first pass on the edge of rounding counts up to 1.3 times in the second.
    for (size_t b = 0; b < square; ++b) ASSERT_NEAR(reference[b], got[b], 2) << "byte " << b;
  }
}

TransformOptions options_of(Mode mode, Filter filter, int size) {
  TransformOptions options;
  options.mode = mode;
  options.filter = filter;
  options.size = size;
  options.resize_to = size + size / 7;
  return options;
}

// Larger and smaller than the square, odd, thin, with all eight orientations, rows apart and not.
std::vector<Image> images() {
  if (kThreadSanitizer) return {{23, 31, 1}, {18, 11, 6, 2}};
  return {{64, 48, 1}, {37, 91, 1, 5}, {12, 9, 1},     {1, 1, 1},       {3, 40, 1},  {101, 33, 2, 1},
          {50, 49, 3}, {29, 62, 4},    {75, 20, 5, 3}, {33, 130, 6, 7}, {41, 41, 7}, {90, 61, 8}};
}

TEST(Resample, IsTheCpusBitForBit) {
  for (const Filter filter : {Filter::bilinear, Filter::bicubic})
    for (const int size : {32, 21})
      for (const Mode mode : {Mode::train, Mode::eval}) {
        if (kThreadSanitizer && size == 32) continue;
        SCOPED_TRACE(testing::Message() << (filter == Filter::bicubic ? "bicubic " : "bilinear ")
                                        << (mode == Mode::train ? "train" : "eval"));
        ASSERT_NO_FATAL_FAILURE(run(images(), options_of(mode, filter, size), 3));
      }
}

TEST(Resample, FlipsOrNot) {
  for (const double hflip : {0.0, 1.0}) {
    TransformOptions options = options_of(Mode::train, Filter::bicubic, 18);
    options.hflip = hflip;
    ASSERT_NO_FATAL_FAILURE(run(images(), options, 5));
  }
}

TEST(Resample, CropsAtTheEdges) {
  // Nearly the whole image, so that crops touch its edges, and so little of it that they lie anywhere.
  for (const auto& [low, high] : {std::pair{0.97, 1.0}, {0.02, 0.05}}) {
    TransformOptions options = options_of(Mode::train, Filter::bicubic, 16);
    options.scale_min = low;
    options.scale_max = high;
    for (uint32_t seed = 0; seed < (kThreadSanitizer ? 1u : 4u); ++seed)
      ASSERT_NO_FATAL_FAILURE(run(images(), options, seed));
  }
}

TEST(Resample, SquashesAndLeavesWhatHasTheSize) {
  TransformOptions options = options_of(Mode::eval, Filter::bilinear, 24);
  options.squash = true;
  ASSERT_NO_FATAL_FAILURE(run(images(), options, 1));
  options.squash = false;
  options.resize_to = 24;
  ASSERT_NO_FATAL_FAILURE(run({{24, 24, 1}, {24, 24, 5, 4}, {24, 30, 1}}, options, 1));
}

}  // namespace
}  // namespace effnet::test
