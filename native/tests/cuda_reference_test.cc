// The naive kernels that gpu-check compares with on a GPU (device/reference.cu), on the emulation beside loops of the
// host that know nothing of them.
#include "conv_reference.h"
#include "kernel_rig.h"
#include "reference.h"
#include "tests/device/reference.h"

namespace effnet::test {
namespace {

using plan::Act;

template <class Args>
void launch(const char* kernel, size_t count, const Args& args) {
  const auto blocks = static_cast<uint32_t>((count + 127) / 128);
  const Status status = backend::run(cuda::make_launch(kernel, {blocks, 1, 1}, 128, 0, args), 0);
  ASSERT_TRUE(status.ok()) << status.message();
}

RefTensor ref(const Values& values) { return {values.data(), RefType::f64, RefType::f64}; }

// Sums in another order are off by as much at most.
void expect_same(double got, double want, double size, const std::string& what) {
  ASSERT_LE(std::abs(got - want), 1e-13 * (size + std::abs(want))) << what << ": got " << got << ", want " << want;
}

struct Bn {
  Values mean, inv_std, scale, shift;
  explicit Bn(size_t channels)
      : mean(random_values(channels, 1)),
        inv_std(random_values(channels, 2, 1, 0.2)),
        scale(random_values(channels, 3, 1, 0.2)),
        shift(random_values(channels, 4)) {}
  RefNorm norm() const { return {ref(mean), ref(inv_std), ref(scale), ref(shift)}; }
  double hat(double x, size_t c) const { return (x - mean[c]) * inv_std[c]; }
  double z(double x, size_t c) const { return hat(x, c) * scale[c] + shift[c]; }
};

// Windows that hang over every border, strides, even kernels, one pixel, dense and by channel.
const ConvCase kConvs[] = {{2, 5, 4, 3, 4, 3, 1, 1, 1, 1, 1}, {1, 7, 6, 2, 3, 3, 2, 0, 1, 1, 0},
                           {2, 4, 5, 6, 2, 1, 1, 0, 0, 0, 0}, {1, 9, 8, 2, 2, 5, 2, 2, 1, 2, 2},
                           {3, 1, 1, 4, 3, 1, 1, 0, 0, 0, 0}, {1, 6, 6, 3, 2, 2, 2, 0, 0, 0, 0}};

// Visits (src, weight, dst) of every product; by channel that is where the channels are one.
template <class F>
void each_product(const ConvCase& c, bool depthwise, F visit) {
  if (!depthwise) return for_each_product(c, visit);
  ConvCase one = c;
  one.ic = one.oc = 1;
  const auto channels = static_cast<size_t>(c.ic);
  for_each_product(one, [&](size_t s, size_t k, size_t t) {
    for (size_t i = 0; i < channels; ++i) visit(s * channels + i, k * channels + i, t * channels + i);
  });
}

TEST(Reference, Convolutions) {
  constexpr double kRelative = 1e-3;
  for (ConvCase c : kConvs) {
    for (const bool depthwise : {false, true}) {
      if (depthwise) c.oc = c.ic;
      const auto sources = static_cast<size_t>(c.n * c.h * c.w * c.ic);
      const auto weights = static_cast<size_t>((depthwise ? 1 : c.oc) * c.k * c.k * c.ic);
      const auto results = static_cast<size_t>(c.n * c.oh() * c.ow() * c.oc);
      const Values src = random_values(sources, 1), w = random_values(weights, 2), diff = random_values(results, 3);
      const Values off_src = random_values(sources, 4), off_diff = random_values(results, 5);
      constexpr int64_t kSlices = 3;
      std::vector<RefTerms> forward(results), data(sources), sliced(weights * kSlices), added(weights);
      RefConvArgs args{ref(src), ref(w), ref(diff), ref(off_src), ref(off_diff), kRelative,     c.n,
                       c.h,      c.w,    c.ic,      c.oh(),       c.ow(),        c.oc,          c.k,
                       c.stride, c.top,  c.left,    depthwise,    kSlices,       forward.data()};
      launch("ref_conv_forward", results, args);
      args.dst = data.data();
      launch("ref_conv_backward_data", sources, args);
      args.dst = sliced.data();
      launch("ref_conv_backward_weights", sliced.size(), args);
      launch("ref_add_slices", weights,
             RefAddArgs{sliced.data(), static_cast<int64_t>(weights), kSlices, added.data()});
      if (HasFatalFailure()) return;
      std::vector<RefTerms> want[3] = {std::vector<RefTerms>(results), std::vector<RefTerms>(sources),
                                       std::vector<RefTerms>(weights)};
      const auto add = [&](RefTerms& to, double x, double x_off, double y, double y_off) {
        to.sum += x * y;
        to.size += std::abs(x * y);
        to.squares +=
            std::pow((x_off + kRelative * std::abs(x)) * y, 2) + std::pow((y_off + kRelative * std::abs(y)) * x, 2);
      };
      each_product(c, depthwise, [&](size_t s, size_t k, size_t t) {
        add(want[0][t], src[s], off_src[s], w[k], 0);
        add(want[1][s], diff[t], off_diff[t], w[k], 0);
        add(want[2][k], src[s], off_src[s], diff[t], off_diff[t]);
      });
      const std::vector<RefTerms>* got[] = {&forward, &data, &added};
      for (size_t i = 0; i < 3; ++i)
        for (size_t j = 0; j < want[i].size(); ++j) {
          const std::string what = c.name() + (depthwise ? " depthwise " : " dense ") + std::to_string(i);
          const RefTerms &g = (*got[i])[j], &e = want[i][j];
          expect_same(g.sum, e.sum, e.size, what);
          expect_same(g.size, e.size, 0, what + " size");
          expect_same(g.squares, e.squares, 0, what + " squares");
          if (HasFatalFailure()) return;
        }
    }
  }
}

constexpr int64_t kImages = 2, kPixels = 15, kChannels = 5, kElements = kImages * kPixels * kChannels;
size_t channel(size_t i) { return i % kChannels; }
size_t by_image(size_t i) { return i / (kPixels * kChannels) * kChannels + channel(i); }

TEST(Reference, ActivatedSources) {
  const Bn bn(kChannels);
  const Values src = random_values(kElements, 7, 0, 3), gate = random_values(kImages * kChannels, 8);
  const Values residual = random_values(kElements, 9), kept{0, 1.25};
  for (const Act act : kActs)
    for (const RefType rounding : {RefType::f64, RefType::bf16, RefType::f16})
      for (const bool all : {false, true}) {
        Values got(kElements), off(kElements);
        RefActivateArgs args{ref(src),
                             bn.norm(),
                             {},
                             {},
                             {},
                             static_cast<int32_t>(act),
                             rounding,
                             true,
                             kElements,
                             kChannels,
                             kPixels * kChannels,
                             got.data(),
                             off.data()};
        if (all) {
          args.gate = ref(gate);
          args.kept = ref(kept);
          args.residual = ref(residual);
        }
        launch("ref_activate", kElements, args);
        for (size_t i = 0; i < got.size(); ++i) {
          const double z = bn.z(src[i], channel(i));
          double want = act_value(act, z);
          if (all) want = want * gate[by_image(i)] * kept[i / (kPixels * kChannels)] + residual[i];
          if (rounding != RefType::f64) want = round_to(static_cast<DType>(rounding), want);
          expect_same(got[i], want, 1, "act " + std::to_string(static_cast<int>(act)));
          // No less than what the kernels' tests allow a sigmoid of tanh_fast.
          if (!all) {
            ASSERT_GE(off[i], act_value_slack(DType::bf16, act, z)) << z;
          }
        }
      }
}

TEST(Reference, GradientsOfWhatIsNormalised) {
  const Bn bn(kChannels);
  const Values diff = random_values(kElements, 7), x = random_values(kElements, 8, 0, 3),
               gate = random_values(kImages * kChannels, 9), pooled = random_values(kImages * kChannels, 10),
               diff_scale = random_values(kChannels, 11), diff_shift = random_values(kChannels, 12), kept{1.25, 0};
  for (const Act act : kActs)
    for (const bool plain : {false, true})
      for (const bool all : {false, true}) {
        Values got(kElements), off(kElements);
        RefBehindArgs args{ref(diff),    ref(x),    bn.norm(),
                           {},           {},        {},
                           {},           {},        static_cast<int32_t>(act),
                           RefType::f64, true,      plain,
                           kElements,    kChannels, kPixels * kChannels,
                           got.data(),   off.data()};
        if (all) {
          args.diff_scale = ref(diff_scale);
          args.diff_shift = ref(diff_shift);
          args.gate = ref(gate);
          args.diff_pooled = ref(pooled);
          args.kept = ref(kept);
        }
        launch("ref_behind", kElements, args);
        for (size_t i = 0; i < got.size(); ++i) {
          const size_t c = channel(i);
          double upstream = diff[i];
          if (all)
            upstream = upstream * kept[i / (kPixels * kChannels)] * gate[by_image(i)] + pooled[by_image(i)] / kPixels;
          double want = upstream * act_slope(act, bn.z(x[i], c));
          if (!plain) {
            if (all) want -= (diff_shift[c] + bn.hat(x[i], c) * diff_scale[c]) / (kImages * kPixels);
            want *= bn.scale[c] * bn.inv_std[c];
          }
          expect_same(got[i], want, 1, "act " + std::to_string(static_cast<int>(act)));
          const double slack = std::abs(upstream) * act_slope_slack(DType::bf16, act, bn.z(x[i], c));
          ASSERT_GE(off[i] * 1.0000001, slack * (plain ? 1 : std::abs(bn.scale[c] * bn.inv_std[c]))) << i;
        }
      }
}

TEST(Reference, ResultsThatAreFinished) {
  const Bn bn(kChannels);
  const Values x = random_values(kElements, 7, 0, 3), sums = random_values(kElements, 8),
               bias = random_values(kChannels, 9), residual = random_values(kElements, 10);
  for (const Act act : kActs) {
    std::vector<RefTerms> slope, value;
    for (const double v : sums) slope.push_back({v, 2 * std::abs(v), 0.5});
    value = slope;
    launch(
        "ref_finish", kElements,
        RefFinishArgs{slope.data(), {}, {}, ref(x), bn.norm(), static_cast<int32_t>(act), false, kElements, kChannels});
    launch("ref_finish", kElements,
           RefFinishArgs{
               value.data(), ref(bias), ref(residual), {}, {}, static_cast<int32_t>(act), false, kElements, kChannels});
    for (size_t i = 0; i < sums.size(); ++i) {
      const double s = act_slope(act, bn.z(x[i], channel(i)));
      expect_same(slope[i].sum, sums[i] * s, 1, "slope");
      expect_same(slope[i].size, 2 * std::abs(sums[i] * s), 1, "its size");
      ASSERT_GE(slope[i].squares * (1 + 1e-12), 0.5 * s * s);
      expect_same(value[i].sum, act_value(act, sums[i] + bias[channel(i)]) + residual[i], 1, "value");
      const double steepest = act_slope(act, sums[i] + bias[channel(i)]);
      ASSERT_GE(value[i].squares, 0.5 * steepest * steepest);
    }
  }
}

TEST(Reference, Sums) {
  const Bn bn(kChannels);
  const Values v = random_values(kElements, 7), x = random_values(kElements, 8, 0, 3),
               off = random_values(kElements, 9);
  constexpr double kFactor = 0.75;
  for (const RefTerm term : {RefTerm::v, RefTerm::v_hat, RefTerm::v_act, RefTerm::v_slope, RefTerm::slope,
                             RefTerm::v_slope_hat, RefTerm::slope_hat, RefTerm::apart})
    for (const int64_t groups : {int64_t{1}, kImages}) {
      const bool of_v = term != RefTerm::slope && term != RefTerm::slope_hat && term != RefTerm::apart;
      constexpr int64_t kSlices = 4;
      const auto results = static_cast<size_t>(groups * kChannels);
      std::vector<RefTerms> sliced(results * kSlices), got(results);
      launch("ref_sums", sliced.size(),
             RefSumArgs{of_v ? ref(v) : RefTensor{}, of_v ? ref(off) : RefTensor{}, ref(x), bn.norm(), term,
                        static_cast<int32_t>(Act::silu), false, groups, kImages * kPixels / groups, kChannels, kSlices,
                        kFactor, sliced.data()});
      launch("ref_add_slices", results, RefAddArgs{sliced.data(), groups * kChannels, kSlices, got.data()});
      Values want(results), size(results), squares(results);
      for (size_t i = 0; i < v.size(); ++i) {
        const size_t c = channel(i), to = groups == 1 ? c : by_image(i);
        const double hat = bn.hat(x[i], c), z = bn.z(x[i], c), slope = act_slope(Act::silu, z);
        const double factors[] = {1,
                                  hat,
                                  act_value(Act::silu, z),
                                  slope,
                                  slope,
                                  slope * hat,
                                  slope * hat,
                                  (x[i] - bn.mean[c]) * (x[i] - bn.mean[c])};
        const double factor = kFactor * factors[static_cast<size_t>(term)];
        want[to] += factor * (of_v ? v[i] : 1);
        size[to] += std::abs(factor * (of_v ? v[i] : 1));
        squares[to] += of_v ? std::pow(factor * off[i], 2) : 0;
      }
      for (size_t i = 0; i < results; ++i) {
        const std::string what = "term " + std::to_string(static_cast<int>(term));
        expect_same(got[i].sum, want[i], size[i], what);
        expect_same(got[i].size, size[i], 0, what + " size");
        ASSERT_GE(got[i].squares * (1 + 1e-12), squares[i]) << what;
      }
    }
}

// Each of the ways in which a result may be off, at its edge; NaN and infinity are never right.
TEST(Reference, Comparison) {
  constexpr int64_t kCount = 40, kChunk = 16;
  const auto worst_of = [&](size_t at, double apart) {
    std::vector<float> got(kCount, 2.0f);
    std::vector<RefTerms> want(kCount, {2, 100, 4});
    got[at] = static_cast<float>(2 + apart);
    double worst[3];
    int64_t where[3];
    launch("ref_compare", 3,
           RefCompareArgs{
               {got.data(), RefType::f32, RefType::f64}, want.data(), kCount, kChunk, 0.01, 0.5, 3, worst, where});
    const size_t chunk = at / kChunk;
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(worst[i], i == chunk ? worst[chunk] : 0);
    EXPECT_EQ(where[chunk], worst[chunk] > 0 ? static_cast<int64_t>(at) : static_cast<int64_t>(chunk * kChunk));
    return worst[chunk];
  };
  // 0.01 * 100 + 6 * 2 + 0.5 * 2 + 3 = 17.
  EXPECT_DOUBLE_EQ(worst_of(5, 17), 1);
  EXPECT_DOUBLE_EQ(worst_of(39, -34), 2);
  EXPECT_EQ(worst_of(16, 0), 0);
  EXPECT_EQ(worst_of(20, NAN), HUGE_VAL);
  EXPECT_EQ(worst_of(20, HUGE_VAL), HUGE_VAL);
}

TEST(Reference, FilledAndReadAsStored) {
  constexpr int64_t kCount = 3000;
  for (const RefType type : {RefType::f32, RefType::bf16, RefType::f16}) {
    std::vector<uint32_t> stored(kCount), other(kCount);
    launch("ref_fill", kCount, RefFillArgs{stored.data(), type, kCount, 1, 1, 3});
    launch("ref_fill", kCount, RefFillArgs{other.data(), type, kCount, 2, 1, 3});
    // Read back by an activation that does nothing.
    const auto read = [&](const std::vector<uint32_t>& from, RefType rounding) {
      Values values(kCount);
      launch("ref_activate", kCount,
             RefActivateArgs{{from.data(), type, rounding},
                             {},
                             {},
                             {},
                             {},
                             0,
                             RefType::f64,
                             false,
                             kCount,
                             1,
                             kCount,
                             values.data(),
                             nullptr});
      return values;
    };
    const Values values = read(stored, RefType::f64), others = read(other, RefType::f64);
    double sum = 0, squares = 0, product = 0;
    for (size_t i = 0; i < kCount; ++i) {
      const double v = values[i];
      ASSERT_TRUE(v >= -2.01 && v <= 4.01) << v;
      ASSERT_EQ(v, round_to(static_cast<DType>(type), v));
      sum += v - 1;
      squares += (v - 1) * (v - 1);
      product += (v - 1) * (others[i] - 1);
    }
    EXPECT_NEAR(sum / kCount, 0, 0.15);
    EXPECT_NEAR(squares / kCount, 3, 0.2);  // of an even distribution
    EXPECT_NEAR(product / kCount, 0, 0.25);
    const Values rounded = read(stored, RefType::bf16);
    for (size_t i = 0; i < kCount; ++i) ASSERT_EQ(rounded[i], round_to(DType::bf16, values[i]));
  }
}

}  // namespace
}  // namespace effnet::test
