// Tensors between files and arenas: checkpoints and weight files. Values change type and layout on the way; arenas
// hold FP32.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/memory.h"
#include "core/status.h"

namespace effnet::io {

enum class FileDType { f32, f16, bf16, f64 };
inline size_t dtype_bytes(FileDType dtype) { return dtype == FileDType::f64 ? 8 : dtype == FileDType::f32 ? 4 : 2; }

// How the arena's layout differs from the file's, which is PyTorch's.
enum class Permute {
  none,  // the same
  ohwi,  // arena [O, kh, kw, I], file [O, I, kh, kw]
  hwc,   // arena [kh, kw, C], file [C, 1, kh, kw]
};

struct TensorTransfer {
  plan::Arena arena = plan::Arena::weights;
  uint64_t offset = 0;       // bytes into the arena, a multiple of 4
  uint64_t file_offset = 0;  // bytes from the start of the file's data
  FileDType dtype = FileDType::f32;
  Permute permute = Permute::none;
  uint32_t o = 1, i = 1, kh = 1, kw = 1;  // 'none': o holds the number of elements

  uint64_t elements() const { return uint64_t{o} * i * kh * kw; }
};

// Sizes and offsets against each other, the arenas and `data_bytes` of file data. invalid_argument naming the tensor.
Status check_transfers(const Memory& memory, const std::vector<TensorTransfer>& tensors, uint64_t data_bytes);

// Reads tensors of an open range of a file into arenas. io when the file is missing, unreadable or too short; ranges
// are checked before anything is written.
Status load_tensors(Memory& memory, const std::string& path, uint64_t data_start,
                    const std::vector<TensorTransfer>& tensors);

struct FileSpec {
  std::string path;
  std::vector<uint8_t> header;
  uint64_t data_bytes = 0;
  std::vector<TensorTransfer> tensors;
};

struct WrittenFile {
  uint64_t bytes = 0;
  std::string sha256;   // lower-case hex
  std::string tensors;  // of a saved file: the first kTensorDigits of each tensor's SHA-256, in the order of the file
};
// Enough to name the tensor that changed; that one changed the file's SHA-256 says.
constexpr size_t kTensorDigits = 8;

// A copy of the tensors' values, in the file's layout and type: independent of the arenas from then on.
struct Snapshot {
  struct File {
    std::string path;
    std::vector<uint8_t> header;
    Block data;
    std::vector<std::pair<uint64_t, uint64_t>> tensors;  // begin in `data` and bytes, ascending
  };
  std::vector<File> files;
};
StatusOr<std::shared_ptr<Snapshot>> take_snapshot(const Memory& memory, const std::vector<FileSpec>& files);

// Writes, fsyncs and hashes. no_space names what is needed and what is free; a file that failed is removed.
StatusOr<std::vector<WrittenFile>> write_snapshot(const Snapshot& snapshot);

// Of a file or a folder.
Status fsync_path(const std::string& path);
StatusOr<WrittenFile> hash_file(const std::string& path);
// The whole file; data_missing when there is none, io otherwise.
Status read_file(const std::string& path, std::vector<uint8_t>& bytes);

// Round to nearest even, as everywhere.
float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);

}  // namespace effnet::io
