// Element by element: normalised input, casts, activations, sums, gates, dropped parts.
#include "cuda/kernels/elementwise.h"

#include "cuda/kernels/bn_terms.cuh"
#include "cuda/kernels/pixels.cuh"

namespace effnet::cuda {

// ---- tensors read in order, whatever their shape -----------------------------------------------------------------

template <class A, class B>
inline constexpr int kFlatVec = sizeof(A) == 4 && sizeof(B) == 4 ? 4 : 8;

// dst[i] = f(x[i], y[i], i) in vectors of V, the rest one by one; `f` gets V values. `y`: may be nullptr.
template <class From, class To, class F>
EFF_DEVICE void for_each_element(const From* x, const From* y, To* dst, int64_t count, F&& f) {
  constexpr int V = kFlatVec<From, To>, R = static_cast<int>(kFlatVectors);
  const int64_t vectors = count / V;
  const int64_t first = static_cast<int64_t>(block_x()) * (kElementwiseThreads * R) + thread_id();
  Packed<From, V> xs[R], ys[R];
  EFF_UNROLL
  for (int k = 0; k < R; ++k) {
    const int64_t i = first + k * static_cast<int64_t>(kElementwiseThreads);
    xs[k] = i < vectors ? Packed<From, V>::load(x + i * V) : Packed<From, V>{};
    ys[k] = i < vectors && y ? Packed<From, V>::load(y + i * V) : Packed<From, V>{};
  }
  EFF_UNROLL
  for (int k = 0; k < R; ++k) {
    const int64_t i = first + k * static_cast<int64_t>(kElementwiseThreads);
    if (i >= vectors) continue;
    float xv[V], yv[V];
    xs[k].unpack_to(xv);
    ys[k].unpack_to(yv);
    f(xv, yv, i * V);
    Packed<To, V>::store(dst + i * V, xv);
  }
  const int64_t at = vectors * V + thread_id();
  if (block_x() > 0 || at >= count) return;
  float xv[1] = {to_float(x[at])}, yv[1] = {y ? to_float(y[at]) : 0.0f};
  f(xv, yv, at);
  dst[at] = from_float<To>(xv[0]);
}

template <class To, class From>
EFF_DEVICE void cast(const ElementwiseArgs& a) {
  for_each_element(static_cast<const From*>(a.src0), static_cast<const From*>(nullptr), static_cast<To*>(a.dst),
                   a.count, [](auto&, auto&, int64_t) {});
}

template <class T>
EFF_DEVICE void activation(const ElementwiseArgs& a) {
  with_act(a.act, [&](auto act) {
    for_each_element(static_cast<const T*>(a.src0), static_cast<const T*>(nullptr), static_cast<T*>(a.dst), a.count,
                     [&](auto& x, auto&, int64_t) {
                       EFF_UNROLL
                       for (auto& v : x) v = activate<T>(act, v);
                     });
  });
}

template <class T>
EFF_DEVICE void activation_bwd(const ElementwiseArgs& a) {
  with_act(a.act, [&](auto act) {
    for_each_element(static_cast<const T*>(a.src0), static_cast<const T*>(a.src1), static_cast<T*>(a.dst), a.count,
                     [&](auto& diff, auto& src, int64_t) {
                       constexpr int V = sizeof(diff) / sizeof(float);
                       EFF_UNROLL
                       for (int i = 0; i < V; ++i) diff[i] *= activation_slope<T>(act, src[i]);
                     });
  });
}

template <class T>
EFF_DEVICE void add(const ElementwiseArgs& a) {
  for_each_element(static_cast<const T*>(a.src0), static_cast<const T*>(a.src1), static_cast<T*>(a.dst), a.count,
                   [](auto& x, auto& y, int64_t) {
                     constexpr int V = sizeof(x) / sizeof(float);
                     EFF_UNROLL
                     for (int i = 0; i < V; ++i) x[i] += y[i];
                   });
}

template <class T>
EFF_DEVICE void drop_elements(const DropElementsArgs& a) {
  for_each_element(static_cast<const T*>(a.src), static_cast<const T*>(nullptr), static_cast<T*>(a.dst), a.count,
                   [&](auto& x, auto&, int64_t at) {
                     constexpr int V = sizeof(x) / sizeof(float);
                     if constexpr (V == 1) {
                       x[0] *= drop_factor(a.drop, at);
                     } else {
                       EFF_UNROLL
                       for (int i = 0; i < V; i += 4) {
                         float factor[4];
                         drop_factors(a.drop, at + i, factor);
                         EFF_UNROLL
                         for (int j = 0; j < 4; ++j) x[i + j] *= factor[j];
                       }
                     }
                   });
}

// `word`: the value as often as it fits.
template <class T>
EFF_DEVICE void fill_with(const FillArgs& a, T value, uint32_t word) {
  constexpr int V = 16 / static_cast<int>(sizeof(T));
  T* dst = static_cast<T*>(a.dst);
  const int64_t vectors = a.count / V;
  for (int64_t i = global_id(); i < vectors; i += global_threads())
    store_bits(reinterpret_cast<Bits128*>(dst + i * V), {{word, word, word, word}});
  const int64_t at = vectors * V + global_id();
  if (at < a.count) dst[at] = value;
}

template <class T>
EFF_DEVICE void fill(const FillArgs& a) {
  const T value = from_float<T>(static_cast<float>(a.value));
  if constexpr (sizeof(T) == 4)
    fill_with(a, value, float_to_bits(value));
  else
    fill_with(a, value, value.bits * 0x10001u);
}

// A thread has 16 values, whose channels go on from where the thread before ended: 16 is one more than 5 pixels.
template <class T>
EFF_DEVICE void input_normalize(const NormalizeArgs& a) {
  constexpr int kCount = static_cast<int>(kNormalizeBytes), V = kVec<T>;
  const int64_t first = global_id() * kCount;
  if (first >= a.count) return;
  const PixelNorm norm = turned(a.norm, static_cast<int>(first % 3));
  T* dst = static_cast<T*>(a.dst) + first;
  if (first + kCount > a.count) {
    for (int64_t i = first; i < a.count; ++i)
      *dst++ = from_float<T>(normalised_pixel(static_cast<float>(a.src[i]), norm, static_cast<int>((i - first) % 3)));
    return;
  }
  const Bits128 bytes = load_bits(reinterpret_cast<const Bits128*>(a.src + first));
  EFF_UNROLL
  for (int i = 0; i < kCount; i += V) {
    float v[V];
    EFF_UNROLL
    for (int j = 0; j < V; ++j) {
      const int k = i + j;
      const float x = static_cast<float>(bytes.word[k / 4] >> (8 * (k % 4)) & 0xffu);
      v[j] = normalised_pixel(x, norm.mean[k % 3], norm.inv_std[k % 3]);
    }
    store_vec<T>(dst + i, v);
  }
}

// ---- images beside values of an image and channel ----------------------------------------------------------------

template <class T, int V>
EFF_DEVICE void channel_scale(const PerChannelArgs& a) {
  const Place p = place_of<V>(a.walk);
  const T* src = static_cast<const T*>(a.src);
  T* dst = static_cast<T*>(a.dst);
  if (!p.works) return;
  for (int64_t image = p.image; image < p.images_last; ++image) {
    float gate[V];
    load_channels(a.channel + image * a.walk.c + p.channel, gate);
    for_each_row<4, V, T>(a.walk, p, image, src, nullptr, [&](const float(&x)[V], const float(&)[V], int64_t at) {
      float v[V];
      EFF_UNROLL
      for (int i = 0; i < V; ++i) v[i] = x[i] * gate[i];
      Packed<T, V>::store(dst + at, v);
    });
  }
}

template <class T, int V>
EFF_DEVICE void spread_channels(const PerChannelArgs& a) {
  const Place p = place_of<V>(a.walk);
  const Walk& w = a.walk;
  T* dst = static_cast<T*>(a.dst);
  if (!p.works) return;
  for (int64_t image = p.image; image < p.images_last; ++image) {
    float v[V];
    load_channels(a.channel + image * w.c + p.channel, v);
    EFF_UNROLL
    for (int i = 0; i < V; ++i) v[i] *= a.factor;
    for (int64_t row = p.row + p.lane; row < p.rows_last; row += w.lanes)
      Packed<T, V>::store(dst + (image * w.rows + row) * w.c + p.channel, v);
  }
}

template <class T, int V>
EFF_DEVICE void drop_images(const DropImagesArgs& a) {
  const Place p = place_of<V>(a.walk);
  const T* src = static_cast<const T*>(a.src);
  T* dst = static_cast<T*>(a.dst);
  for (int64_t image = p.image; image < p.images_last; ++image) {
    const float factor = drop_factor(a.drop, image);
    for_each_row<4, V, T>(a.walk, p, image, src, nullptr, [&](const float(&x)[V], const float(&)[V], int64_t at) {
      float v[V];
      EFF_UNROLL
      for (int i = 0; i < V; ++i) v[i] = x[i] * factor;
      Packed<T, V>::store(dst + at, v);
    });
  }
}

EFF_KERNEL_OF_TYPES(input_normalize, NormalizeArgs, kElementwiseThreads)
EFF_KERNEL_OF_TYPES(activation, ElementwiseArgs, kElementwiseThreads)
EFF_KERNEL_OF_TYPES(activation_bwd, ElementwiseArgs, kElementwiseThreads)
EFF_KERNEL_OF_TYPES(add, ElementwiseArgs, kElementwiseThreads)
EFF_KERNEL_OF_TYPES(drop_elements, DropElementsArgs, kElementwiseThreads)
EFF_KERNEL_OF_TYPES(fill, FillArgs, kElementwiseThreads)
EFF_KERNEL(fill_i32, FillArgs, kElementwiseThreads) {
  const auto value = static_cast<int32_t>(a.value);
  fill_with(a, value, static_cast<uint32_t>(value));
}
EFF_KERNEL(fill_u8, FillArgs, kElementwiseThreads) {
  const auto value = static_cast<uint8_t>(a.value);
  fill_with(a, value, value * 0x1010101u);
}
EFF_KERNEL_OF_WALKS(channel_scale, PerChannelArgs)
EFF_KERNEL_OF_WALKS(spread_channels, PerChannelArgs)
EFF_KERNEL_OF_WALKS(drop_images, DropImagesArgs)

#define EFF_CAST(from, From, to, To) \
  EFF_KERNEL(cast_##from##_##to, ElementwiseArgs, kElementwiseThreads) { cast<To, From>(a); }
#define EFF_CASTS_FROM(from, From) \
  EFF_CAST(from, From, f32, float) \
  EFF_CAST(from, From, bf16, Bf16) \
  EFF_CAST(from, From, f16, F16)
EFF_CASTS_FROM(f32, float)
EFF_CASTS_FROM(bf16, Bf16)
EFF_CASTS_FROM(f16, F16)

}  // namespace effnet::cuda
