// The 16-bit copy of an arena of weights that matrix products read; gradients that are 16 bits wide on their way.
#include "cuda/kernels/weights.h"

#include "cuda/device/vector.h"

namespace effnet::cuda {

template <class T>
EFF_DEVICE void cast_weights(const CastWeightsArgs& a) {
  T* dst = static_cast<T*>(a.dst);
  const int64_t vectors = a.count / kCastVector;
  for (int64_t i = global_id(); i < vectors; i += global_threads()) {
    float v[kCastVector];
    load_floats(a.src + i * kCastVector, v);
    store_vec(dst + i * kCastVector, v);
  }
  for (int64_t i = vectors * kCastVector + global_id(); i < a.count; i += global_threads())
    dst[i] = from_float<T>(a.src[i]);
}

template <class T>
EFF_DEVICE void widen_weights(const WidenWeightsArgs& a) {
  const T* src = static_cast<const T*>(a.src);
  const int64_t vectors = a.count / kCastVector;
  for (int64_t i = global_id(); i < vectors; i += global_threads()) {
    float v[kCastVector];
    load_vec(src + i * kCastVector, v);
    store_floats(a.dst + i * kCastVector, v);
  }
  for (int64_t i = vectors * kCastVector + global_id(); i < a.count; i += global_threads()) a.dst[i] = to_float(src[i]);
}

EFF_KERNEL(cast_weights_bf16, CastWeightsArgs, kCastThreads) { cast_weights<Bf16>(a); }
EFF_KERNEL(cast_weights_f16, CastWeightsArgs, kCastThreads) { cast_weights<F16>(a); }

EFF_KERNEL(widen_weights_bf16, WidenWeightsArgs, kCastThreads) { widen_weights<Bf16>(a); }
EFF_KERNEL(widen_weights_f16, WidenWeightsArgs, kCastThreads) { widen_weights<F16>(a); }

}  // namespace effnet::cuda
