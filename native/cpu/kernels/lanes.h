// The widest vector of any target, for whoever sizes memory outside of the code that is compiled per target.
#pragma once

#include <cstdint>

#include "core/math.h"

namespace effnet::cpu {

// Floats. Channel blocks in scratch memory have as many on every target.
inline constexpr int64_t kMaxLanes = 16;

// Filled up to whole vectors on every target.
constexpr int64_t whole_max_vectors(int64_t channels) { return round_up(channels, kMaxLanes); }

}  // namespace effnet::cpu
