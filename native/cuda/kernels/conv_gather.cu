// Convolutions of few input channels, forward and the gradient of weights: see conv_gather.cuh.
#include "cuda/kernels/conv_gather.cuh"

namespace effnet::cuda {

CONV_GATHER(gather, mma, bf16, Bf16, StoredTerms<Bf16>)
CONV_GATHER(gather, mma, f16, F16, StoredTerms<F16>)
CONV_GATHER(gather, mma, tf32, float, StoredTerms<float>)
CONV_GATHER(gather, fma, f32, float, StoredTerms<float>)

}  // namespace effnet::cuda
