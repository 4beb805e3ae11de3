// How blocks walk over images [n][rows][c]: a thread keeps to one vector of neighbouring channels, whose constants stay
// in its registers, and takes every lanes-th row; no division by element. Follows from shapes alone (ops/walk.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace effnet::cuda {

inline constexpr uint32_t kWalkThreads = 256;

// Block (x, y): channels y * vectors * V.., and of the images x / tiles * block_images.. the rows x % tiles *
// tile_rows..
struct Walk {
  int64_t images, rows, c;
  int32_t vectors, lanes;       // vectors * lanes threads of a block have work
  int32_t tiles, block_images;  // one of them is 1
  int64_t tile_rows;
};

// What a sum over the lanes of a block takes of shared memory: a thread's floats at once, and all.
inline constexpr int kLaneFloats = 16;
inline constexpr size_t kLaneScratch = kWalkThreads * kLaneFloats, kLaneScratchBytes = kLaneScratch * sizeof(float);

}  // namespace effnet::cuda
