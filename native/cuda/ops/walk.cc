#include "cuda/ops/walk.h"

namespace effnet::cuda {
namespace {

int64_t parts(int64_t count, int64_t of) { return (count + of - 1) / of; }

// The share of a block's threads that have work, when each of its vectors has `groups` blocks and an image `rows` rows.
double busy(int64_t vectors, int64_t groups, int64_t rows) {
  const int64_t own = parts(vectors, groups), lanes = kWalkThreads / own;
  const double channels = static_cast<double>(vectors) / static_cast<double>(groups * own);
  const double threads = static_cast<double>(own * lanes) / kWalkThreads;
  return channels * threads * static_cast<double>(rows) / static_cast<double>(parts(rows, lanes) * lanes);
}

}  // namespace

Walk make_walk(int64_t images, int64_t rows, int64_t c, int vector, int64_t blocks, int64_t least_rows) {
  const int64_t vectors = c / vector;
  // 64 bytes of a row at least.
  const int64_t least = std::min<int64_t>(vectors, vector == 1 ? 32 : 4), fewest = parts(vectors, kWalkThreads);
  // Of the rows that a block has: a thread takes 2 at least, so that its constants are worth their loads.
  const auto tile_rows = [&](int64_t groups) {
    const int64_t lanes = kWalkThreads / parts(vectors, groups),
                  wanted = std::max<int64_t>(1, blocks / (images * groups));
    const int64_t most_tiles = parts(rows, std::max(2 * lanes, least_rows));
    return parts(parts(rows, std::min(most_tiles, wanted)), lanes) * lanes;
  };
  // Neighbouring channels go to one block where that keeps threads busy, unless blocks are few.
  int64_t groups = fewest;
  for (int64_t g = fewest; g <= fewest + 64 && parts(vectors, g) >= least; ++g)
    if (busy(vectors, g, rows) > busy(vectors, groups, rows) * 1.02) groups = g;
  while (images * groups * parts(rows, tile_rows(groups)) < blocks / 4 && parts(vectors, 2 * groups) >= least)
    groups *= 2;
  Walk w{};
  w.images = images;
  w.rows = rows;
  w.c = c;
  w.vectors = static_cast<int32_t>(parts(vectors, groups));
  w.lanes = static_cast<int32_t>(kWalkThreads) / w.vectors;
  w.tile_rows = tile_rows(groups);
  w.tiles = static_cast<int32_t>(parts(rows, w.tile_rows));
  w.block_images = w.tiles > 1 ? 1 : static_cast<int32_t>(std::max<int64_t>(1, images * groups / (2 * blocks)));
  return w;
}

Dim walk_grid(const Walk& w, int vector) {
  const int64_t channels = static_cast<int64_t>(w.vectors) * vector;
  return {static_cast<uint32_t>(walk_tiles(w)), static_cast<uint32_t>(parts(w.c, channels)), 1};
}

}  // namespace effnet::cuda
