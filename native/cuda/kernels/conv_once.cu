// Both gradients of 1x1 convolutions in one read, on tensor cores.
#include "cuda/kernels/conv_once.cuh"

namespace effnet::cuda {

#define CONV_ONCE_OF(KERNEL, name, source, m, oc, ic, blocks, suffix, T)                      \
  KERNEL(conv2d_bwd_##name##_##oc##x##ic##_##suffix, ConvBwdOnceArgs, kOnceThreads, blocks) { \
    conv_once<T, m, oc, ic, OnceSource::source>(a);                                           \
  }
#define CONV_ONCE(KERNEL, name, source, m, oc, ic, blocks)          \
  CONV_ONCE_OF(KERNEL, name, source, m, oc, ic, blocks, bf16, Bf16) \
  CONV_ONCE_OF(KERNEL, name, source, m, oc, ic, blocks, f16, F16)

CONV_ONCE(EFF_MERGING_KERNEL, once, stored, 64, 96, 16, 3)
CONV_ONCE(EFF_MERGING_KERNEL, once, stored, 32, 144, 32, 3)
CONV_ONCE(EFF_MERGING_KERNEL, once, stored, 32, 192, 32, 2)
CONV_ONCE(EFF_MERGING_KERNEL, once, stored, 32, 240, 48, 2)
CONV_ONCE(EFF_MERGING_KERNEL, once_bn, normed, 32, 32, 96, 2)
CONV_ONCE(EFF_MERGING_KERNEL, once_bn, normed, 32, 48, 96, 2)
CONV_ONCE(EFF_MERGING_KERNEL, once_bn, normed, 32, 64, 64, 2)
CONV_ONCE(EFF_KERNEL_FITTING, once_gate, gated, 64, 16, 32, 2)
CONV_ONCE(EFF_KERNEL_FITTING, once_gate, gated, 32, 32, 96, 2)
CONV_ONCE(EFF_KERNEL_FITTING, once_gate, gated, 32, 48, 96, 2)
CONV_ONCE(EFF_KERNEL_FITTING, once_gate, gated, 32, 80, 80, 2)
CONV_ONCE(EFF_KERNEL_FITTING, once_gate, gated, 32, 112, 64, 2)

EFF_KERNEL(conv2d_bwd_image_sums, ConvImageSumsArgs, kGemmThreads) {
  for (int64_t i = global_id(); i < a.images * 5 * a.c; i += global_threads()) {
    const int64_t c = i % a.c, k = i / a.c % 5, image = i / (5 * a.c);
    const float* part = a.parts + (image * a.parts_count * 5 + k) * a.c + c;
    double sum = 0;
    for (int64_t j = 0; j < a.parts_count; ++j) sum += part[j * 5 * a.c];
    if (k == 0)
      a.value[image * a.c + c] = static_cast<float>(sum);
    else
      a.sums[(image * 4 + k - 1) * a.c + c] = static_cast<float>(sum);
  }
}

}  // namespace effnet::cuda
