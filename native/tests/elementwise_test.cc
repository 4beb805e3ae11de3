#include "tests/kernel_rig.h"
#include "tests/reference.h"

namespace effnet::test {
namespace {

using plan::Act;

constexpr DType kDTypes[] = {DType::f32, DType::bf16};
double tolerance(DType dtype) { return dtype == DType::bf16 ? 1.0 / 250 : 1e-6; }

std::vector<int64_t> dims(const Shape& s) { return {s.n, s.h, s.w, s.c}; }
size_t image_channel(const Shape& s, size_t i) {
  const size_t c = static_cast<size_t>(s.c);
  return i / static_cast<size_t>(s.h * s.w * s.c) * c + i % c;
}

template <class F>
void for_each_case(F&& check) {
  for (const DType dtype : kDTypes) {
    for (const Shape& s : kShapes) {
      SCOPED_TRACE(testing::Message() << s.n << "x" << s.h << "x" << s.w << "x" << s.c
                                      << (dtype == DType::bf16 ? " bf16" : " f32"));
      check(dtype, s);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(Activation, EqualsTheReference) {
  for_each_case([](DType dtype, const Shape& s) {
    for (const Act act : kActs) {
      const Values x = stored(dtype, random_values(s.size(), 1, 1, 5));
      Rig rig(backend::make_activation, {double(int(act))});
      rig.in(dtype, dims(s), x);
      const Tensor* dst = rig.out(dtype, dims(s));
      if (rig.covered()) continue;
      ASSERT_NO_FATAL_FAILURE(rig.run());
      Values want, slack;
      for (const double v : x) {
        want.push_back(act_value(act, v));
        slack.push_back(act_value_slack(dtype, act, v));
      }
      expect_near(rig.get(dst), want, tolerance(dtype), 1e-6, "dst", slack);
    }
  });
}

TEST(ActivationBwd, EqualsTheReference) {
  for_each_case([](DType dtype, const Shape& s) {
    for (const Act act : kActs) {
      const Values x = stored(dtype, random_values(s.size(), 1, 1, 5)), d = stored(dtype, random_values(s.size(), 2));
      Rig rig(backend::make_activation_bwd, {double(int(act))});
      rig.in(dtype, dims(s), d);
      rig.in(dtype, dims(s), x);
      const Tensor* diff_src = rig.out(dtype, dims(s));
      if (rig.covered()) continue;
      ASSERT_NO_FATAL_FAILURE(rig.run());
      Values want, slack;
      for (size_t i = 0; i < x.size(); ++i) {
        want.push_back(d[i] * act_slope(act, x[i]));
        slack.push_back(std::abs(d[i]) * act_slope_slack(dtype, act, x[i]));
      }
      expect_near(rig.get(diff_src), want, tolerance(dtype), 1, "diff_src", slack);
    }
  });
}

TEST(Activation, ReluIsExactAtItsCorners) {
  for (const Act act : {Act::relu, Act::relu6}) {
    Rig rig(backend::make_activation_bwd, {double(int(act))});
    rig.in(DType::f32, {5}, {1, 1, 1, 1, 1});
    rig.in(DType::f32, {5}, {-1, 0, 3, 6, 7});
    const Tensor* diff_src = rig.out(DType::f32, {5});
    ASSERT_NO_FATAL_FAILURE(rig.run());
    EXPECT_EQ(rig.get(diff_src), act == Act::relu ? Values({0, 0, 1, 1, 1}) : Values({0, 0, 1, 0, 0}));
  }
}

TEST(Add, EqualsTheReference) {
  for_each_case([](DType dtype, const Shape& s) {
    const Values x = stored(dtype, random_values(s.size(), 1)), y = stored(dtype, random_values(s.size(), 2));
    Rig rig(backend::make_add);
    rig.in(dtype, dims(s), x);
    rig.in(dtype, dims(s), y);
    const Tensor* dst = rig.out(dtype, dims(s));
    if (rig.covered()) return;
    ASSERT_NO_FATAL_FAILURE(rig.run());
    Values want;
    for (size_t i = 0; i < x.size(); ++i) want.push_back(round_to(dtype, x[i] + y[i]));
    EXPECT_EQ(rig.get(dst), want);
  });
}

TEST(Cast, RoundsToNearestEven) {
  for (const Shape& s : kShapes) {
    Values x = stored(DType::f32, random_values(s.size(), 1));
    x[0] = 1.00390625;  // halfway between two bf16: the even one is 1
    for (const DType to : kDTypes) {
      const DType from = to == DType::bf16 ? DType::f32 : DType::bf16;
      Rig rig(backend::make_cast);
      rig.in(from, dims(s), x);
      const Tensor* dst = rig.out(to, dims(s));
      if (rig.covered()) continue;
      ASSERT_NO_FATAL_FAILURE(rig.run());
      EXPECT_EQ(rig.get(dst), stored(DType::bf16, x));
    }
  }
}

TEST(ChannelScale, EqualsTheReference) {
  for_each_case([](DType dtype, const Shape& s) {
    const Values x = stored(dtype, random_values(s.size(), 1));
    const Values gate = stored(DType::f32, random_values(static_cast<size_t>(s.n * s.c), 2));
    Rig rig(backend::make_channel_scale);
    rig.in(dtype, dims(s), x);
    rig.in(DType::f32, {s.n, s.c}, gate);
    const Tensor* dst = rig.out(dtype, dims(s));
    if (rig.covered()) return;
    ASSERT_NO_FATAL_FAILURE(rig.run());
    Values want;
    for (size_t i = 0; i < x.size(); ++i) want.push_back(round_to(dtype, x[i] * gate[image_channel(s, i)]));
    EXPECT_EQ(rig.get(dst), want);
  });
}

TEST(GlobalAvgPoolBwd, EqualsTheReference) {
  for_each_case([](DType dtype, const Shape& s) {
    const Values d = stored(DType::f32, random_values(static_cast<size_t>(s.n * s.c), 2));
    Rig rig(backend::make_global_avg_pool_bwd);
    rig.in(DType::f32, {s.n, s.c}, d);
    const Tensor* diff_src = rig.out(dtype, dims(s));
    if (rig.covered()) return;
    ASSERT_NO_FATAL_FAILURE(rig.run());
    Values want(s.size());
    for (size_t i = 0; i < want.size(); ++i) want[i] = d[image_channel(s, i)] / static_cast<double>(s.h * s.w);
    expect_near(rig.get(diff_src), want, tolerance(dtype), 0, "diff_src");
  });
}

// ---- pooling -----------------------------------------------------------------------------------------------------

// Sums over the pixels, and the sums of the terms' magnitudes: the scale of the rounding errors.
struct PixelSums {
  Values sum, terms, slack;
};
template <class F, class Slack>
PixelSums pixel_sums(const Shape& s, F&& term, Slack&& slack) {
  const Values zeros(static_cast<size_t>(s.n * s.c));
  PixelSums sums{zeros, zeros, zeros};
  for (size_t i = 0; i < s.size(); ++i) {
    sums.sum[image_channel(s, i)] += term(i);
    sums.terms[image_channel(s, i)] += std::abs(term(i));
    sums.slack[image_channel(s, i)] += slack(i);
  }
  return sums;
}
template <class F>
PixelSums pixel_sums(const Shape& s, F&& term) {
  return pixel_sums(s, term, [](size_t) { return 0.0; });
}

void expect_sums(const Values& got, const PixelSums& want, double divisor, double tolerance) {
  ASSERT_EQ(got.size(), want.sum.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_LE(std::abs(got[i] - want.sum[i] / divisor), (tolerance * want.terms[i] + want.slack[i]) / divisor)
        << i << " of " << got.size();
  }
}

struct BnInputs {
  Values src, diff_dst, mean, inv_std, scale, shift;
  BnInputs(DType dtype, const Shape& s) {
    const size_t c = static_cast<size_t>(s.c);
    src = stored(dtype, random_values(s.size(), 1, 0.3, 2));
    diff_dst = stored(dtype, random_values(s.size(), 2));
    mean = stored(DType::f32, random_values(c, 4, 0.3, 0.2));
    inv_std = stored(DType::f32, random_values(c, 5, 0.6, 0.05));
    scale = stored(DType::f32, random_values(c, 6, 1, 0.3));
    shift = stored(DType::f32, random_values(c, 7, 0, 0.5));
  }
  double z(const Shape& s, size_t i) const {
    const size_t c = i % static_cast<size_t>(s.c);
    return (src[i] - mean[c]) * inv_std[c] * scale[c] + shift[c];
  }
  void add_to(Rig& rig, const Shape& s) const {
    for (const Values* v : {&mean, &inv_std, &scale, &shift}) rig.in(DType::f32, {s.c}, *v);
  }
};

TEST(GlobalAvgPool, EqualsTheReference) {
  for_each_case([](DType dtype, const Shape& s) {
    const Values x = stored(dtype, random_values(s.size(), 1, 0.5));
    Rig rig(backend::make_global_avg_pool);
    rig.in(dtype, dims(s), x);
    const Tensor* dst = rig.out(DType::f32, {s.n, s.c});
    if (rig.covered()) return;
    ASSERT_NO_FATAL_FAILURE(rig.run());
    expect_sums(rig.get(dst), pixel_sums(s, [&](size_t i) { return x[i]; }), static_cast<double>(s.h * s.w), 5e-7);
  });
}

TEST(GlobalAvgPool, OneLargeImageIsSplitByChannels) {
  const Shape s{1, 30, 30, 300};
  const Values x = stored(DType::f32, random_values(s.size(), 1, 0.5));
  Rig rig(backend::make_global_avg_pool);
  rig.in(DType::f32, dims(s), x);
  const Tensor* dst = rig.out(DType::f32, {s.n, s.c});
  ASSERT_NO_FATAL_FAILURE(rig.run());
  EXPECT_GT(rig.parts(), 1);
  expect_sums(rig.get(dst), pixel_sums(s, [&](size_t i) { return x[i]; }), 900, 5e-7);
}

TEST(ChannelScaleBwdGate, EqualsTheReference) {
  for_each_case([](DType dtype, const Shape& s) {
    const BnInputs in(dtype, s);
    Rig rig(backend::make_channel_scale_bwd_gate);
    rig.in(dtype, dims(s), in.diff_dst);
    rig.in(dtype, dims(s), in.src);
    const Tensor* diff_gate = rig.out(DType::f32, {s.n, s.c});
    if (rig.covered()) return;
    ASSERT_NO_FATAL_FAILURE(rig.run());
    expect_sums(rig.get(diff_gate), pixel_sums(s, [&](size_t i) { return in.diff_dst[i] * in.src[i]; }), 1, 5e-7);
  });
}

TEST(BnActPool, EqualsTheReference) {
  for_each_case([](DType dtype, const Shape& s) {
    for (const Act act : kActs) {
      const BnInputs in(dtype, s);
      Rig rig(backend::make_bn_act_pool, {double(int(act)), 1});
      rig.in(dtype, dims(s), in.src);
      in.add_to(rig, s);
      const Tensor* pooled = rig.out(DType::f32, {s.n, s.c});
      const bool storing = act == Act::silu;
      const Tensor* dst = storing ? rig.out(dtype, dims(s)) : nullptr;
      if (!storing) rig.add_out(nullptr);
      if (rig.covered()) continue;
      ASSERT_NO_FATAL_FAILURE(rig.run());
      if (storing) {
        Values want(s.size()), slack(s.size());
        for (size_t i = 0; i < want.size(); ++i) {
          want[i] = act_value(act, in.z(s, i));
          slack[i] = act_value_slack(dtype, act, in.z(s, i));
        }
        expect_near(rig.get(dst), want, dtype == DType::bf16 ? 0x1p-8 : 2e-6, 1, "dst", slack);
      }
      // In bf16 an error can move a value across a rounding border: a step of up to 2^-7 in some terms. With e = 2^-12
      // (reference.h) that befalls one value in 16, to either side: 4 deviations of their sum are this.
      const double border = 0x1p-7 / std::sqrt(static_cast<double>(s.h * s.w));
      const double slack = dtype == DType::bf16 ? border + kBf16Activation : 3e-6;
      expect_sums(rig.get(pooled),
                  pixel_sums(
                      s, [&](size_t i) { return round_to(dtype, act_value(act, in.z(s, i))); },
                      [&](size_t i) { return act_value_slack(dtype, act, in.z(s, i)); }),
                  static_cast<double>(s.h * s.w), slack);
    }
  });
}

TEST(BnActBwdGate, EqualsTheReference) {
  for_each_case([](DType dtype, const Shape& s) {
    for (const Act act : kActs) {
      const BnInputs in(dtype, s);
      Rig rig(backend::make_bn_act_bwd_gate, {double(int(act))});
      rig.in(dtype, dims(s), in.diff_dst);
      rig.in(dtype, dims(s), in.src);
      in.add_to(rig, s);
      const Tensor* diff_gate = rig.out(DType::f32, {s.n, s.c});
      if (rig.covered()) continue;
      ASSERT_NO_FATAL_FAILURE(rig.run());
      expect_sums(rig.get(diff_gate),
                  pixel_sums(
                      s, [&](size_t i) { return in.diff_dst[i] * act_value(act, in.z(s, i)); },
                      [&](size_t i) { return std::abs(in.diff_dst[i]) * act_value_slack(dtype, act, in.z(s, i)); }),
                  1, dtype == DType::bf16 ? kBf16Activation : 3e-6);
    }
  });
}

// ---- randomness ----------------------------------------------------------------------------------------------------

constexpr uint64_t kSeed = 9'007'199'254'740'991, kStep = 5'000'000'000;
constexpr uint32_t kStream = 3;

double kept(double rate, uint64_t element) { return survival(rate, kSeed, kStep, kStream, element); }

TEST(DropPath, DropsWholeImages) {
  for (const DType dtype : kDTypes) {
    for (const int64_t channels : {17, 16}) {
      const Shape s{40, 3, 3, channels};
      const Values x = stored(dtype, random_values(s.size(), 1));
      for (const double rate : {0.0, 0.3}) {
        Rig rig(backend::make_drop_path, {rate, kStream});
        rig.scalars().seed = static_cast<double>(kSeed);
        rig.scalars().step = static_cast<double>(kStep);
        rig.in(dtype, dims(s), x);
        const Tensor* dst = rig.out(dtype, dims(s));
        if (rig.covered()) continue;
        ASSERT_NO_FATAL_FAILURE(rig.run());
        Values want;
        for (size_t i = 0; i < x.size(); ++i) want.push_back(x[i] * kept(rate, i / static_cast<size_t>(9 * channels)));
        expect_near(rig.get(dst), want, tolerance(dtype), 0, "dst");
      }
    }
  }
}

TEST(Dropout, DropsElementsByTheirIndex) {
  for (const DType dtype : kDTypes) {
    for (const int64_t n : {1, 3, 97}) {
      const int64_t c = n == 97 ? 1283 : 19;
      const Values x = stored(dtype, random_values(static_cast<size_t>(n * c), 1));
      for (const double rate : {0.0, 0.2}) {
        Rig rig(backend::make_dropout, {rate, kStream});
        rig.scalars().seed = static_cast<double>(kSeed);
        rig.scalars().step = static_cast<double>(kStep);
        rig.in(dtype, {n, c}, x);
        const Tensor* dst = rig.out(dtype, {n, c});
        ASSERT_NO_FATAL_FAILURE(rig.run());
        Values want;
        size_t dropped = 0;
        for (size_t i = 0; i < x.size(); ++i) {
          want.push_back(x[i] * kept(rate, i));
          dropped += kept(rate, i) == 0;
        }
        expect_near(rig.get(dst), want, tolerance(dtype), 0, "dst");
        if (n == 97) {
          EXPECT_NEAR(static_cast<double>(dropped) / static_cast<double>(x.size()), rate, 0.01);
        }
      }
    }
  }
}

TEST(Dropout, RefusesARateOfOne) {
  Rig rig(backend::make_dropout, {1, 0});
  rig.in(DType::f32, {1, 4}, Values(4, 1));
  rig.out(DType::f32, {1, 4});
  EXPECT_EQ(rig.make().code(), Code::plan_invalid);
}

// ---- input and fill ----------------------------------------------------------------------------------------------

TEST(InputNormalize, EqualsTheReference) {
  const double mean[] = {123.675, 116.28, 103.53}, deviation[] = {58.395, 57.12, 57.375};
  for (const DType dtype : kDTypes) {
    for (const Shape& s : {Shape{1, 1, 1, 3}, Shape{2, 5, 7, 3}, Shape{3, 67, 61, 3}}) {
      Values x(s.size());
      for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<double>((i * 7919) % 256);
      Rig rig(backend::make_input_normalize, {mean[0], mean[1], mean[2], deviation[0], deviation[1], deviation[2]});
      rig.in(DType::u8, dims(s), x);
      const Tensor* dst = rig.out(dtype, dims(s));
      if (rig.covered()) continue;
      ASSERT_NO_FATAL_FAILURE(rig.run());
      Values want;
      for (size_t i = 0; i < x.size(); ++i) want.push_back((x[i] - mean[i % 3]) / deviation[i % 3]);
      // src/std and mean/std, of size 2, cancel near zero.
      expect_near(rig.get(dst), want, dtype == DType::f32 ? 1e-7 : 1.0 / 250, 2, "dst");
    }
  }
}

TEST(Fill, FillsEveryType) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::i32, DType::u8}) {
    Rig rig(backend::make_fill, {3});
    const Tensor* dst = rig.out(dtype, {5, 7000});
    ASSERT_NO_FATAL_FAILURE(rig.run());
    EXPECT_EQ(rig.get(dst), Values(35000, 3));
  }
}

}  // namespace
}  // namespace effnet::test
