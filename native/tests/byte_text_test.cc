#include "core/byte_text.h"

#include <gtest/gtest.h>

namespace effnet::test {
namespace {

TEST(ByteText, IsNeverNothingOfAUnit) {
  EXPECT_EQ(byte_text(0), "0 bytes");
  EXPECT_EQ(byte_text(1), "1 byte");
  EXPECT_EQ(byte_text(1023), "1023 bytes");
  EXPECT_EQ(byte_text(1024), "1.0 KiB");
  EXPECT_EQ(byte_text((1 << 20) - 1), "1.0 MiB");
  EXPECT_EQ(byte_text(16127127), "15.4 MiB");
  EXPECT_EQ(byte_text(uint64_t{3} << 29), "1.5 GiB");
  EXPECT_EQ(byte_text(uint64_t{5000} << 30), "5000.0 GiB");
}

}  // namespace
}  // namespace effnet::test
