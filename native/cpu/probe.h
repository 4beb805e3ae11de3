// Measures what this CPU can do.
#pragma once

#include "core/peaks.h"
#include "core/thread_pool.h"

namespace effnet::cpu {

using effnet::Peaks;

// Takes about half a second; only from inside a task of the pool. The best of many short rounds, so that a busy machine
// is felt little.
Peaks measure_peaks(ThreadPool& pool);

}  // namespace effnet::cpu
