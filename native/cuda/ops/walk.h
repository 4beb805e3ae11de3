// The split of a walk over images (kernels/walk.h), by shape alone.
#pragma once

#include "cuda/kernels/processors.h"
#include "cuda/kernels/walk.h"
#include "cuda/ops/common.h"

namespace effnet::cuda {

// Channels of a vector: of 16 bytes, or of `narrow` kernels 4; 1, a kernel's plain form, where `c` is no multiple.
inline int walk_vector(plan::DType dtype, int64_t c, bool narrow = false) {
  const int vector = dtype == plan::DType::f32 || narrow ? 4 : 8;
  return c % vector == 0 ? vector : 1;
}
// What an op's kernel is called whose form depends on that: "bn_act", or "bn_act_plain".
inline std::string form_name(const char* base, bool plain) { return std::string(base) + (plain ? "_plain" : ""); }
// "_bf16", or "_plain_bf16".
inline std::string walk_suffix(plan::DType dtype, int vector) { return (vector == 1 ? "_plain" : "") + suffix(dtype); }

// Over `images` images of `rows` rows each, where values of an image stay in registers, too; else one image has all
// rows. About `blocks` blocks if there is work for as many, of `least_rows` rows at least.
Walk make_walk(int64_t images, int64_t rows, int64_t c, int vector, int64_t blocks, int64_t least_rows = 0);
Dim walk_grid(const Walk& w, int vector);

// Tiles of rows that a reduction over a walk gives for a channel.
inline int64_t walk_tiles(const Walk& w) { return ceil_div(w.images, w.block_images) * w.tiles; }

// Blocks of a kernel that has little to keep in registers, and of one that sums up.
inline constexpr int64_t kStreamBlocks = 16 * kProcessors, kSumBlocks = 4 * kProcessors;

}  // namespace effnet::cuda
