// Sums of few or many parts of few or many values.
#include "cuda/device/device.h"
#include "cuda/kernels/sum_parts.h"

namespace effnet::cuda {

EFF_KERNEL(sum_parts, SumPartsArgs, kSumPartsThreads) {
  Shared shared;
  double* scratch = shared.take<double>(kSumPartsThreads);
  const auto lanes = static_cast<uint32_t>(a.lanes);
  const uint32_t columns = kSumPartsThreads / lanes, lane = thread_id() / columns,
                 column = thread_id() - lane * columns;
  const int64_t i = static_cast<int64_t>(block_x()) * columns + column;
  double sum = 0;
  if (i < a.count) {
    EFF_UNROLL_BY(4)
    for (int64_t part = lane; part < a.parts_count; part += lanes) sum += a.parts[part * a.count + i];
  }
  scratch[thread_id()] = sum;
  EFF_SYNC_BLOCK();
  if (lane > 0 || i >= a.count) return;
  for (uint32_t other = 1; other < lanes; ++other) sum += scratch[other * columns + column];
  a.dst[i] = static_cast<float>(sum);
}

}  // namespace effnet::cuda
