#include "cuda/ops/conv_form.h"

#include <span>

#include "cuda/kernels/conv_point.h"
#include "cuda/kernels/gemm_tile.h"
#include "cuda/kernels/processors.h"

namespace effnet::cuda {
namespace {

// So many groups of rows are enough for every multiprocessor to hold several.
constexpr int64_t kRowBlocks = 8 * kProcessors;
constexpr int64_t kIndexLimit = int64_t{1} << 31;
constexpr int kTileM = 128;
// Small tiles, where those of 128 pixels would be fewer than multiprocessors; sums are cut where these are too, into no
// less than so many steps.
constexpr int kSmallM = 64, kSmallN = 32;
constexpr int64_t kLeastSteps = 4;
// So many times as many tiles of a row as there are multiprocessors: small ones need not be tried.
constexpr int64_t kMostSmall = 4;

// Rows of 16 bytes, of which a window's row has as many terms, places in an image of 15 bits, indices of 31 bits but
// for those of a tensor's elements, and counters for the narrowest tiles' columns.
bool fits_gather(const ConvGeometry& g, plan::DType dtype) {
  const int64_t vector = dtype == plan::DType::f32 ? 4 : 8;
  constexpr int64_t kPlaces = (1 << 14) - 16;
  return g.oc % vector == 0 && (g.kh == 1 || g.kw * g.ic >= vector) && g.stride <= 2 && std::max(g.h, g.w) <= kPlaces &&
         g.src_pixels() + kTileM < kIndexLimit && g.dst_pixels() + kTileM < kIndexLimit &&
         g.oc * g.kh * g.kw * g.ic < kIndexLimit && std::max(g.oc, g.ic) <= kSmallN * kMostMergeColumns;
}

bool fits_tiles(const ConvGeometry& g, plan::DType dtype) {
  return g.ic % (dtype == plan::DType::f32 ? 4 : 8) == 0 && fits_gather(g, dtype);
}

struct Width {
  int columns;
  size_t shared_bytes;
};

template <int kElement, int kN>
constexpr Width forward_width() {
  return {kN, TileShape<kElement, kTileM, kN, Layout::by_rows, Layout::by_rows>::kShared};
}
template <int kElement, int kN>
constexpr Width backward_data_width() {
  return {kN, TileShape<kElement, kTileM, kN, Layout::by_rows, Layout::by_depth>::kShared};
}
constexpr Width kForward16[] = {forward_width<2, 128>(), forward_width<2, 96>(), forward_width<2, 64>(),
                                forward_width<2, 32>()};
constexpr Width kForwardTf32[] = {forward_width<4, 128>(), forward_width<4, 96>(), forward_width<4, 64>(),
                                  forward_width<4, 32>()};
constexpr Width kForwardFma[] = {forward_width<4, 128>(), forward_width<4, 64>(), forward_width<4, 32>()};
constexpr Width kGather16[] = {forward_width<2, 64>(), forward_width<2, 32>()};
constexpr Width kGather32[] = {forward_width<4, 64>(), forward_width<4, 32>()};
constexpr Width kBackwardData16[] = {backward_data_width<2, 128>(), backward_data_width<2, 96>(),
                                     backward_data_width<2, 64>(), backward_data_width<2, 32>()};
constexpr Width kBackwardData32[] = {backward_data_width<4, 64>(), backward_data_width<4, 32>()};

// Of rows of results as high as a tile, by `widths` from the widest one on: as few tiles across as possible, as narrow
// as they then can be; narrower ones where there would be few blocks.
ConvForm by_width(std::span<const Width> widths, int64_t rows, int64_t columns, bool tensor_cores) {
  ConvForm form;
  form.tensor_cores = tensor_cores;
  form.tile_m = kTileM;
  form.tiles = ceil_div(rows, kTileM);
  form.tiles_a_block = ceil_div(form.tiles, kRowBlocks);
  for (const auto& [width, shared_bytes] : widths) {
    const int64_t across = form.tile_n ? ceil_div(columns, form.tile_n) : 0;
    if (across && ceil_div(columns, width) > across && form.tiles * across >= kProcessors) continue;
    form.tile_n = width;
    form.shared_bytes = shared_bytes;
  }
  return form;
}

// Tiles of 64 pixels by 32 channels, of sums cut into so many parts, or as many as leave each kLeastSteps.
ConvForm small_form(const ConvGeometry& g, plan::DType dtype, bool tensor_cores, int64_t splits) {
  ConvForm small;
  const bool half = dtype != plan::DType::f32;
  small.tensor_cores = tensor_cores;
  small.tile_m = kSmallM;
  small.tile_n = kSmallN;
  small.shared_bytes = 16 + (half ? TileShape<2, kSmallM, kSmallN, Layout::by_rows, Layout::by_rows>::kShared
                                  : TileShape<4, kSmallM, kSmallN, Layout::by_rows, Layout::by_rows>::kShared);
  small.tiles = ceil_div(g.dst_pixels(), kSmallM);
  small.tiles_a_block = 1;
  const int64_t steps = g.kh * g.kw * ceil_div(g.ic, half ? 32 : 16);
  small.split_steps = ceil_div(steps, std::clamp<int64_t>(steps / kLeastSteps, 1, splits));
  small.splits = ceil_div(steps, small.split_steps);
  return small;
}

// `form`, or smaller tiles of a forward convolution that has few.
ConvForm or_small(const ConvForm& form, const ConvGeometry& g, plan::DType dtype) {
  const int64_t across = ceil_div(g.oc, kSmallN);
  if (form.tiles * across >= kProcessors) return form;
  const int64_t tiles = ceil_div(g.dst_pixels(), kSmallM) * across;
  return small_form(g, dtype, form.tensor_cores, ceil_div(kProcessors, tiles));
}

// The same tiles without windows, where every pixel of the source is one of the result.
ConvForm or_point(ConvForm form, const ConvGeometry& g, plan::DType dtype, bool edited) {
  const bool same =
      g.kh == 1 && g.kw == 1 && g.stride == 1 && g.pad_t == 0 && g.pad_l == 0 && g.h == g.oh && g.w == g.ow;
  const bool fits = !form.gathered && form.tile_m == kTileM && dtype != plan::DType::f32;
  if (!same || !fits || (edited && g.ic > kPointMostChannels)) return form;
  form.point = true;
  if (edited) form.shared_bytes += static_cast<size_t>(kPointNormRows * g.ic) * sizeof(float);
  return form;
}

std::span<const Width> forward_widths(ConvType type, bool gathered) {
  const bool half = type.dtype != plan::DType::f32;
  if (gathered) return half ? std::span<const Width>(kGather16) : kGather32;
  return half ? std::span<const Width>(kForward16) : type.tf32 ? std::span<const Width>(kForwardTf32) : kForwardFma;
}

struct Area {
  int m, n, blocks;  // blocks that fit onto a multiprocessor
  size_t shared_bytes;
};
template <int kElement, int kM, int kN, int kBlocks>
constexpr Area backward_weights_area() {
  return {kM, kN, kBlocks, TileShape<kElement, kM, kN, Layout::by_depth, Layout::by_depth, sizeof(float)>::kShared};
}
template <int kElement>
constexpr Area kBackwardWeights[] = {
    backward_weights_area<kElement, 32, 128, 3>(), backward_weights_area<kElement, 64, 64, 3>(),
    backward_weights_area<kElement, 128, 32, 3>(), backward_weights_area<kElement, 128, 128, 2>()};

// Pixels that a block should sum at least: fewer are not worth their part of the result.
constexpr int64_t kLeastSplit = 512;

}  // namespace

std::string ConvForm::name() const {
  if (plain()) return pixels ? "plain_pixels" : "plain";
  const char* source = pixels ? "pixels_" : gathered ? "gather_" : point ? "1x1_" : "";
  return std::string(tensor_cores ? "mma_" : "fma_") + source + std::to_string(tile_m) + "x" + std::to_string(tile_n);
}

std::string ConvForm::full_name() const { return name() + (splits > 1 ? "_by" + std::to_string(splits) : ""); }

size_t ConvForm::parts_bytes(int64_t columns) const {
  if (splits == 1) return 0;
  const auto count = static_cast<size_t>(tiles * ceil_div(columns, tile_n) * splits);
  return count * static_cast<size_t>(tile_m * tile_n) * sizeof(float);
}

ConvForm ConvForm::whole() const {
  ConvForm form = *this;
  form.split_steps *= form.splits;
  form.splits = 1;
  return form;
}

ConvForm conv_forward_form(const ConvGeometry& g, ConvType type, bool edited) {
  const bool gathered = !fits_tiles(g, type.dtype);
  if (gathered && (edited || !fits_gather(g, type.dtype))) return {};
  const bool tensor_cores = type.dtype != plan::DType::f32 || type.tf32;
  ConvForm form = by_width(forward_widths(type, gathered), g.dst_pixels(), g.oc, tensor_cores);
  form.gathered = gathered;
  return gathered ? form : or_point(or_small(form, g, type.dtype), g, type.dtype, edited);
}

std::vector<ConvForm> conv_forward_forms(const ConvGeometry& g, ConvType type, bool edited) {
  std::vector<ConvForm> forms{conv_forward_form(g, type, edited)};
  const ConvForm first = forms[0];
  if (first.plain()) return forms;
  const auto add = [&](const ConvForm& form) {
    const auto same = [&](const ConvForm& known) { return known.full_name() == form.full_name(); };
    if (std::none_of(forms.begin(), forms.end(), same)) forms.push_back(form);
  };
  const std::span<const Width> widths = forward_widths(type, first.gathered);
  for (size_t i = 0; i < widths.size(); ++i) {
    // Tiles that are half empty and more are no choice.
    if (i + 1 < widths.size() && widths[i].columns >= 2 * g.oc) continue;
    ConvForm form = by_width(widths.subspan(i, 1), g.dst_pixels(), g.oc, first.tensor_cores);
    form.gathered = first.gathered;
    add(or_point(form, g, type.dtype, edited));
  }
  // Where there are many pixels small tiles only read their operands more often.
  if (first.gathered || first.tiles * ceil_div(g.oc, kSmallN) >= kMostSmall * kProcessors) return forms;
  const int64_t small_tiles = ceil_div(g.dst_pixels(), kSmallM) * ceil_div(g.oc, kSmallN);
  for (const int64_t splits : {1, 2, 4, 8, 16})
    if (splits == 1 || small_tiles * splits <= kMostSmall * kProcessors)
      add(small_form(g, type.dtype, first.tensor_cores, splits));
  return forms;
}

ConvForm conv_backward_data_form(const ConvGeometry& g, ConvType type) {
  if (!fits_tiles(g, type.dtype)) return {};
  if (type.dtype != plan::DType::f32) return by_width(kBackwardData16, g.src_pixels(), g.ic, true);
  return by_width(kBackwardData32, g.src_pixels(), g.ic, type.tf32);
}

namespace {

// With a second slab for each of 8 warps, and so many numbers.
size_t backward_data_shared(const ConvForm& form, plan::DType dtype, size_t floats) {
  const size_t element = plan::dtype_bytes(dtype), warps_across = form.tile_n == 32 ? 1 : 2;
  return form.shared_bytes + 8 * 16 * (static_cast<size_t>(form.tile_n) / warps_across + 8) * element +
         floats * sizeof(float);
}

}  // namespace

size_t conv_backward_data_bn_shared(const ConvForm& form, plan::DType dtype) {
  return backward_data_shared(form, dtype, 3 * static_cast<size_t>(form.tile_n));
}

size_t conv_backward_data_end_shared(const ConvForm& form, plan::DType dtype) {
  return backward_data_shared(form, dtype, static_cast<size_t>(form.tile_n) + 8 * 16);
}

ConvForm over_pixels(ConvForm form) {
  form.pixels = true;
  return form;
}

// The tile whose operands are read least, and as many splits of the pixels as fill a GPU.
ConvForm conv_backward_weights_form(const ConvGeometry& g, ConvType type, bool edited) {
  const int64_t width = g.kh * g.kw * g.ic, pixels = g.dst_pixels();
  ConvForm form;
  form.split_pixels = std::max<int64_t>(2048, ceil_div(pixels, 64));
  form.gathered = !fits_tiles(g, type.dtype);
  if (form.gathered && (edited || !fits_gather(g, type.dtype))) return form;
  int64_t least = 0;
  for (const Area& area : type.dtype == plan::DType::f32 ? kBackwardWeights<4> : kBackwardWeights<2>) {
    if (form.gathered && (area.m != 128 || area.n != 32)) continue;
    const int64_t tiles = ceil_div(g.oc, area.m) * ceil_div(width, area.n), read = tiles * (area.m + area.n);
    if (least && read >= least) continue;
    least = read;
    form.tile_m = area.m;
    form.tile_n = area.n;
    form.shared_bytes = area.shared_bytes;
    const int64_t splits = std::clamp<int64_t>(kProcessors * area.blocks / tiles, 1, ceil_div(pixels, kLeastSplit));
    form.split_pixels = ceil_div(ceil_div(pixels, splits), 32) * 32;
  }
  form.tensor_cores = type.dtype != plan::DType::f32 || type.tf32;
  return form;
}

}  // namespace effnet::cuda
