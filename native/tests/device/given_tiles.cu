#include "tests/device/given_tiles.h"

#include "cuda/kernels/merge.cuh"

namespace effnet::test {

// Channels of a block.
struct Channels {
  int64_t first, last;
};
template <class Args>
EFF_DEVICE Channels leave(const Args& a) {
  const int64_t tile = cuda::block_y(), first = cuda::block_x() * a.width, end = first + a.width;
  const int64_t last = end < a.merge.c ? end : a.merge.c;
  for (int64_t c = first + cuda::thread_id(); c < last; c += kGivenThreads)
    for (int64_t row = 2 * tile; row < 2 * tile + 2; ++row)
      a.merge.tiles[row * a.merge.c + c] = a.tiles[row * a.merge.c + c];
  return {first, last};
}
template <class Merge>
EFF_DEVICE void merge(const cuda::MergeTree& tree, const Merge& merge, const Channels& of, int64_t channels) {
  cuda::Shared shared;
  cuda::merge_tiles(shared.take<char>(cuda::merge_bytes()), tree, merge, cuda::block_x(), cuda::block_y(), of.first,
                    of.last, channels);
}

EFF_MERGING_KERNEL(given_stats, GivenStatsArgs, kGivenThreads, 1) {
  merge(a.merge.tree, cuda::StatsMerge<false>{a.merge}, leave(a), a.merge.c);
}
EFF_MERGING_KERNEL(given_stats_with_rests, GivenStatsArgs, kGivenThreads, 1) {
  const Channels of = leave(a);
  const int64_t row = cuda::block_y() * a.merge.c;
  for (int64_t c = of.first + cuda::thread_id(); c < of.last; c += kGivenThreads)
    a.merge.rests[row + c] = a.rests[row + c];
  merge(a.merge.tree, cuda::StatsMerge<true>{a.merge}, of, a.merge.c);
}
EFF_MERGING_KERNEL(given_sums, GivenSumsArgs, kGivenThreads, 1) {
  merge(a.merge.tree, cuda::SumsMerge({a.merge}), leave(a), a.merge.c);
}

}  // namespace effnet::test
