// Parameters of an update as runs in the arenas: neighbours without a gap are joined, long runs are cut into pieces,
// and pieces are dealt out to shards of equal size. Depends on offsets and sizes only.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace effnet::plan {

struct Segment {
  uint64_t offset;       // bytes, in the weights arena; moments and ema lie at the same offset of theirs
  uint64_t grad_offset;  // bytes, in the arena of the gradients
  int64_t count;         // elements
};

class Segments {
 public:
  // Elements of a shard: 0.25 MiB in each of up to four arenas.
  static constexpr int64_t kShard = 65536;

  void add(uint64_t offset, uint64_t grad_offset, int64_t count) {
    if (!runs_.empty()) {
      Segment& last = runs_.back();
      const uint64_t bytes = static_cast<uint64_t>(last.count) * sizeof(float);
      if (last.offset + bytes == offset && last.grad_offset + bytes == grad_offset) {
        last.count += count;
        return;
      }
    }
    runs_.push_back({offset, grad_offset, count});
  }
  void finish() {
    int64_t filled = kShard;
    for (Segment run : runs_) {
      while (run.count > 0) {
        if (filled == kShard) {
          starts_.push_back(pieces_.size());
          filled = 0;
        }
        const int64_t take = std::min(run.count, kShard - filled);
        pieces_.push_back({run.offset, run.grad_offset, take});
        run.offset += static_cast<uint64_t>(take) * sizeof(float);
        run.grad_offset += static_cast<uint64_t>(take) * sizeof(float);
        run.count -= take;
        filled += take;
      }
    }
    runs_.clear();
    starts_.push_back(pieces_.size());
  }
  // Of at most kShard elements, in order.
  const std::vector<Segment>& pieces() const { return pieces_; }
  int shards() const { return static_cast<int>(starts_.size()) - 1; }
  std::span<const Segment> shard(int i) const {
    const size_t first = starts_[static_cast<size_t>(i)];
    return {pieces_.data() + first, starts_[static_cast<size_t>(i) + 1] - first};
  }

 private:
  std::vector<Segment> runs_, pieces_;
  std::vector<size_t> starts_;
};

}  // namespace effnet::plan
