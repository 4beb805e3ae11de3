// What a machine can do, measured: the yardstick of `effnet bench --profile` and of the laboratory.
#pragma once

namespace effnet {

// Per second, of all of the machine at once; 0 where it was not measured.
struct Peaks {
  double fp32_flops = 0;  // a multiply-add counts 2
  double bf16_flops = 0;  // of dot products summed in FP32; 0 where the CPU has neither AVX512_BF16 nor AMX
  double bytes = 0;       // read plus written by a copy far larger than the caches
};

}  // namespace effnet
