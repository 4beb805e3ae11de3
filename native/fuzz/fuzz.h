// Fuzzing of what comes from outside: plans, tensors of files, images. A target takes any bytes and must come back with
// an outcome; a crash, a sanitizer's finding, a code that it must not give (abort) or more than 20 s are failures.
//
// One set of targets, three ways to run them:
//   driver.cc     any compiler: `fuzz_plan -runs=1000000 -seed=1 native/fuzz/corpus/plan`; inputs follow from the seed
//   entry.cc      libFuzzer (clang): the same words, guided by coverage
//   fuzz_test.cc  a sample in every run of the native tests
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/status.h"

namespace effnet::fuzz {

using Bytes = std::vector<uint8_t>;

// xorshift64*: the same inputs on every machine for a seed.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du) {}
  uint64_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1du;
  }
  // In [0, n); 0 for n = 0.
  uint64_t below(uint64_t n) { return n ? (next() >> 16) % n : 0; }
  bool chance(int percent) { return below(100) < static_cast<uint64_t>(percent); }
  template <class T, size_t n>
  T pick(const T (&list)[n]) {
    return list[below(n)];
  }

 private:
  uint64_t state_;
};

// What became of an input: "ok" or a code, and in `where` more about it (which check refused it, which kernels ran).
// The driver keeps inputs with a `where` that it has not seen.
struct Outcome {
  std::string result, where;
};

struct Target {
  const char* name;
  size_t max_bytes;
  Outcome (*run)(const uint8_t* data, size_t size);
  // Changes `bytes`, knowing the format.
  void (*mutate)(Bytes& bytes, Random& random);
};
extern const Target kPlan, kTransfer, kImage;

// Of the plans that the verifier accepts, one of so many is bound to kernels and run, which takes a hundred times as
// long.
extern uint64_t bind_one_of;

inline uint64_t hash_of(const uint8_t* data, size_t size) {
  uint64_t h = 0xcbf29ce484222325u;
  for (size_t i = 0; i < size; ++i) h = (h ^ data[i]) * 0x100000001b3u;
  return h ^ h >> 29;
}

// Ends the process: a rule was broken that no sanitizer watches.
[[noreturn]] inline void broken(const char* rule, const std::string& detail) {
  std::fprintf(stderr, "fuzz: %s: %s\n", rule, detail.c_str());
  std::abort();
}

// A message without its numbers and names: one per check.
inline std::string without_numbers(const std::string& text) {
  std::string out;
  for (const char c : text)
    if (c < '0' || c > '9') out += c;
  return out;
}

inline const char* code_name(Code code) {
  switch (code) {
    case Code::ok:
      return "ok";
    case Code::plan_invalid:
      return "plan_invalid";
    case Code::oom:
      return "oom";
    case Code::data_decode:
      return "data_decode";
    case Code::data_limit:
      return "data_limit";
    case Code::io:
      return "io";
    case Code::invalid_argument:
      return "invalid_argument";
    default:
      return "other";
  }
}

// Byte flips, cuts, copies: what every target does now and then.
void mutate_bytes(Bytes& bytes, Random& random);

}  // namespace effnet::fuzz
