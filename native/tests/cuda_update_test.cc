// The update of parameters with all that it can do in one pass: other decay by granule, moving average, copy in 16
// bits.
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "cuda/kernels/optimizer.h"
#include "cuda/kernels/step.h"
#include "cuda/kernels/weights.h"
#include "tests/half.h"
#include "tests/host_operands.h"

namespace effnet::test {
namespace {

using cuda::kChunk;
using cuda::kGranule;

struct Parameter {
  int64_t first, count;  // elements; the first a multiple of a granule
  uint8_t flags;
};
constexpr uint8_t kUpdated = cuda::kGranuleUpdated, kDecays = cuda::kGranuleDecays, kAveraged = cuda::kGranuleAveraged;
const Parameter kParameters[] = {{0, 17, kUpdated | kDecays | kAveraged},
                                 {32, 5, kUpdated | kAveraged},
                                 {48, 7, kAveraged},  // a running mean
                                 {64, 4000, kUpdated | kDecays},
                                 {4080, 9000, kUpdated | kDecays | kAveraged}};
constexpr int64_t kChunks = 4, kElements = kChunks * kChunk;

// All 16-bit values but the last three, whose number is no multiple of a vector.
TEST(Update, GradientsOf16BitsAreWidened) {
  constexpr int64_t kCount = 65533;
  std::vector<uint16_t> bits(kCount);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  for (const DType type : {DType::bf16, DType::f16})
    for (int order = 0; order < backend::Runner::kOrders; ++order) {
      std::vector<float> wide(kCount + 1, 77.0f);
      HostOperands operands;
      const cuda::WidenWeightsArgs args{operands.of(std::as_const(bits)), operands.of(wide), kCount};
      const char* name = type == DType::bf16 ? "widen_weights_bf16" : "widen_weights_f16";
      const Status ran = operands.run(cuda::make_launch(name, {3, 1, 1}, cuda::kCastThreads, 0, args), order);
      ASSERT_TRUE(ran.ok()) << ran.message();
      for (size_t i = 0; i < bits.size(); ++i) {
        const float want = type == DType::bf16 ? bf16_to_float(bits[i]) : f16_to_float(bits[i]);
        ASSERT_TRUE(wide[i] == want || (std::isnan(wide[i]) && std::isnan(want))) << name << " of " << bits[i];
      }
      EXPECT_EQ(wide[kCount], 77.0f);
    }
}

TEST(Update, DoesAllInOnePass) {
  std::vector<uint32_t> index;
  std::vector<std::array<uint8_t, cuda::kChunkGranules>> table(kChunks);
  for (const Parameter& p : kParameters) {
    for (int64_t i = 0; i < p.count; i += kGranule) {
      const int64_t granule = (p.first + i) / kGranule;
      table[static_cast<size_t>(granule / cuda::kChunkGranules)][static_cast<size_t>(granule % cuda::kChunkGranules)] =
          static_cast<uint8_t>(std::min(kGranule, p.count - i) | p.flags);
    }
  }
  for (uint32_t i = 0; i < kChunks; ++i) index.push_back(i);
  const auto values = [](uint32_t seed) {
    std::vector<float> v;
    for (const double x : random_values(kElements, seed)) v.push_back(static_cast<float>(x));
    return v;
  };
  const std::vector<float> weights = values(1), grads = values(2), moment = values(3), ema = values(4);
  StepScalars s;
  s.lr = 0.05;
  s.momentum = 0.9;
  s.weight_decay = 0.01;
  s.ema_decay = 0.99;
  for (const DType working : {DType::bf16, DType::f16}) {
    for (int order = 0; order < backend::Runner::kOrders; ++order) {
      cuda::StepState state{};
      std::vector<float> w = weights, m = moment, e = ema;
      std::vector<uint16_t> copy(kElements, 0x7b7b);
      HostOperands operands;
      cuda::UpdateArgs args{};
      args.chunks = {operands.of(std::as_const(index)), operands.of(std::as_const(table))->data()};
      args.rule = cuda::Rule::sgd;
      args.weights = operands.of(w);
      args.moment0 = operands.of(m);
      args.grads = operands.of(grads);
      args.ema = operands.of(e);
      args.working = operands.of(copy);
      args.working_type = working;
      args.scalars = operands.of_one(std::as_const(s));
      args.decay_mult = 1;
      args.state = operands.of_one(state);
      const Status ran = operands.run(
          cuda::make_launch("update_weights", {kChunks, 1, 1}, cuda::kOptimizerThreads, cuda::kUpdateShared, args),
          order);
      ASSERT_TRUE(ran.ok()) << ran.message();
      EXPECT_EQ(state.unsound, 0u);
      std::vector<uint8_t> flags(kElements);
      for (const Parameter& p : kParameters)
        std::fill_n(flags.begin() + p.first, static_cast<size_t>(p.count), p.flags);
      for (size_t i = 0; i < flags.size(); ++i) {
        const bool updated = flags[i] & kUpdated;
        const double g = grads[i] + (flags[i] & kDecays ? s.weight_decay * weights[i] : 0);
        const double want_m = updated ? s.momentum * moment[i] + g : moment[i];
        const double want_w = updated ? weights[i] - s.lr * want_m : weights[i];
        const double want_e = flags[i] & kAveraged ? s.ema_decay * ema[i] + (1 - s.ema_decay) * want_w : ema[i];
        ASSERT_NEAR(m[i], want_m, updated ? 1e-6 : 0) << i;
        ASSERT_NEAR(w[i], want_w, updated ? 1e-6 : 0) << i;
        ASSERT_NEAR(e[i], want_e, flags[i] & kAveraged ? 1e-6 : 0) << i;
        ASSERT_EQ(copy[i], updated ? to_bits16(working, w[i]) : 0x7b7b) << i;
      }
    }
  }
}

TEST(Update, LeavesAllAloneWhenAStepIsSkipped) {
  cuda::StepState state{};
  state.skip = 1;
  std::vector<float> values(kChunk, 1);
  std::array<uint8_t, cuda::kChunkGranules> table;
  table.fill(kGranule | kUpdated | kAveraged);
  const uint32_t index = 0;
  const StepScalars s;
  HostOperands operands;
  cuda::UpdateArgs args{};
  args.chunks = {operands.of_one(index), operands.of(table)};
  args.rule = cuda::Rule::adamw;
  args.weights = args.moment0 = args.moment1 = args.ema = operands.of(values);
  args.grads = args.weights;
  args.scalars = operands.of_one(s);
  args.state = operands.of_one(state);
  const Status ran = operands.run(
      cuda::make_launch("update_weights", {1, 1, 1}, cuda::kOptimizerThreads, cuda::kUpdateShared, args), 0);
  ASSERT_TRUE(ran.ok()) << ran.message();
  EXPECT_EQ(values, std::vector<float>(kChunk, 1));
}

// ---- the ends of a step ------------------------------------------------------------------------------------------

constexpr int64_t kStatistics = 700;  // of a piece: several rounds of a block

void run_ends(const char* kernel, std::vector<float>& weights, std::vector<float>& aside, const StepScalars& scalars,
              cuda::StepState& state, int order) {
  // Two pieces with a gap between them that nobody touches.
  const plan::Segment pieces[] = {{0, 4 * kStatistics, kStatistics}, {4 * (kStatistics + 8), 0, kStatistics - 1}};
  HostOperands operands;
  cuda::StepEndsArgs args{};
  args.pieces = operands.of(pieces);
  args.count = std::size(pieces);
  args.weights = reinterpret_cast<std::byte*>(operands.of(weights));
  args.aside = reinterpret_cast<std::byte*>(operands.of(aside));
  args.scalars = operands.of_one(scalars);
  args.state = operands.of_one(state);
  const Status ran =
      operands.run(cuda::make_launch(kernel, {std::size(pieces), 1, 1}, cuda::kStepThreads, 0, args), order);
  ASSERT_TRUE(ran.ok()) << ran.message();
}

TEST(StepEnds, StatisticsComeBackWhereAStepIsSkipped) {
  for (int order = 0; order < backend::Runner::kOrders; ++order) {
    for (const bool skipped : {false, true}) {
      std::vector<float> weights(2 * kStatistics + 7), aside(2 * kStatistics);
      for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(i);
      const std::vector<float> before = weights, changed(weights.size(), -1);
      StepScalars scalars;
      scalars.scale_interval = 2;
      cuda::StepState state{};
      state.skip = state.unsound = 1;
      state.loss_scale = {8, 1, 0};
      run_ends("begin_step", weights, aside, scalars, state, order);
      EXPECT_EQ(state.skip + state.unsound, 0u);
      EXPECT_EQ(weights, before);
      weights = changed;
      state.skip = skipped;
      run_ends("finish_step", weights, aside, scalars, state, order);
      for (size_t i = 0; i < weights.size(); ++i) {
        const auto at = static_cast<int64_t>(i);
        const bool gap = at >= kStatistics && at < kStatistics + 8;
        EXPECT_EQ(weights[i], skipped && !gap ? before[i] : -1) << i;
      }
      // Two good steps double the scale, a skipped one halves it.
      EXPECT_EQ(state.loss_scale.scale, skipped ? 4 : 16);
      EXPECT_EQ(state.loss_scale.growth, 0u);
      EXPECT_EQ(state.loss_scale.skipped, skipped ? 1u : 0u);
    }
  }
}

TEST(StepEnds, APartThatIsNotTheFirstBeginsNothing) {
  std::vector<float> weights(2 * kStatistics + 7, 1), aside(2 * kStatistics, 2);
  StepScalars scalars;
  scalars.part = 1;
  scalars.parts = 2;
  cuda::StepState state{};
  state.skip = 1;
  run_ends("begin_step", weights, aside, scalars, state, 0);
  EXPECT_EQ(state.skip, 1u);
  EXPECT_EQ(aside, std::vector<float>(aside.size(), 2));
}

TEST(StepEnds, GradientsOfPartsAreAveraged) {
  constexpr int64_t kCount = 1000;
  for (int order = 0; order < backend::Runner::kOrders; ++order) {
    std::vector<float> sums(kCount, NAN), grads;
    StepScalars scalars;
    scalars.parts = 3;
    for (int part = 0; part < 3; ++part) {
      scalars.part = part;
      grads.assign(kCount, 0);
      for (int64_t i = 0; i < kCount; ++i) grads[static_cast<size_t>(i)] = static_cast<float>(i * (part + 1));
      HostOperands operands;
      const cuda::AccumulateArgs args{operands.of(grads), operands.of(sums), kCount,
                                      operands.of_one(std::as_const(scalars))};
      const Status ran = operands.run(cuda::make_launch("accumulate", {3, 1, 1}, cuda::kStepThreads, 0, args), order);
      ASSERT_TRUE(ran.ok()) << ran.message();
    }
    for (int64_t i = 0; i < kCount; ++i) EXPECT_NEAR(grads[static_cast<size_t>(i)], 2.0 * static_cast<double>(i), 1e-3);
  }
}

}  // namespace
}  // namespace effnet::test
