#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/stats.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/stats-inl.h"
#include "cpu/kernels/stats.h"

#include <algorithm>
#include <cmath>

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

void merge_stats_target(const StatsMergeArgs& k) {
  double mean[kStatsMergeChannels] = {}, m2[kStatsMergeChannels] = {}, total = 0;
  const int64_t n = k.end - k.begin;
  for (int64_t s = 0; s < k.shards; ++s) {
    const double count = static_cast<double>(k.rows[s]);
    const double* partial = k.partials + 2 * s * k.channels + k.begin;
    for (int64_t c = 0; c < n; ++c) chan_merge(total, count, partial[c], partial[k.channels + c], mean[c], m2[c]);
    total += count;
  }
  const double unbiased = total > 1 ? total / (total - 1) : 1;
  for (int64_t c = 0; c < n; ++c) {
    const double var = std::max(m2[c] / total, 0.0);
    k.mean[k.begin + c] = static_cast<float>(mean[c]);
    k.inv_std[k.begin + c] = static_cast<float>(1.0 / std::sqrt(var + k.eps));
    float &rm = k.running_mean[k.begin + c], &rv = k.running_var[k.begin + c];
    rm = static_cast<float>(rm + k.momentum * (mean[c] - rm));
    rv = static_cast<float>(rv + k.momentum * (var * unbiased - rv));
  }
}

void merge_bn_sums_target(const BnSumsMergeArgs& k) {
  double gx[kStatsMergeChannels] = {}, g[kStatsMergeChannels] = {};
  const int64_t count = k.end - k.begin;
  for (int64_t s = 0; s < k.shards; ++s) {
    const float* partial = k.partials + 2 * s * k.channels + k.begin;
    for (int64_t c = 0; c < count; ++c) gx[c] += static_cast<double>(partial[c]);
    for (int64_t c = 0; c < count; ++c) g[c] += static_cast<double>(partial[k.channels + c]);
  }
  for (int64_t c = 0; c < count; ++c) {
    k.diff_scale[k.begin + c] = static_cast<float>(gx[c] * static_cast<double>(k.inv_std[k.begin + c]));
    k.diff_shift[k.begin + c] = static_cast<float>(g[c]);
  }
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
HWY_EXPORT(merge_stats_target);
HWY_EXPORT(merge_bn_sums_target);
void merge_stats(const StatsMergeArgs& args) { EFF_DISPATCH(merge_stats_target)(args); }
void merge_bn_sums(const BnSumsMergeArgs& args) { EFF_DISPATCH(merge_bn_sums_target)(args); }
}  // namespace effnet::cpu
#endif
