// Arguments of reference.cu: what ops are by definition, in double precision and a thread a result, for shapes that a
// host would take minutes for. Images are NHWC, dense weights OHWI, depthwise ones HWC.
#pragma once

#include <cstdint>

namespace effnet::test {

// f64 last; the others as plan::DType's of the same name.
enum class RefType : int32_t { f32, bf16, f16, f64 };

// A tensor as a reference reads it: rounded to another type first, where that has fewer bits. No data: absent.
struct RefTensor {
  const void* data = nullptr;
  RefType type = RefType::f64, rounding = RefType::f64;
};

// A sum and how far one in FP32 may be from it.
struct RefTerms {
  double sum;
  double size;     // of the terms, their absolute values added up
  double squares;  // of how far each term may be off, added up
};

// Numbers of a seed, as they are stored: the element's position counts in all 64 bits.
struct RefFillArgs {
  void* data;
  RefType type;
  int64_t count;
  uint64_t seed;
  double mean, spread;  // evenly from mean - spread to mean + spread
};

// A BN's vectors: z = (x - mean) * inv_std * scale + shift.
struct RefNorm {
  RefTensor mean, inv_std, scale, shift;
};

// dst = kept * act(bn(src)) * gate + residual, what is absent left out; rounded.
struct RefActivateArgs {
  RefTensor src;
  RefNorm norm;
  RefTensor gate, kept, residual;  // gate by image and channel; kept by image
  int32_t act;                     // plan::Act
  RefType rounding;
  bool fast;                       // the sigmoid is of one tanh_fast (activation.cuh)
  int64_t count, channels, image;  // image: elements of one
  double* dst;
  double* off;  // how far that may be off before the rounding and by it, if something has been done to src
};

// The gradient of what a BN normalises, x, from that of what follows it:
//   g = (diff_dst * kept * gate + diff_pooled / pixels) * act'(bn(x))
//   dst = scale * inv_std * (g - (diff_shift + hat(x) * diff_scale) / rows), without diff_scale scale * inv_std * g
// or, as `plain`, dst = g.
struct RefBehindArgs {
  RefTensor diff_dst, x;
  RefNorm norm;
  RefTensor diff_scale, diff_shift, gate, diff_pooled, kept;
  int32_t act;
  RefType rounding;
  bool fast, plain;
  int64_t count, channels, image;
  double* dst;
  double* off;
};

struct RefConvArgs {
  RefTensor src, weights, diff_dst;  // two of them, by direction
  RefTensor off_src, off_diff_dst;   // how far each may be off
  double relative_off;               // and what all are by a share of themselves
  int64_t n, h, w, ic, oh, ow, oc, k, stride, top, left;
  int32_t depthwise;  // oc is ic
  int64_t slices;     // of a sum over pixels, one behind the other in dst
  RefTerms* dst;
};

// Adds up slices: dst[i] = sum of src[slice * count + i].
struct RefAddArgs {
  const RefTerms* src;
  int64_t count, slices;
  RefTerms* dst;
};

// dst = act(dst + bias) + residual, or with the BN of x, dst * act'(bn(x)).
struct RefFinishArgs {
  RefTerms* dst;
  RefTensor bias, residual, x;
  RefNorm norm;
  int32_t act;
  bool fast;
  int64_t count, channels;
};

// A value that is made of others with some slack, as a sum of one term.
struct RefTermsArgs {
  const double *value, *off;
  int64_t count;
  RefTerms* dst;
};

// What is summed: v, times something of x with its BN; `apart` is the square of x - mean.
enum class RefTerm : int32_t { v, v_hat, v_act, v_slope, slope, v_slope_hat, slope_hat, apart };

// dst [slices, groups, channels]: sums over the pixels of an image, or with one group of all. Slice s has every
// slices-th row of a group from s on.
struct RefSumArgs {
  RefTensor v, off_v, x;
  RefNorm norm;
  RefTerm term;
  int32_t act;
  bool fast;
  int64_t groups, rows, channels, slices;  // rows of a group
  double factor;
  RefTerms* dst;
};

// For each `chunk` results, the largest |got - want| as a share of
//   size_share * size + 6 * sqrt(squares) + want_share * |want| + least
// and which result that is; a NaN is infinitely far off.
struct RefCompareArgs {
  RefTensor got;
  const RefTerms* want;
  int64_t count, chunk;
  double size_share, want_share, least;
  double* worst;
  int64_t* at;
};

}  // namespace effnet::test
