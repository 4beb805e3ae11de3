// Pieces of batch normalisation that other ops' bindings use too.
#pragma once

#include "cuda/kernels/batch_norm.h"
#include "cuda/ops/merge.h"

namespace effnet::cuda {

// Batch statistics of `src`.
struct BnStats {
  const plan::Tensor *src, *mean, *inv_std, *running_mean, *running_var;
  double eps, momentum;

  // Of a tensor that was stored before. `scratch`: where scratch_bytes() are free.
  size_t scratch_bytes() const;
  void record(const Addresses& at, std::byte* scratch, std::vector<Launch>& launches) const;

  // For a kernel that makes `src`, of the tiles that it leaves (kernels/merge.cuh, StatsMerge). `tile_starts`: the rows
  // in front of each, or nullptr where each has `tile_rows`.
  StatsMergeArgs merge_args(const Addresses& at, const MergeTiles& tiles, std::byte* scratch, int64_t tile_rows,
                            const int32_t* tile_starts = nullptr) const;
};

// Those that an op makes of `src`. In the op table inv_std follows mean, momentum follows eps, and what is updated is
// the running mean and variance.
BnStats bn_stats_of(const plan::Op& op, const plan::Tensor* src, int out_mean, int attr_eps);

// Backward part of dst = residual? + drop(act(bn(src)) * gate?) and of its pooled values. Absent operands are nullptr.
struct BnBackward {
  const plan::Tensor *diff_dst = nullptr, *src = nullptr, *mean = nullptr, *inv_std = nullptr, *scale = nullptr,
                     *shift = nullptr, *gate = nullptr, *diff_pooled = nullptr;
  plan::Act act = plan::Act::identity;
  double drop_rate = 0;
  uint32_t drop_stream = 0;

  int vector() const;  // channels of a thread (walk_vector)
  size_t reduce_scratch_bytes() const;
  void record_reduce(const Addresses& at, std::byte* scratch, const plan::Tensor* diff_scale,
                     const plan::Tensor* diff_shift, std::vector<Launch>& launches) const;
  // Of tiles of sums that a kernel leaves, as in BnStats (SumsMerge).
  SumsMergeArgs merge_args(const Addresses& at, const MergeTiles& tiles, std::byte* scratch,
                           const plan::Tensor* diff_scale, const plan::Tensor* diff_shift) const;
  // diff_scale, diff_shift: nullptr where mean and inv_std are constants. `diff_src`: a device address.
  void record_apply(const Addresses& at, const plan::Tensor* diff_scale, const plan::Tensor* diff_shift, void* diff_src,
                    std::vector<Launch>& launches) const;
};

// A source that a convolution reads through act(bn(src)), times a gate. `mean` nullptr: no normalisation.
struct SourceNorm {
  const plan::Tensor *src = nullptr, *mean = nullptr, *inv_std = nullptr, *scale = nullptr, *shift = nullptr,
                     *gate = nullptr;
  plan::Act act = plan::Act::identity;

  explicit operator bool() const { return mean; }
  Norm norm(const Addresses& at) const;
  // act(bn(src)) * gate into a device address.
  void record_apply(const Addresses& at, void* dst, std::vector<Launch>& launches) const;
  // As of bn_act_bwd_sums: sums by image of `diff`, the gradient of act(bn(src)) * gate.
  size_t sums_scratch_bytes() const;
  void record_sums(const Addresses& at, std::byte* scratch, const void* diff, const plan::Tensor* diff_gate,
                   const plan::Tensor* sums, std::vector<Launch>& launches) const;
};

// Mean over the pixels of each image and channel of `src`. Without scratch an image is not cut, however few there are.
size_t pool_scratch_bytes(const plan::Tensor* src);
void record_pool(const Addresses& at, const plan::Tensor* src, const plan::Tensor* pooled,
                 std::vector<Launch>& launches, std::byte* scratch = nullptr);

}  // namespace effnet::cuda
