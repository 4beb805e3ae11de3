#include "cuda/ops/merge.h"

namespace effnet::cuda {
namespace {

// So few tiles are one group: adding up groups takes longer than their loads.
constexpr int64_t kOneGroup = 32;

int64_t root_of(int64_t n) {
  int64_t root = 1;
  while (root * root < n) ++root;
  return root;
}

}  // namespace

// Groups of as many tiles as there are groups: the fewest loads one after the other, in both levels together. Where the
// counters do not suffice for that, fewer.
MergeTiles::MergeTiles(int64_t tiles, int64_t columns, int64_t channels, int64_t values)
    : tiles_(tiles), channels_(channels), values_(values) {
  const int64_t most = std::max<int64_t>(1, kMergeCounters / columns - 1);
  const int64_t wanted = tiles <= kOneGroup ? 1 : std::min(ceil_div(tiles, root_of(tiles)), most);
  group_tiles_ = ceil_div(tiles, wanted);
  groups_ = ceil_div(tiles, group_tiles_);
}

MergeTree MergeTiles::tree(const Addresses& at, std::byte* scratch) const {
  return {static_cast<int32_t>(tiles_), static_cast<int32_t>(group_tiles_), static_cast<int32_t>(groups_),
          reinterpret_cast<double*>(scratch + parts_at()), at.state};
}

}  // namespace effnet::cuda
