// Random values of new parameters. Counter-based: a value depends on seed, stream and element alone, not on ranges,
// threads or the instruction set, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace effnet::cpu {

enum class Draw {
  normal,     // of standard deviation `scale`
  truncated,  // the same, drawn again beyond two of it
  uniform,    // in [-scale, scale]: the upper end by rounding
};

struct RandomKey {
  uint64_t seed;
  uint32_t stream;  // tells tensors apart
};

// Elements [begin, end) of `into`; `begin` is a multiple of 4.
//
// Element e has word e % 4 of the Philox block e / 4 at step 2^48, which no training step reaches. Uniform values are
// word / 2^31 - 1; normal ones are Box-Muller's of the words of an even element and the next, the cosine first. Attempt
// k > 0 of the truncated normal is the cosine of words 2e and 2e + 1 at step 2^48 + k. All in FP64, rounded once.
void fill_random(float* into, Draw draw, double scale, const RandomKey& key, size_t begin, size_t end);

}  // namespace effnet::cpu
