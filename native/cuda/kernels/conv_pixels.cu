// Convolutions of uint8 images, normalised on the way in, forward and the gradient of weights: see conv_gather.cuh.
#include "cuda/kernels/conv_gather.cuh"

namespace effnet::cuda {

CONV_GATHER(pixels, mma, bf16, Bf16, PixelTerms)
CONV_GATHER(pixels, mma, f16, F16, PixelTerms)
CONV_GATHER(pixels, mma, tf32, float, PixelTerms)
CONV_GATHER(pixels, fma, f32, float, PixelTerms)

}  // namespace effnet::cuda
