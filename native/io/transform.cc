#include "io/transform.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/philox.h"

namespace effnet::io {
namespace {

constexpr int kAttempts = 10;
constexpr uint64_t kFlipElement = 4 * kAttempts;

double uniform(uint32_t word) { return word * (1.0 / 4294967296.0); }

// Python's round(): half to even, the default rounding mode.
int64_t round_even(double value) { return std::llrint(value); }

// In [0, n).
int pick(uint32_t word, int n) { return static_cast<int>((uint64_t{word} * static_cast<uint64_t>(n)) >> 32); }

// Half to even of (n - size) / 2 for n >= size.
int64_t centre_offset(int64_t n, int64_t size) {
  const int64_t twice = n - size, half = twice / 2;
  return twice % 2 == 0 ? half : half + half % 2;
}

// The DCT scale that leaves the crop at least `size` on both sides. 3, 5, 6 and 7 eighths have no SIMD inverse
// transform in libjpeg-turbo and cost more than the full one.
int scale_for(int crop_width, int crop_height, int size) {
  for (const int eighths : {1, 2, 4})
    if (int64_t{std::min(crop_width, crop_height)} * eighths >= int64_t{size} * 8) return eighths;
  return 8;
}

}  // namespace

Status TransformOptions::check() const {
  if (mode == Mode::full) return ok_status();
  if (size < 1 || size > 16384) return error(Code::invalid_argument, "size is %d, expected 1 to 16384", size);
  if (mode == Mode::eval && !squash && (resize_to < size || resize_to > 32768))
    return error(Code::invalid_argument, "resizeTo is %d, expected %d (size) to 32768", resize_to, size);
  if (mode == Mode::train) {
    if (!(scale_min > 0 && scale_min <= scale_max && scale_max <= 1))
      return error(Code::invalid_argument, "scale range is %g to %g, expected 0 < scaleMin <= scaleMax <= 1", scale_min,
                   scale_max);
    if (!(ratio_min > 0 && ratio_min <= ratio_max && ratio_max <= 1e4))
      return error(Code::invalid_argument, "ratio range is %g to %g, expected 0 < ratioMin <= ratioMax", ratio_min,
                   ratio_max);
    if (!(hflip >= 0 && hflip <= 1)) return error(Code::invalid_argument, "hflip is %g, expected 0 to 1", hflip);
  }
  return ok_status();
}

RandomCrop random_crop(int width, int height, const TransformOptions& options, const SampleKey& key) {
  auto word = [&](uint64_t element) { return philox_u32(key.seed, key.epoch, key.index, element); };
  const bool flip = uniform(word(kFlipElement)) < options.hflip;
  const double area = static_cast<double>(width) * height;
  const double log_min = std::log(options.ratio_min), log_max = std::log(options.ratio_max);
  for (uint64_t attempt = 0; attempt < kAttempts; ++attempt) {
    const double target =
        area * (options.scale_min + (options.scale_max - options.scale_min) * uniform(word(4 * attempt)));
    const double ratio = std::exp(log_min + (log_max - log_min) * uniform(word(4 * attempt + 1)));
    const int64_t w = round_even(std::sqrt(target * ratio)), h = round_even(std::sqrt(target / ratio));
    if (w <= 0 || w > width || h <= 0 || h > height) continue;
    const int y = pick(word(4 * attempt + 2), height - static_cast<int>(h) + 1);
    const int x = pick(word(4 * attempt + 3), width - static_cast<int>(w) + 1);
    return {{x, y, static_cast<int>(w), static_cast<int>(h)}, flip};
  }
  const double ratio = static_cast<double>(width) / height;
  int w = width, h = height;
  if (ratio < options.ratio_min)
    h = static_cast<int>(std::clamp<int64_t>(round_even(width / options.ratio_min), 1, height));
  else if (ratio > options.ratio_max)
    w = static_cast<int>(std::clamp<int64_t>(round_even(height * options.ratio_max), 1, width));
  return {{(width - w) / 2, (height - h) / 2, w, h}, flip};
}

StatusOr<Placement> placement(int width, int height, const TransformOptions& options, const SampleKey& key) {
  const int size = options.size;
  if (options.mode == Mode::train) {
    const RandomCrop crop = random_crop(width, height, options, key);
    return Placement{crop.box, size, size, {0, 0, size, size}, crop.flip};
  }
  const int64_t w = width, h = height, to = options.resize_to;
  const int64_t wide = options.squash ? size : w <= h ? to : to * w / h;
  const int64_t tall = options.squash ? size : w <= h ? to * h / w : to;
  if (std::max(wide, tall) > std::numeric_limits<int>::max())
    return error(Code::data_limit, "an image of %dx%d is too long to be resized to a short side of %d", width, height,
                 options.resize_to);
  const auto x = static_cast<int>(centre_offset(wide, size)), y = static_cast<int>(centre_offset(tall, size));
  return Placement{{0, 0, width, height}, wide, tall, {x, y, size, size}, false};
}

StatusOr<Resampling> resampling(int stored_width, int stored_height, int orientation, const TransformOptions& options,
                                const SampleKey& key) {
  const bool turned = orientation >= 5;
  const auto placed =
      placement(turned ? stored_height : stored_width, turned ? stored_width : stored_height, options, key);
  if (!placed.ok()) return placed.status();
  const auto& [source, width, height, window, mirror] = placed.value();
  Resampling how;
  how.orientation = orientation;
  how.x = source.x;
  how.y = source.y;
  how.mirror = mirror;
  how.columns =
      axis_weights(source.width, 0, static_cast<float>(source.width), width, window.x, window.width, options.filter);
  how.rows = axis_weights(source.height, 0, static_cast<float>(source.height), height, window.y, window.height,
                          options.filter);
  return how;
}

Status Transformer::pixels(const View& image, const TransformOptions& options, const SampleKey& key, uint8_t* dst) {
  const auto placed = placement(image.width, image.height, options, key);
  if (!placed.ok()) return placed.status();
  const auto& [source, width, height, window, mirror] = placed.value();
  return resizer_.run(image.part(source), {0, 0, static_cast<float>(source.width), static_cast<float>(source.height)},
                      width, height, window, options.filter, mirror, dst, static_cast<size_t>(options.size) * 3);
}

Status Transformer::train_jpeg(JpegReader& reader, const TransformOptions& options, const SampleKey& key,
                               uint8_t* dst) {
  const JpegInfo& info = reader.info();
  const int orientation = options.exif_orientation ? info.orientation : 1;
  const bool turned = orientation >= 5;
  const RandomCrop crop =
      random_crop(turned ? info.height : info.width, turned ? info.width : info.height, options, key);
  const Rect stored = stored_rect(crop.box, info.width, info.height, orientation);

  // The crop in the scaled image may have fractional edges; the pixels it touches are decoded.
  const int eighths = scale_for(stored.width, stored.height, options.size);
  const float scale = static_cast<float>(eighths) / 8;
  const float x0 = static_cast<float>(stored.x) * scale, x1 = static_cast<float>(stored.x + stored.width) * scale;
  const float y0 = static_cast<float>(stored.y) * scale, y1 = static_cast<float>(stored.y + stored.height) * scale;
  Rect window;
  window.x = static_cast<int>(x0);
  window.y = static_cast<int>(y0);
  window.width = std::min(static_cast<int>(std::ceil(x1)), JpegReader::scaled(info.width, eighths)) - window.x;
  window.height = std::min(static_cast<int>(std::ceil(y1)), JpegReader::scaled(info.height, eighths)) - window.y;

  View image;
  EFF_RETURN_IF_ERROR(reader.decode(eighths, &window, decoded_, image));
  Box box{x0 - static_cast<float>(window.x), y0 - static_cast<float>(window.y),
          std::min(x1 - static_cast<float>(window.x), static_cast<float>(window.width)),
          std::min(y1 - static_cast<float>(window.y), static_cast<float>(window.height))};
  if (orientation != 1) {
    // The box turns with the pixels: its margins to the window's edges change sides.
    const float left = box.x0, right = static_cast<float>(image.width) - box.x1;
    const float top = box.y0, bottom = static_cast<float>(image.height) - box.y1;
    EFF_RETURN_IF_ERROR(apply_orientation(image, orientation, upright_, image));
    const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    const float h0 = from_right ? right : left, h1 = from_right ? left : right;
    const float v0 = from_bottom ? bottom : top, v1 = from_bottom ? top : bottom;
    const float width = static_cast<float>(image.width), height = static_cast<float>(image.height);
    box = turned ? Box{v0, h0, width - v1, height - h1} : Box{h0, v0, width - h1, height - v1};
  }
  const int size = options.size;
  return resizer_.run(image, box, size, size, {0, 0, size, size}, options.filter, crop.flip, dst,
                      static_cast<size_t>(size) * 3);
}

Status Transformer::jpeg(const uint8_t* data, size_t bytes, const TransformOptions& options, const SampleKey& key,
                         uint8_t* dst, const std::atomic<bool>* abort) {
  if (options.mode == Mode::train) {
    JpegReader reader;
    EFF_RETURN_IF_ERROR(reader.open(data, bytes, options.limits, abort));
    return train_jpeg(reader, options, key, dst);
  }
  View image;
  EFF_RETURN_IF_ERROR(decode(data, bytes, options, image, abort));
  return pixels(image, options, key, dst);
}

Status Transformer::decode(const uint8_t* data, size_t bytes, const TransformOptions& options, View& out,
                           const std::atomic<bool>* abort) {
  JpegReader reader;
  EFF_RETURN_IF_ERROR(reader.open(data, bytes, options.limits, abort));
  EFF_RETURN_IF_ERROR(reader.decode(8, nullptr, decoded_, out));
  if (!options.exif_orientation || reader.info().orientation == 1) return ok_status();
  return apply_orientation(out, reader.info().orientation, upright_, out);
}

void Transformer::trim() {
  decoded_.trim();
  upright_.trim();
}

}  // namespace effnet::io
