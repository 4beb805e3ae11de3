// Vector helpers of the CPU kernels, compiled per target (Highway): loads and stores of f32 and bf16 as FP32 vectors,
// and the activations. Include inside the foreach_target scheme, after hwy/foreach_target.h:
//
//   #undef HWY_TARGET_INCLUDE
//   #define HWY_TARGET_INCLUDE "cpu/kernels/my_kernel.cc"
//   #include "cpu/kernels/dispatch.h"
//   #include "hwy/foreach_target.h"
//   #include "cpu/kernels/simd-inl.h"
//   HWY_BEFORE_NAMESPACE();
//   namespace effnet::cpu::HWY_NAMESPACE { ... }
//   HWY_AFTER_NAMESPACE();
//   #if HWY_ONCE
//   namespace effnet::cpu { HWY_EXPORT(f); ... EFF_DISPATCH(f)(args) ... }
//   #endif
//
// Relative errors against float64, measured over all of the range by simd_test: exp below 1.6e-7; sigmoid and silu
// below 5e-7 for |x| <= 16 and 2e-6 beyond. SiLU for results stored as bf16 (2^-9): below 2.5e-4, for two thirds of the
// instructions. NaN in gives NaN out everywhere.

#if defined(EFFNET_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef EFFNET_SIMD_INL_H_
#undef EFFNET_SIMD_INL_H_
#else
#define EFFNET_SIMD_INL_H_
#endif

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/math.h"
#include "cpu/kernels/bf16.h"
#include "cpu/kernels/dispatch.h"
#include "hwy/highway.h"
#include "plan/format.h"

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using I32 = hn::RebindToSigned<F32>;
using U32 = hn::RebindToUnsigned<F32>;
using U16 = hn::Rebind<uint16_t, F32>;
using Vec = hn::Vec<F32>;
inline constexpr size_t kLanes = HWY_MAX_BYTES / sizeof(float);
using HalfF32 = hn::Half<F32>;
using HalfVec = hn::Vec<HalfF32>;

// Twice the registers of AVX2, and vectors that are whole cache lines.
inline constexpr bool kAvx512 = HWY_TARGET == HWY_AVX3;
template <class T>
inline constexpr bool kWholeLines = std::is_same_v<T, float>&& kAvx512;

// Filled up to whole vectors.
HWY_INLINE constexpr int64_t whole_vectors(int64_t channels) {
  return round_up(channels, static_cast<int64_t>(kLanes));
}

HWY_INLINE Vec zero() { return hn::Zero(F32()); }
HWY_INLINE Vec splat(float v) { return hn::Set(F32(), v); }

// ---- loads and stores; no alignment needed ----------------------------------------------------------------------

HWY_INLINE Vec load(const float* HWY_RESTRICT p) { return hn::LoadU(F32(), p); }

HWY_INLINE Vec widen_bf16(hn::Vec<U16> v) { return hn::BitCast(F32(), hn::ShiftLeft<16>(hn::PromoteTo(U32(), v))); }

HWY_INLINE Vec load(const BFloat16* HWY_RESTRICT p) {
  return widen_bf16(hn::LoadU(U16(), reinterpret_cast<const uint16_t*>(p)));
}

// Round to nearest even in integers, as in to_bf16(): exact, and the same on every target. The result is in the low
// halves of the lanes.
HWY_INLINE hn::Vec<U32> round_bf16_bits(Vec v) {
  const U32 du;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fff))));
  // Adding to a NaN could carry it into infinity or zero.
  const auto quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(du, 0x40));
  return hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), quiet, rounded);
}

HWY_INLINE hn::Vec<U16> narrow_bf16(Vec v) {
#if HWY_TARGET == HWY_AVX3
  if (kHasBf16Convert) {
    __m256i narrow;  // as assembly: the target is AVX-512 without BF16, the instruction is guarded by its own flag
    asm("vcvtneps2bf16 %1, %0" : "=v"(narrow) : "v"(v.raw));
    return hn::Vec<U16>{narrow};
  }
  return hn::Vec<U16>{_mm512_cvtepi32_epi16(round_bf16_bits(v).raw)};
#else
  return hn::TruncateTo(U16(), round_bf16_bits(v));
#endif
}

HWY_INLINE void store(Vec v, float* HWY_RESTRICT p) { hn::StoreU(v, F32(), p); }
HWY_INLINE void store(Vec v, BFloat16* HWY_RESTRICT p) {
  hn::StoreU(narrow_bf16(v), U16(), reinterpret_cast<uint16_t*>(p));
}

// The first n lanes (1 <= n <= kLanes); the others are 0 and their memory is not touched.
HWY_INLINE Vec load_n(const float* HWY_RESTRICT p, size_t n) { return hn::MaskedLoad(hn::FirstN(F32(), n), F32(), p); }

HWY_INLINE Vec load_n(const BFloat16* HWY_RESTRICT p, size_t n) {
#if HWY_TARGET == HWY_AVX3
  return widen_bf16(hn::Vec<U16>{_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p)});
#else
  alignas(16) uint16_t lanes[kLanes] = {};
  std::memcpy(lanes, p, n * sizeof(uint16_t));
  return widen_bf16(hn::Load(U16(), lanes));
#endif
}

// Writes the first n lanes and nothing else.
HWY_INLINE void store_n(Vec v, float* HWY_RESTRICT p, size_t n) { hn::BlendedStore(v, hn::FirstN(F32(), n), F32(), p); }

HWY_INLINE void store_n(Vec v, BFloat16* HWY_RESTRICT p, size_t n) {
#if HWY_TARGET == HWY_AVX3
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), narrow_bf16(v).raw);
#else
  alignas(16) uint16_t lanes[kLanes];
  hn::Store(narrow_bf16(v), U16(), lanes);
  std::memcpy(p, lanes, n * sizeof(uint16_t));
#endif
}

// What a load would give after a store as T.
template <class T>
HWY_INLINE Vec round_to(Vec v) {
  if constexpr (std::is_same_v<T, BFloat16>) {
#if HWY_TARGET == HWY_AVX3
    if (kHasBf16Convert) return widen_bf16(narrow_bf16(v));
#endif
    return hn::BitCast(F32(), hn::ShiftLeft<16>(round_bf16_bits(v)));
  } else {
    return v;
  }
}

// ---- exponential and sigmoid ------------------------------------------------------------------------------------

// p * 2^n for integral n within [-126, 127].
HWY_INLINE Vec scale_by_power(Vec p, Vec n) {
#if HWY_TARGET == HWY_AVX3
  return Vec{_mm512_scalef_ps(p.raw, n.raw)};
#else
  const I32 di;
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  return hn::Mul(p, hn::BitCast(F32(), exponent));
#endif
}

// e^x for |x| <= 87; callers clamp. x*log2(e) is split into an integer and a rest in [-1/2, 1/2], kept exact by two
// fused multiply-adds; 2^rest is a degree-6 polynomial (minimax of the relative error, 2e-9) with p(0) = 1 exactly.
HWY_INLINE Vec exp_in_range(Vec x) {
  const Vec n = hn::Round(hn::Mul(x, splat(1.4426950216293335f)));
  Vec r = hn::MulSub(x, splat(1.4426950216293335f), n);
  r = hn::MulAdd(x, splat(1.92596298909109e-08f), r);
  Vec p = splat(0.00015353356138803065f);
  p = hn::MulAdd(p, r, splat(0.0013398876180872321f));
  p = hn::MulAdd(p, r, splat(0.009618437848985195f));
  p = hn::MulAdd(p, r, splat(0.055503323674201965f));
  p = hn::MulAdd(p, r, splat(0.24022647738456726f));
  p = hn::MulAdd(p, r, splat(0.6931471824645996f));
  p = hn::MulAdd(p, r, splat(1.0f));
  return scale_by_power(p, n);
}

// e^x; x is clamped to [-87, 88], so the result never overflows or becomes subnormal.
HWY_INLINE Vec exp(Vec x) {
  // In this operand order a NaN in x passes through both.
  return exp_in_range(hn::Min(splat(88.0f), hn::Max(splat(-87.0f), x)));
}

// 1/y for y in [1, 1e38].
HWY_INLINE Vec reciprocal(Vec y) {
#if HWY_TARGET == HWY_AVX3
  const Vec estimate = Vec{_mm512_rcp14_ps(y.raw)};  // 14 bits; one Newton step gives 27
  const Vec rest = hn::NegMulAdd(y, estimate, splat(1.0f));
  return hn::MulAdd(estimate, rest, estimate);
#else
  return hn::Div(splat(1.0f), y);  // the 12-bit estimate and one step would be 3 times less exact
#endif
}

#if HWY_TARGET == HWY_AVX3
// scale * 2^(k/32) for k < 32, as bits less k << 18: the place where adding (32n + k) << 18 puts k beside the exponent.
struct Exp2Table {
  alignas(64) uint32_t bits[32];
  explicit constexpr Exp2Table(double scale) : bits{} {
    double power = scale;
    for (uint32_t k = 0; k < 32; ++k, power *= 1.0218971486541166782344801347833)
      bits[k] = std::bit_cast<uint32_t>(static_cast<float>(power)) - (k << 18);
  }
};
// 2^r for |r| <= 1/64 is 4c * ((r/2 + b)^2 + d) to 6e-8 and, coarsely, (r/2 + b) / b to 9e-5; 4c and 1 / b are the
// tables' scales. The b's have few bits, so that b - n/2 below is exact; the coarse one's is a multiple of 1/64, so
// that it is one subtraction.
inline constexpr float kExp2Shift = 0.72134781f, kExp2Rest = 0.52032713f, kCoarseExp2Shift = 46.0f / 64;
static_assert(kExp2Shift * (1 << 18) == static_cast<int>(kExp2Shift * (1 << 18)));
inline constexpr Exp2Table kExp2Table{4 * 0.2402299}, kCoarseExp2Table{64.0 / 46};
#endif

// e^-x for the sigmoid as a product of two factors, x clamped to [-87, 87]. T = BFloat16: what a result of 8 bits needs
// (relative error 1.5e-4). Else 1.3e-7, and one word of log2(e), which costs |x| * 2e-8 of relative error.
struct ExpFactors {
  Vec power, rest;
};
// keeps_nan: else a NaN may become a number, where the caller's product with x makes it one again.
template <class T, bool keeps_nan>
HWY_INLINE ExpFactors exp_of_negative(Vec x) {
  constexpr bool coarse = std::is_same_v<T, BFloat16>;
#if HWY_TARGET == HWY_AVX3
  // 2^(n + r), n in 32nds: a table by the fraction of n, so that |r| <= 1/64. Halves are added to 1.5 * 2^23 / 64,
  // which rounds n to 32nds and leaves 32n in the low bits. What counts here is the number of instructions, whichever
  // they are.
  Vec clamped;
  if constexpr (keeps_nan) {
    clamped = hn::Min(splat(87.0f), hn::Max(splat(-87.0f), x));
  } else {
    clamped = Vec{_mm512_range_ps(x.raw, splat(87.0f).raw, 2)};  // the smaller magnitude, with the sign of x
  }
  constexpr float kMagic = 196608.0f;
  const Vec half_log2e = splat(-1.4426950216293335f / 2);
  const Vec shifted = hn::MulAdd(clamped, half_log2e, splat(kMagic));
  const Vec shift = coarse ? hn::Sub(splat(kMagic + kCoarseExp2Shift), shifted)
                           : hn::Sub(splat(kExp2Shift), hn::Sub(shifted, splat(kMagic)));
  const Vec sum = hn::MulAdd(clamped, half_log2e, shift);  // r/2 + b
  const __m512i index = _mm512_castps_si512(shifted.raw);
  const uint32_t* table = coarse ? kCoarseExp2Table.bits : kExp2Table.bits;
  const __m512i entry = _mm512_permutex2var_epi32(_mm512_load_si512(table), index, _mm512_load_si512(table + 16));
  const Vec power{_mm512_castsi512_ps(_mm512_add_epi32(entry, _mm512_slli_epi32(index, 18)))};
  if constexpr (coarse) return {power, sum};
  return {power, hn::MulAdd(sum, sum, splat(kExp2Rest))};
#else
  const Vec clamped = hn::Min(splat(87.0f), hn::Max(splat(-87.0f), x));
  const Vec n = hn::Round(hn::Mul(clamped, splat(-1.4426950216293335f)));
  const Vec r = hn::MulSub(clamped, splat(-1.4426950216293335f), n);
  Vec p;
  if constexpr (coarse) {
    p = hn::MulAdd(splat(0.05500892177224159f), r, splat(0.2422109842300415f));
    p = hn::MulAdd(p, r, splat(0.6932829022407532f));
  } else {
    p = hn::MulAdd(splat(0.001326472614891827f), r, splat(0.009671512991189957f));
    p = hn::MulAdd(p, r, splat(0.05550733581185341f));
    p = hn::MulAdd(p, r, splat(0.24022242426872253f));
    p = hn::MulAdd(p, r, splat(0.6931470036506653f));
  }
  return {scale_by_power(splat(1.0f), n), hn::MulAdd(p, r, splat(1.0f))};
#endif
}

// s = 1/(1+e^-x) and its complement 1 - s, each to its own last bits (1 - s computed from s would have cancelled where
// s is near 1). Below x = -87 s stays at 1.6e-38, above 87 the complement does.
template <class T = float, bool keeps_nan = true>
HWY_INLINE void sigmoid_and_complement(Vec x, Vec& s, Vec& complement) {
  const ExpFactors e = exp_of_negative<T, keeps_nan>(x);
  const Vec y = hn::MulAdd(e.power, e.rest, splat(1.0f));
  // AVX-512's estimate has 14 bits, AVX2's only 12.
  if constexpr (std::is_same_v<T, BFloat16> && HWY_TARGET == HWY_AVX3) {
    s = hn::ApproximateReciprocal(y);
  } else {
    s = reciprocal(y);
  }
  complement = hn::Mul(hn::Mul(e.power, e.rest), s);
}

HWY_INLINE Vec sigmoid(Vec x) {
  Vec s, complement;
  sigmoid_and_complement(x, s, complement);
  return s;
}

template <class T = float>
HWY_INLINE Vec silu(Vec x) {
  Vec s, complement;
  sigmoid_and_complement<T, false>(x, s, complement);
  return hn::Mul(x, s);
}

// ---- activations ------------------------------------------------------------------------------------------------

// T: what the result will be stored as; BFloat16 allows a shorter approximation of SiLU.
template <plan::Act act, class T = float>
HWY_INLINE Vec activate(Vec x) {
  if constexpr (act == plan::Act::silu) return silu<T>(x);
  if constexpr (act == plan::Act::sigmoid) return sigmoid(x);
  if constexpr (act == plan::Act::relu) return hn::Max(zero(), x);
  if constexpr (act == plan::Act::relu6) return hn::Min(splat(6.0f), hn::Max(zero(), x));
  return x;
}

// act(x) and d act(x) / dx from one sigmoid. ReLU's derivative is 0 at 0, ReLU6's also at 6, as in PyTorch.
template <plan::Act act, class T = float>
HWY_INLINE void activate_both(Vec x, Vec& value, Vec& grad) {
  const Vec one = splat(1.0f);
  if constexpr (act == plan::Act::silu) {
    Vec s, complement;
    sigmoid_and_complement<T, false>(x, s, complement);
    value = hn::Mul(x, s);
    grad = hn::MulAdd(value, complement, s);
  } else if constexpr (act == plan::Act::sigmoid) {
    Vec complement;
    sigmoid_and_complement(x, value, complement);
    grad = hn::Mul(value, complement);
  } else {
    value = activate<act>(x);
    grad = one;
    if constexpr (act == plan::Act::relu) grad = hn::IfThenElseZero(hn::Gt(x, zero()), one);
    if constexpr (act == plan::Act::relu6) {
      grad = hn::IfThenElseZero(hn::And(hn::Gt(x, zero()), hn::Lt(x, splat(6.0f))), one);
    }
  }
}

template <plan::Act act, class T = float>
HWY_INLINE Vec activate_grad(Vec x) {
  Vec value, grad;
  activate_both<act, T>(x, value, grad);
  return grad;
}

// Calls f(std::integral_constant<plan::Act, act>): one branch outside the loops instead of one inside.
template <class F>
HWY_INLINE decltype(auto) with_act(plan::Act act, F&& f) {
  switch (act) {
    case plan::Act::silu:
      return f(std::integral_constant<plan::Act, plan::Act::silu>());
    case plan::Act::relu:
      return f(std::integral_constant<plan::Act, plan::Act::relu>());
    case plan::Act::relu6:
      return f(std::integral_constant<plan::Act, plan::Act::relu6>());
    case plan::Act::sigmoid:
      return f(std::integral_constant<plan::Act, plan::Act::sigmoid>());
    case plan::Act::identity:
      break;
  }
  return f(std::integral_constant<plan::Act, plan::Act::identity>());
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
