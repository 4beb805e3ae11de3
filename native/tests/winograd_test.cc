// Winograd's convolutions against plain loops in double precision: every geometry, the size of the errors, values that
// are not finite, and where the factories choose them.
#include "cpu/kernels/winograd.h"

#include "conv_reference.h"
#include "isa.h"
#include "kernel_rig.h"

namespace effnet::test {
namespace {

using cpu::KernelPtr;

// The kernels themselves, whatever the shape.
StatusOr<KernelPtr> forward(const plan::Op& op) {
  return cpu::make_winograd({op.inputs[0], op.inputs[1], op.outputs[0], op.attr_int(1), op.attr_int(2)}, "fwd");
}
StatusOr<KernelPtr> backward_data(const plan::Op& op) {
  return cpu::make_winograd({op.inputs[0], op.inputs[1], op.outputs[0], op.attr_int(1), op.attr_int(2), true}, "bwd");
}
StatusOr<KernelPtr> backward_weights(const plan::Op& op) {
  return cpu::make_winograd_bwd_weights(op.inputs[0], op.inputs[1], op.outputs[0], op.attr_int(1), op.attr_int(2));
}
StatusOr<KernelPtr> bias_act(const plan::Op& op) {
  return cpu::make_winograd({op.inputs[0], op.inputs[1], op.outputs[0], op.attr_int(1), op.attr_int(2), false,
                             op.inputs[2], op.inputs[3], plan::Act::silu},
                            "bias_act");
}

ConvCase padded(int64_t n, int64_t h, int64_t w, int64_t ic, int64_t oc, int64_t top, int64_t left, int64_t bottom,
                int64_t right) {
  return {n, h, w, ic, oc, 3, 1, top, left, bottom, right};
}
ConvCase same(int64_t n, int64_t h, int64_t w, int64_t ic, int64_t oc) { return padded(n, h, w, ic, oc, 1, 1, 1, 1); }

// Images smaller than a tile, cut tiles, every padding, channels that fill no vector, one to many groups of tiles and
// blocks of steps.
const ConvCase kCases[] = {
    same(1, 1, 1, 1, 1),
    same(2, 3, 2, 5, 3),
    same(1, 4, 4, 16, 16),
    same(3, 5, 9, 17, 33),
    same(2, 12, 13, 24, 48),
    same(1, 11, 30, 50, 40),
    same(2, 7, 7, 130, 20),
    same(1, 9, 8, 48, 97),
    same(3, 38, 37, 3, 8),
    padded(1, 7, 6, 8, 8, 0, 0, 0, 0),
    padded(2, 6, 9, 8, 12, 2, 2, 2, 2),
    padded(1, 10, 7, 9, 16, 0, 1, 2, 0),
    padded(1, 6, 11, 16, 7, 2, 0, 0, 1),
};

struct Errors {
  double norm, largest;  // |error| / |result| in the Euclidean norm, and of the largest elements
};

Errors errors_of(const Values& got, const Values& want) {
  double error2 = 0, want2 = 0, error_max = 0, want_max = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::abs(got[i] - want[i]);
    error2 += error * error;
    want2 += want[i] * want[i];
    error_max = std::max(error_max, error);
    want_max = std::max(want_max, std::abs(want[i]));
  }
  return {std::sqrt(error2 / want2), error_max / want_max};
}

double terms(Direction direction, const ConvCase& c) {
  const int64_t count = direction == Direction::forward         ? 9 * c.ic
                        : direction == Direction::backward_data ? 9 * c.oc
                                                                : c.n * c.oh() * c.ow();
  return static_cast<double>(count);
}

TEST(Winograd, EveryGeometry) {
  const std::pair<Direction, cpu::KernelFactory> directions[] = {{Direction::forward, forward},
                                                                 {Direction::backward_data, backward_data},
                                                                 {Direction::backward_weights, backward_weights}};
  for (const ConvCase& c : kCases) {
    const ConvData d(c, DType::f32);
    for (const auto& [direction, factory] : directions) {
      const ConvResult r = run_conv(direction, c, d, DType::f32, factory);
      ASSERT_FALSE(HasFatalFailure()) << c.name();
      // Sums of one product have errors of four operands' size.
      expect_near(r.got, r.want, 5e-6, std::sqrt(terms(direction, c)) + 2,
                  c.name() + " direction " + std::to_string(static_cast<int>(direction)));
    }
  }
}

// The errors that winograd.h states, on a layer with short sums and one with long ones.
TEST(Winograd, ErrorsAreOfTheSizeOfADirectConvolutions) {
  for (const ConvCase& c : {same(2, 40, 40, 24, 24), same(1, 24, 24, 48, 192), same(1, 16, 16, 256, 64)}) {
    const ConvData d(c, DType::f32);
    const auto check = [&](Direction direction, cpu::KernelFactory factory) {
      const ConvResult r = run_conv(direction, c, d, DType::f32, factory);
      const Errors e = errors_of(r.got, r.want);
      const std::string what = c.name() + " direction " + std::to_string(static_cast<int>(direction));
      EXPECT_LT(e.norm, 7e-7) << what;
      EXPECT_LT(e.largest, 1.3e-6) << what;
    };
    check(Direction::forward, forward);
    check(Direction::backward_data, backward_data);
    check(Direction::backward_weights, backward_weights);
  }
}

TEST(Winograd, BiasActivationResidual) {
  for (const ConvCase& c : kCases) {
    const ConvData d(c, DType::f32);
    const Values bias = stored(DType::f32, random_values(static_cast<size_t>(c.oc), 4));
    const Values residual = stored(DType::f32, random_values(d.diff_dst.size(), 6));
    for (const bool with_residual : {false, true}) {
      Rig rig(bias_act, c.attrs());
      rig.in(DType::f32, {c.n, c.h, c.w, c.ic}, d.src);
      rig.add_in(rig.tensor(Arena::weights, DType::f32, {c.oc, 3, 3, c.ic}, d.weights));
      rig.add_in(rig.tensor(Arena::weights, DType::f32, {c.oc}, bias));
      if (with_residual)
        rig.in(DType::f32, {c.n, c.oh(), c.ow(), c.oc}, residual);
      else
        rig.add_in(nullptr);
      const Tensor* dst = rig.out(DType::f32, {c.n, c.oh(), c.ow(), c.oc});
      rig.run();
      ASSERT_FALSE(HasFatalFailure()) << c.name();
      Values want(static_cast<size_t>(dst->elements()));
      for_each_product(c, [&](size_t s, size_t k, size_t t) { want[t] += d.src[s] * d.weights[k]; });
      for (size_t i = 0; i < want.size(); ++i) {
        const double x = want[i] + bias[i % static_cast<size_t>(c.oc)];
        want[i] = x / (1 + std::exp(-x)) + (with_residual ? residual[i] : 0);
      }
      expect_near(rig.get(dst), want, 6e-6, std::sqrt(terms(Direction::forward, c)) + 4, c.name());
    }
  }
}

// What the outputs of a direct convolution would show, these show as well.
TEST(Winograd, ValuesThatAreNotFiniteReachEveryResultThatReadsThem) {
  const ConvCase c = same(1, 10, 11, 20, 18);
  for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    for (const auto& [y, x] : {std::pair<int64_t, int64_t>{0, 0}, {3, 4}, {7, 8}, {9, 10}}) {
      ConvData d(c, DType::f32);
      d.src[static_cast<size_t>((y * c.w + x) * c.ic + 17)] = bad;
      d.diff_dst[static_cast<size_t>((y * c.w + x) * c.oc + 17)] = bad;
      const std::pair<Direction, cpu::KernelFactory> directions[] = {{Direction::forward, forward},
                                                                     {Direction::backward_data, backward_data},
                                                                     {Direction::backward_weights, backward_weights}};
      for (const auto& [direction, factory] : directions) {
        const ConvResult r = run_conv(direction, c, d, DType::f32, factory);
        size_t bad_results = 0;
        for (size_t i = 0; i < r.want.size(); ++i) {
          if (std::isfinite(r.want[i])) continue;
          ++bad_results;
          EXPECT_FALSE(std::isfinite(r.got[i])) << "direction " << static_cast<int>(direction) << " at " << i;
        }
        EXPECT_GT(bad_results, 0u);
      }
    }
  }
}

TEST(Winograd, TheFactoriesChooseItForLayersOfEfficientNetV2) {
  const auto name_of = [](Direction direction, const ConvCase& c, DType dtype) {
    const std::vector<int64_t> src = {c.n, c.h, c.w, c.ic}, dst = {c.n, c.oh(), c.ow(), c.oc};
    const std::vector<int64_t> weights = {c.oc, c.k, c.k, c.ic};
    Rig rig(direction == Direction::forward         ? backend::make_conv2d
            : direction == Direction::backward_data ? backend::make_conv2d_bwd_data
                                                    : backend::make_conv2d_bwd_weights,
            c.attrs());
    const bool gradient = direction == Direction::backward_weights;
    rig.in(dtype, direction == Direction::backward_data ? dst : src, {});
    rig.in(gradient ? dtype : DType::f32, gradient ? dst : weights, {});
    if (gradient)
      rig.out(DType::f32, weights);
    else
      rig.out(dtype, direction == Direction::forward ? dst : src);
    const Status status = rig.make();
    EXPECT_TRUE(status.ok()) << status.message();
    return rig.name();
  };
  const std::string isa = supports_avx3() ? ":avx3" : ":avx2";
  for (const ConvCase& c : {same(2, 150, 150, 24, 24), same(2, 75, 75, 48, 192), same(2, 38, 38, 64, 256)}) {
    EXPECT_EQ(name_of(Direction::forward, c, DType::f32), "winograd_fwd_f32" + isa);
    EXPECT_EQ(name_of(Direction::backward_data, c, DType::f32), "winograd_bwd_data_f32" + isa);
    EXPECT_EQ(name_of(Direction::backward_weights, c, DType::f32), "winograd_bwd_weights_f32" + isa);
  }
  const ConvCase strided = {2, 75, 75, 48, 192, 3, 2, 1, 1, 1, 1}, stem = same(2, 64, 64, 3, 24);
  for (const ConvCase& c : {strided, stem})
    EXPECT_EQ(name_of(Direction::forward, c, DType::f32).find("winograd"), std::string::npos) << c.name();
}

}  // namespace
}  // namespace effnet::test
