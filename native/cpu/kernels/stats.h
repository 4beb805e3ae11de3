// What kernels that collect BN statistics of their results, or sums of BN's gradient, share: the merge of what their
// shards have found.
//
// A shard keeps, by channel, the mean and the sum of squared deviations of its rows, in double. Inside it goes by tiles
// of at most kStatsTileRows rows (stats-inl.h), in FP32.
#pragma once

#include <cstdint>

#include "core/status.h"
#include "plan/plan.h"

namespace effnet::cpu {

// Whether the operands of a bn_stats op are ones that there is a kernel for.
Status check_bn_stats(const plan::Op& op);

inline constexpr int64_t kStatsTileRows = 64;
inline constexpr int64_t kStatsMergeChannels = 256;

struct StatsMergeArgs {
  const double* partials;  // [shards][2][channels]: means, squared deviations
  const int64_t* rows;     // of every shard
  int64_t shards;
  int64_t channels, begin, end;  // at most kStatsMergeChannels of the channels
  double eps, momentum;
  float *mean, *inv_std, *running_mean, *running_var;
};
// Merges the shards in order; mean, 1/sqrt(variance + eps), and the running averages with the unbiased variance.
void merge_stats(const StatsMergeArgs& args);

struct BnSumsMergeArgs {
  const float* partials;  // [shards][2][channels]: sums of g * (src - mean), of g
  int64_t shards;
  int64_t channels, begin, end;  // at most kStatsMergeChannels of the channels
  const float* inv_std;
  float *diff_scale, *diff_shift;
};
// Adds the shards in order, in double: diff_scale = inv_std * sum(g * (src - mean)), diff_shift = sum(g).
void merge_bn_sums(const BnSumsMergeArgs& args);

}  // namespace effnet::cpu
