// The plans of native/fuzz/corpus, as the compiler in TypeScript wrote them.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "plan/format.h"

namespace effnet::test {

#define EFF_OP_TABLE_HASH_ONLY
#include "plan/op_table.inc"
#undef EFF_OP_TABLE_HASH_ONLY

// With the hash of today's op table, which grows without changing what was there.
inline std::vector<std::byte> plan_seed(const std::string& name) {
  const auto path = std::filesystem::path(__FILE__).parent_path() / "../fuzz/corpus/plan" / name;
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> text{std::istreambuf_iterator<char>(file), {}};
  std::vector<std::byte> bytes(text.size());
  std::memcpy(bytes.data(), text.data(), text.size());
  plan::Header header{};
  if (bytes.size() >= sizeof header) std::memcpy(&header, bytes.data(), sizeof header);
  EXPECT_EQ(header.version, plan::kVersion) << path << ": node scripts/make-fuzz-corpus.mjs writes the seeds anew";
  header.op_table_hash = kOpTableHash;
  if (bytes.size() >= sizeof header) std::memcpy(bytes.data(), &header, sizeof header);
  return bytes;
}

}  // namespace effnet::test
