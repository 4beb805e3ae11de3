// 3x3 convolutions of stride 1 in FP32 by Winograd's minimal filtering: a 4x4 tile of outputs is made of the 6x6 tile
// of inputs that it reads, both transformed to the values of polynomials at six points, where a convolution is 36
// products instead of 144. Per tile and pair of channels that is a quarter of the multiplications of a direct
// convolution, so that GF/s, which count those of the direct one, can be above the core's peak.
//
//   forward          Y = A^T [sum over channels of (G g G^T) * (B^T d B)] A          (Lavin and Gray, 2015)
//   backward data    the same on diff_dst, with the filters turned by 180 degrees and both channels exchanged
//   backward weights 3x3 results of 4x4 "filters" (the tiles of diff_dst), by the same six points
//
// The points are 0, +-11/16, +-3/2 and infinity. Errors of such an algorithm grow with the powers in its matrices; the
// textbook's 0, +-1, +-2 would give errors 2.3 times as large (in the norm; 4 times for the worst element). Measured
// against float64 on normal random operands, of 24 to 256 channels, beside oneDNN's direct convolutions:
//
//                                error / result in the norm     largest error / largest result
//   forward, backward data       4.3e-7 to 5.7e-7               7e-7 to 1.1e-6
//     oneDNN                     2.6e-7 to 8.5e-7               6e-7 to 1.8e-6
//   backward weights             5.1e-7 to 6.3e-7               7e-7 to 1.1e-6
//     oneDNN                     1.9e-7                         2e-7 to 4e-7
//
// A value that is not finite makes every result that reads it, and others of the same tile, NaN or infinite.
#pragma once

#include "cpu/kernel.h"

namespace effnet::cpu {

struct WinogradOperands {
  const plan::Tensor *src, *weights, *dst;  // src is what is read: diff_dst in backward data; weights are OHWI
  int64_t pad_t, pad_l;                     // of the op, also in backward data
  bool backward = false;                    // backward data
  const plan::Tensor *bias = nullptr, *residual = nullptr;
  plan::Act act = plan::Act::identity;
};

// Whether it is faster than a direct convolution, in all three directions; `ic` and `oc` of the op, `size` the smaller
// side of its result. On AVX-512 and AVX2 it was for everything measured (7x7 to 150x150 pixels, 8 to 384 channels): by
// 1.2 to 3 times, the more the larger and the better filled the tiles and vectors are.
bool prefer_winograd(int64_t ic, int64_t oc, int64_t size);

// Only for FP32, 3x3, stride 1. `name` is the base of the kernel's name.
StatusOr<KernelPtr> make_winograd(const WinogradOperands& operands, const char* name);

StatusOr<KernelPtr> make_winograd_bwd_weights(const plan::Tensor* src, const plan::Tensor* diff_dst,
                                              const plan::Tensor* diff_weights, int64_t pad_t, int64_t pad_l);

}  // namespace effnet::cpu
