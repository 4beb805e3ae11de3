// Arguments of optimizer.cu: updates over the flat arenas of parameters, gradients, moments and averages, in which a
// parameter has the same offset everywhere. A block takes a chunk of the arena, whatever parameters lie there; a table
// says to which elements of it what is done.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/step_scalars.h"
#include "cuda/kernels/processors.h"
#include "cuda/kernels/step_state.h"
#include "plan/format.h"

namespace effnet::cuda {

inline constexpr uint32_t kOptimizerThreads = 256;
// A granule is what tensors are aligned to: no two of them share one. A thread takes 4 vectors of a chunk.
inline constexpr int64_t kGranule = 16, kChunk = 4096, kChunkGranules = kChunk / kGranule;
inline constexpr int kChunkVectors = static_cast<int>(kChunk / 4 / kOptimizerThreads);

// Of a granule: how many of its elements there are, 0 to 16, and what is done to them.
inline constexpr uint8_t kGranuleCount = 0x1f, kGranuleDecays = 0x20, kGranuleUpdated = 0x40, kGranuleAveraged = 0x80;
struct Chunks {
  const uint32_t* index;  // a chunk's place in the arenas, in chunks
  const uint8_t* table;   // [chunk][kChunkGranules]
};

enum class Rule : int32_t { sgd, sgd_nesterov, rmsprop_torch, rmsprop_tf, adamw };

struct UpdateArgs {
  Chunks chunks;
  Rule rule;
  float *weights, *moment0, *moment1;
  const float* grads;
  float* ema;     // averaged in the same pass, or nullptr
  void* working;  // a copy of what is updated, in 16 bits, at the same element; or nullptr
  plan::DType working_type;
  const StepScalars* scalars;
  const float* norm;  // of the gradients, or nullptr
  double decay_mult;
  StepState* state;
};

inline constexpr size_t kUpdateShared = 48;  // the step's constants, once a block

struct EmaArgs {
  Chunks chunks;
  const float* weights;
  float* ema;
  const StepScalars* scalars;
  const StepState* state;
};

// Each block sums the squares of its share of the chunks; the last one adds up the sums.
struct NormArgs {
  Chunks chunks;
  const float* grads;
  int64_t chunk_count;
  double* sums;  // one a block
  float* norm;
  StepState* state;
};
inline constexpr int64_t kNormBlocks = 4 * kProcessors;
inline constexpr size_t kNormShared = kOptimizerThreads / 32 * sizeof(double) + 16;

}  // namespace effnet::cuda
