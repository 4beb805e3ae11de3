// The instruction sets that the kernels under test may use, by the CPU and EFFNET_MAX_ISA (cpu/kernels/dispatch.h):
// found without asking the code under test.
#pragma once

#include <cstdlib>
#include <string_view>

namespace effnet::test {

inline std::string_view isa_limit() {
  const char* limit = std::getenv("EFFNET_MAX_ISA");
  return limit ? limit : "";
}

inline bool supports_avx3() {
  return isa_limit() != "avx2" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

// Products of bf16, and with them convolutions in it.
inline bool supports_bf16() { return supports_avx3() && isa_limit() != "avx3" && __builtin_cpu_supports("avx512bf16"); }

}  // namespace effnet::test
