// Runs a target without libFuzzer: mutates the corpus by a seed, so that a run can be repeated anywhere.
//
//   fuzz_<target> [-runs=N] [-seed=N] [-bind_one_of=N] [FILE or FOLDER...]
//
// Without -runs the files are run as they are. The input that ended the process lies in crash-<target>-<run>; the table
// of outcomes is the last line, as JSON.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <new>
#include <unordered_set>

#include "fuzz/fuzz.h"

#ifndef EFFNET_FUZZ_TARGET
#error "EFFNET_FUZZ_TARGET names the target"
#endif

extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace {

using namespace effnet::fuzz;

const Target& target = EFFNET_FUZZ_TARGET;
constexpr unsigned kSecondsPerInput = 20;
constexpr size_t kMostKept = 4096;

Bytes g_input;
uint64_t g_run = 0;

// Async-signal-safe but for the format of a short name.
void save_input() {
  char name[96];
  std::snprintf(name, sizeof name, "crash-%s-%llu", target.name, static_cast<unsigned long long>(g_run));
  if (FILE* file = std::fopen(name, "wb")) {
    std::fwrite(g_input.data(), 1, g_input.size(), file);
    std::fclose(file);
    std::fprintf(stderr, "fuzz: run %llu: input of %zu bytes written to %s\n", static_cast<unsigned long long>(g_run),
                 g_input.size(), name);
  }
}

void on_signal(int signal) {
  if (signal == SIGALRM) std::fprintf(stderr, "fuzz: more than %u s for one input\n", kSecondsPerInput);
  save_input();
  _exit(70);
}

Bytes read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

struct Tally {
  std::map<std::string, uint64_t> results;
  std::unordered_set<std::string> seen;

  // Whether nothing like it was seen before.
  bool run(const Bytes& input) {
    g_input = input;
    ++g_run;
    alarm(kSecondsPerInput);
    const Outcome outcome = target.run(g_input.data(), g_input.size());
    ++results[outcome.result];
    return seen.insert(outcome.result + " " + outcome.where).second;
  }
};

void print(const Tally& tally, uint64_t runs, uint64_t seed, double seconds) {
  std::printf("{\"target\":\"%s\",\"runs\":%llu,\"seed\":%llu,\"seconds\":%.1f,\"kinds\":%zu,\"outcomes\":{",
              target.name, static_cast<unsigned long long>(runs), static_cast<unsigned long long>(seed), seconds,
              tally.seen.size());
  const char* comma = "";
  for (const auto& [result, count] : tally.results) {
    std::printf("%s\"%s\":%llu", comma, result.c_str(), static_cast<unsigned long long>(count));
    comma = ",";
  }
  std::printf("}}\n");
}

uint64_t number(const char* text) { return std::strtoull(text, nullptr, 10); }

}  // namespace

int main(int argc, char** argv) {
  uint64_t runs = 0, seed = 1;
  std::vector<std::filesystem::path> files;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.starts_with("-runs="))
      runs = number(argv[i] + 6);
    else if (word.starts_with("-seed="))
      seed = number(argv[i] + 6);
    else if (word.starts_with("-bind_one_of="))
      bind_one_of = std::max<uint64_t>(1, number(argv[i] + 13));
    else if (word.starts_with("-"))
      return std::fprintf(stderr, "unknown: %s\n", argv[i]), 64;
    else if (std::filesystem::is_directory(word))
      for (const auto& entry : std::filesystem::directory_iterator(word)) files.push_back(entry.path());
    else
      files.push_back(word);
  }
  std::sort(files.begin(), files.end());
  if (__sanitizer_set_death_callback)
    __sanitizer_set_death_callback(save_input);
  else
    for (const int s : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) signal(s, on_signal);
  signal(SIGALRM, on_signal);

  Tally tally;
  std::vector<Bytes> pool;
  const auto start = std::chrono::steady_clock::now();
  for (const auto& file : files) {
    pool.push_back(read(file));
    tally.run(pool.back());
  }
  if (pool.empty()) pool.emplace_back();
  const size_t seeds = pool.size();
  Random random(seed);
  for (uint64_t run = 0; run < runs; ++run) {
    // Half of the time a seed: what was kept later may be far from anything valid.
    Bytes input = pool[random.chance(50) ? random.below(seeds) : random.below(pool.size())];
    do target.mutate(input, random);
    while (random.chance(40));
    if (input.size() > target.max_bytes) input.resize(target.max_bytes);
    if (tally.run(input) && pool.size() < kMostKept) pool.push_back(std::move(input));
  }
  alarm(0);
  print(tally, runs + files.size(), seed,
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  return 0;
}
