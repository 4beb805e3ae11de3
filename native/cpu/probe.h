// What this machine can do, measured: the yardstick of `effnet bench --profile` and of the laboratory.
#pragma once

#include "core/thread_pool.h"

namespace effnet::cpu {

// Of all threads of the pool at once.
struct Peaks {
  double fp32_flops = 0;  // per second; a multiply-add counts 2
  double bf16_flops = 0;  // of dot products summed in FP32; 0 where the CPU has neither AVX512_BF16 nor AMX
  double bytes = 0;       // per second, read plus written by a copy far larger than the caches
};

// Takes about half a second; only from inside a task of the pool. The best of many short rounds, so that a busy machine
// is felt little.
Peaks measure_peaks(ThreadPool& pool);

}  // namespace effnet::cpu
