// Whether the emulation finds what it is there for: a right kernel, and the same with one mistake in it at a time, each
// asked for in the builds that find it (P: plain, A: AddressSanitizer, T: ThreadSanitizer).
//
//   no barrier after a tile is loaded         P A  MissingBarriersAndValuesShowInTheNumbers
//                                             T    ThreadSanitizerSeesRaces
//   border off by one                         P T  AWrongBorderShowsInTheNumbers
//                                             A    AddressSanitizerSeesWhatLiesOutside
//   shared write past the tile                A    AddressSanitizerSeesWhatLiesOutside
//   another lane in a shuffle                 all  AWrongLaneShowsInTheNumbers
//   prologue applied to padding               all  APrologueOnPaddingShowsInTheNumbers
//   stage overwritten while it is read        P A  AStageOverwrittenWhileItIsReadShows
//                                             T    ThreadSanitizerSeesRacesOfThePipeline
//   scratch of a reduction used too soon      P A  MissingBarriersAndValuesShowInTheNumbers
//                                             T    ThreadSanitizerSeesRaces
//   no fence before the last block's sum      T    ThreadSanitizerSeesRaces; of both levels of a merge, and of a
//                                                  convolution that merges: cuda_merge_test.cc, AMissingFenceIsARace
//   shared value read before it is written    P A  MissingBarriersAndValuesShowInTheNumbers
//                                             T    ThreadSanitizerSeesRaces
//   barrier in a branch                       all  ThreadsThatDoNotMeetAreADeadlock
//   wait for a copy too short                 all  AWaitThatIsTooShortShows
//   pitch that breaks alignment               all  CopiesAreOfSixteenAlignedBytes
//   launch declares too little shared memory  all  SharedMemoryIsWhatTheLaunchDeclares
//
// Those of the pipeline are in cuda_tensor_core_test.cc. What streams can do wrong, a missing wait for an event and a
// host block or an input that is written while its copy is pending, is planted in cuda_runtime_test.cc
// (AMissingWaitShows, AHostBlockOrAnInputThatIsWrittenTooEarlyShows).
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "cuda/device/device.h"
#include "tests/half.h"

namespace effnet::test {
namespace {

using cuda::Launch;

constexpr uint32_t kThreads = 64;  // two warps
constexpr int kBlocks = 3;

enum class Mistake {
  none,
  no_barrier_after_the_tile,
  shared_read_before_written,
  border_off_by_one,
  shared_write_past_the_tile,
  other_lane,
  prologue_on_padding,
  scratch_reused_too_early,
  barrier_in_a_branch,
  lane_left_out_of_a_shuffle,
};

struct Args {
  const float* src;  // [kBlocks * kThreads]
  float* dst;        // [kBlocks]
  Mistake mistake;
};

// dst[b] = sum over i of (i + 1) * (src[i] mirrored within the block + 2 more than its right neighbour, 0 behind the
// last)
EFF_KERNEL(mirrored_sum, Args, kThreads) {
  cuda::Shared shared;
  float* tile = shared.take<float>(kThreads);
  float* of_warp = shared.take<float>(kThreads / 32);
  const int t = static_cast<int>(cuda::thread_id()), first = static_cast<int>(cuda::block_x() * kThreads);
  const int count = static_cast<int>(cuda::grid_x() * kThreads);
  if (a.mistake != Mistake::shared_read_before_written || t != 40) tile[t] = a.src[first + t];
  if (a.mistake == Mistake::shared_write_past_the_tile && t == 0) tile[kThreads] = 1;
  if (a.mistake == Mistake::barrier_in_a_branch) {
    if (t < 32) EFF_SYNC_BLOCK();
    if (t >= 32) EFF_SYNC_BLOCK();
  } else if (a.mistake != Mistake::no_barrier_after_the_tile) {
    EFF_SYNC_BLOCK();
  }
  const int right = first + t + 1, end = a.mistake == Mistake::border_off_by_one ? count + 1 : count;
  const float padding = a.mistake == Mistake::prologue_on_padding ? 2.0f : 0.0f;
  float v = static_cast<float>(t + 1) *
            (tile[static_cast<int>(kThreads) - 1 - t] + (right < end ? a.src[right] + 2 : padding));
  if (a.mistake == Mistake::lane_left_out_of_a_shuffle && t == 5) return;
  for (unsigned mask = 16; mask > 0; mask /= 2)
    v += EFF_SHUFFLE_XOR(v, a.mistake == Mistake::other_lane && mask == 2 ? 4u : mask);
  // The tile is scratch now, unless somebody still reads it.
  float* sums = of_warp;
  if (a.mistake == Mistake::scratch_reused_too_early) sums = tile + 40;
  if (t % 32 == 0) sums[t / 32] = v;
  EFF_SYNC_BLOCK();
  if (t == 0) a.dst[cuda::block_x()] = sums[0] + sums[1];
}

// The last of the blocks to arrive adds up what all wrote; without a fence before its ticket nothing orders that.
struct TicketArgs {
  float* parts;
  float* dst;
  uint32_t* tickets;
};
EFF_KERNEL(last_block_without_a_fence, TicketArgs, 32) {
  if (cuda::thread_id() != 0) return;
  a.parts[cuda::block_x()] = static_cast<float>(cuda::block_x());
  const uint32_t before = __atomic_fetch_add(a.tickets, 1, __ATOMIC_RELAXED);
  if (before + 1 != cuda::grid_x()) return;
  float sum = 0;
  for (uint32_t i = 0; i < cuda::grid_x(); ++i) sum += a.parts[i];
  *a.dst = sum;
}

// The same as kernels do it: all threads write, the last block reads.
EFF_KERNEL(last_block, TicketArgs, kThreads) {
  cuda::Shared shared;
  uint32_t* flag = shared.take<uint32_t>(1);
  a.parts[cuda::block_x() * kThreads + cuda::thread_id()] = static_cast<float>(cuda::block_x());
  if (!cuda::comes_last(a.tickets, cuda::grid_x(), flag) || cuda::thread_id() > 0) return;
  float sum = 0;
  for (uint32_t i = 0; i < cuda::grid_x() * kThreads; ++i) sum += cuda::load_shared_by_blocks(a.parts + i);
  *a.dst = sum;
}

constexpr size_t kShared = kThreads * 4 + 16;

std::array<float, kBlocks> run(Mistake mistake, unsigned schedule, size_t shared = kShared) {
  // As long as the kernel may read, and under AddressSanitizer no longer.
#if defined(__SANITIZE_ADDRESS__)
  std::vector<float> src(kBlocks * kThreads);
#else
  std::vector<float> src(kBlocks * kThreads + 1);
#endif
  for (size_t i = 0; i < src.size(); ++i) src[i] = static_cast<float>(i % 17) + 1;
  std::array<float, kBlocks> dst{};
  const Launch launch =
      cuda::make_launch("mirrored_sum", {kBlocks, 1, 1}, kThreads, shared, Args{src.data(), dst.data(), mistake});
  EXPECT_EQ(cuda::emulation::run(launch, schedule), nullptr);
  return dst;
}

std::array<float, kBlocks> expected() {
  std::array<float, kBlocks> sums{};
  const auto value = [](int i) {
    return i < kBlocks * static_cast<int>(kThreads) ? static_cast<float>(i % 17) + 1 : -2;
  };
  for (int b = 0; b < kBlocks; ++b)
    for (int t = 0; t < static_cast<int>(kThreads); ++t) {
      const int first = b * static_cast<int>(kThreads);
      sums[static_cast<size_t>(b)] +=
          static_cast<float>(t + 1) * (value(first + static_cast<int>(kThreads) - 1 - t) + value(first + t + 1) + 2);
    }
  return sums;
}

constexpr unsigned kSchedules[] = {0, 3, 4, 7};

// Whether some schedule gives something else than the right numbers.
bool shows(Mistake mistake) {
  for (const unsigned schedule : kSchedules)
    if (run(mistake, schedule) != expected()) return true;
  return false;
}

TEST(CudaEmulation, ARightKernelGivesTheRightNumbersUnderEverySchedule) {
  for (const unsigned schedule : kSchedules) EXPECT_EQ(run(Mistake::none, schedule), expected()) << schedule;
}

// Shared memory begins as NaN, so what was not written yet, or not at all, is not taken for a number.
TEST(CudaEmulation, MissingBarriersAndValuesShowInTheNumbers) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "they are races there";
#endif
  EXPECT_TRUE(shows(Mistake::no_barrier_after_the_tile));
  EXPECT_TRUE(shows(Mistake::shared_read_before_written));
  EXPECT_TRUE(shows(Mistake::scratch_reused_too_early));
}

TEST(CudaEmulation, AWrongLaneShowsInTheNumbers) { EXPECT_TRUE(shows(Mistake::other_lane)); }

TEST(CudaEmulation, APrologueOnPaddingShowsInTheNumbers) { EXPECT_TRUE(shows(Mistake::prologue_on_padding)); }

#if !defined(__SANITIZE_ADDRESS__)
TEST(CudaEmulation, AWrongBorderShowsInTheNumbers) { EXPECT_TRUE(shows(Mistake::border_off_by_one)); }
#endif

TEST(CudaEmulation, ThreadsThatDoNotMeetAreADeadlock) {
  EXPECT_DEATH(run(Mistake::barrier_in_a_branch, 0), "different __syncthreads|deadlock");
  EXPECT_DEATH(run(Mistake::lane_left_out_of_a_shuffle, 0), "deadlock");
}

TEST(CudaEmulation, SharedMemoryIsWhatTheLaunchDeclares) {
  EXPECT_DEATH(run(Mistake::none, 0, kShared - 16), "more shared memory than the launch declares");
  EXPECT_DEATH(run(Mistake::none, 0, kShared + 16), "other shared memory than the kernel takes");
}

TEST(CudaEmulation, LaunchLimitsHold) {
  EXPECT_STREQ(cuda::emulation::run(cuda::make_launch("nobody", {1, 1, 1}, 32, 0, Args{}), 0), "no such kernel");
  EXPECT_STREQ(cuda::emulation::run(cuda::make_launch("mirrored_sum", {1, 1, 1}, 32, 0, 'x'), 0),
               "the size of its arguments is another");
  EXPECT_STREQ(cuda::emulation::run(cuda::make_launch("mirrored_sum", {1, 1, 1}, kThreads + 32, 0, Args{}), 0),
               "its blocks have more threads than it is compiled for");
  // What a block of a GPU with compute capability 8.6, 8.9 or 12.0 may have.
  EXPECT_DEATH(run(Mistake::none, 0, 99 * 1024 + 16), "launch limits");
}

#if defined(__SANITIZE_ADDRESS__)
TEST(CudaEmulation, AddressSanitizerSeesWhatLiesOutside) {
  EXPECT_DEATH(run(Mistake::border_off_by_one, 0), "heap-buffer-overflow");
  EXPECT_DEATH(run(Mistake::shared_write_past_the_tile, 0), "use-after-poison");
}
#endif

TEST(CudaEmulation, OneBlockComesLast) {
  for (unsigned schedule = 0; schedule < 8; ++schedule) {
    float parts[kBlocks * kThreads] = {}, dst = 0;
    uint32_t tickets = 0;
    const TicketArgs args{parts, &dst, &tickets};
    for (int i = 0; i < 2; ++i) {
      EXPECT_EQ(cuda::emulation::run(cuda::make_launch("last_block", {kBlocks, 1, 1}, kThreads, 16, args), schedule),
                nullptr);
      EXPECT_EQ(dst, kThreads * (0 + 1 + 2));
      EXPECT_EQ(tickets, 0u);
    }
  }
}

#if defined(__SANITIZE_THREAD__)
// The child's report goes to stderr; its exit code is the one that ThreadSanitizer ends with after a report.
void ends_after(void (*work)()) {
  work();
  std::exit(0);
}
void missing_barrier() { run(Mistake::no_barrier_after_the_tile, 0); }
void scratch_too_early() { run(Mistake::scratch_reused_too_early, 0); }
void read_before_written() { run(Mistake::shared_read_before_written, 0); }
void missing_fence() {
  float parts[kBlocks] = {}, dst = 0;
  uint32_t tickets = 0;
  const TicketArgs args{parts, &dst, &tickets};
  cuda::emulation::run(cuda::make_launch("last_block_without_a_fence", {kBlocks, 1, 1}, 32, 0, args), 0);
}
TEST(CudaEmulation, ThreadSanitizerSeesRaces) {
  for (void (*work)() : {missing_barrier, scratch_too_early, read_before_written, missing_fence})
    EXPECT_EXIT(ends_after(work), testing::ExitedWithCode(66), "data race");
}
#endif

// Every value of the type, and what lies between neighbours: a little beside the middle, and the middle itself.
TEST(CudaEmulation, SixteenBitTypesRoundToNearestEven) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float f16 = f16_to_float(half), bf16 = bf16_to_float(half);
    if (std::isnan(f16)) {
      EXPECT_TRUE(std::isnan(cuda::to_float(cuda::F16{half})));
    } else {
      ASSERT_EQ(cuda::to_float(cuda::F16{half}), f16);
      ASSERT_EQ(float_to_f16(f16), half);
    }
    if (std::isnan(bf16)) continue;
    ASSERT_EQ(cuda::to_float(cuda::Bf16{half}), bf16);
    for (const float value : {f16, bf16}) {
      if (!std::isfinite(value)) continue;
      const float beyond = f16_to_float(static_cast<uint16_t>(half + 1));
      const float middle = value == f16 && std::isfinite(beyond) ? (value + beyond) / 2 : value * 1.00390625f;
      for (const float x : {value, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e38f)}) {
        if (std::isnan(x)) continue;
        ASSERT_EQ(cuda::from_float<cuda::F16>(x).bits, float_to_f16(x)) << x;
        ASSERT_EQ(cuda::from_float<cuda::Bf16>(x).bits, float_to_bf16(x)) << x;
      }
    }
  }
}

}  // namespace
}  // namespace effnet::test
