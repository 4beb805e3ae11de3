// 16 bytes of a tensor in one access: 8 values of 16 bits or 4 of FP32, computed with as floats.
#pragma once

#include "cuda/device/device.h"

namespace effnet::cuda {

// What lies on 16 bytes of T.
template <class T>
inline constexpr int kVec = 16 / static_cast<int>(sizeof(T));

struct alignas(16) Bits128 {
  uint32_t word[4];
};
struct alignas(8) Bits64 {
  uint32_t word[2];
};

// One access to global memory each; `p` is aligned to it. In PTX, since the compiler may split a store of four words
// where there are branches around it.
EFF_DEVICE Bits128 load_bits(const Bits128* p) { return *p; }
EFF_DEVICE Bits64 load_bits(const Bits64* p) { return *p; }
EFF_DEVICE void store_bits(Bits128* p, const Bits128& bits) {
#ifdef __CUDACC__
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "r"(bits.word[0]),
               "r"(bits.word[1]), "r"(bits.word[2]), "r"(bits.word[3])
               : "memory");
#else
  *p = bits;
#endif
}
EFF_DEVICE void store_bits(Bits64* p, const Bits64& bits) {
#ifdef __CUDACC__
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "r"(bits.word[0]),
               "r"(bits.word[1])
               : "memory");
#else
  *p = bits;
#endif
}

// Both 16-bit values of a word, the lower address first.
template <class T>
EFF_DEVICE void unpack(uint32_t word, float& first, float& second) {
  first = to_float(T{static_cast<uint16_t>(word & 0xffff)});
  second = to_float(T{static_cast<uint16_t>(word >> 16)});
}
template <>
EFF_DEVICE void unpack<Bf16>(uint32_t word, float& first, float& second) {
  first = bits_to_float(word << 16);
  second = bits_to_float(word & 0xffff0000u);
}
template <class T>
EFF_DEVICE uint32_t pack(float first, float second) {
  return static_cast<uint32_t>(from_float<T>(first).bits) | static_cast<uint32_t>(from_float<T>(second).bits) << 16;
}

template <class T>
EFF_DEVICE void unpack(const Bits128& bits, float (&v)[kVec<T>]) {
  if constexpr (sizeof(T) == 4) {
    EFF_UNROLL
    for (int i = 0; i < 4; ++i) v[i] = bits_to_float(bits.word[i]);
  } else {
    EFF_UNROLL
    for (int i = 0; i < 4; ++i) unpack<T>(bits.word[i], v[2 * i], v[2 * i + 1]);
  }
}
template <class T>
EFF_DEVICE Bits128 pack(const float (&v)[kVec<T>]) {
  Bits128 bits;
  EFF_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4)
      bits.word[i] = float_to_bits(v[i]);
    else
      bits.word[i] = pack<T>(v[2 * i], v[2 * i + 1]);
  }
  return bits;
}

// `p`: 16-byte aligned; stores to global memory only.
template <class T>
EFF_DEVICE void load_vec(const T* p, float (&v)[kVec<T>]) {
  unpack<T>(load_bits(reinterpret_cast<const Bits128*>(p)), v);
}
template <class T>
EFF_DEVICE void store_vec(T* p, const float (&v)[kVec<T>]) {
  store_bits(reinterpret_cast<Bits128*>(p), pack<T>(v));
}
// N floats (a multiple of 4), 16-byte aligned; of global or shared memory.
template <int N>
EFF_DEVICE void load_floats(const float* p, float (&v)[N]) {
  static_assert(N % 4 == 0);
  EFF_UNROLL
  for (int i = 0; i < N; i += 4) {
    const Bits128 bits = load_bits(reinterpret_cast<const Bits128*>(p + i));
    EFF_UNROLL
    for (int j = 0; j < 4; ++j) v[i + j] = bits_to_float(bits.word[j]);
  }
}
template <int N>
EFF_DEVICE void store_floats(float* p, const float (&v)[N]) {
  static_assert(N % 4 == 0);
  EFF_UNROLL
  for (int i = 0; i < N; i += 4) {
    Bits128 bits;
    EFF_UNROLL
    for (int j = 0; j < 4; ++j) bits.word[j] = float_to_bits(v[i + j]);
    *reinterpret_cast<Bits128*>(p + i) = bits;
  }
}

}  // namespace effnet::cuda
