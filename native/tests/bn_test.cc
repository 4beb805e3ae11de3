#include "tests/kernel_rig.h"
#include "tests/reference.h"

namespace effnet::test {
namespace {

using plan::Act;

constexpr DType kDTypes[] = {DType::f32, DType::bf16};
double tolerance(DType dtype) { return dtype == DType::bf16 ? 1.0 / 250 + kBf16Activation : 4e-6; }

// ---- statistics --------------------------------------------------------------------------------------------------

struct Stats {
  Values mean, var;
};

Stats reference_stats(const Shape& s, const Values& x) {
  Stats stats{Values(static_cast<size_t>(s.c)), Values(static_cast<size_t>(s.c))};
  for (int64_t c = 0; c < s.c; ++c) {
    long double sum = 0, squares = 0;
    for (int64_t r = 0; r < s.rows(); ++r) sum += x[static_cast<size_t>(r * s.c + c)];
    const long double mean = sum / s.rows();
    for (int64_t r = 0; r < s.rows(); ++r) {
      const long double d = x[static_cast<size_t>(r * s.c + c)] - mean;
      squares += d * d;
    }
    stats.mean[static_cast<size_t>(c)] = static_cast<double>(mean);
    stats.var[static_cast<size_t>(c)] = static_cast<double>(squares / s.rows());
  }
  return stats;
}

struct StatsRig {
  Rig rig;
  Tensor *src, *mean, *inv_std, *running_mean, *running_var;
  StatsRig(DType dtype, const Shape& s, const Values& x, double eps, double momentum)
      : rig(backend::make_bn_stats, {eps, momentum}) {
    src = rig.in(dtype, {s.n, s.h, s.w, s.c}, x);
    mean = rig.out(DType::f32, {s.c});
    inv_std = rig.out(DType::f32, {s.c});
    running_mean = rig.tensor(Arena::weights, DType::f32, {s.c}, Values(static_cast<size_t>(s.c), 0.5));
    running_var = rig.tensor(Arena::weights, DType::f32, {s.c}, Values(static_cast<size_t>(s.c), 2));
    rig.add_update(running_mean);
    rig.add_update(running_var);
  }
};

// CUDA kernels have a plain form for channels that are no multiple of their vectors.
void expect_form(const Rig& rig, DType dtype, int64_t c, bool narrow) {
  if (backend::kIsCpu) return;
  const bool plain = c % (dtype == DType::f32 || narrow ? 4 : 8) != 0;
  EXPECT_EQ(rig.name().find("_plain") != std::string::npos, plain) << rig.name() << " of " << c << " channels";
}

TEST(BnStats, EqualsTheReference) {
  for (const DType dtype : kDTypes) {
    for (const Shape& s : kShapes) {
      SCOPED_TRACE(testing::Message() << s.n << "x" << s.h << "x" << s.w << "x" << s.c);
      const Values x = stored(dtype, random_values(s.size(), 3, 0.7, 1.5));
      const double eps = 1e-3, momentum = 0.1;
      StatsRig t(dtype, s, x, eps, momentum);
      if (t.rig.covered()) continue;
      ASSERT_NO_FATAL_FAILURE(t.rig.run());
      expect_form(t.rig, dtype, s.c, false);
      const Stats want = reference_stats(s, x);
      Values inv_std, running_mean, running_var;
      const double m = static_cast<double>(s.rows()), unbiased = m > 1 ? m / (m - 1) : 1;
      for (size_t c = 0; c < want.mean.size(); ++c) {
        inv_std.push_back(1 / std::sqrt(want.var[c] + eps));
        running_mean.push_back(0.9 * 0.5 + 0.1 * want.mean[c]);
        running_var.push_back(0.9 * 2 + 0.1 * want.var[c] * unbiased);
      }
      expect_near(t.rig.get(t.mean), want.mean, 1e-6, 1e-1, "mean");
      expect_near(t.rig.get(t.inv_std), inv_std, 1e-6, 0, "inv_std");
      expect_near(t.rig.get(t.running_mean), running_mean, 1e-6, 0, "running_mean");
      expect_near(t.rig.get(t.running_var), running_var, 1e-6, 0, "running_var");
    }
  }
}

TEST(BnStats, VarianceStaysExactUnderALargeMean) {
  const Shape s{8, 56, 56, 10};
  for (const double mean : {0.0, 3.0, 100.0, -100.0}) {
    const Values x = stored(DType::f32, random_values(s.size(), 11, mean, 1));
    StatsRig t(DType::f32, s, x, 1e-30, 1);  // momentum 1: running_var is the batch's, unbiased
    if (t.rig.covered()) continue;
    ASSERT_NO_FATAL_FAILURE(t.rig.run());
    const Stats want = reference_stats(s, x);
    const Values var = t.rig.get(t.running_var), got = t.rig.get(t.mean);
    const double m = static_cast<double>(s.rows());
    for (size_t c = 0; c < var.size(); ++c) {
      EXPECT_LE(std::abs(var[c] * (m - 1) / m / want.var[c] - 1), 5e-7) << mean;
      EXPECT_LE(std::abs(got[c] - want.mean[c]), 1e-7 * (1 + std::abs(mean))) << mean;
    }
  }
}

TEST(BnStats, AConstantChannelHasNoVariance) {
  for (const DType dtype : kDTypes) {
    const Shape s{3, 21, 23, 17};
    Values x(s.size());
    for (size_t i = 0; i < x.size(); ++i) x[i] = i % 17 == 4 ? 0 : 0.1 * static_cast<double>(i % 17) + 1000;
    StatsRig t(dtype, s, stored(dtype, x), 1e-5, 1);
    if (t.rig.covered()) continue;
    ASSERT_NO_FATAL_FAILURE(t.rig.run());
    for (const double var : t.rig.get(t.running_var)) EXPECT_EQ(var, 0);
    for (const double inv_std : t.rig.get(t.inv_std)) EXPECT_NEAR(inv_std, 316.22776601683796, 1e-4);
  }
}

TEST(BnStats, RefusesWhatItCannotDo) {
  StatsRig t(DType::f32, {1, 2, 2, 3}, Values(12, 1), 0, 0.1);
  EXPECT_EQ(t.rig.make().code(), Code::plan_invalid);
  StatsRig wrong(DType::i32, {1, 2, 2, 3}, Values(12, 1), 1e-5, 0.1);
  EXPECT_EQ(wrong.rig.make().code(), Code::plan_invalid);
}

TEST(BnInvStd, EqualsTheReference) {
  Rig rig(backend::make_bn_inv_std, {1e-3});
  const Values var = stored(DType::f32, {0, 1e-6, 0.5, 3, 1e4});
  rig.in(DType::f32, {5}, var);
  const Tensor* inv_std = rig.out(DType::f32, {5});
  ASSERT_NO_FATAL_FAILURE(rig.run());
  Values want;
  for (const double v : var) want.push_back(1 / std::sqrt(v + 1e-3));
  expect_near(rig.get(inv_std), want, 1e-7, 0, "inv_std");
}

// ---- normalisation with activation, gate, drop, residual and pooling -----------------------------------------------

// One problem, its inputs as stored, and the terms that all references below are made of.
struct Problem {
  Shape s;
  DType dtype;
  Act act;
  bool gated, pooled;
  double drop_rate;
  Values src, mean, inv_std, scale, shift, gate, diff_dst, diff_pooled, residual;
  static constexpr uint64_t kSeed = 5'000'000'123, kStep = 77;
  static constexpr uint32_t kStream = 9;

  Problem(const Shape& shape, DType type, Act a, bool with_gate = false, bool with_pooled = false, double rate = 0)
      : s(shape), dtype(type), act(a), gated(with_gate), pooled(with_pooled), drop_rate(rate) {
    const size_t c = static_cast<size_t>(s.c), nc = static_cast<size_t>(s.n * s.c);
    src = stored(dtype, random_values(s.size(), 1, 0.3, 2));
    diff_dst = stored(dtype, random_values(s.size(), 2));
    residual = stored(dtype, random_values(s.size(), 3));
    mean = stored(DType::f32, random_values(c, 4, 0.3, 0.2));
    inv_std = stored(DType::f32, random_values(c, 5, 0.6, 0.05));
    scale = stored(DType::f32, random_values(c, 6, 1, 0.3));
    shift = stored(DType::f32, random_values(c, 7, 0, 0.5));
    gate = stored(DType::f32, random_values(nc, 8, 0.5, 0.2));
    diff_pooled = stored(DType::f32, random_values(nc, 9, 0, 3));
  }
  size_t channel(size_t i) const { return i % static_cast<size_t>(s.c); }
  size_t image_channel(size_t i) const {
    return i / static_cast<size_t>(s.h * s.w * s.c) * static_cast<size_t>(s.c) + channel(i);
  }
  double xhat(size_t i) const { return (src[i] - mean[channel(i)]) * inv_std[channel(i)]; }
  double z(size_t i) const { return xhat(i) * scale[channel(i)] + shift[channel(i)]; }
  double drop(size_t i) const {
    return survival(drop_rate, kSeed, kStep, kStream, i / static_cast<size_t>(s.h * s.w * s.c));
  }
  double factor(size_t i) const { return drop(i) * (gated ? gate[image_channel(i)] : 1); }
  double g(size_t i) const { return upstream(i) * act_slope(act, z(i)); }
  double upstream(size_t i) const {
    return diff_dst[i] * factor(i) + (pooled ? diff_pooled[image_channel(i)] / static_cast<double>(s.h * s.w) : 0);
  }
  // What approximations may add to the error of dst (reference.h).
  Values value_slack() const {
    Values slack(s.size());
    for (size_t i = 0; i < slack.size(); ++i) slack[i] = act_value_slack(dtype, act, z(i)) * std::abs(factor(i));
    return slack;
  }
  double g_slack(size_t i) const { return std::abs(upstream(i)) * act_slope_slack(dtype, act, z(i)); }
  std::vector<int64_t> dims() const { return {s.n, s.h, s.w, s.c}; }
  void set_scalars(Rig& rig) const {
    rig.scalars().seed = static_cast<double>(kSeed);
    rig.scalars().step = static_cast<double>(kStep);
  }
};

// `many`: images of one more problem, more than a kernel has blocks.
template <class F>
void for_each_problem(int64_t many, F&& check) {
  for (const DType dtype : kDTypes) {
    for (const Shape& s : kShapes) {
      for (const Act act : kActs) {
        for (int variant = 0; variant < 5; ++variant) {
          const bool gated = variant == 1 || variant == 3, pooled = variant == 1 || variant == 2;
          const double rate = variant >= 3 ? 0.4 : 0;
          if ((variant > 1 || s.size() > 50000) && act != Act::silu && act != Act::identity) continue;
          SCOPED_TRACE(testing::Message() << s.n << "x" << s.h << "x" << s.w << "x" << s.c << " act " << int(act)
                                          << " variant " << variant << " " << (dtype == DType::bf16 ? "bf16" : "f32"));
          check(Problem(s, dtype, act, gated, pooled, rate));
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
  if (kThreadSanitizer) return;
  SCOPED_TRACE("more images than blocks");
  check(Problem({many, 1, 1, 4}, DType::bf16, Act::silu, true, true, 0.4));
}

void add_parameters(Rig& rig, const Problem& p, bool with_scale) {
  rig.in(DType::f32, {p.s.c}, p.mean);
  rig.in(DType::f32, {p.s.c}, p.inv_std);
  if (!with_scale) return;
  rig.in(DType::f32, {p.s.c}, p.scale);
  rig.in(DType::f32, {p.s.c}, p.shift);
}

TEST(BnAct, EqualsTheReference) {
  for_each_problem(8500, [](const Problem& p) {
    const bool with_residual = p.pooled || p.drop_rate > 0;
    Rig rig(backend::make_bn_act, {double(int(p.act)), p.drop_rate, Problem::kStream, 1});
    p.set_scalars(rig);
    rig.in(p.dtype, p.dims(), p.src);
    add_parameters(rig, p, true);
    if (p.gated)
      rig.in(DType::f32, {p.s.n, p.s.c}, p.gate);
    else
      rig.add_in(nullptr);
    if (with_residual)
      rig.in(p.dtype, p.dims(), p.residual);
    else
      rig.add_in(nullptr);
    const Tensor* dst = rig.out(p.dtype, p.dims());
    if (rig.covered()) return;
    ASSERT_NO_FATAL_FAILURE(rig.run());
    Values want(p.s.size());
    for (size_t i = 0; i < want.size(); ++i) {
      want[i] = act_value(p.act, p.z(i)) * p.factor(i) + (with_residual ? p.residual[i] : 0);
    }
    // Activation and residual may cancel: the error is of the larger.
    expect_near(rig.get(dst), want, tolerance(p.dtype), p.dtype == DType::f32 ? 1 : 1e-2, "dst", p.value_slack());
  });
}

TEST(BnAct, ADroppedImageIsTheResidualBitForBit) {
  Problem p({64, 3, 3, 17}, DType::bf16, Act::silu, true, false, 0.5);
  for (const bool with_residual : {false, true}) {
    Rig rig(backend::make_bn_act, {1, 0.5, Problem::kStream, 1});
    p.set_scalars(rig);
    rig.in(p.dtype, p.dims(), p.src);
    add_parameters(rig, p, true);
    rig.in(DType::f32, {p.s.n, p.s.c}, p.gate);
    if (with_residual)
      rig.in(p.dtype, p.dims(), p.residual);
    else
      rig.add_in(nullptr);
    const Tensor* dst = rig.out(p.dtype, p.dims());
    ASSERT_NO_FATAL_FAILURE(rig.run());
    const Values got = rig.get(dst);
    size_t dropped = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      if (p.drop(i) != 0) continue;
      ++dropped;
      EXPECT_EQ(got[i], with_residual ? p.residual[i] : 0);
    }
    EXPECT_GT(dropped, got.size() / 4);
    EXPECT_LT(dropped, got.size() * 3 / 4);
  }
}

TEST(BnApply, EqualsTheReference) {
  for (const DType dtype : kDTypes) {
    for (const Shape& s : kShapes) {
      const Problem p(s, dtype, Act::identity);
      Rig rig(backend::make_bn_apply, {1});
      rig.in(dtype, p.dims(), p.src);
      add_parameters(rig, p, true);
      const Tensor* dst = rig.out(dtype, p.dims());
      if (rig.covered()) continue;
      ASSERT_NO_FATAL_FAILURE(rig.run());
      Values want(s.size());
      for (size_t i = 0; i < want.size(); ++i) want[i] = p.z(i);
      expect_near(rig.get(dst), want, tolerance(dtype), dtype == DType::f32 ? 1 : 1e-3, "dst");
    }
  }
}

struct Sums {
  Values diff_scale, diff_shift, scale_terms, shift_terms, scale_slack, shift_slack;
};

Sums reference_sums(const Problem& p) {
  const size_t c = static_cast<size_t>(p.s.c);
  Sums sums{Values(c), Values(c), Values(c), Values(c), Values(c), Values(c)};
  for (size_t i = 0; i < p.s.size(); ++i) {
    const double g = p.g(i), gx = g * p.xhat(i);
    sums.diff_scale[p.channel(i)] += gx;
    sums.diff_shift[p.channel(i)] += g;
    sums.scale_terms[p.channel(i)] += std::abs(gx);
    sums.shift_terms[p.channel(i)] += std::abs(g);
    sums.scale_slack[p.channel(i)] += p.g_slack(i) * std::abs(p.xhat(i));
    sums.shift_slack[p.channel(i)] += p.g_slack(i);
  }
  return sums;
}

void expect_sums(DType dtype, const Values& got, const Values& want, const Values& terms, const char* what,
                 const Values& slack = {}) {
  const double tolerance = dtype == DType::bf16 ? kBf16Activation : 1e-6;
  for (size_t c = 0; c < want.size(); ++c) {
    ASSERT_LE(std::abs(got[c] - want[c]), tolerance * terms[c] + (slack.empty() ? 0 : slack[c]))
        << what << " " << c << ": " << got[c] << ", want " << want[c];
  }
}

TEST(BnActBwdReduce, EqualsTheReference) {
  for_each_problem(2200, [](const Problem& p) {
    Rig rig(backend::make_bn_act_bwd_reduce, {double(int(p.act)), p.drop_rate, Problem::kStream});
    p.set_scalars(rig);
    rig.in(p.dtype, p.dims(), p.diff_dst);
    rig.in(p.dtype, p.dims(), p.src);
    add_parameters(rig, p, true);
    if (p.gated)
      rig.in(DType::f32, {p.s.n, p.s.c}, p.gate);
    else
      rig.add_in(nullptr);
    if (p.pooled)
      rig.in(DType::f32, {p.s.n, p.s.c}, p.diff_pooled);
    else
      rig.add_in(nullptr);
    const Tensor* diff_scale = rig.out(DType::f32, {p.s.c});
    const Tensor* diff_shift = rig.out(DType::f32, {p.s.c});
    if (rig.covered()) return;
    ASSERT_NO_FATAL_FAILURE(rig.run());
    expect_form(rig, p.dtype, p.s.c, true);
    const Sums want = reference_sums(p);
    expect_sums(p.dtype, rig.get(diff_scale), want.diff_scale, want.scale_terms, "diff_scale", want.scale_slack);
    expect_sums(p.dtype, rig.get(diff_shift), want.diff_shift, want.shift_terms, "diff_shift", want.shift_slack);
  });
}

// What bn_act_bwd_sums gives by image and channel, and what bn_act_bwd_merge makes of it.
struct ImageSums {
  Values parts[5];  // diff_gate, then the four of `sums`
  Values terms[5];  // the same of absolute values, which errors are measured by
  Values slack[5];
};

ImageSums reference_image_sums(const Problem& p) {
  ImageSums sums;
  for (int k = 0; k < 5; ++k) {
    sums.parts[k].assign(p.gate.size(), 0);
    sums.terms[k].assign(p.gate.size(), 0);
    sums.slack[k].assign(p.gate.size(), 0);
  }
  for (size_t i = 0; i < p.s.size(); ++i) {
    const double d = p.diff_dst[i] * p.drop(i), slope = act_slope(p.act, p.z(i));
    const double values[5] = {d * act_value(p.act, p.z(i)), d * slope, slope, d * slope * p.xhat(i), slope * p.xhat(i)};
    for (int k = 0; k < 5; ++k) {
      sums.parts[k][p.image_channel(i)] += values[k];
    }
    // SiLU' is a difference with a zero at -1.28, and so is bn(x): their error is of the terms, not of what is left.
    const double size = std::abs(slope) + 0.1;
    const double sizes[5] = {std::abs(values[0]) + 1e-3 * std::abs(d), std::abs(d) * size, size,
                             std::abs(d * p.xhat(i)) * size, std::abs(p.xhat(i)) * size};
    const double of_value = act_value_slack(p.dtype, p.act, p.z(i)), of_slope = act_slope_slack(p.dtype, p.act, p.z(i));
    const double slacks[5] = {std::abs(d) * of_value, std::abs(d) * of_slope, of_slope,
                              std::abs(d * p.xhat(i)) * of_slope, std::abs(p.xhat(i)) * of_slope};
    for (int k = 0; k < 5; ++k) {
      sums.terms[k][p.image_channel(i)] += sizes[k];
      sums.slack[k][p.image_channel(i)] += slacks[k];
    }
  }
  return sums;
}

TEST(BnActBwdSums, EqualsTheReference) {
  for_each_problem(2200, [](const Problem& p) {
    for (const bool remake : {false, true}) {
      if (remake && !p.gated) continue;
      Rig rig(backend::make_bn_act_bwd_sums, {double(int(p.act)), p.drop_rate, Problem::kStream});
      p.set_scalars(rig);
      rig.in(p.dtype, p.dims(), p.diff_dst);
      rig.in(p.dtype, p.dims(), p.src);
      add_parameters(rig, p, true);
      if (p.gated)
        rig.in(DType::f32, {p.s.n, p.s.c}, p.gate);
      else
        rig.add_in(nullptr);
      const Tensor* diff_gate = rig.out(DType::f32, {p.s.n, p.s.c});
      const Tensor* sums = rig.out(DType::f32, {p.s.n, 4, p.s.c});
      const Tensor* dst = remake ? rig.out(p.dtype, p.dims()) : nullptr;
      if (!remake) rig.add_out(nullptr);
      if (rig.covered()) continue;
      ASSERT_NO_FATAL_FAILURE(rig.run());
      const ImageSums want = reference_image_sums(p);
      expect_sums(p.dtype, rig.get(diff_gate), want.parts[0], want.terms[0], "diff_gate", want.slack[0]);
      const Values got = rig.get(sums);
      const size_t c = static_cast<size_t>(p.s.c);
      for (size_t k = 0; k < 4; ++k) {
        Values part;
        for (size_t i = 0; i < p.gate.size(); ++i) part.push_back(got[(i / c * 4 + k) * c + i % c]);
        expect_sums(p.dtype, part, want.parts[k + 1], want.terms[k + 1], "sums", want.slack[k + 1]);
      }
      if (!remake) continue;
      Values again(p.s.size());
      for (size_t i = 0; i < again.size(); ++i) again[i] = act_value(p.act, p.z(i)) * p.factor(i);
      expect_near(rig.get(dst), again, tolerance(p.dtype), p.dtype == DType::f32 ? 1 : 1e-2, "dst", p.value_slack());
    }
  });
}

TEST(BnActBwdSums, RefusesWhatItCannotDo) {
  const Problem p({2, 3, 3, 5}, DType::f32, Act::silu);
  Rig rig(backend::make_bn_act_bwd_sums, {1, 0, 0});
  rig.in(p.dtype, p.dims(), p.diff_dst);
  rig.in(p.dtype, p.dims(), p.src);
  add_parameters(rig, p, true);
  rig.add_in(nullptr);
  rig.out(DType::f32, {2, 5});
  rig.out(DType::f32, {2, 4, 5});
  rig.out(p.dtype, p.dims());  // the gated activation without a gate
  EXPECT_EQ(rig.make().code(), Code::plan_invalid);
}

// Of the sums of bn_act_bwd_sums: what bn_act_bwd_reduce gives over the tensors themselves.
TEST(BnActBwdMerge, GivesTheReductionsOfTheWholeGradient) {
  for (const Shape& s : kShapes) {
    for (const bool pooled : {false, true}) {
      const Problem p(s, DType::f32, Act::silu, true, pooled, 0.4);
      const ImageSums by_image = reference_image_sums(p);
      const size_t c = static_cast<size_t>(s.c);
      Values sums(4 * p.gate.size());
      for (size_t k = 0; k < 4; ++k) {
        for (size_t i = 0; i < p.gate.size(); ++i) sums[(i / c * 4 + k) * c + i % c] = by_image.parts[k + 1][i];
      }
      Rig rig(backend::make_bn_act_bwd_merge, {double(s.h * s.w)});
      rig.in(DType::f32, {s.n, 4, s.c}, sums);
      rig.in(DType::f32, {s.n, s.c}, p.gate);
      if (pooled)
        rig.in(DType::f32, {s.n, s.c}, p.diff_pooled);
      else
        rig.add_in(nullptr);
      const Tensor* diff_scale = rig.out(DType::f32, {s.c});
      const Tensor* diff_shift = rig.out(DType::f32, {s.c});
      if (rig.covered()) continue;
      ASSERT_NO_FATAL_FAILURE(rig.run());
      const Sums want = reference_sums(p);
      // The two parts of g may cancel pixel by pixel: the error is of their sum without signs.
      Values scale_terms(c), shift_terms(c);
      for (size_t i = 0; i < p.gate.size(); ++i) {
        const double pool = pooled ? std::abs(p.diff_pooled[i]) / static_cast<double>(s.h * s.w) : 0;
        scale_terms[i % c] += std::abs(p.gate[i]) * by_image.terms[3][i] + pool * by_image.terms[4][i];
        shift_terms[i % c] += std::abs(p.gate[i]) * by_image.terms[1][i] + pool * by_image.terms[2][i];
      }
      expect_sums(p.dtype, rig.get(diff_scale), want.diff_scale, scale_terms, "diff_scale");
      expect_sums(p.dtype, rig.get(diff_shift), want.diff_shift, shift_terms, "diff_shift");
    }
  }
}

TEST(BnBwdReduce, EqualsTheReference) {
  for (const DType dtype : kDTypes) {
    for (const Shape& s : kShapes) {
      const Problem p(s, dtype, Act::identity);
      Rig rig(backend::make_bn_bwd_reduce);
      rig.in(dtype, p.dims(), p.diff_dst);
      rig.in(dtype, p.dims(), p.src);
      add_parameters(rig, p, false);
      const Tensor* diff_scale = rig.out(DType::f32, {s.c});
      const Tensor* diff_shift = rig.out(DType::f32, {s.c});
      if (rig.covered()) continue;
      ASSERT_NO_FATAL_FAILURE(rig.run());
      const Sums want = reference_sums(p);
      expect_sums(p.dtype, rig.get(diff_scale), want.diff_scale, want.scale_terms, "diff_scale");
      expect_sums(p.dtype, rig.get(diff_shift), want.diff_shift, want.shift_terms, "diff_shift");
    }
  }
}

// diff_scale and diff_shift are inputs of the apply ops: any numbers do.
Values reference_apply(const Problem& p, bool batch_stats, const Values& diff_scale, const Values& diff_shift) {
  Values want(p.s.size());
  const double m = static_cast<double>(p.s.rows());
  for (size_t i = 0; i < want.size(); ++i) {
    const size_t c = p.channel(i);
    const double correction = batch_stats ? diff_shift[c] / m + p.xhat(i) * diff_scale[c] / m : 0;
    want[i] = p.scale[c] * p.inv_std[c] * (p.g(i) - correction);
  }
  return want;
}

TEST(BnActBwdApply, EqualsTheReference) {
  for_each_problem(8500, [](const Problem& p) {
    for (const bool batch_stats : {false, true}) {
      Rig rig(backend::make_bn_act_bwd_apply, {double(int(p.act)), p.drop_rate, Problem::kStream, double(batch_stats)});
      p.set_scalars(rig);
      rig.in(p.dtype, p.dims(), p.diff_dst);
      rig.in(p.dtype, p.dims(), p.src);
      add_parameters(rig, p, true);
      const size_t c = static_cast<size_t>(p.s.c);
      const double m = static_cast<double>(p.s.rows());
      const Values diff_scale = stored(DType::f32, random_values(c, 20, 0, m)),
                   diff_shift = stored(DType::f32, random_values(c, 21, 0, m));
      if (batch_stats) {
        rig.in(DType::f32, {p.s.c}, diff_scale);
        rig.in(DType::f32, {p.s.c}, diff_shift);
      } else {
        rig.add_in(nullptr);
        rig.add_in(nullptr);
      }
      if (p.gated)
        rig.in(DType::f32, {p.s.n, p.s.c}, p.gate);
      else
        rig.add_in(nullptr);
      if (p.pooled)
        rig.in(DType::f32, {p.s.n, p.s.c}, p.diff_pooled);
      else
        rig.add_in(nullptr);
      const Tensor* diff_src = rig.out(p.dtype, p.dims());
      Values slack(p.s.size());
      for (size_t i = 0; i < slack.size(); ++i)
        slack[i] = std::abs(p.scale[p.channel(i)] * p.inv_std[p.channel(i)]) * p.g_slack(i);
      if (rig.covered()) continue;
      ASSERT_NO_FATAL_FAILURE(rig.run());
      expect_near(rig.get(diff_src), reference_apply(p, batch_stats, diff_scale, diff_shift), tolerance(p.dtype),
                  p.dtype == DType::f32 ? 2 : 2e-2, "diff_src", slack);
    }
  });
}

TEST(BnBwdApply, EqualsTheReference) {
  for (const DType dtype : kDTypes) {
    for (const Shape& s : kShapes) {
      for (const bool batch_stats : {false, true}) {
        const Problem p(s, dtype, Act::identity);
        const size_t c = static_cast<size_t>(s.c);
        const double m = static_cast<double>(s.rows());
        const Values diff_scale = stored(DType::f32, random_values(c, 20, 0, m)),
                     diff_shift = stored(DType::f32, random_values(c, 21, 0, m));
        Rig rig(backend::make_bn_bwd_apply, {double(batch_stats)});
        rig.in(dtype, p.dims(), p.diff_dst);
        rig.in(dtype, p.dims(), p.src);
        add_parameters(rig, p, false);
        rig.in(DType::f32, {s.c}, p.scale);
        if (batch_stats) {
          rig.in(DType::f32, {s.c}, diff_scale);
          rig.in(DType::f32, {s.c}, diff_shift);
        } else {
          rig.add_in(nullptr);
          rig.add_in(nullptr);
        }
        const Tensor* diff_src = rig.out(dtype, p.dims());
        if (rig.covered()) continue;
        ASSERT_NO_FATAL_FAILURE(rig.run());
        expect_near(rig.get(diff_src), reference_apply(p, batch_stats, diff_scale, diff_shift), tolerance(dtype),
                    dtype == DType::f32 ? 2 : 1e-3, "diff_src");
      }
    }
  }
}

TEST(BnBwdApply, RefusesBatchStatisticsWithoutSums) {
  const Problem p({1, 2, 2, 3}, DType::f32, Act::identity);
  Rig rig(backend::make_bn_bwd_apply, {1});
  rig.in(DType::f32, p.dims(), p.diff_dst);
  rig.in(DType::f32, p.dims(), p.src);
  add_parameters(rig, p, false);
  rig.in(DType::f32, {3}, p.scale);
  rig.add_in(nullptr);
  rig.add_in(nullptr);
  rig.out(DType::f32, p.dims());
  EXPECT_EQ(rig.make().code(), Code::plan_invalid);
}

// ---- folding -------------------------------------------------------------------------------------------------------

TEST(FoldBn, EqualsTheReference) {
  struct Case {
    bool depthwise;
    std::vector<int64_t> dims;
  };
  for (const Case& t :
       {Case{false, {17, 3, 3, 5}}, Case{false, {130, 1, 1, 300}}, Case{true, {5, 5, 24}}, Case{true, {3, 3, 1}}}) {
    const int64_t c = t.depthwise ? t.dims[2] : t.dims[0];
    const size_t channels = static_cast<size_t>(c);
    size_t count = 1;
    for (const int64_t d : t.dims) count *= static_cast<size_t>(d);
    const double eps = 1e-3;
    const Values weights = stored(DType::f32, random_values(count, 1)),
                 scale = stored(DType::f32, random_values(channels, 2, 1));
    const Values shift = stored(DType::f32, random_values(channels, 3)),
                 mean = stored(DType::f32, random_values(channels, 4));
    Values var = stored(DType::f32, random_values(channels, 5, 1, 0.1));
    var[0] = 0;
    Rig rig(backend::make_fold_bn, {eps, double(t.depthwise)});
    rig.in(DType::f32, t.dims, weights);
    for (const auto& v : {scale, shift, mean, var}) rig.in(DType::f32, {c}, v);
    const Tensor* folded_weights = rig.out(DType::f32, t.dims);
    const Tensor* folded_bias = rig.out(DType::f32, {c});
    if (rig.covered()) continue;
    ASSERT_NO_FATAL_FAILURE(rig.run());
    Values want(count), bias(channels);
    const auto factor = [&](size_t i) { return scale[i] / std::sqrt(var[i] + eps); };
    for (size_t i = 0; i < count; ++i)
      want[i] = weights[i] * factor(t.depthwise ? i % channels : i / (count / channels));
    for (size_t i = 0; i < channels; ++i) bias[i] = shift[i] - mean[i] * factor(i);
    expect_near(rig.get(folded_weights), want, 6.1e-8, 0, "folded_weights");
    expect_near(rig.get(folded_bias), bias, 6.1e-8, 0, "folded_bias");
  }
}

}  // namespace
}  // namespace effnet::test
