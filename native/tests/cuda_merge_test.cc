// The merge of tiles of BN statistics and of gradients' sums, as kernels that write such tiles record it.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "cuda/ops/batch_norm.h"
#include "tests/host_operands.h"

namespace effnet::test {
namespace {

constexpr double kEps = 1e-3, kMomentum = 0.1;

plan::Tensor vector_of(int64_t c, uint64_t offset) {
  return {"t", DType::f32, Arena::activations, 1, {c, 1, 1, 1}, offset, static_cast<uint64_t>(c) * 4};
}

struct Merge {
  int64_t tiles, tile_rows, last_rows, c;
  bool counted;  // each tile has rows of its own

  std::vector<int32_t> counts() const {
    std::vector<int32_t> counts;
    for (int64_t t = 0; t < tiles; ++t)
      counts.push_back(static_cast<int32_t>(counted ? 1 + t * 7 % tile_rows : t + 1 < tiles ? tile_rows : last_rows));
    return counts;
  }
};

const Merge kMerges[] = {{1, 1, 1, 1, false},     {1, 256, 77, 33, false},  {3, 64, 5, 8, true},
                         {129, 4, 1, 40, false},  {300, 16, 16, 17, false}, {1000, 5, 0, 3, true},
                         {70000, 2, 1, 1, false}, {130, 3, 2, 33000, false}};

// Runs the launches in every order; the same bits each time.
void run(HostOperands& operands, const std::vector<cuda::Launch>& launches, const cuda::StepState& state,
         std::vector<float>& results) {
  std::vector<float> first;
  for (int order = 0; order < backend::Runner::kOrders; ++order) {
    std::fill(results.begin(), results.end(), 0.5f);
    const Status ran = operands.run(launches, order);
    ASSERT_TRUE(ran.ok()) << ran.message();
    for (const uint32_t counter : state.block_counters) ASSERT_EQ(counter, 0u);
    if (first.empty()) first = results;
    ASSERT_TRUE(first == results) << backend::Runner::order_name(order);
  }
}

TEST(Merge, GivesTheStatisticsOfAllRows) {
  for (const Merge& m : kMerges) {
    if (kThreadSanitizer && m.tiles * m.c > 20000) continue;
    SCOPED_TRACE(testing::Message() << m.tiles << " tiles of " << m.c << " channels");
    const auto counts = m.counts();
    int64_t rows = 0;
    for (const int32_t count : counts) rows += count;
    const size_t c = static_cast<size_t>(m.c), size = counts.size() * 2 * c;
    // Means far from 0 have a rest, which is in the variance where they lie apart.
    std::vector<float> tiles(size), rests(size / 2), results(4 * c);
    for (size_t i = 0; i < rests.size(); ++i) rests[i] = m.c == 40 ? 0x1p-10f * static_cast<float>(i / c % 3) : 0;
    for (size_t i = 0; i < size; ++i) {
      const uint32_t bits = static_cast<uint32_t>(i) * 2654435761u;
      const float value = static_cast<float>(bits >> 8) * 0x1p-24f;
      tiles[i] = i / c % 2 == 0 ? 30 + value : value * static_cast<float>(counts[i / c / 2]);
    }
    const plan::Tensor src{"src", DType::f32, Arena::activations, 4, {rows, 1, 1, m.c}, 0, 0};
    const plan::Tensor outputs[] = {vector_of(m.c, 0), vector_of(m.c, 4 * c), vector_of(m.c, 8 * c),
                                    vector_of(m.c, 12 * c)};
    cuda::StepState state{};
    HostOperands operands;
    cuda::Addresses at;
    at.arenas[static_cast<int>(Arena::activations)] = reinterpret_cast<std::byte*>(operands.of(results));
    at.state = operands.of_one(state);
    const cuda::BnStats stats{&src, &outputs[0], &outputs[1], &outputs[2], &outputs[3], kEps, kMomentum};
    std::byte* scratch = operands.scratch(cuda::bn_merge_scratch_bytes(m.tiles, m.c));
    std::vector<cuda::Launch> launches;
    cuda::BnMergeArgs args =
        stats.merge_args(at, operands.of(tiles), m.tiles, m.tile_rows, m.counted ? operands.of(counts) : nullptr);
    if (m.c == 40) args.rests = operands.of(rests);
    cuda::BnStats::record_merge(args, scratch, launches);
    ASSERT_NO_FATAL_FAILURE(run(operands, launches, state, results));
    for (size_t i = 0; i < c; ++i) {
      long double sum = 0, squares = 0;
      const auto mean_of = [&](size_t t) { return static_cast<long double>(tiles[2 * t * c + i]) + rests[t * c + i]; };
      for (size_t t = 0; t < counts.size(); ++t) sum += mean_of(t) * counts[t];
      const long double mean = sum / rows;
      for (size_t t = 0; t < counts.size(); ++t) {
        const long double d = mean_of(t) - mean;
        squares += tiles[(2 * t + 1) * c + i] + d * d * counts[t];
      }
      const double var = static_cast<double>(squares / rows), unbiased = rows > 1 ? var * rows / (rows - 1.0) : var;
      ASSERT_NEAR(results[i], static_cast<double>(mean), 3e-6) << i;
      ASSERT_NEAR(results[c + i], 1 / std::sqrt(var + kEps), 1e-7 / std::sqrt(var + kEps)) << i;
      ASSERT_NEAR(results[2 * c + i], 0.9 * 0.5 + 0.1 * static_cast<double>(mean), 1e-6) << i;
      ASSERT_NEAR(results[3 * c + i], 0.9 * 0.5 + 0.1 * unbiased, 1e-6) << i;
    }
  }
}

TEST(Merge, AddsUpTheSumsOfTheGradient) {
  for (const Merge& m : kMerges) {
    if (kThreadSanitizer && m.tiles * m.c > 20000) continue;
    SCOPED_TRACE(testing::Message() << m.tiles << " tiles of " << m.c << " channels");
    const size_t c = static_cast<size_t>(m.c), size = static_cast<size_t>(m.tiles) * 2 * c;
    std::vector<float> tiles(size), results(3 * c);
    for (size_t i = 0; i < size; ++i)
      tiles[i] = static_cast<float>(static_cast<uint32_t>(i) * 2654435761u >> 8) * 0x1p-24f - 0.5f;
    const plan::Tensor src{"src", DType::f32, Arena::activations, 4, {1, 1, 1, m.c}, 0, 0};
    const plan::Tensor outputs[] = {vector_of(m.c, 0), vector_of(m.c, 4 * c), vector_of(m.c, 8 * c)};
    cuda::StepState state{};
    HostOperands operands;
    cuda::Addresses at;
    at.arenas[static_cast<int>(Arena::activations)] = reinterpret_cast<std::byte*>(operands.of(results));
    at.state = operands.of_one(state);
    cuda::BnBackward back{};
    back.src = &src;
    back.inv_std = &outputs[2];
    std::byte* scratch = operands.scratch(cuda::bn_merge_scratch_bytes(m.tiles, m.c));
    std::vector<cuda::Launch> launches;
    cuda::BnBackward::record_merge(at, back.merge_args(at, operands.of(tiles), m.tiles, &outputs[0], &outputs[1]),
                                   scratch, launches);
    ASSERT_NO_FATAL_FAILURE(run(operands, launches, state, results));
    for (size_t i = 0; i < c; ++i) {
      double products = 0, sums = 0;
      for (size_t t = 0; t < static_cast<size_t>(m.tiles); ++t) {
        products += tiles[2 * t * c + i];
        sums += tiles[(2 * t + 1) * c + i];
      }
      ASSERT_NEAR(results[i], products * 0.5, 1e-6 * (1 + std::abs(products))) << i;  // inv_std is 0.5
      ASSERT_NEAR(results[c + i], sums, 1e-6 * (1 + std::abs(sums))) << i;
    }
  }
}

}  // namespace
}  // namespace effnet::test
