// The walk of walk.h, with vectors of V channels: kVec<T>, 16 bytes; or 4, where a kernel keeps so much of each channel
// in registers that 8 of 16 bits would leave room for few threads; or 1, where the channels are no multiple of these.
#pragma once

#include "cuda/device/vector.h"
#include "cuda/kernels/walk.h"

namespace effnet::cuda {

// V values of a tensor as they are stored, so that loads ahead take few registers.
template <class T, int V>
struct Packed {
  static constexpr int kParts = V / kVec<T>;
  static_assert(V % kVec<T> == 0);
  Bits128 bits[kParts];

  EFF_DEVICE static Packed load(const T* p) {
    Packed packed;
    EFF_UNROLL
    for (int i = 0; i < kParts; ++i) packed.bits[i] = load_bits(reinterpret_cast<const Bits128*>(p + i * kVec<T>));
    return packed;
  }
  EFF_DEVICE void unpack_to(float (&v)[V]) const {
    EFF_UNROLL
    for (int i = 0; i < kParts; ++i) {
      float part[kVec<T>];
      unpack<T>(bits[i], part);
      EFF_UNROLL
      for (int j = 0; j < kVec<T>; ++j) v[i * kVec<T> + j] = part[j];
    }
  }
  EFF_DEVICE static void store(T* p, const float (&v)[V]) {
    EFF_UNROLL
    for (int i = 0; i < kParts; ++i) {
      float part[kVec<T>];
      EFF_UNROLL
      for (int j = 0; j < kVec<T>; ++j) part[j] = v[i * kVec<T> + j];
      store_vec<T>(p + i * kVec<T>, part);
    }
  }
};
template <class T>
requires(sizeof(T) == 2) struct Packed<T, 4> {
  Bits64 bits;
  EFF_DEVICE static Packed load(const T* p) { return {load_bits(reinterpret_cast<const Bits64*>(p))}; }
  EFF_DEVICE void unpack_to(float (&v)[4]) const {
    unpack<T>(bits.word[0], v[0], v[1]);
    unpack<T>(bits.word[1], v[2], v[3]);
  }
  EFF_DEVICE static void store(T* p, const float (&v)[4]) {
    store_bits(reinterpret_cast<Bits64*>(p), {{pack<T>(v[0], v[1]), pack<T>(v[2], v[3])}});
  }
};
template <class T>
struct Packed<T, 1> {
  T value;
  EFF_DEVICE static Packed load(const T* p) { return {*p}; }
  EFF_DEVICE void unpack_to(float (&v)[1]) const { v[0] = to_float(value); }
  EFF_DEVICE static void store(T* p, const float (&v)[1]) { *p = from_float<T>(v[0]); }
};

// V floats of an array by channel.
template <int V>
EFF_DEVICE void load_channels(const float* p, float (&v)[V]) {
  if constexpr (V == 1)
    v[0] = *p;
  else
    load_floats(p, v);
}
template <int V>
EFF_DEVICE void store_channels(float* p, const float (&v)[V]) {
  if constexpr (V == 1)
    *p = v[0];
  else
    store_floats(p, v);
}
template <int V>
EFF_DEVICE void fill(float (&v)[V], float value) {
  EFF_UNROLL
  for (int i = 0; i < V; ++i) v[i] = value;
}

// Where a thread of a walk is. A thread without work has no channel and no rows.
struct Place {
  int64_t channel;             // its first
  int32_t vector, lane;        // within the block
  int64_t image, images_last;  // the block's
  int64_t row, rows_last;      // the block's, within an image
  bool works;
};

template <int V>
EFF_DEVICE Place place_of(const Walk& w) {
  Place p;
  const auto thread = static_cast<int32_t>(thread_id());
  p.lane = thread / w.vectors;
  p.vector = thread - p.lane * w.vectors;
  p.channel = (static_cast<int64_t>(block_y()) * w.vectors + p.vector) * V;
  const uint32_t group = w.tiles > 1 ? block_x() / static_cast<uint32_t>(w.tiles) : block_x();
  const uint32_t tile = block_x() - group * static_cast<uint32_t>(w.tiles);
  p.image = static_cast<int64_t>(group) * w.block_images;
  p.images_last = p.image + w.block_images < w.images ? p.image + w.block_images : w.images;
  p.row = tile * w.tile_rows;
  p.rows_last = p.row + w.tile_rows < w.rows ? p.row + w.tile_rows : w.rows;
  p.works = p.lane < w.lanes && p.channel < w.c;
  return p;
}

// f(x, y, at) for every row of a thread in one image: the values of both tensors at `at`, R rows of them loaded ahead.
// `y`: may be nullptr, then its values are 0.
template <int R, int V, class T, class F>
EFF_DEVICE void for_each_row(const Walk& w, const Place& p, int64_t image, const T* x, const T* y, F&& f) {
  if (!p.works) return;
  const int64_t step = w.lanes * w.c;
  int64_t at = (image * w.rows + p.row + p.lane) * w.c + p.channel;
  for (int64_t left = p.rows_last - p.row - p.lane; left > 0; left -= R * w.lanes, at += R * step) {
    Packed<T, V> xs[R], ys[R];
    EFF_UNROLL
    for (int k = 0; k < R; ++k) {
      const int64_t of_row = at + (k * w.lanes < left ? k * step : 0);  // behind the last row the first once more
      xs[k] = Packed<T, V>::load(x + of_row);
      ys[k] = y ? Packed<T, V>::load(y + of_row) : Packed<T, V>{};
    }
    EFF_UNROLL
    for (int k = 0; k < R; ++k) {
      if (k * w.lanes >= left) continue;
      float xv[V], yv[V];
      xs[k].unpack_to(xv);
      ys[k].unpack_to(yv);
      f(xv, yv, at + k * step);
    }
  }
}

// What the thread of lane 0 has of the same channels.
template <int V>
EFF_DEVICE void from_lane_0(float* scratch, const Place& p, const float (&v)[V], float (&first)[V]) {
  EFF_SYNC_BLOCK();  // what was there before may still be read
  if (p.lane == 0) {
    EFF_UNROLL
    for (int i = 0; i < V; ++i) scratch[i * kWalkThreads + static_cast<uint32_t>(p.vector)] = v[i];
  }
  EFF_SYNC_BLOCK();
  EFF_UNROLL
  for (int i = 0; i < V; ++i) first[i] = scratch[i * kWalkThreads + static_cast<uint32_t>(p.vector)];
}

// The sums of v over the lanes of a block, in a fixed tree, for lane 0. `scratch`: kLaneScratch floats.
template <int N>
EFF_DEVICE void sum_over_lanes(float* scratch, const Walk& w, const Place& p, float (&v)[N]) {
  static_assert(N <= kLaneFloats);
  float* own = scratch + thread_id();
  EFF_SYNC_BLOCK();  // what was there before may still be read
  if (p.lane < w.lanes) {
    EFF_UNROLL
    for (int i = 0; i < N; ++i) own[i * kWalkThreads] = v[i];
  }
  for (int32_t count = w.lanes; count > 1;) {
    const int32_t half = (count + 1) / 2;
    EFF_SYNC_BLOCK();
    if (p.lane < count - half) {
      EFF_UNROLL
      for (int i = 0; i < N; ++i) {
        v[i] += own[static_cast<uint32_t>(i) * kWalkThreads + static_cast<uint32_t>(half * w.vectors)];
        own[i * kWalkThreads] = v[i];
      }
    }
    count = half;
  }
}

}  // namespace effnet::cuda

// Instances of a kernel template name<T, V>(a), in vectors and plain; the second with vectors of 4 channels.
#define EFF_KERNEL_OF_WALKS_BY(name, Args, kBytes2)                       \
  EFF_KERNEL(name##_f32, Args, kWalkThreads) { name<float, 4>(a); }       \
  EFF_KERNEL(name##_bf16, Args, kWalkThreads) { name<Bf16, kBytes2>(a); } \
  EFF_KERNEL(name##_f16, Args, kWalkThreads) { name<F16, kBytes2>(a); }   \
  EFF_KERNEL(name##_plain_f32, Args, kWalkThreads) { name<float, 1>(a); } \
  EFF_KERNEL(name##_plain_bf16, Args, kWalkThreads) { name<Bf16, 1>(a); } \
  EFF_KERNEL(name##_plain_f16, Args, kWalkThreads) { name<F16, 1>(a); }
#define EFF_KERNEL_OF_WALKS(name, Args) EFF_KERNEL_OF_WALKS_BY(name, Args, 8)
#define EFF_KERNEL_OF_NARROW_WALKS(name, Args) EFF_KERNEL_OF_WALKS_BY(name, Args, 4)
