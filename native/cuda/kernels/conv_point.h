// What convolutions with windows of one pixel (conv_point.cuh) share with the host.
#pragma once

namespace effnet::cuda {

// Floats a channel that a block keeps of the source's normalisation, and of so many channels at most.
inline constexpr int kPointNormRows = 3, kPointMostChannels = 1536;

}  // namespace effnet::cuda
