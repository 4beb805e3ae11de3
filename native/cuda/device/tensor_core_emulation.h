// Stand-ins for the instructions of tensor_core.h on the CPU.
#pragma once

#include "cuda/device/emulation.h"

// Internal to the emulation, and hot: what a kernel does wrong shows at its own accesses.
#define EFF_UNINSTRUMENTED __attribute__((no_sanitize("address", "thread", "undefined")))

namespace effnet::cuda::emulation {

struct MmaOperands {
  uint32_t a[4], b[2];
  float d[4];
};

template <class T>
EFF_UNINSTRUMENTED float element(uint32_t word, int half) {
  if constexpr (sizeof(T) == 4) {
    word &= 0xffffe000u;  // the unit does not look at what TF32 has no room for
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  } else {
    const auto bits = static_cast<uint16_t>(word >> (16 * half));
    if constexpr (T::kIsBf16) {
      const uint32_t wide = uint32_t{bits} << 16;
      float value;
      std::memcpy(&value, &wide, 4);
      return value;
    } else {
      _Float16 value;
      std::memcpy(&value, &bits, 2);
      return static_cast<float>(value);
    }
  }
}

// The whole product, from and into the slots of all lanes.
template <class T>
EFF_UNINSTRUMENTED void multiply_tile(Warp& w, int generation) {
  constexpr int kPerWord = 4 / static_cast<int>(sizeof(T)), kDepth = 8 * kPerWord;
  float a[16][kDepth], b[kDepth][8];
  MmaOperands* of[32];
  for (int lane = 0; lane < 32; ++lane) {
    of[lane] = reinterpret_cast<MmaOperands*>(w.slot[generation][lane]);
    const int g = lane / 4, q = lane % 4;
    for (int i = 0; i < kPerWord; ++i) {
      for (int r = 0; r < 4; ++r)
        a[g + r % 2 * 8][q * kPerWord + i + r / 2 * kDepth / 2] = element<T>(of[lane]->a[r], i);
      for (int r = 0; r < 2; ++r) b[q * kPerWord + i + r * kDepth / 2][g] = element<T>(of[lane]->b[r], i);
    }
  }
  float d[16][8] = {};
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < kDepth; ++k)
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
  for (int lane = 0; lane < 32; ++lane)
    for (int r = 0; r < 4; ++r) of[lane]->d[r] += d[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2];
}

template <class T>
EFF_UNINSTRUMENTED void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int line) {
  Hidden hidden;
  auto& operands = slot<MmaOperands>(warp().generation, lane());
  std::memcpy(operands.a, a, sizeof a);
  std::memcpy(operands.b, b, sizeof b);
  std::memcpy(operands.d, d, sizeof d);
  const int generation = sync_warp(~0u, line, multiply_tile<T>);
  std::memcpy(d, slot<MmaOperands>(generation, lane()).d, sizeof d);
}

inline uint32_t to_tf32(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;  // infinity and NaN
  return (bits + 0x1000u) & 0xffffe000u;
}

inline void load_matrices(uint32_t (&r)[4], const void* row, bool transposed, int line) {
  const char* rows[4];
  int generation;
  {
    Hidden hidden;
    if (reinterpret_cast<uintptr_t>(row) % 16) fail("ldmatrix address is not aligned");
    slot<const void*>(warp().generation, lane()) = row;
    generation = sync_warp(~0u, line);
  }
  const unsigned g = lane() / 4, q = lane() % 4;
  for (unsigned i = 0; i < 4; ++i) {
    if (!transposed) {
      {
        Hidden hidden;
        rows[i] = slot<const char*>(generation, i * 8 + g);
      }
      std::memcpy(&r[i], rows[i] + 4 * q, 4);
      continue;
    }
    uint16_t element[2];
    for (unsigned j = 0; j < 2; ++j) {
      {
        Hidden hidden;
        rows[i] = slot<const char*>(generation, i * 8 + 2 * q + j);
      }
      std::memcpy(&element[j], rows[i] + 2 * g, 2);
    }
    r[i] = element[0] | uint32_t{element[1]} << 16;
  }
}

inline void perform(const Copy& copy) {
  if (copy.valid)
    std::memcpy(copy.to, copy.from, copy.bytes);
  else
    std::memset(copy.to, 0, copy.bytes);
}

inline void copy_async(void* to, const void* from, size_t bytes, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes)
    fail("cp.async address is not aligned");
#if defined(__SANITIZE_ADDRESS__)
  if (__asan_region_is_poisoned(to, bytes)) fail("cp.async writes outside its shared array");
  if (valid && __asan_region_is_poisoned(const_cast<void*>(from), bytes)) fail("cp.async reads outside its tensor");
#endif
  Copy copy{to, from, bytes, valid, false};
  if (machine().schedule & 1) {
    perform(copy);
    copy.valid = false;
    copy.bytes = 0;
  }
  Hidden hidden;
  machine().current->copies.push_back(copy);
}

inline void copies_commit() {
  Hidden hidden;
  machine().current->copies.push_back({nullptr, nullptr, 0, false, true});
}

// Performs what is pending but for the newest `pending` groups.
inline void copies_wait(size_t pending) {
  auto& copies = machine().current->copies;
  size_t groups = 0, done = 0, landed = 0;
  {
    Hidden hidden;
    for (const Copy& copy : copies) groups += copy.ends_group;
  }
  for (; done < copies.size() && landed + pending < groups; ++done) {
    if (copies[done].ends_group)
      ++landed;
    else
      perform(copies[done]);
  }
  Hidden hidden;
  copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace effnet::cuda::emulation
