// The gradient of what batch normalisation normalises, for a few rows: bn_act_bwd_apply as a prologue of another
// kernel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels/drop.h"
#include "plan/format.h"

namespace effnet::cpu {

struct BnGradRowsArgs {
  const float *diff_dst, *src;  // [rows][channels]
  float* diff_src;              // of row_begin and those behind it
  int64_t channels, row_begin, row_end;
  int64_t image_rows, total_rows;
  plan::Act act;
  Drop drop;
  const StepScalars* scalars;
  const float *mean, *inv_std, *scale;
  const float* shift;                    // where the activation needs it
  const float *diff_scale, *diff_shift;  // null without batch statistics
  float* coefs;                          // bn_grad_coef_floats(), 64-byte aligned
};

size_t bn_grad_coef_floats(int64_t channels);
// Makes the coefficients: once, before any rows.
void bn_grad_coefs(const BnGradRowsArgs& args);
void bn_grad_rows(const BnGradRowsArgs& args);

}  // namespace effnet::cpu
