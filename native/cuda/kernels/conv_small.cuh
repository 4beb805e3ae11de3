// Convolution forward where there are few pixels: smaller tiles, and the sum of a tile shared out over blocks, the last
// of which adds the parts up, in order, and goes on as for a tile of its own.
#pragma once

#include "cuda/kernels/conv_forward.cuh"

namespace effnet::cuda {

// Steps [first, last) of the sum of one tile.
template <class Shape, class Engine, class T, class LoaderA, class LoaderB>
EFF_DEVICE void multiply_steps(T* stages, int tile, int first, int last, int terms, int kw, LoaderA& a, LoaderB& b,
                               Engine& engine) {
  constexpr int kA = Shape::kSizeA, kB = Shape::kSizeB;
  const int a_tap = (terms + Shape::kDepth - 1) / Shape::kDepth, tap = first / a_tap, row = tap / kw;
  Step step{static_cast<uint32_t>(row) << 16 | static_cast<uint32_t>(tap - row * kw),
            (first - tap * a_tap) * Shape::kDepth};
  Step ahead = step;
  int loading = first;
  const auto load = [&](int into) {
    if (loading < last) {
      T* stage = stages + into * (kA + kB);
      a.load(stage, ahead);
      b.load(stage + kA, ahead);
      ahead.next(Shape::kDepth, terms, kw);
      ++loading;
    }
    copies_commit();
  };
  a.begin_load(tile);
  for (int i = 0; i < kTileStages - 1; ++i) load(i);
  engine.clear();
  int used = 0;
  for (int i = first; i < last; ++i) {
    T* stage = stages + used * (kA + kB);
    copies_wait<kTileStages - 2>();
    a.finish(stage, tile, step);
    b.finish(stage + kA, tile, step);
    EFF_SYNC_BLOCK();
    load(used == 0 ? kTileStages - 1 : used - 1);  // the stage that all threads have left behind
    engine.multiply(stage, stage + kA, terms - step.k);
    used = used + 1 == kTileStages ? 0 : used + 1;
    step.next(Shape::kDepth, terms, kw);
  }
}

template <class T, class Shape, class Engine, bool kStats>
EFF_DEVICE void conv_forward_small(const ConvArgs& a) {
  Shared shared;
  T* stages = shared.take<T>(Shape::kStagesSize);
  ForwardStore<T, Shape, kStats> store(a, shared.take<T>(Shape::kSlabsSize));
  uint32_t* flag = shared.take<uint32_t>(1);
  PixelRows<Shape, T, false> rows(a.g, static_cast<const T*>(a.src.data), is_finished_later(a.src) ? &a.src : nullptr);
  WeightRows<Shape, T> columns(a.g, static_cast<const T*>(a.weights), static_cast<int>(block_x()) * Shape::kN);
  const int terms = static_cast<int>(a.g.ic), kw = static_cast<int>(a.g.kw), taps = static_cast<int>(a.g.kh) * kw;
  const int steps = taps * ((terms + Shape::kDepth - 1) / Shape::kDepth);
  const int first = static_cast<int>(block_z() * a.split_steps), end = first + static_cast<int>(a.split_steps);
  Engine engine;
  multiply_steps<Shape>(stages, static_cast<int>(block_y()), first, end < steps ? end : steps, terms, kw, rows, columns,
                        engine);
  if (a.splits > 1) {
    const int64_t tile = static_cast<int64_t>(block_y()) * grid_x() + block_x();
    float* parts = a.parts + tile * a.splits * (Shape::kM * Shape::kN) + thread_id();
    float* part = parts + block_z() * (Shape::kM * Shape::kN);
    engine.each([&](float& sum) {
      *part = sum;
      part += kTileThreads;
    });
    if (!comes_last(&a.state->block_counters[tile], static_cast<uint32_t>(a.splits), flag)) return;
    engine.clear();
    for (int64_t split = 0; split < a.splits; ++split) {
      const float* from = parts + split * (Shape::kM * Shape::kN);
      engine.each([&](float& sum) {
        sum += load_shared_by_blocks(from);
        from += kTileThreads;
      });
    }
  }
  store(static_cast<int>(block_y()), engine);
  store.finish(stages);
}

template <class T>
using SmallShape = TileShape<sizeof(T), 64, 32, Layout::by_rows, Layout::by_rows>;

template <class T, bool kStats>
EFF_DEVICE void conv_forward_small_mma(const ConvArgs& a) {
  using Shape = SmallShape<T>;
  conv_forward_small<T, Shape, TensorEngine<T, Shape>, kStats>(a);
}
template <bool kStats>
EFF_DEVICE void conv_forward_small_fma(const ConvArgs& a) {
  using Shape = SmallShape<float>;
  conv_forward_small<float, Shape, FmaEngine<Shape>, kStats>(a);
}

}  // namespace effnet::cuda
