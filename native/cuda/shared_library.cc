#include "cuda/shared_library.h"

#include <dlfcn.h>
#include <elf.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>

namespace effnet::cuda {
namespace {

// The least bytes that the file must have; 0 where it is no ELF file of this machine, of which the loader says so.
uint64_t bytes_wanted(std::ifstream& file) {
  Elf64_Ehdr header;
  if (!file.read(reinterpret_cast<char*>(&header), sizeof header)) return 0;
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
      header.e_phentsize != sizeof(Elf64_Phdr))
    return 0;
  uint64_t wanted = header.e_phoff + uint64_t{header.e_phnum} * sizeof(Elf64_Phdr);
  file.seekg(static_cast<std::streamoff>(header.e_phoff));
  Elf64_Phdr segment;
  for (int i = 0; i < header.e_phnum && file.read(reinterpret_cast<char*>(&segment), sizeof segment); ++i)
    if (segment.p_type == PT_LOAD) wanted = std::max(wanted, segment.p_offset + segment.p_filesz);
  return wanted;
}

}  // namespace

const char* library_folder() {
  const char* folder = std::getenv("EFFNET_LIB_DIR");
  return folder && *folder ? folder : nullptr;
}

void* open_shared_library(const std::string& place, int flags, std::string& problem) {
  if (place.find('/') != std::string::npos) {
    std::ifstream file(place, std::ios::binary | std::ios::ate);
    const auto end = file ? file.tellg() : std::ifstream::pos_type(-1);
    file.seekg(0);
    const uint64_t wanted = end > 0 ? bytes_wanted(file) : 0;
    if (wanted > 0 && static_cast<uint64_t>(end) < wanted) {
      problem = place + ": cut short, " + std::to_string(end) + " of at least " + std::to_string(wanted) + " bytes";
      return nullptr;
    }
  }
  void* library = dlopen(place.c_str(), flags);
  if (!library) problem = dlerror();
  return library;
}

}  // namespace effnet::cuda
