// A sample of the fuzzing targets (native/fuzz): the corpus as it lies there, and some thousand inputs made from it.
// Under a sanitizer build this is where a finding shows first.
#include "fuzz/fuzz.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "cpu/kernels/dense_rows.h"
#include "plan/format.h"

namespace effnet::fuzz {
namespace {

std::vector<Bytes> corpus(const Target& target) {
  const auto folder = std::filesystem::path(__FILE__).parent_path() / "../fuzz/corpus" / target.name;
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  std::vector<Bytes> inputs;
  for (const auto& path : files) {
    std::ifstream file(path, std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return inputs;
}

int seeds_for_gpus() {
  int count = 0;
  const auto folder = std::filesystem::path(__FILE__).parent_path() / "../fuzz/corpus/plan";
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    count += entry.path().filename().string().starts_with("gpu-");
  return count;
}

// Outcomes of the corpus alone.
std::map<std::string, int> replay(const Target& target) {
  std::map<std::string, int> results;
  for (const Bytes& input : corpus(target)) ++results[target.run(input.data(), input.size()).result];
  return results;
}

void sample(const Target& target, int runs) {
  const std::vector<Bytes> seeds = corpus(target);
  ASSERT_FALSE(seeds.empty());
  Random random(20);
  for (int run = 0; run < runs; ++run) {
    Bytes input = seeds[random.below(seeds.size())];
    do target.mutate(input, random);
    while (random.chance(40));
    input.resize(std::min(input.size(), target.max_bytes));
    target.run(input.data(), input.size());
  }
}

// Seeds that are refused at the door would make fuzzing blind: they must run, kernels and all.
TEST(Fuzz, PlanCorpusIsAlive) {
  const std::vector<Bytes> seeds = corpus(kPlan);
  ASSERT_GE(seeds.size(), 30u);
  if (seeds[0][4] != plan::kVersion)
    GTEST_SKIP() << "seeds of plan version " << int{seeds[0][4]} << ": node scripts/make-fuzz-corpus.mjs";
  auto results = replay(kPlan);
  // Two are kept because they are refused, those for GPUs go no further than the verifier; some of the bf16 ones need
  // the CPU's products.
  const int seen = static_cast<int>(seeds.size()) - seeds_for_gpus();
  const int wanted = cpu::has_dense_rows(plan::DType::bf16, 2) ? seen - 2 : seen * 4 / 5;
  EXPECT_GE(results["ran"], wanted) << "node scripts/make-fuzz-corpus.mjs writes the seeds anew";
}
TEST(Fuzz, TransferCorpusIsAlive) { EXPECT_GE(replay(kTransfer)["ok"], 3); }
TEST(Fuzz, ImageCorpusIsAlive) { EXPECT_GE(replay(kImage)["ok"], 10); }

TEST(Fuzz, Plans) { sample(kPlan, 3000); }
TEST(Fuzz, Transfers) { sample(kTransfer, 5000); }
TEST(Fuzz, Images) { sample(kImage, 5000); }

}  // namespace
}  // namespace effnet::fuzz
