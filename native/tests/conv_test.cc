// Dense convolutions against plain loops in double precision.
#ifndef EFFNET_TEST_CUDA
#include "cpu/onednn/conv_tiles.h"
#endif
#include "conv_reference.h"
#include "isa.h"
#include "kernel_rig.h"
#include "reference.h"

namespace effnet::test {
namespace {

using Case = ConvCase;
using Data = ConvData;

Case pointwise(int64_t n, int64_t h, int64_t w, int64_t ic, int64_t oc) { return {n, h, w, ic, oc, 1, 1, 0, 0, 0, 0}; }
Case same3(int64_t n, int64_t h, int64_t w, int64_t ic, int64_t oc, int64_t stride) {
  const auto total = [stride](int64_t in) {
    return std::max<int64_t>(((in + stride - 1) / stride - 1) * stride + 3 - in, 0);
  };
  const int64_t v = total(h), u = total(w);
  return {n, h, w, ic, oc, 3, stride, v / 2, u / 2, v - v / 2, u - u / 2};
}

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      pointwise(1, 1, 1, 1280, 17),
      pointwise(2, 7, 7, 24, 40),
      pointwise(5, 7, 7, 112, 20),
      pointwise(3, 14, 14, 16, 96),
      pointwise(1, 7, 7, 192, 320),
      pointwise(1, 28, 28, 40, 24),
      pointwise(1, 1, 7, 3, 1),
      pointwise(1, 1, 4097, 1, 1),    // a last block of one row, in which a vector would read on far
      pointwise(1, 7, 7, 1152, 200),  // few rows: split by columns
      pointwise(3, 5, 7, 96, 1000),   // several panels in a part, the last one 3 vectors wide and not full
      pointwise(9, 15, 15, 34, 100),  // an odd number of vectors, images that end inside a block of rows
      same3(2, 32, 32, 3, 32, 2),
      same3(1, 33, 31, 3, 24, 2),
      same3(2, 12, 12, 24, 48, 1),
      same3(3, 9, 7, 8, 13, 2),
      same3(1, 56, 56, 24, 96, 1),
      {2, 16, 16, 3, 8, 3, 2, 1, 1, 1, 1},
      {1, 15, 16, 16, 16, 3, 2, 1, 1, 1, 1},
  };
  return all;
}

class ConvTest : public testing::TestWithParam<DType> {
 protected:
  // bf16 is available where oneDNN has kernels for it; without AVX-512 there is nothing to test.
  void SetUp() override {
    if (backend::kIsCpu && GetParam() == DType::bf16 && !supports_bf16()) GTEST_SKIP() << "bf16 needs AVX512_BF16";
  }
  DType dtype() const { return GetParam(); }
  double tolerance() const { return dtype() == DType::bf16 ? 0x1p-8 : 3e-6; }
  Values rounded_weights(const Data& d) const { return stored(dtype(), d.weights); }
  double scale(int64_t terms) const {
    return std::sqrt(static_cast<double>(terms)) * (dtype() == DType::bf16 ? 0.1 : 1);
  }
};

TEST_P(ConvTest, Forward) {
  for (const Case& c : cases()) {
    const ConvResult r = run_conv(Direction::forward, c, Data(c, dtype()), dtype(), backend::make_conv2d);
    if (r.covered) continue;
    if (HasFatalFailure()) FAIL() << c.name();
    expect_near(r.got, r.want, tolerance(), scale(c.k * c.k * c.ic), c.name());
    EXPECT_EQ(r.kernel.find("ref"), std::string::npos) << r.kernel;
  }
}

// Statistics of the values that were stored, and the running averages.
TEST_P(ConvTest, ForwardWithStatistics) {
  auto all = cases();
  all.push_back(pointwise(4, 40, 40, 8, 24));  // several tiles of rows in a shard
  for (const Case& c : all) {
    for (const double src_mean : {0.0, 30.0}) {
      if (src_mean != 0 && c.k != 1) continue;  // with padding it is not a mean of every output
      Data d(c, dtype());
      for (double& v : d.src) v = round_to(dtype(), v + src_mean);
      const auto channels = static_cast<size_t>(c.oc);
      const Values rm = stored(DType::f32, random_values(channels, 5)),
                   rv = stored(DType::f32, random_values(channels, 6));
      std::vector<double> attrs = c.attrs();
      attrs.insert(attrs.end(), {1e-3, 0.1, 0});
      Rig rig(backend::make_conv2d_stats, attrs);
      rig.in(dtype(), {c.n, c.h, c.w, c.ic}, d.src);
      rig.add_in(rig.tensor(Arena::weights, DType::f32, {c.oc, c.k, c.k, c.ic}, d.weights));
      Values gated = d.src;
      if (c.k == 1) {
        const Values gate = stored(DType::f32, random_values(static_cast<size_t>(c.n * c.ic), 7, 1, 0.3));
        rig.in(DType::f32, {c.n, c.ic}, gate);
        const auto ic = static_cast<size_t>(c.ic), image = static_cast<size_t>(c.h * c.w) * ic;
        for (size_t i = 0; i < gated.size(); ++i)
          gated[i] = round_to(dtype(), gated[i] * gate[i / image * ic + i % ic]);
      } else {
        rig.add_in(nullptr);
      }
      rig.absent_inputs(4);
      const Tensor* dst = rig.out(dtype(), {c.n, c.oh(), c.ow(), c.oc});
      const Tensor *mean = rig.out(DType::f32, {c.oc}), *inv_std = rig.out(DType::f32, {c.oc});
      const Tensor* running_mean = rig.tensor(Arena::weights, DType::f32, {c.oc}, rm);
      const Tensor* running_var = rig.tensor(Arena::weights, DType::f32, {c.oc}, rv);
      rig.add_update(running_mean);
      rig.add_update(running_var);
      if (rig.covered()) continue;
      rig.run();
      if (HasFatalFailure()) FAIL() << c.name();
      Values want(static_cast<size_t>(dst->elements()));
      const Values w = rounded_weights(d);
      for_each_product(c, [&](size_t s, size_t k, size_t t) { want[t] += gated[s] * w[k]; });
      const double size = scale(c.k * c.k * c.ic) * (1 + src_mean);
      const Values got = rig.get(dst);
      expect_near(got, want, tolerance(), size, c.name());
      const double rows = static_cast<double>(got.size() / channels), unbiased = rows > 1 ? rows / (rows - 1) : 1;
      Values want_mean(channels), var(channels), want_inv_std(channels), want_rm(channels), want_rv(channels);
      for (size_t i = 0; i < got.size(); ++i) want_mean[i % channels] += got[i] / rows;
      for (size_t i = 0; i < got.size(); ++i) var[i % channels] += std::pow(got[i] - want_mean[i % channels], 2) / rows;
      for (size_t i = 0; i < channels; ++i) {
        want_inv_std[i] = 1 / std::sqrt(var[i] + 1e-3);
        want_rm[i] = 0.9 * rm[i] + 0.1 * want_mean[i];
        want_rv[i] = 0.9 * rv[i] + 0.1 * var[i] * unbiased;
      }
      // Rounding errors are of the size of the values.
      const double value = std::sqrt(static_cast<double>(c.k * c.k * c.ic)) * (1 + src_mean);
      // Where oneDNN makes the convolution, bn_stats takes the mean: by sums of 64 deviations in FP32, as bn_test
      // allows.
      const bool apart = backend::kIsCpu && rig.name().find("bn_stats") != std::string::npos;
      const double of_mean = apart ? 1e-6 : 3e-7;
      expect_near(rig.get(mean), want_mean, of_mean, value, c.name() + " mean");
      expect_near(rig.get(inv_std), want_inv_std, 1e-6, 0, c.name() + " inv_std");
      expect_near(rig.get(running_mean), want_rm, of_mean, value, c.name() + " running_mean");
      expect_near(rig.get(running_var), want_rv, 1e-6, 1, c.name() + " running_var");
      const bool own = c.k == 1 && c.stride == 1 && (dtype() == DType::f32 || c.ic % 2 == 0);
      // oneDNN's on AMX, where it has code for the shape.
      const bool amx = dtype() == DType::bf16 && rig.name().find("_amx+bn_stats") != std::string::npos;
      if (backend::kIsCpu && !amx)
        EXPECT_NE(rig.name().find(own ? "pointwise_fwd_stats" : "bn_stats"), std::string::npos) << rig.name();
    }
  }
}

TEST_P(ConvTest, BackwardData) {
  for (const Case& c : cases()) {
    if (c.ic == 3) continue;  // the stem needs no gradient of the images
    const ConvResult r =
        run_conv(Direction::backward_data, c, Data(c, dtype()), dtype(), backend::make_conv2d_bwd_data);
    if (r.covered) continue;
    if (HasFatalFailure()) FAIL() << c.name();
    expect_near(r.got, r.want, tolerance(), scale(c.k * c.k * c.oc), c.name());
  }
}

TEST_P(ConvTest, BackwardWeights) {
  for (const Case& c : cases()) {
    const ConvResult r =
        run_conv(Direction::backward_weights, c, Data(c, dtype()), dtype(), backend::make_conv2d_bwd_weights);
    if (r.covered) continue;
    if (HasFatalFailure()) FAIL() << c.name();
    // The gradient is FP32 in both types: products of bf16 values are exact.
    expect_near(r.got, r.want, 3e-6, scale(c.n * c.oh() * c.ow()) * 10, c.name());
  }
}

// The gradient of what BN normalises, and from it both gradients of the convolution.
TEST(ConvBackward, BothGradientsBehindNormalisation) {
  std::vector<Case> all;
  for (const Case& c : cases())
    if (c.k == 1) all.push_back(c);
  all.push_back(pointwise(6, 40, 40, 8, 24));    // several blocks of rows in a shard
  all.push_back(pointwise(2, 60, 61, 100, 34));  // wide sources, tails of both
  all.push_back(pointwise(12, 5, 5, 8, 24));     // blocks of rows of several images
  constexpr uint64_t kSeed = 5'000'000'123, kStep = 77;
  constexpr uint32_t kStream = 9;
  struct Mode {
    plan::Act act;
    bool batch_stats;
    double drop_rate;
  };
  const Mode modes[] = {{plan::Act::identity, true, 0},   {plan::Act::identity, false, 0},
                        {plan::Act::identity, true, 0.4}, {plan::Act::silu, true, 0},
                        {plan::Act::silu, false, 0},      {plan::Act::silu, true, 0.4}};
  for (const Case& c : all) {
    for (const auto& [act, batch_stats, drop_rate] : modes) {
      const Data d(c, DType::f32);
      const auto channels = static_cast<size_t>(c.oc);
      const auto vector = [&](uint32_t seed) { return stored(DType::f32, random_values(channels, seed)); };
      const Values dst = stored(DType::f32, random_values(d.diff_dst.size(), 4));
      const Values mean = vector(5), scale = vector(7), shift = vector(8), diff_scale = vector(9),
                   diff_shift = vector(10);
      Values inv_std = vector(6);
      for (double& v : inv_std) v = std::abs(v) + 0.5;
      std::vector<double> attrs = c.attrs();
      attrs.insert(attrs.end(), {static_cast<double>(act), drop_rate, kStream, batch_stats ? 1.0 : 0.0, 0, 0, 0});
      Rig rig(backend::make_conv2d_bwd, attrs);
      rig.scalars().seed = static_cast<double>(kSeed);
      rig.scalars().step = static_cast<double>(kStep);
      rig.in(DType::f32, {c.n, c.h, c.w, c.ic}, d.src);
      rig.add_in(rig.tensor(Arena::weights, DType::f32, {c.oc, 1, 1, c.ic}, d.weights));
      rig.in(DType::f32, {c.n, c.h, c.w, c.oc}, d.diff_dst);
      rig.in(DType::f32, {c.n, c.h, c.w, c.oc}, dst);
      for (const Values* v :
           std::initializer_list<const Values*>{&mean, &inv_std, &scale, &shift, &diff_scale, &diff_shift})
        rig.in(DType::f32, {c.oc}, *v);
      rig.absent_inputs(9);
      const Tensor* diff_src = rig.out(DType::f32, {c.n, c.h, c.w, c.ic});
      const Tensor* diff_weights = rig.out(DType::f32, {c.oc, 1, 1, c.ic});
      rig.absent_outputs(4);
      if (rig.covered()) continue;
      rig.run();
      if (HasFatalFailure()) FAIL() << c.name();
      Values dy(dst.size());
      const double rows = static_cast<double>(dst.size() / channels);
      for (size_t i = 0; i < dy.size(); ++i) {
        const size_t o = i % channels;
        const double xm = dst[i] - mean[o], a = scale[o] * inv_std[o], z = xm * a + shift[o];
        const double kept = survival(drop_rate, kSeed, kStep, kStream, i / static_cast<size_t>(c.h * c.w * c.oc));
        dy[i] = a * d.diff_dst[i] * kept * act_slope(act, z);
        if (batch_stats) dy[i] -= a * (inv_std[o] * diff_scale[o] * xm + diff_shift[o]) / rows;
      }
      Values want_src(d.src.size()), want_weights(d.weights.size());
      for_each_product(c, [&](size_t s, size_t k, size_t t) {
        want_src[s] += dy[t] * d.weights[k];
        want_weights[k] += d.src[s] * dy[t];
      });
      expect_near(rig.get(diff_src), want_src, 3e-6, std::sqrt(static_cast<double>(c.oc)), c.name() + " diff_src");
      expect_near(rig.get(diff_weights), want_weights, 3e-6, std::sqrt(rows) * 10, c.name() + " diff_weights");
    }
  }
}

TEST_P(ConvTest, BiasActivationGateResidual) {
  for (const Case& c : cases()) {
    for (const bool gated : {false, true}) {
      if (gated && c.k != 1) continue;
      const Data d(c, dtype());
      const Values bias = stored(DType::f32, random_values(static_cast<size_t>(c.oc), 4));
      const Values gate = stored(DType::f32, random_values(static_cast<size_t>(c.n * c.ic), 5, 0.5, 0.2));
      const Values residual = stored(dtype(), random_values(d.diff_dst.size(), 6));
      auto attrs = c.attrs();
      attrs.push_back(static_cast<double>(plan::Act::silu));
      Rig rig(backend::make_conv2d_bias_act, attrs);
      rig.in(dtype(), {c.n, c.h, c.w, c.ic}, d.src);
      rig.add_in(rig.tensor(Arena::weights, DType::f32, {c.oc, c.k, c.k, c.ic}, d.weights));
      rig.add_in(rig.tensor(Arena::weights, DType::f32, {c.oc}, bias));
      if (gated)
        rig.in(DType::f32, {c.n, c.ic}, gate);
      else
        rig.add_in(nullptr);
      rig.in(dtype(), {c.n, c.oh(), c.ow(), c.oc}, residual);
      const Tensor* dst = rig.out(dtype(), {c.n, c.oh(), c.ow(), c.oc});
      if (rig.covered()) continue;
      rig.run();
      if (HasFatalFailure()) FAIL() << c.name();
      Values src = d.src;
      if (gated)
        for (size_t i = 0; i < src.size(); ++i) {
          const size_t image = i / static_cast<size_t>(c.h * c.w * c.ic);
          src[i] = round_to(dtype(), src[i] * gate[image * static_cast<size_t>(c.ic) + i % static_cast<size_t>(c.ic)]);
        }
      Values want(static_cast<size_t>(dst->elements()));
      const Values w = rounded_weights(d);
      for_each_product(c, [&](size_t s, size_t k, size_t t) { want[t] += src[s] * w[k]; });
      for (size_t i = 0; i < want.size(); ++i) {
        const double x = want[i] + bias[i % static_cast<size_t>(c.oc)];
        want[i] = x / (1 + std::exp(-x)) + residual[i];
      }
      expect_near(rig.get(dst), want, 2 * tolerance(), scale(c.k * c.k * c.ic) + 2, c.name());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, ConvTest, testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return info.param == DType::bf16 ? "bf16" : "f32"; });

#ifndef EFFNET_TEST_CUDA
TEST(ConvTiles, CoverEveryElementOnce) {
  for (const Case& c : cases()) {
    onednn::ConvShape shape{onednn::Pass::forward,
                            DType::f32,
                            c.n,
                            c.h,
                            c.w,
                            c.ic,
                            c.oh(),
                            c.ow(),
                            c.oc,
                            c.k,
                            c.k,
                            c.stride,
                            c.top,
                            c.left,
                            c.bottom,
                            c.right};
    int64_t covered = 0;
    for (const auto& tile : onednn::independent_tiles(shape)) {
      EXPECT_EQ(tile.dst_first, covered) << c.name();
      covered += tile.dst_elements;
    }
    EXPECT_EQ(covered, c.n * c.oh() * c.ow() * c.oc) << c.name();
    EXPECT_LE(onednn::reduction_tiles(shape).size(), 8u);
  }
}

TEST(ConvOfPixels, IsForGpus) {
  for (const auto factory :
       {backend::make_input_conv2d_stats, backend::make_input_conv2d_bias_act, backend::make_input_conv2d_bwd_weights})
    EXPECT_EQ(factory(plan::Op{}).status().message(), "it reads uint8 images in a convolution: that is for GPUs");
}
#endif

}  // namespace
}  // namespace effnet::test
