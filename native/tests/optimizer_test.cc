#include "tests/kernel_rig.h"

namespace effnet::test {
namespace {

// Parameters in the arenas as a model has them: some neighbours without a gap, some not, one longer than a shard.
struct Parameters {
  std::vector<Tensor*> weights, grads;
  std::vector<Values> w, g, m0, m1, averages;

  Parameters(Rig& rig, std::vector<int64_t> sizes, bool with_norm, double norm_value = 0) {
    if (with_norm) {
      rig.in(DType::f32, {1}, {norm_value});
    } else {
      rig.add_in(nullptr);
    }
    uint32_t seed = 1;
    for (const int64_t size : sizes) {
      const size_t n = static_cast<size_t>(size);
      w.push_back(stored(DType::f32, random_values(n, seed++)));
      g.push_back(stored(DType::f32, random_values(n, seed++)));
      m0.push_back(stored(DType::f32, random_values(n, seed++, 1.0, 0.1)));
      m1.push_back(stored(DType::f32, random_values(n, seed++, 1.0, 0.1)));
      averages.push_back(stored(DType::f32, random_values(n, seed++)));
      weights.push_back(rig.tensor(Arena::weights, DType::f32, {size}, w.back()));
      rig.add_update(weights.back());
    }
    for (size_t i = 0; i < weights.size(); ++i) {
      grads.push_back(rig.twin(weights[i], Arena::grads, g[i]));
      rig.add_in(grads.back());
      moment0.push_back(rig.twin(weights[i], Arena::moment0, m0[i]));
      moment1.push_back(rig.twin(weights[i], Arena::moment1, m1[i]));
      ema.push_back(rig.twin(weights[i], Arena::ema, averages[i]));
    }
  }
  std::vector<Tensor*> moment0, moment1, ema;
  double ema_share = 0;  // 1 - decay, where the op averages

  // step(w, g, m0, m1) updates one element in double.
  template <class F>
  void expect(Rig& rig, double grad_factor, F&& step, double tolerance = 1e-6) {
    for (size_t p = 0; p < weights.size(); ++p) {
      for (size_t i = 0; i < w[p].size(); ++i) step(w[p][i], g[p][i] * grad_factor, m0[p][i], m1[p][i]);
      expect_near(rig.get(weights[p]), w[p], tolerance, 1, "weights");
      expect_near(rig.get(moment0[p]), m0[p], tolerance, 1, "moment0");
      expect_near(rig.get(moment1[p]), m1[p], tolerance, 1, "moment1");
      for (size_t i = 0; i < w[p].size(); ++i) averages[p][i] += ema_share * (w[p][i] - averages[p][i]);
      expect_near(rig.get(ema[p]), averages[p], tolerance, ema_share > 0 ? 1 : 0, "ema");
    }
  }
};

const std::vector<int64_t> kSizes = {1, 17, 64, 8, 100'003, 32, 70'000};

struct Hyper {
  double lr = 0.05, momentum = 0.9, alpha = 0.95, eps = 1e-3, weight_decay = 0.01, step = 3;
  void set(Rig& rig) const {
    auto& s = rig.scalars();
    s.lr = lr;
    s.momentum = momentum;
    s.alpha = alpha;
    s.eps = eps;
    s.weight_decay = weight_decay;
    s.optimizer_step = step;
  }
};

TEST(OptimizerSgd, EqualsTheReference) {
  for (const bool nesterov : {false, true}) {
    for (const double decay_mult : {0.0, 1.0}) {
      const Hyper h;
      Rig rig(backend::make_optimizer_sgd, {decay_mult, double(nesterov), 1});
      Parameters p(rig, kSizes, false);
      rig.scalars().ema_decay = 0.75;
      p.ema_share = 0.25;
      h.set(rig);
      if (rig.covered()) continue;
      ASSERT_NO_FATAL_FAILURE(rig.run());
      EXPECT_GT(rig.parts(), 2);
      p.expect(rig, 1, [&](double& w, double g, double& m0, double&) {
        g += h.weight_decay * decay_mult * w;
        m0 = h.momentum * m0 + g;
        w -= h.lr * (nesterov ? g + h.momentum * m0 : m0);
      });
    }
  }
}

TEST(OptimizerRmsprop, EqualsTheReference) {
  for (const bool tf : {false, true}) {
    for (const double decay_mult : {0.0, 1.0}) {
      const Hyper h;
      Rig rig(backend::make_optimizer_rmsprop, {decay_mult, double(tf), 1});
      Parameters p(rig, kSizes, false);
      rig.scalars().ema_decay = 0.75;
      p.ema_share = 0.25;
      h.set(rig);
      if (rig.covered()) continue;
      ASSERT_NO_FATAL_FAILURE(rig.run());
      p.expect(rig, 1, [&](double& w, double g, double& m0, double& m1) {
        g += h.weight_decay * decay_mult * w;
        m0 = h.alpha * m0 + (1 - h.alpha) * g * g;
        if (tf) {
          m1 = h.momentum * m1 + h.lr * g / std::sqrt(m0 + h.eps);
          w -= m1;
        } else {
          m1 = h.momentum * m1 + g / (std::sqrt(m0) + h.eps);
          w -= h.lr * m1;
        }
      });
    }
  }
}

void adamw(const Hyper& h, double decay, double& w, double g, double& m0, double& m1) {
  w *= 1 - h.lr * decay;
  m0 = h.momentum * m0 + (1 - h.momentum) * g;
  m1 = h.alpha * m1 + (1 - h.alpha) * g * g;
  const double m = m0 / (1 - std::pow(h.momentum, h.step)), v = m1 / (1 - std::pow(h.alpha, h.step));
  w -= h.lr * m / (std::sqrt(v) + h.eps);
}

TEST(OptimizerAdamw, EqualsTheReference) {
  for (const double decay_mult : {0.0, 1.0}) {
    const Hyper h{.lr = 0.01, .momentum = 0.9, .alpha = 0.999, .eps = 1e-8, .weight_decay = 0.05, .step = 7};
    Rig rig(backend::make_optimizer_adamw, {decay_mult, 1});
    Parameters p(rig, kSizes, false);
    rig.scalars().ema_decay = 0.75;
    p.ema_share = 0.25;
    h.set(rig);
    if (rig.covered()) continue;
    ASSERT_NO_FATAL_FAILURE(rig.run());
    p.expect(rig, 1,
             [&](double& w, double g, double& m0, double& m1) { adamw(h, h.weight_decay * decay_mult, w, g, m0, m1); });
  }
}

TEST(OptimizerAdamw, FollowsAHandWrittenLoop) {
  Hyper h{.lr = 1e-3, .momentum = 0.9, .alpha = 0.999, .eps = 1e-8, .weight_decay = 0.1, .step = 1};
  Rig rig(backend::make_optimizer_adamw, {1, 0});
  Parameters p(rig, {5}, false);
  double w[5], m0[5] = {}, m1[5] = {};
  rig.set(p.moment0[0], Values(5, 0));
  rig.set(p.moment1[0], Values(5, 0));
  for (int i = 0; i < 5; ++i) w[i] = p.w[0][static_cast<size_t>(i)];
  for (int t = 1; t <= 50; ++t) {
    h.step = t;
    h.set(rig);
    const Values g = stored(DType::f32, random_values(5, static_cast<uint32_t>(100 + t), 0.3));
    rig.set(p.grads[0], g);
    ASSERT_NO_FATAL_FAILURE(rig.run());
    for (int i = 0; i < 5; ++i) adamw(h, h.weight_decay, w[i], g[static_cast<size_t>(i)], m0[i], m1[i]);
  }
  expect_near(rig.get(p.weights[0]), Values(w, w + 5), 1e-6, 0.1, "weights");
}

// The example of RMSProp in three variants: w = 1, four gradients, lr 0.01, momentum 0.9, decay 0.9.
TEST(OptimizerRmsprop, FollowsTheWorkedExample) {
  struct Variant {
    double tf, start, eps, weight_decay;
    double want[4];
  };
  const Variant variants[] = {
      {1, 0, 1e-3, 0, {0.9776393202250021, 0.9835524906236688, 0.982228321765577, 0.9810365697932942}},
      {1, 1, 1e-3, 0, {0.9989470767121433, 1.000213618643438, 1.0007701595987306, 1.001271046458494}},
      {0, 0, 1e-2, 1e-5, {0.9759741154932536, 0.9793500690388778, 0.9759985036225115, 0.9729807892469259}},
  };
  const double gradients[] = {0.1, -0.2, 0.05, 0};
  for (const Variant& v : variants) {
    Rig rig(backend::make_optimizer_rmsprop, {1, v.tf, 0});
    Parameters p(rig, {3}, false);
    Hyper{.lr = 0.01, .momentum = 0.9, .alpha = 0.9, .eps = v.eps, .weight_decay = v.weight_decay}.set(rig);
    rig.set(p.weights[0], Values(3, 1));
    rig.set(p.moment0[0], Values(3, v.start));
    rig.set(p.moment1[0], Values(3, 0));
    for (int t = 0; t < 4; ++t) {
      rig.set(p.grads[0], Values(3, gradients[t]));
      ASSERT_NO_FATAL_FAILURE(rig.run());
      expect_near(rig.get(p.weights[0]), Values(3, v.want[t]), 2e-7, 0, "weights");
    }
  }
}

TEST(Optimizer, ClipsByTheGlobalNorm) {
  struct Case {
    double norm, clip, factor;
  };
  for (const Case& c : {Case{4, 1, 0.25}, Case{0.5, 1, 1}, Case{4, 0, 1}}) {
    const Hyper h;
    Rig rig(backend::make_optimizer_sgd, {1, 0, 0});
    Parameters p(rig, {40, 3}, true, c.norm);
    h.set(rig);
    rig.scalars().clip_norm = c.clip;
    ASSERT_NO_FATAL_FAILURE(rig.run());
    p.expect(rig, c.factor, [&](double& w, double g, double& m0, double&) {
      m0 = h.momentum * m0 + g + h.weight_decay * w;
      w -= h.lr * m0;
    });
  }
}

// Beside a weight that is not finite, finite ones are averaged; its own average waits.
TEST(Optimizer, AveragesOnlyWhatIsFinite) {
  Rig rig(backend::make_optimizer_sgd, {1, 0, 1});
  Parameters p(rig, {19}, false);
  rig.scalars().lr = 1;
  rig.scalars().ema_decay = 0.5;
  Values g = p.g[0];
  g[3] = std::numeric_limits<double>::infinity();
  g[18] = std::numeric_limits<double>::quiet_NaN();
  rig.set(p.grads[0], g);
  ASSERT_NO_FATAL_FAILURE(rig.run());
  Values want = p.averages[0];
  for (size_t i = 0; i < want.size(); ++i)
    if (i != 3 && i != 18) want[i] = 0.5 * want[i] + 0.5 * (p.w[0][i] - g[i]);
  expect_near(rig.get(p.ema[0]), want, 1e-6, 1, "ema");
}

TEST(Optimizer, RefusesListsThatDoNotFit) {
  Rig rig(backend::make_optimizer_sgd, {1, 0, 0});
  Parameters p(rig, {40, 3}, false);
  rig.op().inputs.pop_back();
  EXPECT_EQ(rig.make().code(), Code::plan_invalid);
}

TEST(GradNorm, EqualsTheReference) {
  Rig rig(backend::make_grad_norm);
  Values all;
  for (const int64_t size : kSizes) {
    const Values g =
        stored(DType::f32, random_values(static_cast<size_t>(size), static_cast<uint32_t>(size), 0.1, 1e-3));
    rig.add_in(rig.tensor(Arena::grads, DType::f32, {size}, g));
    all.insert(all.end(), g.begin(), g.end());
  }
  const Tensor* norm = rig.out(DType::f32, {1});
  ASSERT_NO_FATAL_FAILURE(rig.run());
  long double sum = 0;
  for (const double g : all) sum += static_cast<long double>(g) * g;
  expect_near(rig.get(norm), {static_cast<double>(std::sqrt(sum))}, 1e-7, 0, "norm");
}

TEST(GradNorm, SeesAnInfinity) {
  Rig rig(backend::make_grad_norm);
  rig.add_in(rig.tensor(Arena::grads, DType::f32, {3}, {1, std::numeric_limits<double>::infinity(), 2}));
  const Tensor* norm = rig.out(DType::f32, {1});
  ASSERT_NO_FATAL_FAILURE(rig.run());
  EXPECT_TRUE(std::isinf(rig.get(norm)[0]));
}

struct EmaRig {
  Rig rig{backend::make_ema_update};
  std::vector<Tensor*> ema;
  std::vector<Values> values, averages;
  explicit EmaRig(const std::vector<int64_t>& sizes) {
    std::vector<Tensor*> weights;
    for (const int64_t size : sizes) {
      const size_t n = static_cast<size_t>(size);
      values.push_back(stored(DType::f32, random_values(n, 1)));
      averages.push_back(stored(DType::f32, random_values(n, 2)));
      weights.push_back(rig.tensor(Arena::weights, DType::f32, {size}, values.back()));
      rig.add_in(weights.back());
    }
    for (size_t i = 0; i < sizes.size(); ++i) ema.push_back(rig.twin(weights[i], Arena::ema, averages[i]));
  }
};

TEST(EmaUpdate, EqualsTheReference) {
  for (const double decay : {0.0, 0.1818, 0.9999}) {
    EmaRig t(kSizes);
    t.rig.scalars().ema_decay = decay;
    if (t.rig.covered()) continue;
    ASSERT_NO_FATAL_FAILURE(t.rig.run());
    for (size_t p = 0; p < t.ema.size(); ++p) {
      Values want = t.averages[p];
      for (size_t i = 0; i < want.size(); ++i) want[i] = decay * want[i] + (1 - decay) * t.values[p][i];
      expect_near(t.rig.get(t.ema[p]), want, 2e-7, 2, "ema");
    }
  }
}

TEST(EmaUpdate, SettlesOnAConstant) {
  EmaRig t({3});
  t.rig.scalars().ema_decay = 0.99;
  ASSERT_TRUE(t.rig.make().ok());
  for (int i = 0; i < 3000; ++i) t.rig.run_once();
  // Steps of less than half a unit in the last place are lost: 2^-24 / 0.01 remains.
  expect_near(t.rig.get(t.ema[0]), t.values[0], 6.1e-6, 0, "ema");
}

}  // namespace
}  // namespace effnet::test
