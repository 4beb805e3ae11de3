// Arenas: what a growth keeps, also one that fails.
#include "core/memory.h"

#include <gtest/gtest.h>

namespace effnet {
namespace {

using plan::Arena;

constexpr uint64_t kTooMuch = uint64_t{1} << 47;  // more than an address space has

std::shared_ptr<HostMemory> memory_of(uint64_t weights, uint64_t activations) {
  uint64_t bytes[plan::kArenaCount] = {};
  bytes[static_cast<int>(Arena::weights)] = weights;
  bytes[static_cast<int>(Arena::activations)] = activations;
  return HostMemory::create(bytes).value();
}

TEST(Memory, GrowthKeepsContentsAndZeroesTheRest) {
  const auto memory = memory_of(4096, 0);
  memory->arena(Arena::weights)[4095] = std::byte{7};
  ASSERT_TRUE(memory->ensure(Arena::weights, 5 << 20).ok());
  EXPECT_EQ(memory->arena(Arena::weights)[4095], std::byte{7});
  EXPECT_EQ(memory->arena(Arena::weights)[(5 << 20) - 1], std::byte{0});
}

TEST(Memory, AFailedGrowthLeavesTheArenaAsLargeAsItWas) {
  const auto memory = memory_of(4096, 4 << 20);
  for (const Arena arena : {Arena::weights, Arena::activations}) {
    const uint64_t before = memory->bytes(arena);
    EXPECT_EQ(memory->ensure(arena, kTooMuch).code(), Code::oom);
    ASSERT_EQ(memory->bytes(arena), before);
    memory->arena(arena)[before - 1] = std::byte{1};
  }
}

TEST(Memory, ALimitHoldsForAllArenasTogether) {
  uint64_t bytes[plan::kArenaCount] = {};
  bytes[static_cast<int>(Arena::weights)] = 3 << 20;
  EXPECT_EQ(HostMemory::create(bytes, 2 << 20).status().code(), Code::oom);
  const auto memory = HostMemory::create(bytes, 8 << 20).value();
  EXPECT_EQ(memory->budget()->used(), uint64_t{3 << 20});
  ASSERT_TRUE(memory->ensure(Arena::activations, 4 << 20).ok());
  const Status refused = memory->ensure(Arena::grads, 3 << 20);
  EXPECT_EQ(refused.code(), Code::oom);
  EXPECT_EQ(refused.message(), "3.0 MiB were needed; the limit of 8.0 MiB leaves 1.0 MiB");
  EXPECT_TRUE(memory->ensure(Arena::activations, 5 << 20).ok());  // by what it grows
  EXPECT_EQ(memory->budget()->used(), uint64_t{8 << 20});
  EXPECT_EQ(memory->ensure(Arena::weights, kTooMuch).code(), Code::oom);
  EXPECT_EQ(memory->budget()->used(), uint64_t{8 << 20});
}

TEST(Memory, ClearedArenasAreZeroAndAsLarge) {
  const auto memory = memory_of(4096, 4 << 20);
  const uint64_t held = native_bytes(Block::Kind::arena);
  for (const Arena arena : {Arena::weights, Arena::activations, Arena::ema}) {
    const uint64_t bytes = memory->bytes(arena);
    if (bytes) memory->arena(arena)[bytes - 1] = std::byte{1};
    ASSERT_TRUE(memory->clear(arena).ok());
    ASSERT_EQ(memory->bytes(arena), bytes);
    if (bytes) {
      EXPECT_EQ(memory->arena(arena)[bytes - 1], std::byte{0});
    }
  }
  EXPECT_EQ(native_bytes(Block::Kind::arena), held);
}

TEST(Memory, RefusesToGrowOrExchangeWhileAStepRuns) {
  const auto memory = memory_of(4096, 0);
  ++memory->busy;
  EXPECT_FALSE(memory->begin_change());
  --memory->busy;
  EXPECT_EQ(memory->swap(Arena::weights, Arena::ema).code(), Code::invalid_argument);
  EXPECT_TRUE(memory->ensure(Arena::weights, 8192).ok());
}

}  // namespace
}  // namespace effnet
