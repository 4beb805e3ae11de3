// The vector helpers against float64 and the scalar bf16 conversion, on the target that is chosen in this process
// (EFFNET_MAX_ISA lowers it).
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/simd_test.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

size_t lanes() { return kLanes; }

// what: 0 exp, 1 sigmoid, 2 silu, 3 silu', 4 sigmoid', 5 relu, 6 relu6, 7 relu', 8 relu6'; for bf16 results: 9 silu, 10
// silu'
void apply(int what, const float* src, float* dst, size_t count) {
  using plan::Act;
  for (size_t i = 0; i < count; i += kLanes) {
    const Vec x = load(src + i);
    Vec y = x;
    switch (what) {
      case 0:
        y = exp(x);
        break;
      case 1:
        y = activate<Act::sigmoid>(x);
        break;
      case 2:
        y = activate<Act::silu>(x);
        break;
      case 3:
        y = activate_grad<Act::silu>(x);
        break;
      case 4:
        y = activate_grad<Act::sigmoid>(x);
        break;
      case 5:
        y = activate<Act::relu>(x);
        break;
      case 6:
        y = activate<Act::relu6>(x);
        break;
      case 7:
        y = activate_grad<Act::relu>(x);
        break;
      case 8:
        y = activate_grad<Act::relu6>(x);
        break;
      case 9:
        y = activate<Act::silu, BFloat16>(x);
        break;
      case 10:
        y = activate_grad<Act::silu, BFloat16>(x);
        break;
      default:
        break;
    }
    store(y, dst + i);
  }
}

void both_silu(const float* src, float* value, float* grad, size_t count) {
  for (size_t i = 0; i < count; i += kLanes) {
    Vec v, g;
    activate_both<plan::Act::silu>(load(src + i), v, g);
    store(v, value + i);
    store(g, grad + i);
  }
}

void to_bf16_full(const float* src, BFloat16* dst, float* back, float* rounded) {
  const Vec v = load(src);
  store(v, dst);
  store(load(dst), back);
  store(round_to<BFloat16>(v), rounded);
}

template <class T>
void copy_n(const T* src, T* dst, float* seen, size_t n) {
  const Vec v = load_n(src, n);
  store(v, seen);
  store_n(v, dst, n);
}
void copy_n_f32(const float* src, float* dst, float* seen, size_t n) { copy_n(src, dst, seen, n); }
void copy_n_bf16(const BFloat16* src, BFloat16* dst, float* seen, size_t n) { copy_n(src, dst, seen, n); }

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "tests/isa.h"

namespace effnet::cpu {
namespace {
HWY_EXPORT(lanes);
HWY_EXPORT(apply);
HWY_EXPORT(both_silu);
HWY_EXPORT(to_bf16_full);
HWY_EXPORT(copy_n_f32);
HWY_EXPORT(copy_n_bf16);

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<float> dense_range(float low, float high, size_t count) {
  std::vector<float> x(count);
  for (size_t i = 0; i < count; ++i) {
    x[i] = static_cast<float>(low + (static_cast<double>(high) - low) * static_cast<double>(i) /
                                        static_cast<double>(count - 1));
  }
  return x;
}

std::vector<float> run(int what, const std::vector<float>& x) {
  std::vector<float> y(x.size());
  EFF_DISPATCH(apply)(what, x.data(), y.data(), x.size());
  return y;
}

template <class F>
double worst_relative(int what, const std::vector<float>& x, F reference) {
  const std::vector<float> y = run(what, x);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = reference(static_cast<double>(x[i]));
    if (want == 0 && y[i] == 0) continue;
    worst = std::max(worst, std::abs(y[i] - want) / std::abs(want));
  }
  return worst;
}

double sigmoid_ref(double x) { return 1 / (1 + std::exp(-x)); }

TEST(Simd, TargetIsTheOneAskedFor) {
  ASSERT_EQ(unsupported_cpu_reason(), nullptr);
  EXPECT_STREQ(isa_name(), test::supports_avx3() ? "avx3" : "avx2");
  EXPECT_EQ(kHasBf16Convert, test::supports_bf16());
  EXPECT_EQ(EFF_DISPATCH(lanes)(), std::string(isa_name()) == "avx3" ? 16u : 8u);
}

TEST(Simd, RelativeErrorsAreAsDocumented) {
  const auto silu_ref = [](double v) { return v * sigmoid_ref(v); };
  const auto slope_ref = [](double v) { return sigmoid_ref(v) * sigmoid_ref(-v); };
  const auto all = dense_range(-86.5f, 86.5f, 1 << 21);
  const auto usual = dense_range(-16, 16, 1 << 21);
  EXPECT_LT(worst_relative(0, all, [](double v) { return std::exp(v); }), 1.6e-7);
  const double sigmoid_usual = worst_relative(1, usual, sigmoid_ref), silu_usual = worst_relative(2, usual, silu_ref);
  EXPECT_LT(sigmoid_usual, 5e-7);
  EXPECT_LT(silu_usual, 5e-7);
  EXPECT_LT(worst_relative(4, usual, slope_ref), 7e-7);
  EXPECT_LT(worst_relative(1, all, sigmoid_ref), 2e-6);
  EXPECT_LT(worst_relative(2, all, silu_ref), 2e-6);
  EXPECT_LT(worst_relative(4, all, slope_ref), 2e-6);
  EXPECT_LT(worst_relative(9, all, silu_ref), 2.5e-4);
}

TEST(Simd, DerivativeForBf16ResultsIsFarBelowItsRounding) {
  const auto x = dense_range(-30, 30, 1 << 20);
  const auto grad = run(10, x);
  for (size_t i = 0; i < x.size(); ++i) {
    const double s = sigmoid_ref(x[i]);
    ASSERT_NEAR(grad[i], s + x[i] * s * (1 - s), 5e-4) << x[i];
  }
}

TEST(Simd, DerivativesAreExactToAnAbsoluteUlp) {
  const auto x = dense_range(-30, 30, 1 << 20);
  const auto silu_grad = run(3, x), sigmoid_grad = run(4, x);
  std::vector<float> value(x.size()), grad(x.size());
  EFF_DISPATCH(both_silu)(x.data(), value.data(), grad.data(), x.size());
  const auto silu = run(2, x);
  for (size_t i = 0; i < x.size(); ++i) {
    const double s = sigmoid_ref(x[i]);
    ASSERT_NEAR(silu_grad[i], s + x[i] * s * (1 - s), 2e-7) << x[i];
    ASSERT_NEAR(sigmoid_grad[i], s * (1 - s), 1e-7) << x[i];
    ASSERT_EQ(value[i], silu[i]);
    ASSERT_EQ(grad[i], silu_grad[i]);
  }
}

TEST(Simd, SpecialValues) {
  const std::vector<float> x = {0.0f, -0.0f, 100, -100, 1000, -1000, kNaN, kInf, 6, 5.99f, -1, 1, 88, -88, 7, 0.5f};
  EXPECT_EQ(run(0, x)[0], 1.0f);
  EXPECT_EQ(run(1, x)[0], 0.5f);
  EXPECT_EQ(run(2, x)[0], 0.0f);
  EXPECT_EQ(run(2, x)[2], 100.0f);
  EXPECT_EQ(run(2, x)[4], 1000.0f);
  EXPECT_NEAR(run(2, x)[3], 0, 1e-35);
  EXPECT_NEAR(run(2, x)[5], 0, 1e-34);
  EXPECT_EQ(run(1, x)[7], 1.0f);
  EXPECT_EQ(run(2, x)[7], kInf);
  EXPECT_TRUE(std::isfinite(run(0, x)[4]));
  for (int what : {0, 1, 2, 3, 4, 5, 6, 9, 10}) EXPECT_TRUE(std::isnan(run(what, x)[6])) << what;
  EXPECT_EQ(run(5, x)[10], 0.0f);
  EXPECT_EQ(run(5, x)[14], 7.0f);
  EXPECT_EQ(run(6, x)[14], 6.0f);
  EXPECT_EQ(run(7, x)[0], 0.0f);
  EXPECT_EQ(run(7, x)[11], 1.0f);
  EXPECT_EQ(run(8, x)[8], 0.0f);
  EXPECT_EQ(run(8, x)[9], 1.0f);
  EXPECT_EQ(run(8, x)[10], 0.0f);
}

TEST(Simd, Bf16RoundsToNearestEvenLikeTheScalarOne) {
  const size_t n = EFF_DISPATCH(lanes)();
  EXPECT_EQ(to_bf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(to_bf16(std::bit_cast<float>(0x3f808000u)).bits, 0x3f80);  // tie, even below
  EXPECT_EQ(to_bf16(std::bit_cast<float>(0x3f818000u)).bits, 0x3f82);  // tie, even above
  EXPECT_EQ(to_bf16(std::bit_cast<float>(0x3f808001u)).bits, 0x3f81);
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::bit_cast<float>(0xffffffffu)))));
  std::vector<float> src(n), back(n), rounded(n);
  std::vector<BFloat16> dst(n);
  uint32_t state = 1;
  for (uint64_t bits = 0; bits < (1ull << 32); bits += 65521 * 7 - (bits >> 31)) {
    for (size_t i = 0; i < n; ++i) {
      state = state * 1664525u + 1013904223u;
      src[i] = std::bit_cast<float>(static_cast<uint32_t>(bits) + (state >> 13) * static_cast<uint32_t>(i));
      if (i % 4 == 1) src[i] = std::bit_cast<float>((std::bit_cast<uint32_t>(src[i]) & 0xffff0000u) | 0x8000u);
    }
    EFF_DISPATCH(to_bf16_full)(src.data(), dst.data(), back.data(), rounded.data());
    for (size_t i = 0; i < n; ++i) {
      uint16_t want = to_bf16(src[i]).bits;
      // The CPU's instruction flushes subnormals, as the engine's threads do everywhere.
      const bool subnormal = (std::bit_cast<uint32_t>(src[i]) & 0x7f800000u) == 0;
      if (subnormal && kHasBf16Convert && std::string(isa_name()) == "avx3") want &= 0x8000;
      ASSERT_EQ(dst[i].bits, want) << std::hex << std::bit_cast<uint32_t>(src[i]);
      ASSERT_EQ(std::bit_cast<uint32_t>(back[i]), static_cast<uint32_t>(dst[i].bits) << 16);
      ASSERT_EQ(std::bit_cast<uint32_t>(rounded[i]), std::bit_cast<uint32_t>(back[i]));
    }
  }
}

TEST(Simd, PartialLoadsAndStoresTouchOnlyTheirLanes) {
  const size_t full = EFF_DISPATCH(lanes)();
  for (size_t n = 1; n <= full; ++n) {
    // Exact heap allocations: a sanitizer sees any access beyond.
    std::vector<float> src(n), seen(full), dst(n + 1, -7.0f);
    std::vector<BFloat16> src16(n), dst16(n + 1, BFloat16{0xabcd});
    for (size_t i = 0; i < n; ++i) {
      src[i] = static_cast<float>(i) + 0.5f;
      src16[i] = to_bf16(src[i]);
    }
    EFF_DISPATCH(copy_n_f32)(src.data(), dst.data(), seen.data(), n);
    for (size_t i = 0; i < full; ++i) EXPECT_EQ(seen[i], i < n ? src[i] : 0.0f);
    for (size_t i = 0; i < n; ++i) EXPECT_EQ(dst[i], src[i]);
    EXPECT_EQ(dst[n], -7.0f);
    EFF_DISPATCH(copy_n_bf16)(src16.data(), dst16.data(), seen.data(), n);
    for (size_t i = 0; i < full; ++i) EXPECT_EQ(seen[i], i < n ? to_float(src16[i]) : 0.0f);
    for (size_t i = 0; i < n; ++i) EXPECT_EQ(dst16[i].bits, src16[i].bits);
    EXPECT_EQ(dst16[n].bits, 0xabcd);
  }
}

}  // namespace
}  // namespace effnet::cpu
#endif
