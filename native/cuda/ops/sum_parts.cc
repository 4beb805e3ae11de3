#include "cuda/ops/sum_parts.h"

#include "cuda/kernels/processors.h"
#include "cuda/kernels/sum_parts.h"

namespace effnet::cuda {

// Few values keep few threads busy, so several of them share out the parts of a value, 4 at least for each; 8 values
// beside each other are the 32 bytes that memory gives at once.
Launch sum_parts(const float* parts, int64_t parts_count, int64_t count, float* dst) {
  constexpr int64_t kBusy = 1024 * kProcessors;
  constexpr int kMostLanes = kSumPartsThreads / 8;
  int lanes = 1;
  while (lanes < kMostLanes && count * lanes < kBusy && parts_count >= 8 * lanes) lanes *= 2;
  return make_launch("sum_parts", {blocks_of(count, kSumPartsThreads / static_cast<uint32_t>(lanes)), 1, 1},
                     kSumPartsThreads, kSumPartsShared, SumPartsArgs{parts, dst, count, parts_count, lanes});
}

}  // namespace effnet::cuda
