// What the files of control groups say.
#include "cpu/cpu_info.h"

#include <gtest/gtest.h>

namespace effnet::cpu {
namespace {

TEST(CpuInfo, QuotasAreRoundedUpToWholeCpus) {
  EXPECT_EQ(parse_cpu_max("100000 100000\n"), 1);
  EXPECT_EQ(parse_cpu_max("400000 100000\n"), 4);
  EXPECT_EQ(parse_cpu_max("150000 100000\n"), 2);
  EXPECT_EQ(parse_cpu_max("1000 100000\n"), 1);
  EXPECT_EQ(parse_cpu_max("250000\n 100000\n"), 3);  // cgroup v1: two files
}

TEST(CpuInfo, NoQuotaIsNoLimit) {
  for (const char* text : {"max 100000\n", "", "\n", "100000", "-1 100000", "0 100000", "100000 0", "words"})
    EXPECT_EQ(parse_cpu_max(text), 0) << text;
}

TEST(CpuInfo, MemoryLimits) {
  EXPECT_EQ(parse_memory_max("1073741824\n"), uint64_t{1} << 30);
  EXPECT_EQ(parse_memory_max("9223372036854771712\n"), 9223372036854771712u);  // cgroup v1 without a limit
  for (const char* text : {"max\n", "", "\n"}) EXPECT_EQ(parse_memory_max(text), 0u) << text;
}

TEST(CpuInfo, ThisMachineHasCpusAndMemory) {
  const CpuInfo info = cpu_info();
  EXPECT_GE(info.cpus, 1);
  EXPECT_GE(info.memory_bytes, uint64_t{1} << 26);
}

}  // namespace
}  // namespace effnet::cpu
