// Sums over the pixels of each image and channel: pooling, gradients of gates, and the five sums that the gradients of
// a gated BN are made of.
#include "cuda/kernels/bn_terms.cuh"

namespace effnet::cuda {

// What a tile of an image adds up of each channel: `kCount` sums of V channels, in chunks that the scratch holds.
template <int V, int kCount>
EFF_DEVICE void sum_parts(float* scratch, const Walk& w, const Place& p, float (&sums)[kCount][V]) {
  constexpr int kAtOnce = kLaneFloats / V < kCount ? kLaneFloats / V : kCount;
  EFF_UNROLL
  for (int first = 0; first < kCount; first += kAtOnce) {
    float part[kAtOnce * V];
    EFF_UNROLL
    for (int i = 0; i < kAtOnce * V; ++i) part[i] = first + i / V < kCount ? sums[first + i / V][i % V] : 0.0f;
    sum_over_lanes(scratch, w, p, part);
    EFF_UNROLL
    for (int i = 0; i < kAtOnce * V; ++i)
      if (first + i / V < kCount) sums[first + i / V][i % V] = part[i];
  }
}

// Of an image that one block has, or of all its tiles by the last block: to value and sums.
template <int V, int kCount>
EFF_DEVICE void store_image_sums(const ImageSumsArgs& a, int64_t image, int64_t channel,
                                 const float (&sums)[kCount][V]) {
  float value[V];
  EFF_UNROLL
  for (int i = 0; i < V; ++i) value[i] = sums[0][i] * a.value_factor;
  store_channels(a.value + image * a.walk.c + channel, value);
  EFF_UNROLL
  for (int k = 1; k < kCount; ++k) store_channels(a.sums + (image * 4 + k - 1) * a.walk.c + channel, sums[k]);
}

// Images one after the other; `add(image, sums)` adds up a thread's pixels.
template <int V, int kCount, class Add>
EFF_DEVICE void sum_images(const ImageSumsArgs& a, const Place& p, Add add) {
  Shared shared;
  float* scratch = shared.take<float>(kLaneScratch);
  uint32_t* flag = shared.take<uint32_t>(1);
  const Walk& w = a.walk;
  for (int64_t image = p.image; image < p.images_last; ++image) {
    float sums[kCount][V];
    EFF_UNROLL
    for (int k = 0; k < kCount; ++k) fill(sums[k], 0.0f);
    add(image, sums);
    sum_parts<V, kCount>(scratch, w, p, sums);
    if (w.tiles == 1) {
      if (p.lane == 0 && p.works) store_image_sums<V, kCount>(a, image, p.channel, sums);
      continue;
    }
    if (p.lane == 0 && p.works) {
      float* tile = a.tiles + static_cast<int64_t>(block_x()) * kCount * w.c + p.channel;
      EFF_UNROLL
      for (int k = 0; k < kCount; ++k) store_channels(tile + k * w.c, sums[k]);
    }
    const int64_t counter = image * grid_y() + block_y();
    if (!comes_last(&a.state->block_counters[counter], static_cast<uint32_t>(w.tiles), flag)) return;
    // Few tiles: a thread a channel and sum, in order.
    const int64_t channels = static_cast<int64_t>(w.vectors) * V, first = block_y() * channels;
    const int64_t mine = first + channels < w.c ? channels : w.c - first;
    for (int64_t i = thread_id(); i < mine * kCount; i += kWalkThreads) {
      const int64_t k = i / mine, c = first + i - k * mine;
      const float* tile = a.tiles + (image * w.tiles * kCount + k) * w.c + c;
      double total = 0;
      EFF_UNROLL_BY(4)
      for (int32_t t = 0; t < w.tiles; ++t)
        total += load_shared_by_blocks(tile + static_cast<int64_t>(t) * kCount * w.c);
      const float sum = static_cast<float>(total);
      if (k == 0)
        a.value[image * w.c + c] = sum * a.value_factor;
      else
        a.sums[(image * 4 + k - 1) * w.c + c] = sum;
    }
  }
}

// value = sum of act(bn(src)), as stored
template <class T, int V>
EFF_DEVICE void image_pool(const ImageSumsArgs& a) {
  const Place p = place_of<V>(a.walk);
  const NormOf<V> norm(a.norm, p);
  const T* src = static_cast<const T*>(a.src);
  T* dst = static_cast<T*>(a.dst);
  const bool normed = a.norm.mean != nullptr;
  sum_images<V, 1>(a, p, [&](int64_t image, float(&sums)[1][V]) {
    with_act(a.act, [&](auto act) {
      for_each_row<3, V, T>(a.walk, p, image, src, nullptr, [&](const float(&x)[V], const float(&)[V], int64_t at) {
        float v[V];
        EFF_UNROLL
        for (int i = 0; i < V; ++i) v[i] = normed ? activate<T>(act, norm(x[i], i)) : x[i];
        if (dst) Packed<T, V>::store(dst + at, v);
        EFF_UNROLL
        for (int i = 0; i < V; ++i) sums[0][i] += round_to<T>(v[i]);
      });
    });
  });
}

// value = sum of diff * act(bn(src))
template <class T, int V>
EFF_DEVICE void image_products(const ImageSumsArgs& a) {
  const Place p = place_of<V>(a.walk);
  const NormOf<V> norm(a.norm, p);
  const T *src = static_cast<const T*>(a.src), *diff = static_cast<const T*>(a.diff);
  const bool normed = a.norm.mean != nullptr;
  sum_images<V, 1>(a, p, [&](int64_t image, float(&sums)[1][V]) {
    with_act(a.act, [&](auto act) {
      for_each_row<2, V>(a.walk, p, image, src, diff, [&](const float(&x)[V], const float(&d)[V], int64_t) {
        EFF_UNROLL
        for (int i = 0; i < V; ++i) sums[0][i] = fma(d[i], normed ? activate<T>(act, norm(x[i], i)) : x[i], sums[0][i]);
      });
    });
  });
}

// The five sums of bn_act_bwd_sums, and what the backward part needs of the forward one's result.
template <class T, int V>
EFF_DEVICE void image_sums(const ImageSumsArgs& a) {
  constexpr int kRows = sizeof(T) == 2 ? 4 : 2;
  const Place p = place_of<V>(a.walk);
  const NormOf<V> norm(a.norm, p);
  const T *src = static_cast<const T*>(a.src), *diff = static_cast<const T*>(a.diff);
  T* dst = static_cast<T*>(a.dst);
  sum_images<V, 5>(a, p, [&](int64_t image, float(&sums)[5][V]) {
    const float drop = drop_factor(a.drop, image);
    float gate[V];
    fill(gate, 0.0f);
    if (dst && p.works) {
      load_channels(a.gate + image * a.walk.c + p.channel, gate);
      EFF_UNROLL
      for (int i = 0; i < V; ++i) gate[i] *= drop;
    }
    with_act(a.act, [&](auto act) {
      for_each_row<kRows, V>(a.walk, p, image, src, diff,
                             [&](const float(&x)[V], const float(&upstream)[V], int64_t at) {
                               float gated[V];
                               EFF_UNROLL
                               for (int i = 0; i < V; ++i) {
                                 const float d = upstream[i] * drop, centred = x[i] - norm.mean[i];
                                 float value, slope;
                                 activate_both<T>(act, norm(x[i], i), value, slope);
                                 gated[i] = value * gate[i];
                                 const float ds = d * slope;
                                 sums[0][i] = fma(d, value, sums[0][i]);
                                 sums[1][i] += ds;
                                 sums[2][i] += slope;
                                 sums[3][i] = fma(ds, centred, sums[3][i]);
                                 sums[4][i] = fma(slope, centred, sums[4][i]);
                               }
                               if (dst) Packed<T, V>::store(dst + at, gated);
                             });
    });
    // So far of src - mean.
    if (!p.works) return;
    float inv_std[V];
    load_channels(a.norm.inv_std + p.channel, inv_std);
    EFF_UNROLL
    for (int i = 0; i < V; ++i) {
      sums[3][i] *= inv_std[i];
      sums[4][i] *= inv_std[i];
    }
  });
}

EFF_KERNEL_OF_WALKS(image_pool, ImageSumsArgs)
EFF_KERNEL_OF_WALKS(image_products, ImageSumsArgs)
EFF_KERNEL_OF_NARROW_WALKS(image_sums, ImageSumsArgs)

}  // namespace effnet::cuda
