// What the driver without a GPU takes of an image of kernels, and of a kind of GPU: their bodies are the emulation's.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <cstring>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cuda/device/emulation.h"

namespace effnet::fake {

namespace emulation = cuda::emulation;

// That a block may ask for, as NVIDIA's table of compute capabilities has it. What runs here keeps to the least of
// them: emulation::kMostShared.
inline int most_shared(int capability) {
  switch (capability) {
    case 80:
    case 87:
      return 163 << 10;
    case 90:
    case 100:
    case 103:
      return 227 << 10;
    default:
      return 99 << 10;
  }
}

using NamedKernel = std::pair<const std::string, emulation::Entry>;  // what a CUkernel and a CUfunction point to

// A kernel is in the library whose image has it, compiled for a GPU; its body here is the emulation's.
struct Library {
  std::vector<CUkernel> kernels;
  const char* image = nullptr;
};

// Whether a fat binary has code for a GPU: an entry's kind is 1 for PTX, which later GPUs compile, else it is machine
// code, for its architecture and later ones of the same major number; of 9.x there is one.
inline bool has_code_for(const char* image, int capability) {
  const auto field = [image](size_t at, auto& value) { std::memcpy(&value, image + at, sizeof value); };
  uint16_t header_bytes, kind;
  uint32_t entry_header_bytes, architecture;
  uint64_t bytes, entry_bytes;
  field(6, header_bytes);
  field(8, bytes);
  for (size_t at = header_bytes; at < header_bytes + bytes; at += entry_header_bytes + entry_bytes) {
    field(at, kind);
    field(at + 4, entry_header_bytes);
    field(at + 8, entry_bytes);
    field(at + 28, architecture);
    const int built = static_cast<int>(architecture);
    if (capability >= built && (kind == 1 || capability / 10 == built / 10)) return true;
  }
  return false;
}

// Sections of an image (its own size is in its header) are ".text." and a kernel's name.
inline Library library_of(const char* image) {
  constexpr std::string_view kSection = ".text.";
  auto& emulated = emulation::kernels();
  uint16_t header_bytes;
  uint64_t bytes;
  std::memcpy(&header_bytes, image + 6, sizeof header_bytes);
  std::memcpy(&bytes, image + 8, sizeof bytes);
  const std::string_view text(image, header_bytes + bytes);
  std::set<CUkernel> found;
  for (size_t at = text.find(kSection); at != text.npos; at = text.find(kSection, at + 1)) {
    const std::string_view name = text.substr(at + kSection.size());
    const auto one = emulated.find(name.substr(0, name.find('\0')));
    if (one != emulated.end()) found.insert(reinterpret_cast<CUkernel>(&*one));
  }
  return {{found.begin(), found.end()}, image};
}

}  // namespace effnet::fake
