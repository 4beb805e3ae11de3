// What is too large for the caches of a machine: the last-level caches of servers hold 1 to 4 MiB a core, shared or
// not, and the bounds here were measured, not derived. The pass ts/passes/fuse_patterns/conv_bwd.ts has a bound of its
// own.
#pragma once

#include <cstddef>
#include <cstdint>

namespace effnet::cpu {

// Of a tensor with more bytes little would be left in the last-level cache for its next reader: it is better written
// past the caches, which saves reading its lines first. Set by tests alone, so that small tensors are written so too.
inline uint64_t past_caches_bytes = uint64_t{20} << 20;

// Of what a thread copies to measure memory: far more than any cache holds.
inline constexpr size_t kFarPastCachesBytes = size_t{32} << 20;

}  // namespace effnet::cpu
