// Depthwise convolutions against the definition in double precision. The rig runs every case with its shards in order,
// shuffled and on three threads, and demands the same bits.
#include "tests/kernel_rig.h"
#include "tests/reference.h"

namespace effnet::test {
namespace {

using backend::make_depthwise_conv2d;
using backend::make_depthwise_conv2d_bias_act;
using backend::make_depthwise_conv2d_bwd;
using backend::make_depthwise_conv2d_bwd_data;
using backend::make_depthwise_conv2d_bwd_weights;
using backend::make_depthwise_conv2d_stats;

struct Shape {
  int64_t n, h, w, c, kh, kw, stride, pad_t, pad_l, pad_b, pad_r;

  int64_t out_h() const { return (h + pad_t + pad_b - kh) / stride + 1; }
  int64_t out_w() const { return (w + pad_l + pad_r - kw) / stride + 1; }
  size_t src_size() const { return static_cast<size_t>(n * h * w * c); }
  size_t dst_size() const { return static_cast<size_t>(n * out_h() * out_w() * c); }
  size_t weight_size() const { return static_cast<size_t>(kh * kw * c); }
  std::vector<double> attrs() const {
    std::vector<double> a;
    for (int64_t v : {stride, pad_t, pad_l, pad_b, pad_r}) a.push_back(static_cast<double>(v));
    return a;
  }
  std::string text() const {
    std::string s;
    for (int64_t v : {n, h, w, c, kh, kw, stride, pad_t, pad_l, pad_b, pad_r}) s += std::to_string(v) + " ";
    return s;
  }
};

Shape same(int64_t n, int64_t size, int64_t c, int64_t k, int64_t stride) {
  const int64_t out = (size + stride - 1) / stride, pads = std::max<int64_t>(0, (out - 1) * stride + k - size);
  return {n, size, size, c, k, k, stride, pads / 2, pads / 2, pads - pads / 2, pads - pads / 2};
}
Shape symmetric(int64_t n, int64_t size, int64_t c, int64_t k, int64_t stride) {
  return {n, size, size, c, k, k, stride, k / 2, k / 2, k / 2, k / 2};
}

// B0's depthwise layers with fewer channels and pixels, then what they leave out.
std::vector<Shape> shapes() {
  std::vector<Shape> all;
  for (const auto& make : {same, symmetric}) {
    all.push_back(make(backend::kIsCpu ? 2 : 1, 56, 32, 3, 1));
    all.push_back(make(1, 56, 48, 3, 2));
    all.push_back(make(1, 28, backend::kIsCpu ? 144 : 48, 3, 1));
    all.push_back(make(2, 28, 72, 5, 2));
    all.push_back(make(1, 28, 80, 5, 1));
    all.push_back(make(1, 28, 120, 3, 2));
    all.push_back(make(2, 14, 96, 3, 1));
    all.push_back(make(1, 14, 112, 5, 1));
    all.push_back(make(3, 14, 56, 5, 2));
    all.push_back(make(2, 7, 144, 5, 1));
    all.push_back(make(1, 7, 192, 3, 1));
    for (int64_t k : {3, 5, 7}) {
      for (int64_t stride : {1, 2}) {
        for (int64_t size : {1, 2, 3, 9, 12}) all.push_back(make(2, size, size == 9 ? 19 : 5, k, stride));
        all.push_back(make(1, 13, 17, k, stride));
        all.push_back(make(1, 15, 1, k, stride));
      }
    }
    all.push_back(make(1, 11, 20, 3, 3));
    all.push_back(make(1, 10, 33, 1, 2));
    all.push_back(make(1, 6, 16, 1, 1));
    all.push_back(make(1, 17, 24, 9, 4));
    all.push_back(make(1, 16, 31, 2, 2));
    all.push_back(make(1, 17, 31, 4, 1));
  }
  all.push_back({1, 12, 9, 20, 5, 3, 2, 2, 1, 2, 1});  // an oblong kernel
  all.push_back({2, 5, 31, 18, 3, 5, 1, 1, 2, 1, 2});
  all.push_back({1, 9, 21, 32, 3, 3, 2, 0, 0, 0, 0});  // no padding
  all.push_back({1, 20, 23, 16, 5, 5, 1, 0, 0, 0, 0});
  all.push_back({1, 20, 23, 16, 5, 5, 2, 0, 3, 1, 0});  // a different padding on every side
  if (backend::kIsCpu) {  // padding beyond the kernel, outputs that see no pixel: plans with it are refused
    all.push_back({1, 8, 8, 16, 3, 3, 1, 4, 5, 3, 4});
    all.push_back({1, 8, 8, 16, 3, 3, 2, 4, 5, 3, 4});
  }
  all.push_back({1, 3, 130, 40, 3, 3, 1, 1, 1, 1, 1});  // wide, several channel blocks with a tail in one ring
  all.push_back({1, 5, 130, 40, 5, 5, 2, 2, 2, 2, 2});
  if (backend::kIsCpu) all.push_back({1, 100, 100, 32, 3, 3, 1, 1, 1, 1, 1});  // several row bands
  all.push_back({backend::kIsCpu ? 5 : 1, 70, 70, 17, 5, 5, 2, 1, 1, 2, 2});
  if (kThreadSanitizer && !backend::kIsCpu) {
    // There a form runs on the first of its shapes alone (Rig::covered): on one of a few tiles of two images.
    std::erase_if(all, [](const Shape& s) { return s.dst_size() * static_cast<size_t>(s.kh * s.kw) > 350000; });
    for (const int64_t k : {3, 5})
      for (const int64_t stride : {1, 2}) all.insert(all.begin(), same(2, 20, 16, k, stride));
  }
  return all;
}

// f(n, y, x, channel, output index, tap index, source index) for every product that the convolution is made of.
template <class F>
void each_product(const Shape& s, F f) {
  size_t out = 0;
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t y = 0; y < s.out_h(); ++y)
      for (int64_t x = 0; x < s.out_w(); ++x)
        for (int64_t c = 0; c < s.c; ++c, ++out)
          for (int64_t i = 0; i < s.kh; ++i)
            for (int64_t j = 0; j < s.kw; ++j) {
              const int64_t sy = y * s.stride - s.pad_t + i, sx = x * s.stride - s.pad_l + j;
              if (sy < 0 || sy >= s.h || sx < 0 || sx >= s.w) continue;
              f(out, static_cast<size_t>((i * s.kw + j) * s.c + c),
                static_cast<size_t>(((n * s.h + sy) * s.w + sx) * s.c + c));
            }
}

struct Inputs {
  Values src, weights, used_weights, diff_dst, bias;  // used_weights: rounded as the arithmetic sees them
};

Inputs make_inputs(const Shape& s, DType dtype) {
  Inputs in;
  in.src = stored(dtype, random_values(s.src_size(), 1, 0.3));
  in.weights = stored(DType::f32, random_values(s.weight_size(), 2));
  in.used_weights = stored(dtype, in.weights);
  in.diff_dst = stored(dtype, random_values(s.dst_size(), 3, -0.2));
  in.bias = stored(DType::f32, random_values(static_cast<size_t>(s.c), 4));
  return in;
}

Values forward(const Shape& s, const Inputs& in) {
  Values dst(s.dst_size());
  each_product(s, [&](size_t o, size_t w, size_t i) { dst[o] += in.src[i] * in.used_weights[w]; });
  return dst;
}

// bf16 results carry the half unit of their last place besides.
double tolerance(DType dtype) { return dtype == DType::bf16 ? 1.0 / 256 : 2e-6; }
// Terms are of size 1; a sum of kh * kw of them rounds at their size, not at that of the sum.
double term_scale(DType dtype) { return dtype == DType::bf16 ? 1e-3 : 3; }

constexpr DType kTypes[] = {DType::f32, DType::bf16};

const char* dtype_suffix(DType dtype) { return dtype == DType::bf16 ? "_bf16:" : "_f32:"; }

TEST(Depthwise, Forward) {
  for (const Shape& s : shapes()) {
    for (const DType dtype : kTypes) {
      SCOPED_TRACE(s.text());
      const Inputs in = make_inputs(s, dtype);
      Rig rig(make_depthwise_conv2d, s.attrs());
      rig.in(dtype, {s.n, s.h, s.w, s.c}, in.src);
      rig.in(DType::f32, {s.kh, s.kw, s.c}, in.weights);
      const Tensor* dst = rig.out(dtype, {s.n, s.out_h(), s.out_w(), s.c});
      if (rig.covered()) continue;
      rig.run();
      if (HasFatalFailure()) return;
      expect_near(rig.get(dst), forward(s, in), tolerance(dtype), term_scale(dtype), "dst");
      EXPECT_NE(rig.name().find(dtype_suffix(dtype)), std::string::npos);
      if (HasFailure()) return;
    }
  }
}

double act_ref(plan::Act act, double v) {
  switch (act) {
    case plan::Act::silu:
      return v / (1 + std::exp(-v));
    case plan::Act::relu:
      return std::max(v, 0.0);
    case plan::Act::relu6:
      return std::min(std::max(v, 0.0), 6.0);
    case plan::Act::sigmoid:
      return 1 / (1 + std::exp(-v));
    default:
      return v;
  }
}

TEST(Depthwise, ForwardBiasActPool) {
  int turn = 0;
  for (const Shape& s : shapes()) {
    for (const DType dtype : kTypes) {
      const plan::Act act = static_cast<plan::Act>(turn % 5);
      const bool pool = turn++ % 3 != 0;
      SCOPED_TRACE(s.text() + "act " + std::to_string(static_cast<int>(act)));
      const Inputs in = make_inputs(s, dtype);
      auto attrs = s.attrs();
      attrs.push_back(static_cast<double>(act));
      Rig rig(make_depthwise_conv2d_bias_act, attrs);
      rig.in(dtype, {s.n, s.h, s.w, s.c}, in.src);
      rig.in(DType::f32, {s.kh, s.kw, s.c}, in.weights);
      rig.in(DType::f32, {s.c}, in.bias);
      const Tensor* dst = rig.out(dtype, {s.n, s.out_h(), s.out_w(), s.c});
      const Tensor* pooled = pool ? rig.out(DType::f32, {s.n, s.c}) : nullptr;
      if (!pool) rig.add_out(nullptr);
      if (rig.covered()) continue;
      rig.run();
      if (HasFatalFailure()) return;
      Values want = forward(s, in), slack(want.size());
      for (size_t i = 0; i < want.size(); ++i) {
        const double x = want[i] + in.bias[i % static_cast<size_t>(s.c)];
        want[i] = act_ref(act, x);
        slack[i] = act_value_slack(dtype, act, x);
      }
      const Values got = rig.get(dst);
      const double approximation = dtype == DType::bf16 && act == plan::Act::silu ? kBf16Activation : 0;
      expect_near(got, want, tolerance(dtype) + approximation, term_scale(dtype), "dst", slack);
      if (pool) {
        // The mean is that of the stored values.
        Values mean(static_cast<size_t>(s.n * s.c));
        const size_t pixels = static_cast<size_t>(s.out_h() * s.out_w()), c = static_cast<size_t>(s.c);
        for (size_t i = 0; i < got.size(); ++i)
          mean[i / c / pixels * c + i % c] += got[i] / static_cast<double>(pixels);
        expect_near(rig.get(pooled), mean, 2e-6, 1, "pooled");
      }
      if (HasFailure()) return;
    }
  }
}

TEST(Depthwise, BackwardData) {
  for (const Shape& s : shapes()) {
    for (const DType dtype : kTypes) {
      SCOPED_TRACE(s.text());
      const Inputs in = make_inputs(s, dtype);
      Rig rig(make_depthwise_conv2d_bwd_data, s.attrs());
      rig.in(dtype, {s.n, s.out_h(), s.out_w(), s.c}, in.diff_dst);
      rig.in(DType::f32, {s.kh, s.kw, s.c}, in.weights);
      const Tensor* diff_src = rig.out(dtype, {s.n, s.h, s.w, s.c});
      if (rig.covered()) continue;
      rig.run();
      if (HasFatalFailure()) return;
      Values want(s.src_size());
      each_product(s, [&](size_t o, size_t w, size_t i) { want[i] += in.diff_dst[o] * in.used_weights[w]; });
      expect_near(rig.get(diff_src), want, tolerance(dtype), term_scale(dtype), "diff_src");
      if (HasFailure()) return;
    }
  }
}

TEST(Depthwise, BackwardWeights) {
  for (const Shape& s : shapes()) {
    for (const DType dtype : kTypes) {
      SCOPED_TRACE(s.text());
      const Inputs in = make_inputs(s, dtype);
      Rig rig(make_depthwise_conv2d_bwd_weights, s.attrs());
      rig.in(dtype, {s.n, s.h, s.w, s.c}, in.src);
      rig.in(dtype, {s.n, s.out_h(), s.out_w(), s.c}, in.diff_dst);
      const Tensor* diff_weights = rig.out(DType::f32, {s.kh, s.kw, s.c});
      if (rig.covered()) continue;
      rig.run();
      if (HasFatalFailure()) return;
      Values want(s.weight_size());
      each_product(s, [&](size_t o, size_t w, size_t i) { want[w] += in.src[i] * in.diff_dst[o]; });
      const double terms = static_cast<double>(s.n * s.out_h() * s.out_w());
      expect_near(rig.get(diff_weights), want, 1e-6, std::max(1.0, std::sqrt(terms)), "diff_weights");
      if (HasFailure()) return;
    }
  }
}

bool for_training(const Shape& s) {
  return s.kh == s.kw && (s.kw == 3 || s.kw == 5) && (s.stride == 1 || s.stride == 2);
}

std::vector<Shape> training_shapes() {
  std::vector<Shape> all;
  for (const Shape& s : shapes())
    if (for_training(s)) all.push_back(s);
  all.push_back({backend::kIsCpu ? 9 : 2, 60, 60, 24, 5, 5, 2, 1, 1, 2, 2});  // several images a shard
  all.push_back({18, 20, 20, 100, 3, 3, 1, 1, 1, 1, 1});
  const int64_t channels = backend::kIsCpu ? 1300 : 136;
  all.push_back({3, 9, 9, channels, 5, 5, 1, 2, 2, 2, 2});  // more channels than a ring holds
  all.push_back({3, 9, 10, channels, 3, 3, 2, 0, 1, 1, 1});
  if (!backend::kIsCpu) all.push_back({40, 7, 7, 128, 3, 3, 1, 1, 1, 1, 1});  // several tiles a block
  return all;
}

double act_slope_ref(plan::Act act, double v) {
  const double s = 1 / (1 + std::exp(-v));
  switch (act) {
    case plan::Act::silu:
      return s * (1 + v * (1 - s));
    case plan::Act::relu:
      return v > 0;
    case plan::Act::relu6:
      return v > 0 && v < 6;
    case plan::Act::sigmoid:
      return s * (1 - s);
    default:
      return 1;
  }
}

// BN and activation in front of a convolution.
struct Norm {
  Values mean, inv_std, scale, shift;
  plan::Act act;

  Norm(int64_t channels, plan::Act a) : act(a) {
    const size_t c = static_cast<size_t>(channels);
    mean = stored(DType::f32, random_values(c, 11, 0.3, 0.3));
    inv_std = stored(DType::f32, random_values(c, 12, 1.2, 0.1));
    scale = stored(DType::f32, random_values(c, 13, 0.8, 0.4));
    shift = stored(DType::f32, random_values(c, 14, 0, 0.3));
  }
  double z(double src, size_t c) const { return (src - mean[c]) * inv_std[c] * scale[c] + shift[c]; }
  void add_to(Rig& rig) const {
    for (const Values* v : {&mean, &inv_std, &scale, &shift}) rig.in(DType::f32, {static_cast<int64_t>(v->size())}, *v);
  }
};
const Norm* const kNoNorm = nullptr;

void add_norm(Rig& rig, const Norm* norm) {
  rig.op().attrs.push_back(static_cast<double>(norm ? norm->act : plan::Act::identity));
  if (norm) return norm->add_to(rig);
  for (int i = 0; i < 4; ++i) rig.add_in(nullptr);
}

// What the convolution then sees: to the bit what bn_act would have stored.
Values activated(const Shape& s, const Values& src, const Norm& norm, DType dtype) {
  Rig rig(backend::make_bn_act, {static_cast<double>(norm.act), 0, 0, 1});
  rig.in(dtype, {s.n, s.h, s.w, s.c}, src);
  norm.add_to(rig);
  for (int i = 0; i < 2; ++i) rig.add_in(nullptr);
  const Tensor* dst = rig.out(dtype, {s.n, s.h, s.w, s.c});
  rig.run();
  return rig.get(dst);
}

// Statistics of the values that were stored, and the running averages.
void check_stats(const Shape& s, DType dtype, double src_mean, const Norm* norm = kNoNorm) {
  SCOPED_TRACE(s.text());
  Inputs in = make_inputs(s, dtype);
  for (double& v : in.src) v = round_to(dtype, v + src_mean);
  const Values rm = stored(DType::f32, random_values(static_cast<size_t>(s.c), 5));
  const Values rv = stored(DType::f32, random_values(static_cast<size_t>(s.c), 6, 4));
  auto attrs = s.attrs();
  attrs.push_back(1e-3);
  attrs.push_back(0.1);
  Rig rig(make_depthwise_conv2d_stats, attrs);
  rig.in(dtype, {s.n, s.h, s.w, s.c}, in.src);
  rig.in(DType::f32, {s.kh, s.kw, s.c}, in.weights);
  add_norm(rig, norm);
  const Tensor* dst = rig.out(dtype, {s.n, s.out_h(), s.out_w(), s.c});
  const Tensor *mean = rig.out(DType::f32, {s.c}), *inv_std = rig.out(DType::f32, {s.c});
  const Tensor* running_mean = rig.tensor(Arena::weights, DType::f32, {s.c}, rm);
  const Tensor* running_var = rig.tensor(Arena::weights, DType::f32, {s.c}, rv);
  rig.add_update(running_mean);
  rig.add_update(running_var);
  if (rig.covered()) return;
  rig.run();
  if (testing::Test::HasFatalFailure()) return;
  const Values got = rig.get(dst);
  if (norm) in.src = activated(s, in.src, *norm, dtype);
  expect_near(got, forward(s, in), tolerance(dtype), term_scale(dtype) * (1 + std::abs(src_mean)), "dst");
  const size_t c = static_cast<size_t>(s.c);
  const double rows = static_cast<double>(got.size() / c), unbiased = rows > 1 ? rows / (rows - 1) : 1;
  Values want_mean(c), var(c), want_inv_std(c), want_rm(c), want_rv(c);
  for (size_t i = 0; i < got.size(); ++i) want_mean[i % c] += got[i] / rows;
  for (size_t i = 0; i < got.size(); ++i) var[i % c] += std::pow(got[i] - want_mean[i % c], 2) / rows;
  for (size_t i = 0; i < c; ++i) {
    want_inv_std[i] = 1 / std::sqrt(var[i] + 1e-3);
    want_rm[i] = 0.9 * rm[i] + 0.1 * want_mean[i];
    want_rv[i] = 0.9 * rv[i] + 0.1 * var[i] * unbiased;
  }
  // Rounding errors are of the size of the values, sums of kh * kw terms of size 1.
  const double size = std::sqrt(static_cast<double>(s.kh * s.kw));
  expect_near(rig.get(mean), want_mean, 3e-7, size, "mean");
  expect_near(rig.get(inv_std), want_inv_std, 1e-6, 0, "inv_std");
  expect_near(rig.get(running_mean), want_rm, 3e-7, size, "running_mean");
  expect_near(rig.get(running_var), want_rv, 1e-6, 1, "running_var");
  const char* name = norm ? "dwconv_fwd_norm_stats_k" : "dwconv_fwd_stats_k";
  if (backend::kIsCpu) EXPECT_NE(rig.name().find(name), std::string::npos);
}

TEST(Depthwise, ForwardWithStatistics) {
  for (const Shape& s : training_shapes()) {
    for (const DType dtype : kTypes) {
      check_stats(s, dtype, 0);
      if (HasFailure()) return;
    }
  }
  // No padding, so that a large mean of the source is one of every output.
  check_stats({2, 40, 38, 40, 3, 3, 1, 0, 0, 0, 0}, DType::f32, 30);
  check_stats({2, 23, 21, 16, 5, 5, 2, 0, 0, 0, 0}, DType::bf16, 30);
}

TEST(Depthwise, ForwardOfNormalisedSource) {
  int turn = 0;
  for (const Shape& s : training_shapes()) {
    for (const DType dtype : kTypes) {
      const Norm norm(s.c, static_cast<plan::Act>(turn++ % 5));
      check_stats(s, dtype, 0, &norm);
      if (HasFailure()) return;
    }
  }
}

TEST(Depthwise, ConstantChannelsHaveNoVariance) {
  const Shape s{2, 17, 15, 16, 3, 3, 1, 0, 0, 0, 0};
  auto attrs = s.attrs();
  attrs.push_back(0.25);
  attrs.push_back(0.5);
  Rig rig(make_depthwise_conv2d_stats, attrs);
  rig.in(DType::f32, {s.n, s.h, s.w, s.c}, Values(s.src_size(), 1.1));
  rig.in(DType::f32, {3, 3, s.c}, Values(s.weight_size(), 0.3));
  add_norm(rig, kNoNorm);
  const Tensor* dst = rig.out(DType::f32, {s.n, s.out_h(), s.out_w(), s.c});
  const Tensor *mean = rig.out(DType::f32, {s.c}), *inv_std = rig.out(DType::f32, {s.c});
  rig.add_update(rig.tensor(Arena::weights, DType::f32, {s.c}, Values(16, 0)));
  rig.add_update(rig.tensor(Arena::weights, DType::f32, {s.c}, Values(16, 0)));
  rig.run();
  for (size_t i = 0; i < 16; ++i) {
    EXPECT_EQ(rig.get(mean)[i], rig.get(dst)[i]);
    EXPECT_EQ(rig.get(inv_std)[i], 2);
  }
}

#ifndef EFFNET_TEST_CUDA
TEST(Depthwise, StatisticsRefuseOtherKernels) {
  for (const Shape& s : {same(1, 8, 16, 7, 1), same(1, 9, 16, 3, 3)}) {
    auto attrs = s.attrs();
    attrs.push_back(1e-3);
    attrs.push_back(0.1);
    Rig rig(make_depthwise_conv2d_stats, attrs);
    rig.in(DType::f32, {s.n, s.h, s.w, s.c}, {});
    rig.in(DType::f32, {s.kh, s.kw, s.c}, {});
    add_norm(rig, kNoNorm);
    rig.out(DType::f32, {s.n, s.out_h(), s.out_w(), s.c});
    for (int i = 0; i < 2; ++i) rig.out(DType::f32, {s.c});
    for (int i = 0; i < 2; ++i) rig.add_update(rig.tensor(Arena::weights, DType::f32, {s.c}));
    EXPECT_EQ(rig.make().code(), Code::plan_invalid) << s.text();
  }
}
#endif

// diff_dst is that of the convolution's result itself.
void nothing_behind(Rig& rig) {
  rig.absent_inputs(9);
  rig.op().attrs.push_back(0);
}

// Both gradients; with a BN in front diff_src is that of its result before the activation, and its sums are made.
void check_gradients(const Shape& s, DType dtype, const Norm* norm) {
  SCOPED_TRACE(s.text());
  Inputs in = make_inputs(s, dtype);
  Rig rig(make_depthwise_conv2d_bwd, s.attrs());
  rig.in(dtype, {s.n, s.h, s.w, s.c}, in.src);
  rig.in(dtype, {s.n, s.out_h(), s.out_w(), s.c}, in.diff_dst);
  rig.in(DType::f32, {s.kh, s.kw, s.c}, in.weights);
  add_norm(rig, norm);
  nothing_behind(rig);
  const Tensor* diff_src = rig.out(dtype, {s.n, s.h, s.w, s.c});
  const Tensor* diff_weights = rig.out(DType::f32, {s.kh, s.kw, s.c});
  const Tensor *diff_scale = nullptr, *diff_shift = nullptr;
  if (norm) {
    diff_scale = rig.out(DType::f32, {s.c});
    diff_shift = rig.out(DType::f32, {s.c});
  } else {
    for (int i = 0; i < 2; ++i) rig.add_out(nullptr);
  }
  if (rig.covered()) return;
  rig.run();
  if (testing::Test::HasFatalFailure()) return;

  const Values raw = in.src;
  if (norm) in.src = activated(s, raw, *norm, dtype);
  Values want_src(s.src_size()), want_weights(s.weight_size());
  each_product(s, [&](size_t o, size_t w, size_t i) {
    want_src[i] += in.diff_dst[o] * in.used_weights[w];
    want_weights[w] += in.src[i] * in.diff_dst[o];
  });
  // Terms are of the size of the source, which is 1 without a norm.
  Values squares(static_cast<size_t>(s.c));
  const double outputs = static_cast<double>(s.n * s.out_h() * s.out_w()),
               columns = static_cast<double>(s.n * s.h * s.w);
  for (size_t i = 0; norm && i < in.src.size(); ++i) squares[i % squares.size()] += in.src[i] * in.src[i] / columns;
  const double largest = norm ? std::max(1.0, std::sqrt(*std::max_element(squares.begin(), squares.end()))) : 1;
  expect_near(rig.get(diff_weights), want_weights, 1e-6, std::max(1.0, largest * std::sqrt(outputs)), "diff_weights");
  const Values got = rig.get(diff_src);
  if (!norm) return expect_near(got, want_src, tolerance(dtype), term_scale(dtype), "diff_src");

  const size_t c = static_cast<size_t>(s.c);
  // Of the derivative, absolute.
  const double slope_error = dtype == DType::bf16 ? kBf16Activation : 2e-6;
  Values want_scale(c), want_shift(c);
  for (size_t i = 0; i < got.size(); ++i) {
    const double z = norm->z(raw[i], i % c), want = want_src[i] * act_slope_ref(norm->act, z);
    const double off = slope_error + act_slope_slack(dtype, norm->act, z);
    ASSERT_LE(std::abs(got[i] - want),
              tolerance(dtype) * (term_scale(dtype) + std::abs(want)) + off * std::abs(want_src[i]))
        << "diff_src [" << i << "]: got " << got[i] << ", want " << want;
    want_shift[i % c] += got[i];
    want_scale[i % c] += got[i] * (raw[i] - norm->mean[i % c]) * norm->inv_std[i % c];
  }
  // Sums are of the stored values, which are of the size of a sum of taps.
  const double pixels = static_cast<double>(s.n * s.h * s.w),
               size = std::sqrt(pixels * static_cast<double>(s.kh * s.kw));
  expect_near(rig.get(diff_scale), want_scale, 1e-6, std::max(1.0, size), "src_diff_scale");
  expect_near(rig.get(diff_shift), want_shift, 1e-6, std::max(1.0, size), "src_diff_shift");
  if (backend::kIsCpu) EXPECT_NE(rig.name().find("dwconv_bwd_norm_k"), std::string::npos);
}

TEST(Depthwise, NormIsGivenWholeOrNotAtAll) {
  const Shape s = same(1, 8, 16, 3, 1);
  for (int missing = -1; missing < 6; ++missing) {
    Rig rig(make_depthwise_conv2d_bwd, s.attrs());
    rig.op().attrs.push_back(1);
    rig.in(DType::f32, {s.n, s.h, s.w, s.c}, {});
    rig.in(DType::f32, {s.n, s.h, s.w, s.c}, {});
    rig.in(DType::f32, {3, 3, s.c}, {});
    for (int i = 0; i < 4; ++i) i == missing ? rig.add_in(nullptr) : void(rig.in(DType::f32, {s.c}, {}));
    nothing_behind(rig);
    rig.out(DType::f32, {s.n, s.h, s.w, s.c});
    rig.out(DType::f32, {3, 3, s.c});
    for (int i = 4; i < 6; ++i) i == missing ? rig.add_out(nullptr) : void(rig.out(DType::f32, {s.c}));
    EXPECT_EQ(rig.make().ok(), missing < 0) << missing;
  }
  for (const double act : {0.0, 1.0}) {  // an activation of nothing
    Rig rig(make_depthwise_conv2d_bwd, s.attrs());
    rig.op().attrs.push_back(act);
    rig.in(DType::f32, {s.n, s.h, s.w, s.c}, {});
    rig.in(DType::f32, {s.n, s.h, s.w, s.c}, {});
    rig.in(DType::f32, {3, 3, s.c}, {});
    for (int i = 0; i < 4; ++i) rig.add_in(nullptr);
    nothing_behind(rig);
    rig.out(DType::f32, {s.n, s.h, s.w, s.c});
    rig.out(DType::f32, {3, 3, s.c});
    for (int i = 0; i < 2; ++i) rig.add_out(nullptr);
    EXPECT_EQ(rig.make().ok(), act == 0) << act;
  }
}

TEST(Depthwise, BothGradients) {
  for (const Shape& s : training_shapes()) {
    for (const DType dtype : kTypes) {
      check_gradients(s, dtype, kNoNorm);
      if (HasFailure()) return;
    }
  }
}

TEST(Depthwise, BothGradientsOfNormalisedSource) {
  int turn = 0;
  for (const Shape& s : training_shapes()) {
    for (const DType dtype : kTypes) {
      const Norm norm(s.c, static_cast<plan::Act>(turn++ % 5));
      check_gradients(s, dtype, &norm);
      if (HasFailure()) return;
    }
  }
}

// Small integers are exact in bf16 and in FP32 sums: every pass must then be exact to the last bit.
TEST(Depthwise, IntegersAreExact) {
  for (const Shape& s : {same(2, 14, 40, 5, 1), same(1, 28, 33, 3, 2), symmetric(1, 15, 16, 5, 2)}) {
    for (const DType dtype : kTypes) {
      SCOPED_TRACE(s.text());
      Inputs in = make_inputs(s, dtype);
      const auto integers = [](Values& values, int64_t range) {
        for (size_t i = 0; i < values.size(); ++i) {
          values[i] = static_cast<double>(static_cast<int64_t>(i * 2654435761u >> 7) % (2 * range + 1) - range);
        }
      };
      integers(in.src, 2);
      integers(in.diff_dst, 2);
      integers(in.weights, 2);
      in.used_weights = in.weights;
      Rig fwd(make_depthwise_conv2d, s.attrs());
      fwd.in(dtype, {s.n, s.h, s.w, s.c}, in.src);
      fwd.in(DType::f32, {s.kh, s.kw, s.c}, in.weights);
      const Tensor* dst = fwd.out(dtype, {s.n, s.out_h(), s.out_w(), s.c});
      if (fwd.covered()) continue;
      fwd.run();
      EXPECT_EQ(fwd.get(dst), stored(dtype, forward(s, in)));
      Rig grad(make_depthwise_conv2d_bwd_weights, s.attrs());
      grad.in(dtype, {s.n, s.h, s.w, s.c}, in.src);
      grad.in(dtype, {s.n, s.out_h(), s.out_w(), s.c}, in.diff_dst);
      const Tensor* diff_weights = grad.out(DType::f32, {s.kh, s.kw, s.c});
      grad.run();
      Values want(s.weight_size());
      each_product(s, [&](size_t o, size_t w, size_t i) { want[w] += in.src[i] * in.diff_dst[o]; });
      EXPECT_EQ(grad.get(diff_weights), want);
    }
  }
}

// A NaN pixel shows in what its window reaches and nowhere else: padding and tails never multiply it.
TEST(Depthwise, NaNStaysInItsWindow) {
  const Shape s = same(1, 9, 5, 3, 1);
  Inputs in = make_inputs(s, DType::f32);
  const size_t pixel = 4 * 9 + 8, c = 3;
  in.src[pixel * 5 + c] = std::nan("");
  Rig rig(make_depthwise_conv2d, s.attrs());
  rig.in(DType::f32, {1, 9, 9, 5}, in.src);
  rig.in(DType::f32, {3, 3, 5}, in.weights);
  const Tensor* dst = rig.out(DType::f32, {1, 9, 9, 5});
  rig.run();
  const Values got = rig.get(dst);
  for (size_t i = 0; i < got.size(); ++i) {
    const int64_t y = static_cast<int64_t>(i / 45), x = static_cast<int64_t>(i / 5 % 9);
    EXPECT_EQ(std::isnan(got[i]), i % 5 == c && std::abs(y - 4) <= 1 && x >= 7) << i;
  }
}

TEST(Depthwise, LargeLayersGiveShardsAtBatchOne) {
  for (const Shape& s :
       {same(1, 112, 32, 3, 1), same(1, 112, 96, 3, 2), same(1, 56, 144, 3, 1), same(1, 28, 240, 5, 1)}) {
    Rig rig(make_depthwise_conv2d, s.attrs());
    rig.in(DType::f32, {s.n, s.h, s.w, s.c}, {});
    rig.in(DType::f32, {s.kh, s.kw, s.c}, {});
    rig.out(DType::f32, {s.n, s.out_h(), s.out_w(), s.c});
    ASSERT_TRUE(rig.make().ok());
    EXPECT_GE(rig.parts(), 8) << s.text();
    EXPECT_EQ(rig.flops(), 2.0 * static_cast<double>(s.dst_size()) * static_cast<double>(s.kh * s.kw));
  }
}

TEST(Depthwise, NamesSayWhichCodeRuns) {
  const auto name = [](const Shape& s, DType dtype) {
    Rig rig(make_depthwise_conv2d, s.attrs());
    rig.in(dtype, {s.n, s.h, s.w, s.c}, {});
    rig.in(DType::f32, {s.kh, s.kw, s.c}, {});
    rig.out(dtype, {s.n, s.out_h(), s.out_w(), s.c});
    EXPECT_TRUE(rig.make().ok());
    const std::string full = rig.name();
    return full.substr(0, full.find(':'));
  };
#ifdef EFFNET_TEST_CUDA
  EXPECT_EQ(name(same(1, 8, 16, 3, 1), DType::f32), "depthwise_conv2d_k3s1_f32");
  EXPECT_EQ(name(same(1, 8, 16, 3, 2), DType::bf16), "depthwise_conv2d_k3s2_bf16");
  EXPECT_EQ(name(same(1, 8, 16, 5, 1), DType::f16), "depthwise_conv2d_k5s1_f16");
  EXPECT_EQ(name(same(1, 8, 8, 5, 2), DType::bf16), "depthwise_conv2d_k5s2_bf16");
  EXPECT_EQ(name(same(1, 8, 12, 3, 1), DType::f32), "depthwise_conv2d_k3s1_f32");
  EXPECT_EQ(name(same(1, 8, 12, 3, 1), DType::bf16), "depthwise_conv2d_plain_bf16");
  EXPECT_EQ(name(same(1, 8, 6, 3, 1), DType::f32), "depthwise_conv2d_plain_f32");
  EXPECT_EQ(name(same(1, 8, 16, 7, 1), DType::f32), "depthwise_conv2d_plain_f32");
  EXPECT_EQ(name(same(1, 8, 16, 3, 3), DType::f32), "depthwise_conv2d_plain_f32");
#else
  EXPECT_EQ(name(same(1, 8, 16, 3, 1), DType::f32), "dwconv_fwd_k3s1_f32");
  EXPECT_EQ(name(same(1, 8, 16, 5, 2), DType::bf16), "dwconv_fwd_k5s2_bf16");
  EXPECT_EQ(name(same(1, 8, 16, 7, 1), DType::f32), "dwconv_fwd_any_f32");
#endif
}

TEST(Depthwise, RefusesWhatDoesNotFit) {
  const Shape s = same(1, 8, 16, 3, 1);
  const auto refused = [&](auto change) {
    Rig rig(make_depthwise_conv2d, s.attrs());
    Tensor* src = rig.in(DType::f32, {1, 8, 8, 16}, {});
    Tensor* weights = rig.in(DType::f32, {3, 3, 16}, {});
    Tensor* dst = rig.out(DType::f32, {1, 8, 8, 16});
    change(rig, *src, *weights, *dst);
    const Status status = rig.make();
    return status.code() == Code::plan_invalid && !status.message().empty();
  };
  EXPECT_FALSE(refused([](Rig&, Tensor&, Tensor&, Tensor&) {}));
  EXPECT_TRUE(refused([](Rig&, Tensor& src, Tensor&, Tensor&) { src.dtype = DType::u8; }));
  EXPECT_TRUE(refused([](Rig&, Tensor&, Tensor&, Tensor& dst) { dst.dtype = DType::bf16; }));
  EXPECT_TRUE(refused([](Rig&, Tensor&, Tensor& weights, Tensor&) { weights.dims[2] = 15; }));
  EXPECT_TRUE(refused([](Rig&, Tensor&, Tensor& weights, Tensor&) { weights.dtype = DType::bf16; }));
  EXPECT_TRUE(refused([](Rig&, Tensor&, Tensor&, Tensor& dst) { dst.dims[1] = 7; }));
  EXPECT_TRUE(refused([](Rig& rig, Tensor&, Tensor&, Tensor&) { rig.op().attrs[0] = 0; }));
  EXPECT_TRUE(refused([](Rig& rig, Tensor&, Tensor&, Tensor&) { rig.op().attrs[0] = 1.5; }));
  EXPECT_TRUE(refused([](Rig& rig, Tensor&, Tensor&, Tensor&) { rig.op().attrs[1] = -1; }));
  EXPECT_TRUE(refused([](Rig& rig, Tensor&, Tensor&, Tensor&) { rig.op().attrs[1] = std::nan(""); }));
}

}  // namespace
}  // namespace effnet::test
