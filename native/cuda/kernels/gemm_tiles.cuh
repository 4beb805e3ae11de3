// The frame of the tiled matrix products: a ring of stages that copies fill ahead of the arithmetic, across the ends of
// tiles too, and the way of results out of a block. What the operands are is a loader's business:
//
//   begin_load(tile)        where the rows of a tile lie
//   load(stage, step)       issues the copies of one step
//   finish(stage, tile, step)   before a step is multiplied: what is done to the chunks that this thread has copied
#pragma once

#include "cuda/kernels/activation.cuh"
#include "cuda/kernels/gemm_engine.cuh"
#include "cuda/kernels/gemm_tile.h"

namespace effnet::cuda {

// The steps of a sum that goes over filter taps and, innermost, over `terms` at each of them.
struct Step {
  uint32_t tap = 0;  // row and column, 16 bits each
  int k = 0;

  EFF_DEVICE int ky() const { return static_cast<int>(tap >> 16); }
  EFF_DEVICE int kx() const { return static_cast<int>(tap & 0xffff); }
  EFF_DEVICE void next(int depth, int terms, int width) {
    k += depth;
    if (k < terms) return;
    k = 0;
    ++tap;
    if (kx() == width) tap += 0x10000u - static_cast<uint32_t>(width);
  }
};

// One chunk of the operand in shared memory belongs to the same thread in every step: `pass` of a thread.
template <class Shape, Layout kLayout, int kRows, int kPitch>
struct Chunks {
  static constexpr int kAcross = kLayout == Layout::by_rows ? Shape::kDepth / Shape::kVector : kRows / Shape::kVector;
  static constexpr int kDown = kLayout == Layout::by_rows ? kRows : Shape::kDepth;
  static constexpr int kCount = kAcross * kDown;
  static constexpr int kPasses = (kCount + static_cast<int>(kTileThreads) - 1) / static_cast<int>(kTileThreads);

  static EFF_DEVICE int index(int pass) {
    return static_cast<int>(thread_id()) + pass * static_cast<int>(kTileThreads);
  }
  static EFF_DEVICE bool exists(int pass) { return kCount % kTileThreads == 0 || index(pass) < kCount; }
  static EFF_DEVICE int row(int pass) { return index(pass) / kAcross; }
  static EFF_DEVICE int column(int pass) { return index(pass) % kAcross * Shape::kVector; }
  static EFF_DEVICE int at(int pass) { return row(pass) * kPitch + column(pass); }
};

template <class Shape>
using ChunksA = Chunks<Shape, Shape::kLayoutA, Shape::kM, Shape::kPitchA>;
template <class Shape>
using ChunksB = Chunks<Shape, Shape::kLayoutB, Shape::kN, Shape::kPitchB>;

// Multiplies tiles [first, last) of an operand with B; `store(tile, engine)` takes each result. `terms`: at each of
// kh x kw taps.
template <class Shape, class Engine, class T, class LoaderA, class LoaderB, class Store>
EFF_DEVICE void multiply_tiles(T* stages, int first, int last, int terms, int kh, int kw, LoaderA& a, LoaderB& b,
                               Store store) {
  constexpr int kA = Shape::kSizeA, kB = Shape::kSizeB;
  int loading = first;
  Step ahead;
  const auto load = [&](int into) {
    if (loading < last) {
      if (ahead.tap == 0 && ahead.k == 0) a.begin_load(loading);
      T* stage = stages + into * (kA + kB);
      a.load(stage, ahead);
      b.load(stage + kA, ahead);
      ahead.next(Shape::kDepth, terms, kw);
      if (ahead.ky() == kh) {
        ahead = {};
        ++loading;
      }
    }
    copies_commit();
  };
  for (int i = 0; i < kTileStages - 1; ++i) load(i);
  Engine engine;
  int used = 0;
  for (int tile = first; tile < last; ++tile) {
    engine.clear();
    for (Step step; step.ky() < kh; step.next(Shape::kDepth, terms, kw)) {
      T* stage = stages + used * (kA + kB);
      copies_wait<kTileStages - 2>();
      a.finish(stage, tile, step);
      b.finish(stage + kA, tile, step);
      EFF_SYNC_BLOCK();
      load(used == 0 ? kTileStages - 1 : used - 1);  // the stage that all threads have left behind
      engine.multiply(stage, stage + kA, terms - step.k);
      used = used + 1 == kTileStages ? 0 : used + 1;
    }
    store(tile, engine);
  }
}

// ---- results -----------------------------------------------------------------------------------------------------

// A warp's part of a tile, 16 rows at a time through shared memory, so that 16 bytes leave at once. `edit(row, column,
// v0, v1)` sees the sums, with what `extra` has there, before they are rounded to T.
template <class T, class Shape>
struct Slab {
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  static constexpr int kChunks = Shape::kWarpColumns / kVector, kRowsAtOnce = 32 / kChunks;
  static constexpr int kPasses = (16 + kRowsAtOnce - 1) / kRowsAtOnce;

  T* values;  // of this warp

  EFF_DEVICE explicit Slab(T* of_block) : values(of_block + thread_id() / 32 * 16 * Shape::kSlabPitch) {}
  EFF_DEVICE T* at(int row, int column) const { return values + row * Shape::kSlabPitch + column; }

  // Calls f(row, column) for the chunks of this lane inside `rows` x `columns`.
  template <class F>
  static EFF_DEVICE void for_chunks(int rows, int columns, F f) {
    const int lane = static_cast<int>(thread_id()) % 32, column = lane % kChunks * kVector;
    EFF_UNROLL_BY(2)
    for (int pass = 0; pass < kPasses; ++pass) {
      const int row = pass * kRowsAtOnce + lane / kChunks;
      if (lane < kChunks * kRowsAtOnce && row < rows && row < 16 && column < columns) f(row, column);
    }
  }
  EFF_DEVICE void load(const T* from, int64_t pitch, int rows, int columns) const {
    for_chunks(rows, columns, [&](int row, int column) {
      *reinterpret_cast<Bits128*>(at(row, column)) = *reinterpret_cast<const Bits128*>(from + row * pitch + column);
    });
    sync_warp();
  }
  EFF_DEVICE void store(T* to, int64_t pitch, int rows, int columns) const {
    for_chunks(rows, columns, [&](int row, int column) {
      store_bits(reinterpret_cast<Bits128*>(to + row * pitch + column),
                 *reinterpret_cast<const Bits128*>(at(row, column)));
    });
  }
  EFF_DEVICE void get(int row, int column, float& v0, float& v1) const {
    if constexpr (sizeof(T) == 4) {
      v0 = at(row, column)[0];
      v1 = at(row, column)[1];
    } else {
      unpack<T>(*reinterpret_cast<const uint32_t*>(at(row, column)), v0, v1);
    }
  }
  EFF_DEVICE void put(int row, int column, float v0, float v1) const {
    if constexpr (sizeof(T) == 4) {
      at(row, column)[0] = v0;
      at(row, column)[1] = v1;
    } else {
      *reinterpret_cast<uint32_t*>(at(row, column)) = pack<T>(v0, v1);
    }
  }
};

// Mean and squared deviations, by column, of the values that a block stores, as its warps' slabs go by. A lane has two
// columns of every kGroups-th row; its deviations are from the mean of the first of them.
template <class T, class Shape>
class ColumnStats {
 public:
  static constexpr int kLanes = Shape::kWarpColumns / 2, kGroups = 32 / kLanes;
  static constexpr int kParts = Shape::kWarpsM * kGroups;
  static constexpr size_t kScratchBytes = size_t{kParts} * 4 * Shape::kN * sizeof(float);
  static_assert(kScratchBytes <= Shape::kStagesSize * sizeof(T));

  EFF_DEVICE void add(const Slab<T, Shape>& slab, int rows) {
    const int lane = static_cast<int>(thread_id()) % 32, group = lane / kLanes, column = lane % kLanes * 2;
    if (group >= kGroups || group >= rows) return;
    float v0, v1;
    const int last = rows < 16 ? rows : 16, taken = (last - group + kGroups - 1) / kGroups;
    if (count_ == 0) {
      float sum0 = 0.0f, sum1 = 0.0f;
      for (int row = group; row < last; row += kGroups) {
        slab.get(row, column, v0, v1);
        sum0 += v0;
        sum1 += v1;
      }
      shift_[0] = sum0 / static_cast<float>(taken);
      shift_[1] = sum1 / static_cast<float>(taken);
    }
    count_ += taken;
    EFF_UNROLL
    for (int i = 0; i < 16 / kGroups; ++i) {
      const int row = group + i * kGroups;
      if (row >= last) break;
      slab.get(row, column, v0, v1);
      v0 -= shift_[0];
      v1 -= shift_[1];
      sum_[0] += v0;
      sum_[1] += v1;
      squares_[0] = fma(v0, v0, squares_[0]);
      squares_[1] = fma(v1, v1, squares_[1]);
    }
  }

  // Of all rows of the block, into `tile`: [2][channels], and `rest`, what is left of the mean behind its first 24
  // bits: of means far from 0 and apart their rounding would be in the variance. The stages' memory is free by now.
  EFF_DEVICE void merge(float* scratch, float* tile, float* rest, int first_column, int channels) {
    const int t = static_cast<int>(thread_id()), lane = t % 32, warp = t / 32, group = lane / kLanes;
    EFF_SYNC_BLOCK();
    if (group < kGroups) {
      float* part = scratch + (warp / Shape::kWarpsN * kGroups + group) * 4 * Shape::kN +
                    warp % Shape::kWarpsN * Shape::kWarpColumns + lane % kLanes * 2;
      const float count = static_cast<float>(count_), inverse = count_ ? 1.0f / count : 0.0f;
      EFF_UNROLL
      for (int i = 0; i < 2; ++i) {
        part[i] = count;
        part[Shape::kN + i] = shift_[i];
        part[2 * Shape::kN + i] = sum_[i] * inverse;
        part[3 * Shape::kN + i] = squares_[i] - sum_[i] * (sum_[i] * inverse);
      }
    }
    EFF_SYNC_BLOCK();
    if (t >= Shape::kN || first_column + t >= channels) return;
    // The mean is kept from the first part's shift on: near 0 it is not rounded as far as at its own size.
    float base = 0.0f, count = 0.0f, mean = 0.0f, squares = 0.0f;
    for (int part = 0; part < kParts; ++part) {
      const float* from = scratch + part * 4 * Shape::kN + t;
      if (from[0] == 0.0f) continue;
      if (count == 0.0f) base = from[Shape::kN];
      const float both = count + from[0], delta = from[Shape::kN] - base + from[2 * Shape::kN] - mean;
      mean += delta * (from[0] / both);
      squares += from[3 * Shape::kN] + delta * delta * (count * from[0] / both);
      count = both;
    }
    const float rounded = base + mean;
    tile[first_column + t] = rounded;
    rest[first_column + t] = base - rounded + mean;
    tile[channels + first_column + t] = max_of(squares, 0.0f);
  }

 private:
  int count_ = 0;
  float shift_[2] = {}, sum_[2] = {}, squares_[2] = {};
};

}  // namespace effnet::cuda
