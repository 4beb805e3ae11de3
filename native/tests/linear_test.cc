#include "tests/kernel_rig.h"
#include "tests/real_sizes.h"

namespace effnet::test {
namespace {

struct Gemm {
  int64_t n, k, o;
};
constexpr Gemm kGemms[] = {{1, 1, 1}, {3, 8, 5}, {1, 17, 24}, {5, 96, 3}, {7, 130, 77}, {33, 200, 131}, {2, 600, 300}};

// A matrix product in double, with the sums of the terms' magnitudes.
struct Product {
  Values sum, terms;
};
template <class A, class B>
Product product(int64_t rows, int64_t columns, int64_t length, A&& a, B&& b) {
  Product p{Values(static_cast<size_t>(rows * columns)), Values(static_cast<size_t>(rows * columns))};
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      const size_t at = static_cast<size_t>(i * columns + j);
      for (int64_t r = 0; r < length; ++r) {
        p.sum[at] += a(i, r) * b(r, j);
        p.terms[at] += std::abs(a(i, r) * b(r, j));
      }
    }
  }
  return p;
}

void expect_product(const Values& got, const Product& want, const char* what) {
  ASSERT_EQ(got.size(), want.sum.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_LE(std::abs(got[i] - want.sum[i]), 1e-6 * want.terms[i]) << what << " " << i;
  }
}

struct Inputs {
  Gemm g;
  Values src, weights, bias, diff_dst;
  explicit Inputs(const Gemm& gemm) : g(gemm) {
    src = stored(DType::f32, random_values(static_cast<size_t>(g.n * g.k), 1, 0.2));
    weights = stored(DType::f32, random_values(static_cast<size_t>(g.o * g.k), 2));
    bias = stored(DType::f32, random_values(static_cast<size_t>(g.o), 3));
    diff_dst = stored(DType::f32, random_values(static_cast<size_t>(g.n * g.o), 4));
  }
  double x(int64_t n, int64_t k) const { return src[static_cast<size_t>(n * g.k + k)]; }
  double w(int64_t o, int64_t k) const { return weights[static_cast<size_t>(o * g.k + k)]; }
  double d(int64_t n, int64_t o) const { return diff_dst[static_cast<size_t>(n * g.o + o)]; }
};

template <class F>
void for_each_gemm(F&& check) {
  std::vector<Gemm> all(std::begin(kGemms), std::end(kGemms));
  if (real_sizes()) all.insert(all.end(), {{256, 1280, 1000}, {128, 1792, 1000}});  // of B0 and B4
  for (const Gemm& g : all) {
    SCOPED_TRACE(testing::Message() << g.n << "x" << g.k << "x" << g.o);
    check(Inputs(g));
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST(Linear, EqualsTheReference) {
  for_each_gemm([](const Inputs& in) {
    for (const bool with_bias : {false, true}) {
      Rig rig(backend::make_linear);
      rig.in(DType::f32, {in.g.n, in.g.k}, in.src);
      rig.in(DType::f32, {in.g.o, in.g.k}, in.weights);
      if (with_bias) {
        rig.in(DType::f32, {in.g.o}, in.bias);
      } else {
        rig.add_in(nullptr);
      }
      const Tensor* dst = rig.out(DType::f32, {in.g.n, in.g.o});
      if (rig.covered()) continue;
      ASSERT_NO_FATAL_FAILURE(rig.run());
      Product want = product(
          in.g.n, in.g.o, in.g.k, [&](int64_t n, int64_t k) { return in.x(n, k); },
          [&](int64_t k, int64_t o) { return in.w(o, k); });
      for (size_t i = 0; with_bias && i < want.sum.size(); ++i) {
        const double b = in.bias[i % static_cast<size_t>(in.g.o)];
        want.sum[i] += b;
        want.terms[i] += std::abs(b);
      }
      expect_product(rig.get(dst), want, "dst");
    }
  });
}

TEST(Linear, ARowDoesNotDependOnItsBatch) {
  const Inputs in({7, 130, 77});
  Values together;
  for (const int64_t n : {7, 1}) {
    Rig rig(backend::make_linear);
    rig.in(DType::f32, {n, 130}, Values(in.src.begin(), in.src.begin() + n * 130));
    rig.in(DType::f32, {77, 130}, in.weights);
    rig.in(DType::f32, {77}, in.bias);
    const Tensor* dst = rig.out(DType::f32, {n, 77});
    ASSERT_NO_FATAL_FAILURE(rig.run());
    if (n == 7) {
      together = rig.get(dst);
    } else {
      EXPECT_EQ(rig.get(dst), Values(together.begin(), together.begin() + 77));
    }
  }
}

TEST(LinearBwdData, EqualsTheReference) {
  for_each_gemm([](const Inputs& in) {
    Rig rig(backend::make_linear_bwd_data);
    rig.in(DType::f32, {in.g.n, in.g.o}, in.diff_dst);
    rig.in(DType::f32, {in.g.o, in.g.k}, in.weights);
    const Tensor* diff_src = rig.out(DType::f32, {in.g.n, in.g.k});
    if (rig.covered()) return;
    ASSERT_NO_FATAL_FAILURE(rig.run());
    expect_product(rig.get(diff_src),
                   product(
                       in.g.n, in.g.k, in.g.o, [&](int64_t n, int64_t o) { return in.d(n, o); },
                       [&](int64_t o, int64_t k) { return in.w(o, k); }),
                   "diff_src");
  });
}

TEST(LinearBwdWeights, EqualsTheReference) {
  for_each_gemm([](const Inputs& in) {
    for (const bool with_bias : {false, true}) {
      Rig rig(backend::make_linear_bwd_weights);
      rig.in(DType::f32, {in.g.n, in.g.k}, in.src);
      rig.in(DType::f32, {in.g.n, in.g.o}, in.diff_dst);
      const Tensor* diff_weights = rig.out(DType::f32, {in.g.o, in.g.k});
      const Tensor* diff_bias = nullptr;
      if (with_bias) {
        diff_bias = rig.out(DType::f32, {in.g.o});
      } else {
        rig.add_out(nullptr);
      }
      if (rig.covered()) continue;
      ASSERT_NO_FATAL_FAILURE(rig.run());
      expect_product(rig.get(diff_weights),
                     product(
                         in.g.o, in.g.k, in.g.n, [&](int64_t o, int64_t n) { return in.d(n, o); },
                         [&](int64_t n, int64_t k) { return in.x(n, k); }),
                     "diff_weights");
      if (!with_bias) continue;
      expect_product(rig.get(diff_bias),
                     product(
                         1, in.g.o, in.g.n, [&](int64_t, int64_t) { return 1.0; },
                         [&](int64_t n, int64_t o) { return in.d(n, o); }),
                     "diff_bias");
    }
  });
}

TEST(Linear, RefusesShapesThatDoNotFit) {
  Rig rig(backend::make_linear);
  rig.in(DType::f32, {2, 3}, Values(6, 1));
  rig.in(DType::f32, {5, 4}, Values(20, 1));
  rig.add_in(nullptr);
  rig.out(DType::f32, {2, 5});
  EXPECT_EQ(rig.make().code(), Code::plan_invalid);
}

}  // namespace
}  // namespace effnet::test
