// The expansion and its depthwise convolution as one op, against both definitions in double precision.
#include "conv_reference.h"
#include "isa.h"
#include "kernel_rig.h"
#include "reference.h"

namespace effnet::test {
namespace {

using Case = ConvCase;

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {1, 60, 150, 8, 40, 3, 1, 1, 1, 1, 1},   // bands of rows, one group of an odd number of vectors
      {2, 61, 150, 12, 72, 5, 2, 2, 2, 2, 2},  // and groups of channels; a last band that is shorter
      {1, 64, 112, 16, 96, 3, 2, 0, 0, 1, 1},  // 'same' padding of an even size
      {3, 9, 7, 10, 20, 3, 1, 1, 1, 1, 1},     // one band, less than two vectors
      {1, 5, 4, 6, 16, 5, 2, 2, 2, 2, 2},     {1, 3, 3, 2, 33, 5, 1, 2, 2, 2, 2},
  };
  return all;
}

double silu(double x) { return x / (1 + std::exp(-x)); }

class ExpandDepthwise : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (backend::kIsCpu && GetParam() == DType::bf16 && !supports_bf16()) GTEST_SKIP() << "bf16 needs AVX512_BF16";
  }
};

TEST_P(ExpandDepthwise, EqualsTheTwoConvolutions) {
  const DType dtype = GetParam();
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name());
    const auto size = [](int64_t count) { return static_cast<size_t>(count); };
    const Values src = stored(dtype, random_values(size(c.n * c.h * c.w * c.ic), 1));
    const Values weights = stored(DType::f32, random_values(size(c.oc * c.ic), 2));
    const Values bias = stored(DType::f32, random_values(size(c.oc), 3));
    const Values taps = stored(DType::f32, random_values(size(c.k * c.k * c.oc), 4));
    const Values taps_bias = stored(DType::f32, random_values(size(c.oc), 5));
    std::vector<double> attrs = {static_cast<double>(plan::Act::silu)};
    for (int64_t v : {c.stride, c.top, c.left, c.bottom, c.right}) attrs.push_back(static_cast<double>(v));
    attrs.push_back(static_cast<double>(plan::Act::silu));
    Rig rig(backend::make_expand_depthwise_bias_act, attrs);
    rig.in(dtype, {c.n, c.h, c.w, c.ic}, src);
    rig.add_in(rig.tensor(Arena::weights, DType::f32, {c.oc, 1, 1, c.ic}, weights));
    rig.add_in(rig.tensor(Arena::weights, DType::f32, {c.oc}, bias));
    rig.add_in(rig.tensor(Arena::weights, DType::f32, {c.k, c.k, c.oc}, taps));
    rig.add_in(rig.tensor(Arena::weights, DType::f32, {c.oc}, taps_bias));
    const Tensor* dst = rig.out(dtype, {c.n, c.oh(), c.ow(), c.oc});
    const Tensor* pooled = rig.out(DType::f32, {c.n, c.oc});
    if (rig.covered()) continue;
    rig.run();
    if (HasFatalFailure()) return;

    const Values used = stored(dtype, weights), used_taps = stored(dtype, taps);
    Values wide(size(c.n * c.h * c.w * c.oc)), wide_slack(wide.size());
    for (size_t p = 0; p < wide.size(); ++p) {
      const size_t channel = p % size(c.oc), pixel = p / size(c.oc);
      double sum = bias[channel];
      for (size_t i = 0; i < size(c.ic); ++i) sum += src[pixel * size(c.ic) + i] * used[channel * size(c.ic) + i];
      wide[p] = round_to(dtype, silu(sum));
      wide_slack[p] = act_value_slack(dtype, plan::Act::silu, sum);
    }
    Values want(size(dst->elements())), terms(want.size()), slack(want.size()), mean(size(c.n * c.oc));
    const Values got = rig.get(dst);
    for (int64_t n = 0, at = 0; n < c.n; ++n)
      for (int64_t y = 0; y < c.oh(); ++y)
        for (int64_t x = 0; x < c.ow(); ++x)
          for (int64_t o = 0; o < c.oc; ++o, ++at) {
            double sum = taps_bias[size(o)];
            for (int64_t i = 0; i < c.k; ++i)
              for (int64_t j = 0; j < c.k; ++j) {
                const int64_t sy = y * c.stride + i - c.top, sx = x * c.stride + j - c.left;
                if (sy < 0 || sx < 0 || sy >= c.h || sx >= c.w) continue;
                const size_t from = size(((n * c.h + sy) * c.w + sx) * c.oc + o);
                const double tap = used_taps[size((i * c.k + j) * c.oc + o)], term = wide[from] * tap;
                sum += term;
                terms[size(at)] += std::abs(term);
                slack[size(at)] += wide_slack[from] * std::abs(tap);
              }
            want[size(at)] = silu(sum);
            // SiLU is nowhere steeper than 1.1.
            slack[size(at)] = 1.1 * slack[size(at)] + act_value_slack(dtype, plan::Act::silu, sum);
            mean[size(n * c.oc + o)] += got[size(at)] / static_cast<double>(c.oh() * c.ow());
          }
    // In bf16 every value of the wide tensor may round to its other neighbour, where the approximated SiLU says so.
    for (size_t i = 0; i < got.size(); ++i) {
      const double bound = dtype == DType::bf16 ? 0x1p-8 * (1 + std::abs(want[i])) + 0x1p-7 * terms[i]
                                                : 3e-6 * (1 + std::abs(want[i]) + terms[i]);
      ASSERT_NEAR(got[i], want[i], bound + slack[i]) << i;
    }
    expect_near(rig.get(pooled), mean, 2e-6, 1, "pooled");
  }
}

INSTANTIATE_TEST_SUITE_P(Types, ExpandDepthwise, testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return info.param == DType::bf16 ? "bf16" : "f32"; });

#ifndef EFFNET_TEST_CUDA
TEST(ExpandDepthwiseRefusals, ShapesWithoutCodeAreErrors) {
  Rig rig(backend::make_expand_depthwise_bias_act, {1, 3, 1, 1, 1, 1, 1});  // stride 3
  rig.in(DType::f32, {1, 9, 9, 8}, random_values(9 * 9 * 8, 1));
  rig.in(DType::f32, {32, 1, 1, 8}, random_values(32 * 8, 2));
  rig.in(DType::f32, {32}, random_values(32, 3));
  rig.in(DType::f32, {3, 3, 32}, random_values(9 * 32, 4));
  rig.in(DType::f32, {32}, random_values(32, 5));
  rig.out(DType::f32, {1, 3, 3, 32});
  rig.add_out(nullptr);
  EXPECT_EQ(rig.make().code(), Code::plan_invalid);
}
#endif

}  // namespace
}  // namespace effnet::test
