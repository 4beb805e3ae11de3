// The only vocabulary of kernels: under nvcc thin words over CUDA, elsewhere the emulation of emulation.h. One source
// for both, so that what CI checks without a GPU is what runs on one.
//
// Rules for kernels
//   - EFF_KERNEL(name, Args, threads) { ... a.member ... }: one POD of arguments, `a`, by value; blocks of `threads` at
//     most. EFF_KERNEL_FITTING: with so few registers that `blocks` of them fit onto a multiprocessor.
//     EFF_MERGING_KERNEL: such a one that merges (merge.cuh) and whose `a` each thread would copy: it is read in place.
//   - Shared memory only by Shared::take, whose sum the launch declares; never __shared__.
//   - Warp operations by full warps; no early return before one or before a barrier, except of a whole block.
//   - Arithmetic in float and double; 16-bit types are for storage. No array of pointers indexed at run time.
//   - Every reduction has an order that follows from shapes alone.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define EFF_DEVICE __device__ __forceinline__
#define EFF_UNROLL _Pragma("unroll")
#define EFF_UNROLL_BY(n) EFF_PRAGMA(unroll n)
#define EFF_PRAGMA(text) _Pragma(#text)
#define EFF_KERNEL(name, Args, threads) extern "C" __global__ void __launch_bounds__(threads) name(const Args a)
#define EFF_KERNEL_FITTING(name, Args, threads, blocks) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const Args a)
#define EFF_MERGING_KERNEL(name, Args, threads, blocks) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Args a)
#define EFF_SYNC_BLOCK() __syncthreads()
#define EFF_SHUFFLE_XOR(value, mask) __shfl_xor_sync(~0u, value, mask)
#else
#include <cmath>

#include "cuda/device/emulation.h"
#define EFF_DEVICE inline
#define EFF_UNROLL
#define EFF_UNROLL_BY(n)
#define EFF_KERNEL(name, Args, threads)                                                                 \
  static_assert(sizeof(Args) <= effnet::cuda::emulation::kMostArgs);                                    \
  static void name(const Args a);                                                                       \
  static const effnet::cuda::emulation::Registration name##_registration(                               \
      #name, {[](const void* args) { name(*static_cast<const Args*>(args)); }, sizeof(Args), threads}); \
  static void name(const Args a)
#define EFF_KERNEL_FITTING(name, Args, threads, blocks) EFF_KERNEL(name, Args, threads)
#define EFF_MERGING_KERNEL(name, Args, threads, blocks) EFF_KERNEL(name, Args, threads)
#define EFF_SYNC_BLOCK() effnet::cuda::emulation::sync_block(__LINE__)
#define EFF_SHUFFLE_XOR(value, mask) \
  effnet::cuda::emulation::exchange(value, effnet::cuda::emulation::lane() ^ (mask), __LINE__)
#endif

// Instances of a kernel template `name<T>(a)` for the types that activations are stored in.
#define EFF_KERNEL_OF_TYPES(name, Args, threads)            \
  EFF_KERNEL(name##_f32, Args, threads) { name<float>(a); } \
  EFF_KERNEL(name##_bf16, Args, threads) { name<Bf16>(a); } \
  EFF_KERNEL(name##_f16, Args, threads) { name<F16>(a); }

namespace effnet::cuda {

// ---- where a thread is -------------------------------------------------------------------------------------------

#ifdef __CUDACC__
EFF_DEVICE uint32_t thread_id() { return threadIdx.x; }
EFF_DEVICE uint32_t block_threads() { return blockDim.x; }
EFF_DEVICE uint32_t block_x() { return blockIdx.x; }
EFF_DEVICE uint32_t block_y() { return blockIdx.y; }
EFF_DEVICE uint32_t block_z() { return blockIdx.z; }
EFF_DEVICE uint32_t grid_x() { return gridDim.x; }
EFF_DEVICE uint32_t grid_y() { return gridDim.y; }
#else
EFF_DEVICE uint32_t thread_id() { return emulation::machine().current->thread.x; }
EFF_DEVICE uint32_t block_threads() { return emulation::machine().block.x; }
EFF_DEVICE uint32_t block_x() { return emulation::machine().block_index.x; }
EFF_DEVICE uint32_t block_y() { return emulation::machine().block_index.y; }
EFF_DEVICE uint32_t block_z() { return emulation::machine().block_index.z; }
EFF_DEVICE uint32_t grid_x() { return emulation::machine().grid.x; }
EFF_DEVICE uint32_t grid_y() { return emulation::machine().grid.y; }
#endif
// Of all threads of a grid in x.
EFF_DEVICE int64_t global_id() { return static_cast<int64_t>(block_x()) * block_threads() + thread_id(); }
EFF_DEVICE int64_t global_threads() { return static_cast<int64_t>(grid_x()) * block_threads(); }

// ---- storage types -----------------------------------------------------------------------------------------------

struct Bf16 {
  static constexpr bool kIsBf16 = true;
  uint16_t bits;
};
struct F16 {
  static constexpr bool kIsBf16 = false;
  uint16_t bits;
};

EFF_DEVICE float bits_to_float(uint32_t bits) {
#ifdef __CUDACC__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
#endif
}
EFF_DEVICE uint32_t float_to_bits(float value) {
#ifdef __CUDACC__
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
#endif
}

EFF_DEVICE float to_float(float v) { return v; }
EFF_DEVICE float to_float(Bf16 v) { return bits_to_float(static_cast<uint32_t>(v.bits) << 16); }
EFF_DEVICE float to_float(F16 v) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(v.bits));
#else
  return static_cast<float>(*reinterpret_cast<const _Float16*>(&v.bits));
#endif
}

// Round to nearest, ties to even; a NaN stays one.
template <class T>
EFF_DEVICE T from_float(float v);
template <>
EFF_DEVICE float from_float<float>(float v) {
  return v;
}
template <>
EFF_DEVICE Bf16 from_float<Bf16>(float v) {
#ifdef __CUDACC__
  return {__bfloat16_as_ushort(__float2bfloat16_rn(v))};
#else
  const uint32_t bits = float_to_bits(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
#endif
}
template <>
EFF_DEVICE F16 from_float<F16>(float v) {
#ifdef __CUDACC__
  return {__half_as_ushort(__float2half_rn(v))};
#else
  const _Float16 half = static_cast<_Float16>(v);
  F16 result;
  std::memcpy(&result.bits, &half, 2);
  return result;
#endif
}
// What a load gives after a store as T.
template <class T>
EFF_DEVICE float round_to(float v) {
  return to_float(from_float<T>(v));
}

// ---- shared memory -----------------------------------------------------------------------------------------------

// Carves a block's shared memory: every thread makes the same calls in the same order.
class Shared {
 public:
  template <class T>
  EFF_DEVICE T* take(size_t count) {
#ifdef __CUDACC__
    extern __shared__ __align__(128) char eff_shared[];
    T* array = reinterpret_cast<T*>(eff_shared + taken_);
    taken_ += (count * sizeof(T) + 15) / 16 * 16;
    return array;
#else
    return reinterpret_cast<T*>(emulation::take_shared(count * sizeof(T), taken_, gaps_));
#endif
  }

 private:
  size_t taken_ = 0;
#ifndef __CUDACC__
  size_t gaps_ = 0;
#endif
};

// ---- arithmetic --------------------------------------------------------------------------------------------------

#ifdef __CUDACC__
EFF_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
EFF_DEVICE double fma(double a, double b, double c) { return __fma_rn(a, b, c); }
EFF_DEVICE float exp_of(float x) { return expf(x); }
EFF_DEVICE double log_of(double x) { return log(x); }
EFF_DEVICE float sqrt_of(float x) { return __fsqrt_rn(x); }
EFF_DEVICE double sqrt_of(double x) { return __dsqrt_rn(x); }
EFF_DEVICE double power(double x, double y) { return pow(x, y); }
EFF_DEVICE float max_of(float a, float b) { return fmaxf(a, b); }
EFF_DEVICE float min_of(float a, float b) { return fminf(a, b); }
#else
EFF_DEVICE float fma(float a, float b, float c) { return std::fma(a, b, c); }
EFF_DEVICE double fma(double a, double b, double c) { return std::fma(a, b, c); }
EFF_DEVICE float exp_of(float x) { return std::exp(x); }
EFF_DEVICE double log_of(double x) { return std::log(x); }
EFF_DEVICE float sqrt_of(float x) { return std::sqrt(x); }
EFF_DEVICE double sqrt_of(double x) { return std::sqrt(x); }
EFF_DEVICE double power(double x, double y) { return std::pow(x, y); }
EFF_DEVICE float max_of(float a, float b) { return std::fmax(a, b); }
EFF_DEVICE float min_of(float a, float b) { return std::fmin(a, b); }
#endif

// One instruction of the special-function unit; off by up to 2^-11 of the result on a GPU. The exact value elsewhere,
// or, where the emulation is told to (emulation.h), one as far off: tolerances must allow the device's error.
EFF_DEVICE float tanh_fast(float x) {
#if defined(__CUDACC__)
  float result;
  asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  if (!emulation::kTanhOfGpu) return std::tanh(x);
  const uint32_t bits = float_to_bits(x) * 2654435761u;
  return std::tanh(x) * (1.0f + (bits >> 31 ? 0x1p-11f : -0x1p-11f));
#endif
}
EFF_DEVICE bool is_nan(float x) { return x != x; }
EFF_DEVICE bool is_finite(float x) { return x - x == 0.0f; }
inline constexpr float kInfinity = __builtin_huge_valf(), kNan = __builtin_nanf("");

// A flag that several blocks may set to the same value.
EFF_DEVICE void store_relaxed(uint32_t* p, uint32_t value) {
#ifdef __CUDACC__
  atomicExch(p, value);
#else
  __atomic_store_n(p, value, __ATOMIC_RELAXED);
#endif
}

// What this thread, and those it met at a barrier before, wrote comes before what it writes and reads after, for the
// whole GPU.
EFF_DEVICE void fence_device() {
#ifdef __CUDACC__
  __threadfence();
#else
  emulation::fence();
#endif
}
// Adds 1; what was there before.
EFF_DEVICE uint32_t count_up(uint32_t* p) {
#ifdef __CUDACC__
  return atomicAdd(p, 1u);
#else
  return __atomic_fetch_add(p, 1u, __ATOMIC_RELAXED);
#endif
}
// What another block of the same launch wrote, behind a fence: never from this multiprocessor's own cache.
template <class T>
EFF_DEVICE T load_shared_by_blocks(const T* p) {
#ifdef __CUDACC__
  return __ldcg(p);
#else
  return *p;
#endif
}

// Of `blocks` blocks, whether this is the one that comes last: it sees what the others wrote before they called. The
// counter is 0 before and after. Called by all threads; `flag`: a word of shared memory.
EFF_DEVICE bool comes_last(uint32_t* counter, uint32_t blocks, uint32_t* flag) {
  EFF_SYNC_BLOCK();
  if (thread_id() == 0) {
    fence_device();
    const bool last = count_up(counter) + 1 == blocks;
    if (last) store_relaxed(counter, 0u);
    fence_device();
    *flag = last ? 1 : 0;
  }
  EFF_SYNC_BLOCK();
  return *flag != 0;
}

// Sum over the 32 lanes of a warp, the same in each; a fixed tree.
EFF_DEVICE float warp_sum(float v) {
  for (int mask = 16; mask > 0; mask /= 2) v += EFF_SHUFFLE_XOR(v, static_cast<unsigned>(mask));
  return v;
}
EFF_DEVICE double warp_sum(double v) {
  for (int mask = 16; mask > 0; mask /= 2) v += EFF_SHUFFLE_XOR(v, static_cast<unsigned>(mask));
  return v;
}

}  // namespace effnet::cuda
