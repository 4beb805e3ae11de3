// The merge of tiles of BN statistics and of gradients' sums, by kernels that leave given tiles, and its counters; sums
// of parts by a launch of their own.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cuda/ops/batch_norm.h"
#include "cuda/ops/conv.h"
#include "cuda/ops/depthwise_tiling.h"
#include "cuda/ops/sum_parts.h"
#include "cuda/ops/walk.h"
#include "tests/device/given_tiles.h"
#include "tests/host_operands.h"
#include "tests/reference.h"

namespace effnet::test {
namespace {

constexpr double kEps = 1e-3, kMomentum = 0.1;

plan::Tensor vector_of(int64_t c, uint64_t offset) {
  return {"t", DType::f32, Arena::activations, 1, {c, 1, 1, 1}, offset, static_cast<uint64_t>(c) * 4};
}

struct Merge {
  int64_t tiles, tile_rows, last_rows, c;
  bool counted;   // each tile has rows of its own
  int64_t width;  // channels of a block

  std::vector<int32_t> counts() const {
    std::vector<int32_t> counts;
    for (int64_t t = 0; t < tiles; ++t)
      counts.push_back(static_cast<int32_t>(counted ? 1 + t * 7 % tile_rows : t + 1 < tiles ? tile_rows : last_rows));
    return counts;
  }
};

const Merge kMerges[] = {{1, 1, 1, 1, false, 1},     {1, 256, 77, 33, false, 32},  {3, 64, 5, 8, true, 8},
                         {129, 4, 1, 40, false, 16}, {300, 16, 16, 17, false, 17}, {1000, 5, 0, 3, true, 3},
                         {3000, 2, 1, 1, false, 1},  {33, 7, 3, 130, true, 100},   {37, 3, 2, 3300, false, 2000}};

// Runs a launch in every order; the same bits each time.
void run(HostOperands& operands, const cuda::Launch& launch, const cuda::StepState& state,
         std::vector<float>& results) {
  std::vector<float> first;
  for (int order = 0; order < backend::Runner::kOrders; ++order) {
    std::fill(results.begin(), results.end(), 0.5f);
    const Status ran = operands.run(launch, order);
    ASSERT_TRUE(ran.ok()) << ran.message();
    ASSERT_TRUE(backend::counters_are_zero(state));
    if (first.empty()) first = results;
    // By bytes, since NaN is not itself.
    ASSERT_EQ(std::memcmp(first.data(), results.data(), first.size() * sizeof(float)), 0)
        << backend::Runner::order_name(order);
  }
}
template <class Args>
cuda::Launch launch_of(const char* kernel, const Merge& m, const Args& args) {
  return cuda::make_launch(kernel, {cuda::blocks_of(m.c, m.width), static_cast<uint32_t>(m.tiles), 1}, kGivenThreads,
                           kGivenThreads * cuda::kMergeShared, args);
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
    const bool rest = m.c == 40;
    const cuda::MergeTiles merge_tiles(m.tiles, ceil_div(m.c, m.width), m.c, rest ? 3 : 2);
    std::vector<int32_t> starts{0};
    for (const int32_t count : counts) starts.push_back(starts.back() + count);
    const GivenStatsArgs args{operands.of(tiles), rest ? operands.of(rests) : nullptr, m.width,
                              stats.merge_args(at, merge_tiles, operands.scratch(merge_tiles.bytes()), m.tile_rows,
                                               m.counted ? operands.of(starts) : nullptr)};
    const cuda::Launch launch = launch_of(rest ? "given_stats_with_rests" : "given_stats", m, args);
    ASSERT_NO_FATAL_FAILURE(run(operands, launch, state, results));
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
    // A tile that is not finite shows in its own channel, and in the state.
    EXPECT_EQ(state.skip + state.unsound, 0u);
    const std::vector<float> sound = results;
    tiles[2 * (counts.size() / 2) * c + c / 2] = std::numeric_limits<float>::infinity();
    ASSERT_NO_FATAL_FAILURE(run(operands, launch, state, results));
    EXPECT_EQ(state.skip, 1u);
    EXPECT_EQ(state.unsound, 1u);
    for (size_t i = 0; i < results.size(); ++i) {
      if (i % c == c / 2)
        ASSERT_FALSE(std::isfinite(results[i])) << i;
      else
        ASSERT_EQ(results[i], sound[i]) << i;
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
    const cuda::MergeTiles merge_tiles(m.tiles, ceil_div(m.c, m.width), m.c);
    const GivenSumsArgs args{
        operands.of(tiles), m.width,
        back.merge_args(at, merge_tiles, operands.scratch(merge_tiles.bytes()), &outputs[0], &outputs[1])};
    ASSERT_NO_FATAL_FAILURE(run(operands, launch_of("given_sums", m, args), state, results));
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

// What another launch has left is added up by as many threads as its shape says.
TEST(SumParts, AddsUpEveryPart) {
  struct Row {
    int64_t parts, count;
    int lanes;
  };
  for (const Row& row : {Row{1, 1, 1},
                         {7, 5, 1},
                         {8, 5, 2},
                         {31, 8, 4},
                         {64, 300, 16},
                         {300, 33, 32},
                         {264, 512, 32},
                         {300, 70000, 2},
                         {40, 140000, 1}}) {
    if (kThreadSanitizer && row.parts * row.count > 1 << 16) continue;
    SCOPED_TRACE(testing::Message() << row.parts << " parts of " << row.count);
    const auto parts = stored(DType::f32, random_values(static_cast<size_t>(row.parts * row.count), 1));
    std::vector<float> given(parts.begin(), parts.end()), dst(static_cast<size_t>(row.count));
    for (int order = 0; order < backend::Runner::kOrders; ++order) {
      HostOperands operands;
      const cuda::Launch launch =
          cuda::sum_parts(operands.of(std::as_const(given)), row.parts, row.count, operands.of(dst));
      const Status ran = operands.run(launch, order);
      ASSERT_TRUE(ran.ok()) << ran.message();
      EXPECT_EQ(launch.grid.x, ceil_div(row.count, int64_t{256} / row.lanes));
      for (int64_t i = 0; i < row.count; ++i) {
        double sum = 0, size = 0;
        for (int64_t part = 0; part < row.parts; ++part) {
          sum += parts[static_cast<size_t>(part * row.count + i)];
          size += std::abs(parts[static_cast<size_t>(part * row.count + i)]);
        }
        ASSERT_NEAR(dst[static_cast<size_t>(i)], sum, 0x1p-24 * std::abs(sum) + 1e-12 * size) << i;
      }
    }
  }
}

// Every column has counters of its own, of those that there are, and every tile a group.
TEST(Merge, TakesTheCountersThatThereAre) {
  cuda::StepState state{};
  cuda::Addresses at;
  at.state = &state;
  Aligned scratch(1);
  for (const int64_t tiles : {1, 2, 31, 32, 33, 132, 1056, 4097, 200000})
    for (const int64_t columns : {int64_t{1}, int64_t{7}, int64_t{40}, int64_t{1000}, cuda::kMostMergeColumns}) {
      SCOPED_TRACE(testing::Message() << tiles << " tiles, " << columns << " columns");
      const cuda::MergeTree t = cuda::MergeTiles(tiles, columns, 8).tree(at, scratch.data());
      EXPECT_LE(columns * (t.groups + 1), cuda::kMergeCounters);
      EXPECT_LT(int64_t{t.groups - 1} * t.group_tiles, tiles);
      EXPECT_GE(int64_t{t.groups} * t.group_tiles, tiles);
      if (tiles <= 32) {
        EXPECT_EQ(t.groups, 1);
      }
      if (tiles > 32 && tiles <= 4097 && columns <= 40) {
        EXPECT_LE(t.group_tiles + t.groups, 2 * std::sqrt(tiles) + 2);
      }
    }
}

// A layer of more channels than that is not cut into tiles that are merged.
TEST(Merge, LayersHaveAsManyColumnsAsHaveCounters) {
  const auto tiled = [](int64_t c, size_t bytes) {
    return cuda::depthwise_has_tiles({1, 4, 4, c, 4, 4, 3, 3, 1, 1, 1}, bytes);
  };
  EXPECT_TRUE(tiled(cuda::kMostMergeColumns * 8, 2));
  EXPECT_FALSE(tiled(cuda::kMostMergeColumns * 8 + 8, 2));
  EXPECT_TRUE(tiled(cuda::kMostMergeColumns * 4, 4));
  EXPECT_FALSE(tiled(cuda::kMostMergeColumns * 4 + 4, 4));
  // Reductions that are cut by themselves: one block a group of channels, long before the counters end.
  for (const int64_t c : {int64_t{1} << 20, int64_t{1} << 22, int64_t{1} << 24})
    for (const int64_t images : {int64_t{1}, int64_t{9}}) {
      const cuda::Walk w = cuda::make_walk(images, 4000, c, 4, cuda::kSumBlocks, 64);
      SCOPED_TRACE(testing::Message() << images << " images of " << c << " channels, " << cuda::walk_tiles(w)
                                      << " tiles");
      EXPECT_TRUE(cuda::walk_tiles(w) == 1 || cuda::walk_grid(w, 4).y <= cuda::kMostMergeColumns);
    }
}

#if defined(__SANITIZE_THREAD__)
// Tiles in one group, which its last block adds up; in groups of one tile, which the last group adds up; and in both
// levels.
template <int kGroupTiles, int kGroups>
void merge_without_fences() {
  constexpr int kTiles = 6;
  std::vector<float> tiles(kTiles * 2, 1.0f), left(kTiles * 2), results(2), inv_std(1, 1.0f);
  std::vector<double> parts(kTiles * 2);
  cuda::StepState state{};
  const GivenSumsArgs args{
      tiles.data(),
      1,
      {left.data(), 1, inv_std.data(), &results[0], &results[1], {kTiles, kGroupTiles, kGroups, parts.data(), &state}}};
  cuda::emulation::machine().fences = false;
  emulate(cuda::make_launch("given_sums", {1, kTiles, 1}, kGivenThreads, kGivenThreads * cuda::kMergeShared, args), 0);
  std::exit(0);
}
// A convolution's own, with its statistics.
void convolve_without_fences() {
  const cuda::ConvGeometry g{1, 1, 300, 8, 1, 300, 8, 1, 1, 1, 0, 0};
  const cuda::ConvType type(DType::bf16, false);
  const std::vector<uint16_t> src(300 * 8), weights(8 * 8);
  std::vector<uint16_t> dst(300 * 8);
  std::vector<float> results(4 * 8);
  cuda::StepState state{};
  cuda::ConvForm form = cuda::conv_forward_form(g, type).whole();
  const cuda::MergeTiles tiles = form.merge_tiles(g.oc, 3);
  Aligned scratch(tiles.bytes());
  cuda::Addresses at;
  at.state = &state;
  cuda::ConvArgs args{};
  args.g = g;
  args.src.data = src.data();
  args.weights = weights.data();
  args.dst = dst.data();
  args.stats.tiles = tiles.tiles(scratch.data());
  args.stats.rests = tiles.rests(scratch.data());
  args.stats.rows = g.dst_pixels();
  args.stats.c = g.oc;
  args.stats.tile_rows = form.tiles_a_block * form.tile_m;
  args.stats.mean = results.data();
  args.stats.inv_std = results.data() + 8;
  args.stats.running_mean = results.data() + 16;
  args.stats.running_var = results.data() + 24;
  args.stats.tree = tiles.tree(at, scratch.data());
  cuda::emulation::machine().fences = false;
  emulate(cuda::conv_launch(args, form, type, true), 0);
  std::exit(0);
}
// Kernels that leave their tiles to one another by themselves: an op whose form has `form` in its name.
void run_without_fences(Rig& rig, const char* form) {
  if (!rig.make().ok() || rig.name().find(form) == std::string::npos) std::exit(1);
  cuda::emulation::machine().fences = false;
  rig.run_once();
  std::exit(0);
}
Values some(int64_t count, uint32_t seed) { return random_values(static_cast<size_t>(count), seed); }
void add_vectors(Rig& rig, int count, int64_t c) {
  for (int i = 0; i < count; ++i) rig.in(DType::f32, {c}, Values(static_cast<size_t>(c), 0.5));
}
void read_once_without_fences() {
  constexpr int64_t kSide = 24, kIc = 48, kOc = 32, kPixels = kSide * kSide;
  Rig rig(backend::make_conv2d_bwd, {1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0});
  rig.in(DType::bf16, {1, kSide, kSide, kIc}, some(kPixels * kIc, 1));
  rig.add_in(rig.tensor(Arena::weights, DType::f32, {kOc, 1, 1, kIc}, some(kOc * kIc, 2)));
  rig.in(DType::bf16, {1, kSide, kSide, kOc}, some(kPixels * kOc, 3));
  rig.in(DType::bf16, {1, kSide, kSide, kOc}, some(kPixels * kOc, 4));
  add_vectors(rig, 6, kOc);
  rig.absent_inputs(1);
  add_vectors(rig, 4, kIc);
  rig.absent_inputs(4);
  rig.out(DType::bf16, {1, kSide, kSide, kIc});
  rig.out(DType::f32, {kOc, 1, 1, kIc});
  rig.out(DType::f32, {kIc});
  rig.out(DType::f32, {kIc});
  rig.absent_outputs(2);
  run_without_fences(rig, "once_bn_");
}
template <bool kBackward>
void depthwise_without_fences() {
  constexpr int64_t kImages = 4, kSide = 12, kC = 16, kCount = kImages * kSide * kSide * kC;
  const std::vector<int64_t> image{kImages, kSide, kSide, kC};
  Rig rig(
      kBackward ? backend::make_depthwise_conv2d_bwd : backend::make_depthwise_conv2d_stats,
      kBackward ? std::vector<double>{1, 1, 1, 1, 1, 0, 0} : std::vector<double>{1, 1, 1, 1, 1, kEps, kMomentum, 0});
  rig.in(DType::bf16, image, some(kCount, 1));
  if (kBackward) rig.in(DType::bf16, image, some(kCount, 2));
  rig.in(DType::f32, {3, 3, kC}, some(9 * kC, 3));
  add_vectors(rig, 4, kC);
  if (kBackward) rig.absent_inputs(9);
  rig.out(DType::bf16, image);
  if (kBackward) rig.out(DType::f32, {3, 3, kC});
  rig.out(DType::f32, {kC});
  rig.out(DType::f32, {kC});
  if (!kBackward)
    for (int i = 0; i < 2; ++i) rig.add_update(rig.tensor(Arena::weights, DType::f32, {kC}, some(kC, 4)));
  run_without_fences(rig, "_k3s1");
}
TEST(Merge, AMissingFenceIsARace) {
  for (void (*work)() :
       {merge_without_fences<6, 1>, merge_without_fences<1, 6>, merge_without_fences<3, 2>, convolve_without_fences,
        read_once_without_fences, depthwise_without_fences<false>, depthwise_without_fences<true>})
    EXPECT_EXIT(work(), testing::ExitedWithCode(66), "data race");
}
#endif

}  // namespace
}  // namespace effnet::test
