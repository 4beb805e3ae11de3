#include "cpu/onednn/conv_tiles.h"

#include <algorithm>

#include "core/math.h"

namespace effnet::onednn {
namespace {

// About 100 us on one AVX-512 core: long against a barrier, short enough to balance 16 threads at batch 32.
constexpr int64_t kTileFlops = 16'000'000;
// Rows below which a 1x1 convolution is bound by reading its weights again.
constexpr int64_t kMinRows = 128;
// Activations of a tile: what one core's L2 holds beside the weights.
constexpr int64_t kTileBytes = 1 << 20;
// Partial weight gradients of one op.
constexpr int64_t kPartialBytes = int64_t{8} << 20;

// Splits [0, total) into `count` contiguous ranges that differ by at most one.
struct Range {
  int64_t first, size;
};
std::vector<Range> even_ranges(int64_t total, int64_t count) {
  count = std::clamp<int64_t>(count, 1, total);
  std::vector<Range> ranges;
  int64_t first = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t size = total / count + (i < total % count);
    ranges.push_back({first, size});
    first += size;
  }
  return ranges;
}

// A number of parts from `wanted` to `most`. Best if it divides `total`, so that all parts have one shape; few parts
// are a multiple of 2, or 4, so that as many threads end together.
int64_t even_count(int64_t total, int64_t wanted, int64_t most) {
  if (wanted <= 1) return 1;
  const int64_t multiple = wanted >= 16 ? 1 : wanted >= 3 ? 4 : 2;
  const int64_t least = round_up(wanted, multiple);
  for (int64_t count = least; count <= most; count += multiple)
    if (total % count == 0) return count;
  return std::min({least, total, std::max(wanted, most)});
}

ConvShape rows_shape(const ConvShape& s, int64_t rows) {
  ConvShape part = s;
  part.n = 1;
  part.ih = part.oh = 1;
  part.iw = part.ow = rows;
  return part;
}

Tile rows_tile(const ConvShape& s, Range rows) {
  return {rows_shape(s, rows.size), rows.first * s.ic, rows.first * s.oc, rows.size * s.ic, rows.size * s.oc};
}

Tile images_tile(const ConvShape& s, Range images) {
  ConvShape part = s;
  part.n = images.size;
  const int64_t src = s.ih * s.iw * s.ic, dst = s.oh * s.ow * s.oc;
  return {part, images.first * src, images.first * dst, images.size * src, images.size * dst};
}

int64_t image_flops(const ConvShape& s) { return 2 * s.oh * s.ow * s.oc * s.kh * s.kw * s.ic; }

// A band of output rows with the input rows it reads; rows beyond the image become padding of the part.
Tile band_tile(const ConvShape& s, int64_t image, Range out) {
  const int64_t top = out.first * s.stride - s.pad_t;
  const int64_t bottom = (out.first + out.size - 1) * s.stride - s.pad_t + s.kh;  // one past the last
  const int64_t first = std::max<int64_t>(top, 0), last = std::min(bottom, s.ih);
  ConvShape part = s;
  part.n = 1;
  part.oh = out.size;
  part.ih = last - first;
  part.pad_t = first - top;
  part.pad_b = bottom - last;
  return {part, (image * s.ih + first) * s.iw * s.ic, (image * s.oh + out.first) * s.ow * s.oc, part.ih * s.iw * s.ic,
          out.size * s.ow * s.oc};
}

}  // namespace

bool is_pointwise(const ConvShape& s) {
  return s.kh == 1 && s.kw == 1 && s.stride == 1 && !s.pad_t && !s.pad_l && !s.pad_b && !s.pad_r;
}

std::vector<Tile> independent_tiles(const ConvShape& s) {
  std::vector<Tile> tiles;
  if (is_pointwise(s)) {
    const int64_t rows = s.n * s.oh * s.ow;
    const int64_t by_flops = kTileFlops / (2 * s.ic * s.oc);
    const int64_t by_bytes = kTileBytes / (4 * (s.ic + s.oc));
    const int64_t least = std::min(kMinRows, std::max<int64_t>(ceil_div(rows, 4), 8));
    const int64_t tile_rows = std::clamp(std::min(by_flops, by_bytes), least, std::max(rows, least));
    const int64_t count = ceil_div(rows, tile_rows);
    for (const Range& range : even_ranges(rows, even_count(rows, count, count * 3 / 2)))
      tiles.push_back(rows_tile(s, range));
    return tiles;
  }
  const int64_t flops = image_flops(s);
  if (s.pass == Pass::forward && (flops > 2 * kTileFlops || s.n == 1)) {
    const int64_t least = s.n == 1 ? 2 : 1, most = std::max<int64_t>(s.oh / 4, 1);
    const int64_t bands = even_count(s.oh, std::min(std::max(flops / kTileFlops, least), most), most);
    for (int64_t image = 0; image < s.n; ++image)
      for (const Range& range : even_ranges(s.oh, bands)) tiles.push_back(band_tile(s, image, range));
    return tiles;
  }
  const int64_t group = std::clamp<int64_t>(kTileFlops / std::max<int64_t>(flops, 1), 1, std::max<int64_t>(s.n / 4, 1));
  for (const Range& range : even_ranges(s.n, ceil_div(s.n, group))) tiles.push_back(images_tile(s, range));
  return tiles;
}

std::vector<Tile> reduction_tiles(const ConvShape& s) {
  std::vector<Tile> tiles;
  const int64_t weights = 4 * s.oc * s.kh * s.kw * s.ic;
  const int64_t groups = std::clamp<int64_t>(kPartialBytes / weights, 2, 8);
  if (is_pointwise(s)) {
    const int64_t rows = s.n * s.oh * s.ow;
    const int64_t wanted = std::min(groups, std::max<int64_t>(rows / 64, 1));
    for (const Range& range : even_ranges(rows, even_count(rows, wanted, groups))) tiles.push_back(rows_tile(s, range));
    return tiles;
  }
  for (const Range& range : even_ranges(s.n, groups)) tiles.push_back(images_tile(s, range));
  return tiles;
}

}  // namespace effnet::onednn
