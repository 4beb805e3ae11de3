#include "cuda/ops/conv_once.h"

#include "cuda/kernels/processors.h"
#include "cuda/ops/merge.h"

namespace effnet::cuda {
namespace {

struct Tile {
  OnceSource source;
  int rows, oc, ic;
  size_t shared_bytes;
};
template <OnceSource kSource, int kM, int kOc, int kIc>
constexpr Tile tile_16() {
  return {kSource, kM, kOc, kIc, OnceShape<2, kM, kOc, kIc>::shared_bytes(kSource)};
}
// Of each kind the smallest first.
constexpr Tile kTiles16[] = {
    tile_16<OnceSource::stored, 64, 96, 16>(),  tile_16<OnceSource::stored, 32, 144, 32>(),
    tile_16<OnceSource::stored, 32, 192, 32>(), tile_16<OnceSource::stored, 32, 240, 48>(),
    tile_16<OnceSource::normed, 32, 32, 96>(),  tile_16<OnceSource::normed, 32, 48, 96>(),
    tile_16<OnceSource::normed, 32, 64, 64>(),  tile_16<OnceSource::gated, 64, 16, 32>(),
    tile_16<OnceSource::gated, 32, 32, 96>(),   tile_16<OnceSource::gated, 32, 48, 96>(),
    tile_16<OnceSource::gated, 32, 80, 80>(),   tile_16<OnceSource::gated, 32, 112, 64>(),
};

// Blocks that fill a GPU: two on each of its multiprocessors.
constexpr int64_t kBlocks = 2 * kProcessors;
constexpr int64_t kIndexLimit = int64_t{1} << 31;

int64_t smaller(int64_t channels, int tile) { return ceil_div(ceil_div(channels, ceil_div(channels, tile)), 8) * 8; }

// Values that are read and written of a pixel. What blocks of the same pixels read again comes out of the cache, at
// about half the cost.
double once_traffic(const ConvGeometry& g, int64_t slices) {
  return static_cast<double>(2 * g.oc + 2 * g.ic) + static_cast<double>((slices - 1) * 2 * g.oc) / 2;
}
// The gradient of the result is made, 3 oc, and read twice; the source is read and its gradient written, and read again
// with the source for what follows.
double stored_traffic(const ConvGeometry& g, OnceSource source) {
  const int64_t sources = source == OnceSource::stored ? 2 : source == OnceSource::normed ? 3 : 4;
  return static_cast<double>(5 * g.oc + sources * g.ic);
}

}  // namespace

std::string ConvOnceForm::name() const {
  const char* kind = source == OnceSource::stored ? "once_" : source == OnceSource::normed ? "once_bn_" : "once_gate_";
  return kind + std::to_string(oc) + "x" + std::to_string(ic);
}

std::optional<ConvOnceForm> conv_once_form(const ConvGeometry& g, ConvType type, OnceSource source, bool by_image) {
  const bool fits = type.dtype != plan::DType::f32 && g.oc % 8 == 0 && g.ic % 8 == 0 && g.stride == 1 && g.pad_t == 0 &&
                    g.pad_l == 0 && g.dst_pixels() == g.src_pixels() && g.src_pixels() < kIndexLimit - 64;
  if (!fits) return {};
  for (const Tile& tile : kTiles16) {
    // Neither product sums over the source's channels: blocks share them out, where the result is not too wide for
    // that.
    if (tile.source != source || g.oc > tile.oc || (source == OnceSource::stored && g.ic > tile.ic)) continue;
    ConvOnceForm form{source, tile.rows, tile.oc, tile.ic, tile.shared_bytes};
    const bool images = by_image || source == OnceSource::gated;
    form.images = images ? g.n : 1;
    form.image_pixels = g.src_pixels() / form.images;
    form.slice = smaller(g.ic, tile.ic);
    form.slices = ceil_div(g.ic, form.slice);
    if (form.slices > kMostMergeColumns) return {};
    if (once_traffic(g, form.slices) >= stored_traffic(g, source)) return {};
    const int64_t tiles = ceil_div(form.image_pixels, tile.rows);
    const int64_t a_block = std::max<int64_t>(1, ceil_div(form.images * tiles * form.slices, kBlocks));
    form.blocks_an_image = std::max<int64_t>(1, (tiles + a_block / 2) / a_block);
    form.tiles_a_block = ceil_div(tiles, form.blocks_an_image);
    form.blocks_an_image = ceil_div(tiles, form.tiles_a_block);
    form.images_a_block = std::max<int64_t>(1, a_block / tiles);
    return form;
  }
  return {};
}

}  // namespace effnet::cuda
