#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace effnet::test {

// Memory at a multiple of 256 bytes, full of 0xff: NaN in every floating-point format.
struct Aligned {
  explicit Aligned(size_t bytes) : storage(bytes + 512, std::byte{0xff}) {}
  std::byte* data() {
    return reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(storage.data()) + 255) / 256 * 256);
  }
  std::vector<std::byte> storage;
};

}  // namespace effnet::test
