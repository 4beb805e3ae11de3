// What reductions over rows share: 32 channels to a block, 8 threads to a channel; sums in two levels, so that an error
// does not grow with the number of rows alone.
#pragma once

#include "cuda/device/device.h"
#include "cuda/kernels/batch_norm.h"

namespace effnet::cuda {

class LongSum {
 public:
  EFF_DEVICE void add(float v) {
    part_ += v;
    if (++count_ == 32) flush();
  }
  EFF_DEVICE float total() {
    flush();
    return total_;
  }

 private:
  EFF_DEVICE void flush() {
    total_ += part_;
    part_ = 0.0f;
    count_ = 0;
  }
  float part_ = 0.0f, total_ = 0.0f;
  int count_ = 0;
};

// A thread's channel, which may lie behind the last one, and its share of the rows.
struct Lane {
  int64_t c;
  int lane;
};
EFF_DEVICE Lane lane_of_thread() {
  return {static_cast<int64_t>(block_x()) * kBnChannels + thread_id() % kBnChannels,
          static_cast<int>(thread_id() / kBnChannels)};
}

// The sum over the threads of a channel, in a fixed order, in all of them. `scratch`: a float a thread.
EFF_DEVICE float sum_lanes(float* scratch, float v) {
  EFF_SYNC_BLOCK();  // the sum before may still be read
  scratch[thread_id()] = v;
  EFF_SYNC_BLOCK();
  float sum = 0.0f;
  for (int lane = 0; lane < kBnLanes; ++lane) sum += scratch[lane * kBnChannels + thread_id() % kBnChannels];
  return sum;
}

EFF_DEVICE float normalised(const Norm& norm, float x, int64_t c) {
  return fma((x - norm.mean[c]) * norm.inv_std[c], norm.scale[c], norm.shift[c]);
}

}  // namespace effnet::cuda
