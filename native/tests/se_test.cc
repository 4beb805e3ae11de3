#include "tests/kernel_rig.h"
#include "tests/real_sizes.h"
#include "tests/reference.h"

namespace effnet::test {
namespace {

using plan::Act;

// Squeeze-and-excitation in double. Gradients are written out from the chain rule, element by element.
struct Se {
  int64_t n, c, r;
  Act act;
  Values pooled, weights0, bias0, weights1, bias1, diff_gate;
  Values hidden, gate;

  Se(int64_t images, int64_t channels, int64_t squeezed, Act a) : n(images), c(channels), r(squeezed), act(a) {
    pooled = stored(DType::f32, random_values(size(n, c), 1, 0.3));
    weights0 = stored(DType::f32, random_values(size(r, c), 2, 0, 1 / std::sqrt(static_cast<double>(c))));
    bias0 = stored(DType::f32, random_values(static_cast<size_t>(r), 3));
    weights1 = stored(DType::f32, random_values(size(c, r), 4, 0, 1 / std::sqrt(static_cast<double>(r))));
    bias1 = stored(DType::f32, random_values(static_cast<size_t>(c), 5));
    diff_gate = stored(DType::f32, random_values(size(n, c), 6));
    hidden.resize(size(n, r));
    gate.resize(size(n, c));
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < r; ++j) {
        double sum = bias0[static_cast<size_t>(j)];
        for (int64_t k = 0; k < c; ++k) sum += at(pooled, i, c, k) * at(weights0, j, c, k);
        hidden[static_cast<size_t>(i * r + j)] = sum;
      }
      for (int64_t k = 0; k < c; ++k) {
        double sum = bias1[static_cast<size_t>(k)];
        for (int64_t j = 0; j < r; ++j) sum += act_value(act, at(hidden, i, r, j)) * at(weights1, k, r, j);
        gate[static_cast<size_t>(i * c + k)] = 1 / (1 + std::exp(-sum));
      }
    }
  }
  static size_t size(int64_t rows, int64_t columns) { return static_cast<size_t>(rows * columns); }
  static double at(const Values& v, int64_t row, int64_t columns, int64_t column) {
    return v[static_cast<size_t>(row * columns + column)];
  }
  static double& at(Values& v, int64_t row, int64_t columns, int64_t column) {
    return v[static_cast<size_t>(row * columns + column)];
  }
};

struct Sizes {
  int64_t n, c, r;
};

template <class F>
void for_each_case(F&& check, const std::vector<Sizes>& more = {}) {
  std::vector<Sizes> sizes = {{1, 1, 1},   {3, 8, 1},    {1, 17, 3},   {5, 96, 4},
                              {9, 24, 17}, {6, 300, 28}, {70, 72, 37}, {18, 1160, 48}};
  sizes.insert(sizes.end(), more.begin(), more.end());
  if (real_sizes())  // of B0, B4 and V2-S
    sizes.insert(sizes.end(), {{256, 1152, 48}, {128, 1632, 68}, {128, 2688, 112}, {256, 1536, 64}});
  for (const Sizes& s : sizes) {
    if (kThreadSanitizer && s.c > 1000) continue;
    for (const Act act : kActs) {
      if (s.n * s.c > 100'000 && act != Act::silu) continue;
      SCOPED_TRACE(testing::Message() << s.n << "x" << s.c << "x" << s.r << " act " << int(act));
      check(Se(s.n, s.c, s.r, act));
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

// The larger ones are cut by channels.
TEST(SeGate, EqualsTheReference) {
  for_each_case(
      [](const Se& se) {
        Rig rig(backend::make_se_gate, {double(int(se.act))});
        rig.in(DType::f32, {se.n, se.c}, se.pooled);
        rig.in(DType::f32, {se.r, se.c}, se.weights0);
        rig.in(DType::f32, {se.r}, se.bias0);
        rig.in(DType::f32, {se.c, se.r}, se.weights1);
        rig.in(DType::f32, {se.c}, se.bias1);
        const Tensor* gate = rig.out(DType::f32, {se.n, se.c});
        const Tensor* hidden = rig.out(DType::f32, {se.n, se.r});
        if (rig.covered()) return;
        ASSERT_NO_FATAL_FAILURE(rig.run());
        expect_near(rig.get(hidden), se.hidden, 1e-6, 2, "hidden");
        expect_near(rig.get(gate), se.gate, 2e-6, 0.5, "gate");
      },
      {{1, 1200, 50}, {3, 700, 47}});
}

TEST(SeGateBwd, EqualsTheReference) {
  for_each_case([](const Se& se) {
    Rig rig(backend::make_se_gate_bwd, {double(int(se.act))});
    // The kernel starts from the stored hidden and gate; so does the reference.
    const Values hidden = stored(DType::f32, se.hidden), gate = stored(DType::f32, se.gate);
    rig.in(DType::f32, {se.n, se.c}, se.diff_gate);
    rig.in(DType::f32, {se.n, se.c}, se.pooled);
    rig.in(DType::f32, {se.n, se.r}, hidden);
    rig.in(DType::f32, {se.n, se.c}, gate);
    rig.in(DType::f32, {se.r, se.c}, se.weights0);
    rig.in(DType::f32, {se.c, se.r}, se.weights1);
    const Tensor* diff_pooled = rig.out(DType::f32, {se.n, se.c});
    const Tensor* diff_weights0 = rig.out(DType::f32, {se.r, se.c});
    const Tensor* diff_bias0 = rig.out(DType::f32, {se.r});
    const Tensor* diff_weights1 = rig.out(DType::f32, {se.c, se.r});
    const Tensor* diff_bias1 = rig.out(DType::f32, {se.c});
    if (rig.covered()) return;
    ASSERT_NO_FATAL_FAILURE(rig.run());

    Values pooled(Se::size(se.n, se.c)), weights0(Se::size(se.r, se.c)), bias0(static_cast<size_t>(se.r));
    Values weights1(Se::size(se.c, se.r)), bias1(static_cast<size_t>(se.c));
    for (int64_t i = 0; i < se.n; ++i) {
      Values d(static_cast<size_t>(se.c)), e(static_cast<size_t>(se.r));
      for (int64_t k = 0; k < se.c; ++k) {
        const double g = Se::at(gate, i, se.c, k), dk = Se::at(se.diff_gate, i, se.c, k) * g * (1 - g);
        bias1[static_cast<size_t>(k)] += dk;
        for (int64_t j = 0; j < se.r; ++j) {
          const double h = Se::at(hidden, i, se.r, j);
          Se::at(weights1, k, se.r, j) += dk * act_value(se.act, h);
          e[static_cast<size_t>(j)] += dk * Se::at(se.weights1, k, se.r, j) * act_slope(se.act, h);
        }
      }
      for (int64_t j = 0; j < se.r; ++j) {
        bias0[static_cast<size_t>(j)] += e[static_cast<size_t>(j)];
        for (int64_t k = 0; k < se.c; ++k) {
          Se::at(weights0, j, se.c, k) += e[static_cast<size_t>(j)] * Se::at(se.pooled, i, se.c, k);
          Se::at(pooled, i, se.c, k) += e[static_cast<size_t>(j)] * Se::at(se.weights0, j, se.c, k);
        }
      }
    }
    const double terms = se.n <= 9 ? 1 : std::sqrt(static_cast<double>(se.n));  // of a sum over the images
    expect_near(rig.get(diff_pooled), pooled, 1e-6, 1, "diff_pooled");
    expect_near(rig.get(diff_weights0), weights0, 1e-6, terms, "diff_weights0");
    expect_near(rig.get(diff_bias0), bias0, 1e-6, terms, "diff_bias0");
    expect_near(rig.get(diff_weights1), weights1, 1e-6, terms, "diff_weights1");
    expect_near(rig.get(diff_bias1), bias1, 1e-6, terms, "diff_bias1");
  });
}

#ifdef EFFNET_TEST_CUDA
// So many that there is no counter for a block's part of the channels.
TEST(SeGateBwd, TheChannelsOfManyImagesAreNotCut) {
  if (kThreadSanitizer) GTEST_SKIP() << "takes minutes";
  const auto hidden_gradient = [](int64_t n) {
    Rig rig(backend::make_se_gate_bwd, {1});
    const int64_t c = 260, r = 2;
    const auto values = [](int64_t count, uint32_t seed) {
      return stored(DType::f32, random_values(static_cast<size_t>(count), seed));
    };
    for (const uint32_t seed : {1, 2}) rig.in(DType::f32, {n, c}, values(n * c, seed));
    rig.in(DType::f32, {n, r}, values(n * r, 3));
    rig.in(DType::f32, {n, c}, values(n * c, 4));
    rig.in(DType::f32, {r, c}, values(r * c, 5));
    rig.in(DType::f32, {c, r}, values(r * c, 6));
    const Tensor* diff_pooled = rig.out(DType::f32, {n, c});
    for (const std::vector<int64_t>& dims : {std::vector<int64_t>{r, c}, {r}, {c, r}, {c}}) rig.out(DType::f32, dims);
    rig.run();
    return rig.get(diff_pooled);
  };
  // random_values of a longer tensor begin with the same.
  const Values few = hidden_gradient(3), many = hidden_gradient(4100);
  ASSERT_NO_FATAL_FAILURE(
      expect_near(Values(many.begin(), many.begin() + static_cast<int64_t>(few.size())), few, 1e-6, 3, "diff_pooled"));
}
#endif

TEST(SeGate, RefusesShapesThatDoNotFit) {
  Rig rig(backend::make_se_gate, {1});
  rig.in(DType::f32, {2, 8}, Values(16, 1));
  rig.in(DType::f32, {3, 8}, Values(24, 1));
  rig.in(DType::f32, {3}, Values(3, 1));
  rig.in(DType::f32, {3, 8}, Values(24, 1));  // must be [8, 3]
  rig.in(DType::f32, {8}, Values(8, 1));
  rig.out(DType::f32, {2, 8});
  rig.out(DType::f32, {2, 3});
  EXPECT_EQ(rig.make().code(), Code::plan_invalid);
}

}  // namespace
}  // namespace effnet::test
