// Shapes of the kernels that make both gradients of a 1x1 convolution in one read (conv_once.cuh), shared with the
// host: a block has kM pixels at a time, all kOc channels of the result and kIc of the source.
#pragma once

#include <cstddef>
#include <cstdint>

namespace effnet::cuda {

inline constexpr uint32_t kOnceThreads = 256;

// What the source is: as it was stored; or act(bn(src)), without a gate or with one.
enum class OnceSource { stored, normed, gated };

template <int kElement, int kM_, int kOc_, int kIc_>
struct OnceShape {
  static constexpr int kM = kM_, kOc = kOc_, kIc = kIc_;
  static_assert(kM % 16 == 0 && kOc % 16 == 0 && kIc % 16 == 0);
  static constexpr int kVector = 16 / kElement;
  // Rows of 16-bit types begin 16 bytes further on the banks than those before them.
  static constexpr int kPitchDst = kOc + 8, kPitchSrc = kIc + 8;
  static constexpr int kStage = kM * (2 * kPitchDst + kPitchSrc);  // in elements: diff_dst, dst, src
  static constexpr int kStages = 2;
  // The source's gradient in FP32. That of a stored one goes over the pixels of dst, which are done with, and behind it
  // what its sums are taken with.
  static constexpr int kSlab = kM * kPitchSrc;
  static constexpr bool kSlabInDst = kPitchSrc * sizeof(float) + 2 * kIc * kElement <= kPitchDst * kElement;
  static constexpr int kGroups = static_cast<int>(kOnceThreads) / (kIc / 4);  // of threads, where each has 4 channels

  static constexpr size_t shared_bytes(OnceSource source) {
    const size_t common = size_t{kStages * kStage + kOc * kPitchSrc} * kElement + 4 * kOc * sizeof(float);
    if (source == OnceSource::stored) return common;
    return common + (kSlab + 4 * kIc + kGroups * kIc) * sizeof(float);
  }
};

}  // namespace effnet::cuda
