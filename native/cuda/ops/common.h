// What the factories of all ops share.
#pragma once

#include <algorithm>
#include <string>
#include <utility>

#include "core/math.h"
#include "cuda/kernel.h"
#include "cuda/kernels/pixels.h"
#include "plan/op_ports.h"

namespace effnet::cuda {

// "_f32", "_bf16", "_f16": which instance of a kernel.
inline std::string suffix(plan::DType dtype) { return std::string("_") + plan::dtype_name(dtype); }

inline KernelPtr make_kernel(const std::string& base, plan::DType dtype, Kernel::Record record,
                             size_t scratch_bytes = 0, double flops = 0) {
  auto kernel = std::make_unique<Kernel>();
  kernel->name = base + suffix(dtype) + ":cuda";
  kernel->record = std::move(record);
  kernel->scratch_bytes = scratch_bytes;
  kernel->flops = flops;
  return kernel;
}

// Of the op's attributes from these on.
inline PixelNorm pixel_norm(const plan::Op& op, int first_mean, int first_std) {
  PixelNorm norm;
  for (int i = 0; i < 3; ++i) {
    norm.mean[i] = static_cast<float>(op.attr(first_mean + i));
    norm.inv_std[i] = static_cast<float>(1 / op.attr(first_std + i));
  }
  return norm;
}

// Blocks of `threads` for `elements` of which a thread takes one at a time, striding by the grid.
inline Dim grid_for(int64_t elements, int64_t threads) {
  constexpr int64_t kMostBlocks = 1 << 16;
  return {static_cast<uint32_t>(std::clamp<int64_t>(ceil_div(elements, threads), 1, kMostBlocks)), 1, 1};
}

// Of a grid, in one direction: blocks that take `each` of `count`.
inline uint32_t blocks_of(int64_t count, int64_t each) { return static_cast<uint32_t>(ceil_div(count, each)); }

inline size_t align256(size_t bytes) { return round_up(bytes, size_t{256}); }

// Lays several arrays into an op's scratch.
class ScratchLayout {
 public:
  size_t add(size_t bytes) { return std::exchange(bytes_, align256(bytes_ + bytes)); }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

}  // namespace effnet::cuda
