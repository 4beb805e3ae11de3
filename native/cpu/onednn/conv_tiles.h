// How a convolution is cut into independent pieces. Fixed by shape: the same on every machine and for every number of
// threads (oneDNN gives the same bits for the same piece).
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/onednn/adapter.h"

namespace effnet::onednn {

// One call of a primitive on a part of the operands.
struct Tile {
  ConvShape shape;        // of the part
  int64_t src_first = 0;  // element offsets of the part in src (or diff_src) and dst (or diff_dst)
  int64_t dst_first = 0;
  int64_t src_elements = 0, dst_elements = 0;
};

bool is_pointwise(const ConvShape& shape);

// Forward and backward data: row ranges of 1x1 convolutions (across images), else groups of images, or bands of output
// rows where single images are large (forward only).
std::vector<Tile> independent_tiles(const ConvShape& shape);

// Backward weights: at most 8 contiguous groups of images (of rows for 1x1), whose gradients are added in order.
std::vector<Tile> reduction_tiles(const ConvShape& shape);

}  // namespace effnet::onednn
