// The words of tensor_core.h on the emulation: a small pipelined matrix product that is right, and the same with one
// mistake in it at a time.
#include <gtest/gtest.h>

#include <vector>

#include "cuda/device/tensor_core.h"

namespace effnet::test {
namespace {

using cuda::Bf16;
using cuda::F16;
using cuda::Launch;

constexpr uint32_t kThreads = 64;  // two warps of 16 rows
constexpr int kRows = 32, kColumns = 16, kSteps = 5;
// A step's terms: 32 bytes of a row. Rows lie 48 bytes apart, so that their starts fall onto different banks.
constexpr int kStepBytes = 32, kPitch = 48, kStages = 2;
constexpr int kStageBytes = (kRows + kColumns) * kPitch;

enum class Mistake {
  none,
  wait_too_short,
  no_wait_at_the_end,
  stage_overwritten_while_read,
  misaligned_copy,
  copy_past_the_tensor,
  fragments_swapped,
  other_lane,
  not_transposed,
};

struct Args {
  const std::byte *a,
      *b;          // [kRows][kSteps] and [kColumns][kSteps] of kStepBytes; transposed b [kSteps * depth][kColumns]
  float* c;        // [kRows][kColumns]
  int valid_rows;  // of a; the others count as zero
  bool transposed;
  Mistake mistake;
};

template <class T>
EFF_DEVICE void product(const Args& a) {
  constexpr int kElement = sizeof(T), kDepth = kStepBytes / kElement;
  cuda::Shared shared;
  auto* stages = shared.take<std::byte>(kStages * kStageBytes);
  const int t = static_cast<int>(cuda::thread_id()), lane = t % 32, warp = t / 32, matrix = lane / 8, row = lane % 8;
  const auto load = [&](int step) {
    std::byte* to = stages + step % kStages * kStageBytes;
    const int r = t / 2, half = t % 2 * 16;
    const bool valid = r < a.valid_rows || a.mistake == Mistake::copy_past_the_tensor;
    const int off = a.mistake == Mistake::misaligned_copy && t == 3 ? 8 : 0;
    cuda::copy_async(to + r * kPitch + half, a.a + (valid ? (r * kSteps + step) * kStepBytes + half + off : 0), valid);
    if (r < kColumns) {
      const std::byte* from = a.transposed ? a.b + (step * kDepth + r) * kColumns * kElement + half
                                           : a.b + (r * kSteps + step) * kStepBytes + half;
      cuda::copy_async(to + (kRows + r) * kPitch + half, from, true);
    }
    cuda::copies_commit();
  };
  float sums[2][4] = {};
  load(0);
  for (int step = 0; step < kSteps; ++step) {
    if (step + 1 < kSteps) {
      load(step + 1);
      if (a.mistake == Mistake::wait_too_short)
        cuda::copies_wait<2>();
      else
        cuda::copies_wait<1>();
    } else if (a.mistake != Mistake::no_wait_at_the_end) {
      cuda::copies_wait<0>();
    }
    EFF_SYNC_BLOCK();
    const std::byte* rows = stages + step % kStages * kStageBytes;
    const std::byte* columns = rows + kRows * kPitch;
    uint32_t fa[4], fb[4];
    cuda::load_matrices(fa, rows + (warp * 16 + matrix % 2 * 8 + row) * kPitch + matrix / 2 * 16);
    const int from = a.mistake == Mistake::other_lane ? row ^ 1 : row;
    if (a.transposed && a.mistake != Mistake::not_transposed)
      cuda::load_matrices_transposed(fb, columns + (matrix % 2 * 8 + from) * kPitch + matrix / 2 * 16);
    else
      cuda::load_matrices(fb, columns + (matrix / 2 * 8 + from) * kPitch + matrix % 2 * 16);
    if (a.mistake == Mistake::fragments_swapped) std::swap(fa[1], fa[2]);
    if constexpr (sizeof(T) == 4) {
      for (uint32_t& v : fa) v = cuda::to_tf32(cuda::bits_to_float(v));
      for (uint32_t& v : fb) v = cuda::to_tf32(cuda::bits_to_float(v));
    }
    cuda::mma<T>(sums[0], fa, {fb[0], fb[1]});
    cuda::mma<T>(sums[1], fa, {fb[2], fb[3]});
    if (a.mistake != Mistake::stage_overwritten_while_read) EFF_SYNC_BLOCK();
  }
  for (int n = 0; n < 2; ++n)
    for (int i = 0; i < 4; ++i)
      a.c[(warp * 16 + lane / 4 + i / 2 * 8) * kColumns + n * 8 + lane % 4 * 2 + i % 2] = sums[n][i];
}

EFF_KERNEL(product_f32, Args, kThreads) { product<float>(a); }
EFF_KERNEL(product_bf16, Args, kThreads) { product<Bf16>(a); }
EFF_KERNEL(product_f16, Args, kThreads) { product<F16>(a); }

// Small integers, whose sums are exact in every type; the last row of `a` in a tensor that ends with it.
template <class T>
struct Operands {
  static constexpr int kDepth = kSteps * kStepBytes / static_cast<int>(sizeof(T));
  std::vector<T> a, b, transposed;
  std::vector<float> want = std::vector<float>(kRows * kColumns);
  int rows;

  explicit Operands(int valid_rows) : rows(valid_rows) {
    const auto value = [](int i, int modulus) { return static_cast<float>(i * 7 % modulus - modulus / 2); };
    for (int i = 0; i < rows * kDepth; ++i) a.push_back(cuda::from_float<T>(value(i, 13)));
    transposed.resize(kColumns * kDepth);
    for (int i = 0; i < kColumns * kDepth; ++i) {
      b.push_back(cuda::from_float<T>(value(i, 17)));
      transposed[static_cast<size_t>(i % kDepth * kColumns + i / kDepth)] = b.back();
    }
    for (int m = 0; m < rows; ++m)
      for (int n = 0; n < kColumns; ++n)
        for (int k = 0; k < kDepth; ++k)
          want[static_cast<size_t>(m * kColumns + n)] += value(m * kDepth + k, 13) * value(n * kDepth + k, 17);
  }

  std::vector<float> run(const char* kernel, bool is_transposed, Mistake mistake, unsigned schedule) const {
    std::vector<float> c(kRows * kColumns);
    const auto& columns = is_transposed ? transposed : b;
    const Args args{reinterpret_cast<const std::byte*>(a.data()),
                    reinterpret_cast<const std::byte*>(columns.data()),
                    c.data(),
                    rows,
                    is_transposed,
                    mistake};
    EXPECT_EQ(
        cuda::emulation::run(cuda::make_launch(kernel, {1, 1, 1}, kThreads, kStages * kStageBytes, args), schedule),
        nullptr);
    return c;
  }
};

constexpr unsigned kSchedules[] = {0, 3, 4, 7};

template <class T>
void expect_right(const char* kernel) {
  for (const int rows : {kRows, 21}) {
    const Operands<T> operands(rows);
    for (const unsigned schedule : kSchedules) {
      EXPECT_EQ(operands.run(kernel, false, Mistake::none, schedule), operands.want) << kernel << schedule;
      if constexpr (sizeof(T) == 2) {
        EXPECT_EQ(operands.run(kernel, true, Mistake::none, schedule), operands.want) << kernel << schedule;
      }
    }
  }
}

TEST(CudaTensorCore, ProductsAreExactInEveryTypeAndLayout) {
  expect_right<Bf16>("product_bf16");
  expect_right<F16>("product_f16");
  expect_right<float>("product_f32");
}

bool shows(Mistake mistake, bool transposed = false) {
  const Operands<Bf16> operands(kRows);
  for (const unsigned schedule : kSchedules)
    if (operands.run("product_bf16", transposed, mistake, schedule) != operands.want) return true;
  return false;
}

TEST(CudaTensorCore, WrongFragmentsAndLanesShowInTheNumbers) {
  EXPECT_TRUE(shows(Mistake::fragments_swapped));
  EXPECT_TRUE(shows(Mistake::other_lane));
  EXPECT_TRUE(shows(Mistake::not_transposed, true));
}

TEST(CudaTensorCore, AWaitThatIsTooShortShows) {
  EXPECT_TRUE(shows(Mistake::wait_too_short));
  const Operands<Bf16> operands(kRows);
  EXPECT_DEATH(operands.run("product_bf16", false, Mistake::no_wait_at_the_end, 0), "ends with copies pending");
}

// One warp runs ahead and loads into the stage that the other one still multiplies.
TEST(CudaTensorCore, AStageOverwrittenWhileItIsReadShows) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "it is a race there";
#endif
  EXPECT_TRUE(shows(Mistake::stage_overwritten_while_read));
}

TEST(CudaTensorCore, CopiesAreOfSixteenAlignedBytes) {
  const Operands<Bf16> operands(kRows);
  EXPECT_DEATH(operands.run("product_bf16", false, Mistake::misaligned_copy, 0), "cp.async address is not aligned");
}

#if defined(__SANITIZE_ADDRESS__)
TEST(CudaTensorCore, AddressSanitizerSeesCopiesFromOutside) {
  const Operands<Bf16> operands(21);
  EXPECT_DEATH(operands.run("product_bf16", false, Mistake::copy_past_the_tensor, 0),
               "cp.async reads outside its tensor");
}
#endif

#if defined(__SANITIZE_THREAD__)
void run_with(Mistake mistake, unsigned schedule) {
  Operands<Bf16>(kRows).run("product_bf16", false, mistake, schedule);
  std::exit(0);
}
TEST(CudaTensorCore, ThreadSanitizerSeesRacesOfThePipeline) {
  EXPECT_EXIT(run_with(Mistake::stage_overwritten_while_read, 3), testing::ExitedWithCode(66), "data race");
}
#endif

TEST(CudaTensorCore, Tf32IsRoundedToNearestAwayFromZero) {
  const auto round = [](float v) { return cuda::bits_to_float(cuda::to_tf32(v)); };
  EXPECT_EQ(round(1.0f), 1.0f);
  EXPECT_EQ(round(1.0f + 0x1p-11f), 1.0f + 0x1p-10f);  // a tie
  EXPECT_EQ(round(-1.0f - 0x1p-11f), -1.0f - 0x1p-10f);
  EXPECT_EQ(round(1.0f + 0x1p-12f), 1.0f);
  EXPECT_EQ(round(1.0f + 0x1.8p-11f), 1.0f + 0x1p-10f);
  EXPECT_EQ(round(0x1.ffffffp126f), 0x1p127f);
  EXPECT_TRUE(std::isinf(round(HUGE_VALF)));
  EXPECT_TRUE(std::isnan(round(NAN)));
}

}  // namespace
}  // namespace effnet::test
