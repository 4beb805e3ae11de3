// The form of a 1x1 convolution's backward part that reads its operands once (kernels/conv_once.cuh).
#pragma once

#include <optional>

#include "cuda/kernels/conv_once_tile.h"
#include "cuda/ops/conv_form.h"

namespace effnet::cuda {

struct ConvOnceForm {
  OnceSource source = OnceSource::stored;
  int rows = 0, oc = 0, ic = 0;  // of the kernel's tile
  size_t shared_bytes = 0;
  int64_t images = 0, image_pixels = 0;  // one image, where nothing is constant in images
  int64_t slice = 0, slices = 0;         // of the source's channels: what a block has of them
  int64_t tiles_a_block = 0, blocks_an_image = 0, images_a_block = 0;

  int64_t blocks() const { return ceil_div(images, images_a_block) * blocks_an_image; }
  // "once_240x48", "once_bn_48x96", "once_gate_16x32"
  std::string name() const;
};

// Nothing where no kernel's tile holds the shape, or where that would read and write more than a gradient of the
// result that is stored. `by_image`: images are dropped.
std::optional<ConvOnceForm> conv_once_form(const ConvGeometry& g, ConvType type, OnceSource source, bool by_image);

}  // namespace effnet::cuda
