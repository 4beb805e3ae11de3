#include "cuda/ops/depthwise_tiling.h"

#include <algorithm>
#include <limits>

#include "cuda/kernels/processors.h"
#include "cuda/ops/merge.h"

namespace effnet::cuda {
namespace {

constexpr int kMostSlab = 64;             // channels: 32 pairs, a warp
constexpr size_t kMostShared = 74 << 10;  // at least three blocks on a multiprocessor

// What the choice is made for: an H200. Rates of one multiprocessor and cycle.
constexpr double kBytes = 18.6, kInstructions = 4;
constexpr double kMemoryCycles = 1200, kCacheCycles = 600, kBarrierCycles = 60;
constexpr size_t kSharedOfProcessor = 227 << 10;
constexpr int kWarpRegisters = 65536 / 32;

int up(int64_t a, int64_t b) { return static_cast<int>(ceil_div(a, b)); }

int threads_of(const DepthwiseTiling& t) { return t.row_groups * t.strips * t.slab / 2; }
int block_threads_of(const DepthwiseTiling& t) { return up(threads_of(t), 32) * 32; }

// Instructions of a thread, as counted in the compiled kernels.
struct Costs {
  double staged;  // a channel of a staged pixel
  double read;    // a channel of a pixel of the window read back
  double result;  // a channel of a result besides its taps
  double block;   // of a thread, once a tile
};

struct Search {
  const DepthwiseGeometry& g;
  size_t element_bytes;
  bool backward, passes;
  int fetched;  // tensors that the window is made of
  Costs costs;

  // Results: pixels of dst, or backward of src from its first window on.
  int64_t result_rows() const { return backward ? g.h + g.pad_t % g.stride : g.oh; }
  int64_t result_cols() const { return backward ? g.w + g.pad_l % g.stride : g.ow; }

  // Sizes of the window follow from those of the tile.
  void set_staged(DepthwiseTiling& t) const {
    const int k = static_cast<int>(g.kh), s = static_cast<int>(g.stride), cols = t.strips * kDepthwiseStrip;
    t.staged_rows = backward ? (k - 1) / s + t.rows / s : (t.rows - 1) * s + k;
    t.staged_cols = backward ? (k - 1) / s + cols / s : (cols - 1) * s + k;
  }

  size_t shared_bytes(const DepthwiseTiling& t) const {
    const auto slab = static_cast<size_t>(t.slab), taps = static_cast<size_t>(g.kh * g.kw);
    const size_t groups = static_cast<size_t>(t.strips * t.row_groups);
    const auto bytes = [](size_t count, size_t size) { return (count * size + 15) / 16 * 16; };
    const size_t window = static_cast<size_t>(t.staged_rows * t.staged_cols) * slab * element_bytes;
    const size_t staged = passes ? std::max(window, static_cast<size_t>(block_threads_of(t)) * kMergeShared) : window;
    if (!backward)
      return bytes(staged, 1) + bytes(taps * slab, 4) + (normalises() ? bytes(kDepthwiseNormRows * slab, 4) : 0) +
             (passes ? bytes(2 * groups * slab, 4) : 0);
    return bytes(std::max(staged, groups * slab * static_cast<size_t>(g.kw) * 4), 1) + bytes(taps * slab, 4) +
           bytes(kDepthwiseOperandRows * slab, 4) + bytes((taps + 2) * slab, 4);
  }
  bool normalises() const { return costs.staged > 2; }

  // Cycles of the layer, roughly: what bounds a multiprocessor (instructions, memory, or blocks that wait for memory),
  // and some of what does not.
  double cost(const DepthwiseTiling& t, size_t shared) const {
    const int threads = block_threads_of(t), warps = threads / 32, vec = static_cast<int>(16 / element_bytes);
    const auto k = static_cast<double>(g.kw), s = static_cast<double>(g.stride);
    const double rows = t.group_rows, strip = kDepthwiseStrip, slab = t.slab;
    const double products = backward ? 2 * rows * strip * k * k / (s * s) : rows * strip * k * k;
    const double rows_read = backward ? rows * k / s : (rows - 1) * s + k;
    const double cols_read = backward ? (k - 1) / s + strip / s : (strip - 1) * s + k;
    // A thread has two channels.
    const double thread =
        costs.block + 2 * (products + rows_read * cols_read * costs.read + rows * strip * costs.result);
    const double window = static_cast<double>(t.staged_rows) * t.staged_cols * slab;
    const double instructions = (warps * thread + window * costs.staged / 32) / kInstructions;

    // The window's edges mostly come from the cache. Memory gives 64 bytes at a time, and lines are of 128.
    const double line = slab * static_cast<double>(element_bytes);
    const double sectors = line < 32 ? 2 : line < 64 ? 1.5 : line < 128 ? 1.1 : 1;
    const double results = static_cast<double>(t.rows) * t.cols * slab;
    const double inner = backward ? results / (s * s) : results * s * s;
    const double tensors = backward && fetched > 1 ? 2 : 1;
    const double bytes = static_cast<double>(element_bytes) * sectors *
                         (tensors * (inner + 0.5 * std::max(0.0, window - inner)) + results * (backward ? 2 : 1));
    const double batches = up(up(static_cast<int64_t>(window), vec), static_cast<int64_t>(threads) * 4 / fetched);
    const double alone = batches * kMemoryCycles + thread * 1.3 + (backward ? rows * kCacheCycles : 0) +
                         (backward ? 2 * (k + 2) : 2) * kBarrierCycles;

    const int registers = g.kw == 3 ? 96 : 128, by_registers = kWarpRegisters / registers / 4 * 4 / warps;
    const double resident = std::min({static_cast<int>(kSharedOfProcessor / (shared + 1024)), by_registers, 32});
    if (resident < 1) return std::numeric_limits<double>::infinity();
    const double waiting = alone / resident, memory = bytes / kBytes;
    const double tile = std::max({instructions, waiting, memory}) + 0.2 * (instructions + waiting + memory);
    const double tiles = static_cast<double>(g.n) * t.tiles_y * t.tiles_x * (static_cast<double>(g.c) / slab);
    return std::max(tiles / double{kProcessors} * tile, alone + std::max(instructions, memory));
  }

  bool run(DepthwiseTiling& best, size_t& best_shared) const {
    double least = std::numeric_limits<double>::infinity();
    const int vec = static_cast<int>(16 / element_bytes), unit = backward ? static_cast<int>(g.stride) : 1;
    const auto all_rows = result_rows(), all_cols = result_cols();
    for (int slab = vec; slab <= std::min<int64_t>(g.c, kMostSlab); slab += vec) {
      if (g.c % slab != 0) continue;
      for (int down = 1; down <= all_rows; ++down) {
        const int rows = up(up(all_rows, down), unit) * unit;
        if (down > 1 && rows == up(up(all_rows, down - 1), unit) * unit) continue;
        for (int across = 1; across <= all_cols; ++across) {
          const int cols =
              across == 1 ? static_cast<int>(all_cols) : up(up(all_cols, across), kDepthwiseStrip) * kDepthwiseStrip;
          if (across > 1 && up(all_cols, cols) != across) continue;
          const int strips = up(cols, kDepthwiseStrip);
          for (int groups = 1; groups * unit <= rows; ++groups) {
            const int group_rows = up(up(rows, groups), unit) * unit;
            if (up(rows, group_rows) != groups) continue;
            DepthwiseTiling t{slab,   rows, cols, up(all_rows, rows), up(all_cols, cols), groups, group_rows,
                              strips, 0,    0};
            if (threads_of(t) > static_cast<int>(kDepthwiseThreads)) break;
            set_staged(t);
            const size_t shared = shared_bytes(t);
            if (shared > kMostShared) continue;
            const double c = cost(t, shared);
            if (c >= least) continue;
            least = c;
            best = t;
            best_shared = shared;
          }
        }
      }
    }
    return least < std::numeric_limits<double>::infinity();
  }
};

void set_grid(DepthwisePlan& plan, int64_t channels, int64_t parts) {
  plan.parts = parts;
  plan.grid = {static_cast<uint32_t>(channels / plan.tiling.slab),
               static_cast<uint32_t>(std::min<int64_t>(parts, kDepthwiseGridRows)),
               static_cast<uint32_t>(up(parts, kDepthwiseGridRows))};
}

}  // namespace

bool depthwise_has_tiles(const DepthwiseGeometry& g, size_t element_bytes) {
  const bool window = g.kh == g.kw && (g.kw == 3 || g.kw == 5) && (g.stride == 1 || g.stride == 2);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  // A counter by slab at least, where results are merged.
  const bool counted = g.c / static_cast<int64_t>(16 / element_bytes) <= kMostMergeColumns;
  return window && counted && g.c % static_cast<int64_t>(16 / element_bytes) == 0 && g.h * g.w * g.c <= kMost &&
         g.n * g.h * g.w <= kMost;
}

DepthwisePlan depthwise_forward_plan(const DepthwiseGeometry& g, size_t element_bytes, const ForwardNeeds& needs) {
  const Search search{g, element_bytes, false, needs.passes, 1, {needs.normalises ? 10.0 : 1.0, 1.5, 5, 250}};
  DepthwisePlan plan{};
  search.run(plan.tiling, plan.shared_bytes);
  const DepthwiseTiling& t = plan.tiling;
  plan.threads = static_cast<uint32_t>(block_threads_of(t));
  set_grid(plan, g.c, g.n * t.tiles_y * t.tiles_x);
  plan.block_tiles = 1;
  return plan;
}

DepthwisePlan depthwise_backward_plan(const DepthwiseGeometry& g, size_t element_bytes, bool differentiates) {
  const Search search{g,    element_bytes,          true,
                      true, differentiates ? 2 : 1, {differentiates ? 20.0 : 1.0, 1.5, 16, 600}};
  DepthwisePlan plan{};
  search.run(plan.tiling, plan.shared_bytes);
  const DepthwiseTiling& t = plan.tiling;
  const int64_t slabs = g.c / t.slab, tiles = g.n * t.tiles_y * t.tiles_x;
  // As many as leave each multiprocessor some blocks: the parts of the weights' gradient are the fewer.
  constexpr int64_t kMostInTurn = 16;
  const int64_t in_turn = std::clamp<int64_t>(tiles * slabs / (8 * kProcessors), 1, kMostInTurn);
  plan.block_tiles = static_cast<int32_t>(in_turn);
  plan.threads = static_cast<uint32_t>(block_threads_of(t));
  set_grid(plan, g.c, up(tiles, in_turn));
  return plan;
}

}  // namespace effnet::cuda
