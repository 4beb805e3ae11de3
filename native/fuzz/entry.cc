// libFuzzer's way in: the targets and mutators of fuzz.h, guided by coverage.
#include <algorithm>
#include <cstring>

#include "fuzz/fuzz.h"

#ifndef EFFNET_FUZZ_TARGET
#error "EFFNET_FUZZ_TARGET names the target"
#endif

using namespace effnet::fuzz;

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size <= EFFNET_FUZZ_TARGET.max_bytes) EFFNET_FUZZ_TARGET.run(data, size);
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  Random random(seed);
  if (random.chance(25)) return LLVMFuzzerMutate(data, size, max_size);
  Bytes bytes(data, data + size);
  EFFNET_FUZZ_TARGET.mutate(bytes, random);
  const size_t length = std::min(bytes.size(), max_size);
  std::memcpy(data, bytes.data(), length);
  return length;
}
