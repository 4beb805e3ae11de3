#include "tests/kernel_rig.h"
#include "tests/real_sizes.h"

namespace effnet::test {
namespace {

struct Loss {
  double loss = 0;
  Values diff, rank;
};

Loss reference(int64_t n, int64_t k, const Values& logits, const Values& labels, double s) {
  Loss want{0, Values(static_cast<size_t>(n * k)), Values(static_cast<size_t>(n), -1)};
  double valid = 0;
  for (const double label : labels) valid += label >= 0;
  for (int64_t b = 0; b < n; ++b) {
    const double* x = logits.data() + b * k;
    const int64_t label = static_cast<int64_t>(labels[static_cast<size_t>(b)]);
    if (label < 0) continue;
    const double max = *std::max_element(x, x + k);
    double sum = 0, rank = 0;
    for (int64_t i = 0; i < k; ++i) {
      sum += std::exp(x[i] - max);
      rank += x[i] > x[label] || (x[i] == x[label] && i < label);
    }
    want.rank[static_cast<size_t>(b)] = rank;
    for (int64_t i = 0; i < k; ++i) {
      const double target = s / static_cast<double>(k) + (i == label ? 1 - s : 0), log_p = x[i] - max - std::log(sum);
      want.loss -= target * log_p / valid;
      want.diff[static_cast<size_t>(b * k + i)] = (std::exp(log_p) - target) / valid;
    }
  }
  return want;
}

struct LossRig {
  Rig rig;
  Tensor *loss, *diff, *rank;
  LossRig(int64_t n, int64_t k, const Values& logits, const Values& labels, double s)
      : rig(backend::make_softmax_cross_entropy, {s}) {
    rig.in(DType::f32, {n, k}, logits);
    rig.in(DType::i32, {n}, labels);
    loss = rig.out(DType::f32, {1});
    diff = rig.out(DType::f32, {n, k});
    rank = rig.out(DType::i32, {n});
  }
};

TEST(SoftmaxCrossEntropy, EqualsTheReference) {
  struct Size {
    int64_t n, k;
  };
  std::vector<Size> sizes = {{1, 1}, {3, 2}, {5, 10}, {4, 17}, {70, 1000}, {2, 4097}, {1, 21840}};
  if (real_sizes()) sizes.push_back({256, 1000});
  for (const Size& size : sizes) {
    if (kThreadSanitizer && size.n * size.k > 10000) continue;
    for (const double s : {0.0, 0.1, 1.0}) {
      for (const double deviation : {1.0, 20.0}) {
        SCOPED_TRACE(testing::Message() << size.n << "x" << size.k << " smoothing " << s << " deviation " << deviation);
        const auto [n, k] = size;
        const Values logits = stored(DType::f32, random_values(static_cast<size_t>(n * k), 1, 3, deviation));
        Values labels(static_cast<size_t>(n));
        for (int64_t b = 0; b < n; ++b)
          labels[static_cast<size_t>(b)] = b % 3 == 1 ? -1 : static_cast<double>((b * 31) % k);
        LossRig t(n, k, logits, labels, s);
        if (t.rig.covered()) continue;
        ASSERT_NO_FATAL_FAILURE(t.rig.run());
        const Loss want = reference(n, k, logits, labels, s);
        expect_near(t.rig.get(t.loss), {want.loss}, 1e-6, 0.1, "loss");
        expect_near(t.rig.get(t.diff), want.diff, 1e-6, 0.1, "diff_logits");
        EXPECT_EQ(t.rig.get(t.rank), want.rank);
      }
    }
  }
}

TEST(SoftmaxCrossEntropy, TiesCountWhereTheIndexIsSmaller) {
  Values logits(40, 1);
  logits[39] = 2;
  LossRig t(
      3, 40,
      [&] {
        Values rows;
        for (int i = 0; i < 3; ++i) rows.insert(rows.end(), logits.begin(), logits.end());
        return rows;
      }(),
      {0, 20, 39}, 0);
  ASSERT_NO_FATAL_FAILURE(t.rig.run());
  EXPECT_EQ(t.rig.get(t.rank), Values({1, 21, 0}));
}

TEST(SoftmaxCrossEntropy, HugeLogitsStayFinite) {
  for (const double s : {0.0, 0.1}) {
    LossRig t(2, 4, {1e30, -1e30, 0, 5, -3e4, -3e4, -3e4, -3e4}, {0, 2}, s);
    ASSERT_NO_FATAL_FAILURE(t.rig.run());
    const double loss = t.rig.get(t.loss)[0];
    EXPECT_TRUE(std::isfinite(loss)) << loss;
    for (const double d : t.rig.get(t.diff)) EXPECT_TRUE(std::isfinite(d)) << d;
  }
  LossRig extremes(1, 2, {3e38, -3e38}, {0}, 0);
  ASSERT_NO_FATAL_FAILURE(extremes.rig.run());
  EXPECT_EQ(extremes.rig.get(extremes.loss)[0], 0);
}

TEST(SoftmaxCrossEntropy, NoLabelNoLoss) {
  LossRig t(3, 5, random_values(15, 1), {-1, -1, -1}, 0.1);
  ASSERT_NO_FATAL_FAILURE(t.rig.run());
  EXPECT_EQ(t.rig.get(t.loss), Values({0}));
  EXPECT_EQ(t.rig.get(t.diff), Values(15, 0));
  EXPECT_EQ(t.rig.get(t.rank), Values(3, -1));
}

TEST(SoftmaxCrossEntropy, ALabelOutsideTheClassesIsNotSilent) {
  LossRig t(2, 5, random_values(10, 1), {5, 1}, 0.1);
  ASSERT_NO_FATAL_FAILURE(t.rig.run());
  EXPECT_TRUE(std::isnan(t.rig.get(t.loss)[0]));
  EXPECT_EQ(t.rig.get(t.rank)[0], 5);
}

TEST(SoftmaxCrossEntropy, ANanIsNeverTheRightClass) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  LossRig t(2, 3, {nan, nan, nan, 1, nan, 0}, {0, 0}, 0);
  ASSERT_NO_FATAL_FAILURE(t.rig.run());
  EXPECT_TRUE(std::isnan(t.rig.get(t.loss)[0]));
  for (const double rank : t.rig.get(t.rank)) EXPECT_GT(rank, 0);
}

TEST(Softmax, EqualsTheReference) {
  for (const int64_t k : {1, 3, 16, 1000, 4098, 9000}) {
    const int64_t n = 5;
    const Values logits = stored(DType::f32, random_values(static_cast<size_t>(n * k), 1, -500, 5));
    Rig rig(backend::make_softmax);
    rig.in(DType::f32, {n, k}, logits);
    const Tensor* probs = rig.out(DType::f32, {n, k});
    if (rig.covered()) continue;
    ASSERT_NO_FATAL_FAILURE(rig.run());
    Values want(logits.size());
    for (int64_t b = 0; b < n; ++b) {
      const size_t first = static_cast<size_t>(b * k), count = static_cast<size_t>(k);
      double sum = 0;
      for (size_t i = first; i < first + count; ++i) sum += std::exp(logits[i] + 500);
      for (size_t i = first; i < first + count; ++i) want[i] = std::exp(logits[i] + 500) / sum;
    }
    // A probability below a billionth has the digits that its exponent's last bit leaves. CPUs add up in FP32, which a
    // long row costs a digit.
    expect_near(rig.get(probs), want, backend::kIsCpu && k > 1000 ? 5e-6 : 2e-6, 1e-9, "probs");
  }
}

}  // namespace
}  // namespace effnet::test
