// Random values of new parameters: the same bits on every instruction set, whatever the ranges. That they are the
// values of the formulas, test/nn/init.test.ts checks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cpu/fill_random.h"
#include "io/sha256.h"

namespace effnet {
namespace {

using cpu::Draw;

constexpr Draw kDraws[] = {Draw::normal, Draw::truncated, Draw::uniform};
constexpr cpu::RandomKey kKey{0x1f31d0a4093822, 0x93822};

std::vector<float> whole(Draw draw, size_t count) {
  std::vector<float> values(count);
  cpu::fill_random(values.data(), draw, 0.125, kKey, 0, count);
  return values;
}

TEST(FillRandom, BitsAreTheSameOnEveryInstructionSet) {
  constexpr const char* kExpected[] = {"01e947dd2b01b3c73aa631fcd784c37d879f827d14f690bc617207e9d6072e77",
                                       "dac8a87b3f34da996fca2f8be8ccf7d52f9d011af3a5a667283224bf66d2eb5e",
                                       "6c839dcabf368a753e3e89324f47919ac3f58d4bc8c25cd47b3fa331ae61c5c8"};
  for (int i = 0; i < 3; ++i) {
    const auto values = whole(kDraws[i], 1 << 20);
    io::Sha256 hash;
    hash.update(values.data(), values.size() * sizeof(float));
    EXPECT_EQ(hash.finish(), kExpected[i]) << "draw " << i;
  }
}

TEST(FillRandom, RangesArePartsOfTheWholeAndNothingElseIsWritten) {
  constexpr size_t kCount = 5000;
  for (const Draw draw : kDraws) {
    const auto expected = whole(draw, kCount);
    for (size_t begin = 0; begin < 80; begin += 4) {
      for (const size_t length : {0, 1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 1023, 1024, 1025, 4097}) {
        std::vector<float> values(kCount, 7);
        cpu::fill_random(values.data(), draw, 0.125, kKey, begin, begin + length);
        for (size_t i = 0; i < kCount; ++i) {
          const bool inside = i >= begin && i < begin + length;
          ASSERT_EQ(values[i], inside ? expected[i] : 7.0f) << begin << " + " << length << " at " << i;
        }
      }
    }
  }
}

TEST(FillRandom, OnlyTheTruncatedNormalIsCut) {
  const auto beyond = [](const std::vector<float>& values) {
    return std::count_if(values.begin(), values.end(), [](float v) { return std::abs(v) > 0.25f; });
  };
  const auto normal = whole(Draw::normal, 1 << 18), truncated = whole(Draw::truncated, 1 << 18);
  EXPECT_NEAR(static_cast<double>(beyond(normal)) / (1 << 18), 0.0455, 0.002);
  EXPECT_EQ(beyond(truncated), 0);
  for (size_t i = 0; i < normal.size(); ++i) {
    const bool kept = std::abs(normal[i]) <= 0.25f;
    ASSERT_EQ(normal[i] == truncated[i], kept) << i;
  }
}

}  // namespace
}  // namespace effnet
