#include "cuda/ops/walk.h"

namespace effnet::cuda {
namespace {

// The share of a block's threads that have work, when each of its vectors has `groups` blocks and an image `rows` rows.
double busy(int64_t vectors, int64_t groups, int64_t rows) {
  const int64_t own = ceil_div(vectors, groups), lanes = kWalkThreads / own;
  const double channels = static_cast<double>(vectors) / static_cast<double>(groups * own);
  const double threads = static_cast<double>(own * lanes) / kWalkThreads;
  return channels * threads * static_cast<double>(rows) / static_cast<double>(ceil_div(rows, lanes) * lanes);
}

}  // namespace

Walk make_walk(int64_t images, int64_t rows, int64_t c, int vector, int64_t blocks, int64_t least_rows) {
  const int64_t vectors = c / vector;
  // 64 bytes of a row at least.
  const int64_t least = std::min<int64_t>(vectors, vector == 1 ? 32 : 4), fewest = ceil_div(vectors, kWalkThreads);
  // Of the rows that a block has: a thread takes 2 at least, so that its constants are worth their loads.
  const auto tile_rows = [&](int64_t groups) {
    const int64_t lanes = kWalkThreads / ceil_div(vectors, groups),
                  wanted = std::max<int64_t>(1, blocks / (images * groups));
    const int64_t most_tiles = ceil_div(rows, std::max(2 * lanes, least_rows));
    return ceil_div(ceil_div(rows, std::min(most_tiles, wanted)), lanes) * lanes;
  };
  // Neighbouring channels go to one block where that keeps threads busy, unless blocks are few.
  int64_t groups = fewest;
  for (int64_t g = fewest; g <= fewest + 64 && ceil_div(vectors, g) >= least; ++g)
    if (busy(vectors, g, rows) > busy(vectors, groups, rows) * 1.02) groups = g;
  while (images * groups * ceil_div(rows, tile_rows(groups)) < blocks / 4 && ceil_div(vectors, 2 * groups) >= least)
    groups *= 2;
  Walk w{};
  w.images = images;
  w.rows = rows;
  w.c = c;
  w.vectors = static_cast<int32_t>(ceil_div(vectors, groups));
  w.lanes = static_cast<int32_t>(kWalkThreads) / w.vectors;
  w.tile_rows = tile_rows(groups);
  w.tiles = static_cast<int32_t>(ceil_div(rows, w.tile_rows));
  w.block_images = w.tiles > 1 ? 1 : static_cast<int32_t>(std::max<int64_t>(1, images * groups / (2 * blocks)));
  return w;
}

Dim walk_grid(const Walk& w, int vector) {
  const int64_t channels = static_cast<int64_t>(w.vectors) * vector;
  return {static_cast<uint32_t>(walk_tiles(w)), static_cast<uint32_t>(ceil_div(w.c, channels)), 1};
}

}  // namespace effnet::cuda
