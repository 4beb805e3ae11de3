// The instruction sets of our own kernels and how one is chosen at run time.
//
// Kernels are compiled once for each target below (Highway's foreach_target); the best one that the CPU has is used.
// EFFNET_MAX_ISA lowers the choice for the whole process, oneDNN's too, so that tests run every one on one machine:
//   avx2        the lowest that we compile for
//   avx3        AVX-512, without its bf16 instructions
//   avx3_bf16   with them, without AMX
// Include this before any Highway header: it names the targets that are compiled.
#pragma once

#if defined(HIGHWAY_HWY_DETECT_TARGETS_H_)
#error "include cpu/kernels/dispatch.h before Highway"
#endif
// AVX2 (with FMA, BMI2, F16C) is the least we run on, so nothing below it is compiled and it is the static target.
#define HWY_BASELINE_TARGETS HWY_AVX2
#define HWY_DISABLED_TARGETS (~(HWY_AVX2 | HWY_AVX3))

namespace effnet::cpu {

// nullptr, or why our kernels cannot run in this process: a CPU below AVX2, or an EFFNET_MAX_ISA that is no target.
// Whoever creates a backend must ask first; the text is a full sentence that names the mend.
const char* unsupported_cpu_reason();

// Reads EFFNET_MAX_ISA on the first call and lowers Highway's choice. Every dispatch must come after it.
void init_dispatch();

// Whether AVX512_BF16 is used: bf16 results are rounded by its instruction, which also flushes subnormals to zero, and
// there are products of bf16.
extern const bool kHasBf16Convert;

// The chosen target, as it ends kernel names: "avx3" (AVX-512 F, BW, CD, DQ, VL) or "avx2".
const char* isa_name();

}  // namespace effnet::cpu

// The function of the chosen target; `function` has been through HWY_EXPORT.
#define EFF_DISPATCH(function) (::effnet::cpu::init_dispatch(), HWY_DYNAMIC_DISPATCH(function))
