// Element by element: normalised input, casts, activations, sums, gates, dropped parts.
#include "cuda/kernels/activation.cuh"
#include "cuda/kernels/drop.cuh"
#include "cuda/kernels/elementwise.h"

namespace effnet::cuda {

template <class T>
EFF_DEVICE void input_normalize(const NormalizeArgs& a) {
  T* dst = static_cast<T*>(a.dst);
  for (int64_t i = global_id(); i < a.count; i += global_threads()) {
    // Chosen by comparisons: an index that is not known when this is compiled would put the arguments into memory.
    const int channel = static_cast<int>(i % 3);
    const float mean = channel == 0 ? a.mean[0] : channel == 1 ? a.mean[1] : a.mean[2];
    const float std = channel == 0 ? a.std[0] : channel == 1 ? a.std[1] : a.std[2];
    dst[i] = from_float<T>((static_cast<float>(a.src[i]) - mean) / std);
  }
}

template <class To, class From>
EFF_DEVICE void cast(const ElementwiseArgs& a) {
  const From* src = static_cast<const From*>(a.src0);
  To* dst = static_cast<To*>(a.dst);
  for (int64_t i = global_id(); i < a.count; i += global_threads()) dst[i] = from_float<To>(to_float(src[i]));
}

template <class T>
EFF_DEVICE void activation(const ElementwiseArgs& a) {
  const T* src = static_cast<const T*>(a.src0);
  T* dst = static_cast<T*>(a.dst);
  for (int64_t i = global_id(); i < a.count; i += global_threads())
    dst[i] = from_float<T>(activate(a.act, to_float(src[i])));
}

template <class T>
EFF_DEVICE void activation_bwd(const ElementwiseArgs& a) {
  const T *diff = static_cast<const T*>(a.src0), *src = static_cast<const T*>(a.src1);
  T* dst = static_cast<T*>(a.dst);
  for (int64_t i = global_id(); i < a.count; i += global_threads())
    dst[i] = from_float<T>(to_float(diff[i]) * activation_slope(a.act, to_float(src[i])));
}

template <class T>
EFF_DEVICE void add(const ElementwiseArgs& a) {
  const T *x = static_cast<const T*>(a.src0), *y = static_cast<const T*>(a.src1);
  T* dst = static_cast<T*>(a.dst);
  for (int64_t i = global_id(); i < a.count; i += global_threads())
    dst[i] = from_float<T>(to_float(x[i]) + to_float(y[i]));
}

template <class T>
EFF_DEVICE void fill_with(const FillArgs& a, T value) {
  T* dst = static_cast<T*>(a.dst);
  for (int64_t i = global_id(); i < a.count; i += global_threads()) dst[i] = value;
}

template <class T>
EFF_DEVICE void fill(const FillArgs& a) {
  fill_with(a, from_float<T>(static_cast<float>(a.value)));
}

// Of element i of [n][pixels][c]: its image and channel in [n][c].
EFF_DEVICE int64_t image_channel(int64_t i, int64_t pixels, int64_t c) { return i / (pixels * c) * c + i % c; }

template <class T>
EFF_DEVICE void channel_scale(const PerChannelArgs& a) {
  const T* src = static_cast<const T*>(a.src);
  T* dst = static_cast<T*>(a.dst);
  for (int64_t i = global_id(); i < a.count; i += global_threads())
    dst[i] = from_float<T>(to_float(src[i]) * a.channel[image_channel(i, a.pixels, a.c)]);
}

template <class T>
EFF_DEVICE void spread_channels(const PerChannelArgs& a) {
  T* dst = static_cast<T*>(a.dst);
  for (int64_t i = global_id(); i < a.count; i += global_threads())
    dst[i] = from_float<T>(a.channel[image_channel(i, a.pixels, a.c)] * a.factor);
}

template <class T>
EFF_DEVICE void drop_elements(const DropElementsArgs& a) {
  const T* src = static_cast<const T*>(a.src);
  T* dst = static_cast<T*>(a.dst);
  for (int64_t i = global_id(); i < a.count; i += global_threads())
    dst[i] = from_float<T>(to_float(src[i]) * drop_factor(a.drop, i / a.group));
}

EFF_KERNEL_OF_TYPES(input_normalize, NormalizeArgs, kElementwiseThreads)
EFF_KERNEL_OF_TYPES(activation, ElementwiseArgs, kElementwiseThreads)
EFF_KERNEL_OF_TYPES(activation_bwd, ElementwiseArgs, kElementwiseThreads)
EFF_KERNEL_OF_TYPES(add, ElementwiseArgs, kElementwiseThreads)
EFF_KERNEL_OF_TYPES(fill, FillArgs, kElementwiseThreads)
EFF_KERNEL(fill_i32, FillArgs, kElementwiseThreads) { fill_with(a, static_cast<int32_t>(a.value)); }
EFF_KERNEL(fill_u8, FillArgs, kElementwiseThreads) { fill_with(a, static_cast<uint8_t>(a.value)); }
EFF_KERNEL_OF_TYPES(channel_scale, PerChannelArgs, kElementwiseThreads)
EFF_KERNEL_OF_TYPES(spread_channels, PerChannelArgs, kElementwiseThreads)
EFF_KERNEL_OF_TYPES(drop_elements, DropElementsArgs, kElementwiseThreads)

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
