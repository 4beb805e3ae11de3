// Which kernel computes a convolution: follows from its shape and types alone.
#pragma once

#include <string>
#include <vector>

#include "cuda/kernels/gemm.h"
#include "cuda/ops/merge.h"

namespace effnet::cuda {

// Whether FP32 operands may go through tensor cores is an op's to say.
struct ConvType {
  plan::DType dtype;
  bool tf32 = false;

  ConvType(plan::DType type, bool allows_tf32) : dtype(type), tf32(type == plan::DType::f32 && allows_tf32) {}
  std::string suffix() const { return tf32 ? "_tf32" : cuda::suffix(dtype); }
};

struct ConvForm {
  int tile_m = 0, tile_n = 0;  // 0: the plain kernel
  bool tensor_cores = false;
  bool gathered = false;  // source and weights value by value: the source's channels do not fill 16 bytes
  bool point = false;     // windows of one pixel, 16 bits: conv_point.cuh
  bool pixels = false;    // so gathered from uint8 images, or by the plain kernel: ConvSource::pixels
  size_t shared_bytes = 0;
  int64_t tiles_a_block = 0, tiles = 0;  // of rows; how many a block makes one after another
  int64_t split_pixels = 0;              // of weights' gradients: how many a block sums
  int64_t splits = 1, split_steps = 0;   // of small tiles forward: into how many blocks the sum of each is cut

  bool plain() const { return tile_m == 0; }
  // "mma_128x64", "fma_128x64", "mma_gather_128x32", "mma_pixels_128x32", "mma_1x1_128x64", "plain", "plain_pixels"
  std::string name() const;
  // And into how many parts its sums are cut: "mma_64x32_by4".
  std::string full_name() const;
  int64_t row_blocks() const { return ceil_div(tiles, tiles_a_block); }
  int64_t pixel_splits(int64_t pixels) const { return ceil_div(pixels, split_pixels); }
  // Blocks of the same rows come one after another, so that what they share is in the cache.
  Dim grid(int64_t columns) const {
    return {blocks_of(columns, tile_n), static_cast<uint32_t>(row_blocks()), static_cast<uint32_t>(splits)};
  }
  // What its blocks leave by columns for a merge, `values` each.
  MergeTiles merge_tiles(int64_t columns, int64_t values = 2) const {
    return {row_blocks(), blocks_of(columns, tile_n), columns, values};
  }
  // Of the parts of sums that are cut.
  size_t parts_bytes(int64_t columns) const;
  // Each sum by one block, for ops that have no scratch for parts.
  ConvForm whole() const;
};

// `edited`: the source is normalised, activated or gated on the way in.
ConvForm conv_forward_form(const ConvGeometry& g, ConvType type, bool edited = false);
// All that compute it, that one first: tiles of 128 pixels in every width, small ones with sums cut in several ways.
std::vector<ConvForm> conv_forward_forms(const ConvGeometry& g, ConvType type, bool edited = false);
ConvForm conv_backward_data_form(const ConvGeometry& g, ConvType type);
// Shared memory where the slope of a BN in front of the source is multiplied in, and where the source ends a block.
size_t conv_backward_data_bn_shared(const ConvForm& form, plan::DType dtype);
size_t conv_backward_data_end_shared(const ConvForm& form, plan::DType dtype);
ConvForm conv_backward_weights_form(const ConvGeometry& g, ConvType type, bool edited = false);
// Of a convolution of uint8 images: what it computes of them in images of `type`.
ConvForm over_pixels(ConvForm form);

}  // namespace effnet::cuda
