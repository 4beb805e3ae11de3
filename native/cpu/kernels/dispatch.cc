#include "cpu/kernels/dispatch.h"

#include <cpuid.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "hwy/highway.h"

namespace effnet::cpu {
namespace {

struct Choice {
  const char* isa = "avx2";
  bool bf16_convert = false;
  bool unsupported = false;
  char reason[256] = {};
};

// Clang 16 does not know it by name; with AVX2 there, the system saves the registers that it takes.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

const char* missing_feature() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2")) return "AVX2";
  if (!__builtin_cpu_supports("fma")) return "FMA";
  if (!__builtin_cpu_supports("bmi2")) return "BMI2";
  if (!has_f16c()) return "F16C";
  return nullptr;
}

Choice choose() {
  Choice choice;
  if (const char* feature = missing_feature()) {
    choice.unsupported = true;
    std::snprintf(
        choice.reason, sizeof choice.reason,
        "This CPU lacks %s; the CPU backend needs AVX2 with FMA, BMI2 and F16C (Intel Haswell, AMD Zen, or later).",
        feature);
    return choice;
  }
  const char* text = std::getenv("EFFNET_MAX_ISA");
  const std::string_view limit = text ? text : "";
  if (limit == "avx2") {
    hwy::DisableTargets(HWY_AVX3);
  } else if (!limit.empty() && limit != "avx3" && limit != "avx3_bf16") {
    choice.unsupported = true;
    std::snprintf(
        choice.reason, sizeof choice.reason,
        "EFFNET_MAX_ISA is \"%.40s\", which names no instruction set; use avx2, avx3 or avx3_bf16, or unset it.", text);
    return choice;
  }
  // Highway 1.0.3: SupportedTargets() makes the unlimited set the choice as a side effect, so Update must come last.
  const int64_t targets = hwy::SupportedTargets();
  hwy::GetChosenTarget().Update(targets);
  if (targets & HWY_AVX3) {
    choice.isa = "avx3";
    choice.bf16_convert = limit != "avx3" && __builtin_cpu_supports("avx512bf16");
  }
  return choice;
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

}  // namespace

const bool kHasBf16Convert = choice().bf16_convert;

const char* unsupported_cpu_reason() { return choice().unsupported ? choice().reason : nullptr; }
void init_dispatch() { choice(); }
const char* isa_name() { return choice().isa; }

}  // namespace effnet::cpu
