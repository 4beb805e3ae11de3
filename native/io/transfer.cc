#include "io/transfer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <span>

#include "io/fault.h"
#include "io/sha256.h"

namespace effnet::io {
namespace {

constexpr size_t kChunk = size_t{1} << 20;

class File {
 public:
  File(const std::string& path, int flags, mode_t mode = 0) {
    do fd_ = ::open(path.c_str(), flags | O_CLOEXEC, mode);
    while (fd_ < 0 && errno == EINTR);
  }
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int close() { return ::close(std::exchange(fd_, -1)); }

 private:
  int fd_ = -1;
};

Status errno_status(Code code, const std::string& path, const char* what) {
  char text[256];
  const char* reason = strerror_r(errno, text, sizeof text);
  return error(code, "%s: %s: %s", path.c_str(), what, reason);
}

// O_NONBLOCK: opening a named pipe must not wait for a writer; regular files do not care.
constexpr int kRead = O_RDONLY | O_NONBLOCK;

// Bytes of file position `at`; false at end of file (errno 0) or on error.
bool read_at(int fd, uint64_t at, void* into, size_t bytes) {
  auto* p = static_cast<uint8_t*>(into);
  while (bytes > 0) {
    const ssize_t n = ::pread(fd, p, bytes, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) errno = 0;
    if (n <= 0) return false;
    p += n;
    at += static_cast<uint64_t>(n);
    bytes -= static_cast<size_t>(n);
  }
  return true;
}

bool write_all(int fd, const void* from, size_t bytes) {
  const auto* p = static_cast<const uint8_t*>(from);
  while (bytes > 0) {
    const ssize_t n = ::write(fd, p, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    p += n;
    bytes -= static_cast<size_t>(n);
  }
  return true;
}

uint16_t float_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);  // a NaN stays one
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

float value_at(const uint8_t* data, FileDType dtype, uint64_t index) {
  const uint8_t* p = data + index * dtype_bytes(dtype);
  switch (dtype) {
    case FileDType::f32: {
      float value;
      std::memcpy(&value, p, 4);
      return value;
    }
    case FileDType::f16: {
      uint16_t bits;
      std::memcpy(&bits, p, 2);
      return half_to_float(bits);
    }
    case FileDType::bf16: {
      uint16_t bits;
      std::memcpy(&bits, p, 2);
      return std::bit_cast<float>(uint32_t{bits} << 16);
    }
    case FileDType::f64:
      break;
  }
  double value;
  std::memcpy(&value, p, 8);
  return static_cast<float>(value);
}

void put_value(uint8_t* data, FileDType dtype, uint64_t index, float value) {
  uint8_t* p = data + index * dtype_bytes(dtype);
  switch (dtype) {
    case FileDType::f32:
      std::memcpy(p, &value, 4);
      return;
    case FileDType::f16: {
      const uint16_t bits = float_to_half(value);
      std::memcpy(p, &bits, 2);
      return;
    }
    case FileDType::bf16: {
      const uint16_t bits = float_to_bf16(value);
      std::memcpy(p, &bits, 2);
      return;
    }
    case FileDType::f64: {
      const double wide = value;
      std::memcpy(p, &wide, 8);
      return;
    }
  }
}

// move(file index, arena index) for every element, in order of the file.
template <class F>
void for_each_element(const TensorTransfer& t, F&& move) {
  // One side may be none and another one endless.
  if (t.elements() == 0) return;
  const uint64_t area = uint64_t{t.kh} * t.kw;
  uint64_t at = 0;
  switch (t.permute) {
    case Permute::none:
      for (; at < t.elements(); ++at) move(at, at);
      return;
    case Permute::ohwi:
      for (uint64_t o = 0; o < t.o; ++o)
        for (uint64_t i = 0; i < t.i; ++i)
          for (uint64_t k = 0; k < area; ++k) move(at++, (o * area + k) * t.i + i);
      return;
    case Permute::hwc:
      for (uint64_t o = 0; o < t.o; ++o)
        for (uint64_t k = 0; k < area; ++k) move(at++, k * t.o + o);
      return;
  }
}

// `values` is room for a tensor on its way between layouts.
Status to_arena(const TensorTransfer& t, const uint8_t* file, Memory& memory, std::vector<float>& values) {
  const size_t bytes = t.elements() * 4;
  if (t.permute == Permute::none && t.dtype == FileDType::f32)
    return memory.write(t.arena, t.offset, {reinterpret_cast<const std::byte*>(file), bytes});
  values.resize(t.elements());
  for_each_element(t, [&](uint64_t from, uint64_t to) { values[to] = value_at(file, t.dtype, from); });
  return memory.write(t.arena, t.offset, std::as_bytes(std::span(values)));
}

Status to_file(const TensorTransfer& t, const Memory& memory, uint8_t* file, std::vector<float>& values) {
  const size_t bytes = t.elements() * 4;
  if (t.permute == Permute::none && t.dtype == FileDType::f32)
    return memory.read(t.arena, t.offset, {reinterpret_cast<std::byte*>(file), bytes});
  values.resize(t.elements());
  EFF_RETURN_IF_ERROR(memory.read(t.arena, t.offset, std::as_writable_bytes(std::span(values))));
  for_each_element(t, [&](uint64_t to, uint64_t from) { put_value(file, t.dtype, to, values[from]); });
  return ok_status();
}

bool out_of_space() { return errno == ENOSPC || errno == EDQUOT; }

Status no_space(const std::string& path, uint64_t needed) {
  const auto folder = std::filesystem::path(path).parent_path();
  struct statvfs disk = {};
  if (::statvfs(folder.empty() ? "." : folder.c_str(), &disk) != 0)
    return error(Code::no_space, "%s: needs %.1f MB, the disk is full", path.c_str(),
                 static_cast<double>(needed) / 1e6);
  const double free = static_cast<double>(disk.f_bavail) * static_cast<double>(disk.f_frsize);
  return error(Code::no_space, "%s: needs %.1f MB, %.1f MB are free", path.c_str(), static_cast<double>(needed) / 1e6,
               free / 1e6);
}

// As `write_all`, with the fault that a test asked for.
bool write_saved(int fd, const std::string& path, const uint8_t* bytes, size_t n) {
  switch (save_operation("write", path)) {
    case Fault::none:
      return write_all(fd, bytes, n);
    case Fault::torn:
      write_all(fd, bytes, n / 2);
      die();
    case Fault::no_space:
      errno = ENOSPC;
      return false;
    case Fault::io:
      errno = EIO;
      return false;
  }
  return false;
}

Status write_contents(File& file, const Snapshot::File& content, WrittenFile& written) {
  const uint64_t total = content.header.size() + content.data.bytes();
  // Space is reserved first, so that a full disk is known before anything is written. Not every file system can.
  const auto reserve = [&] { return ::fallocate(file.fd(), 0, 0, static_cast<off_t>(total)); };
  if (total > 0 && operate("reserve", content.path, reserve) != 0 && out_of_space())
    return no_space(content.path, total);
  Sha256 hash;
  const auto put = [&](const uint8_t* bytes, size_t n) {
    hash.update(bytes, n);
    return write_saved(file.fd(), content.path, bytes, n);
  };
  bool good = put(content.header.data(), content.header.size());
  const auto* data = reinterpret_cast<const uint8_t*>(content.data.data());
  for (uint64_t at = 0; good && at < content.data.bytes(); at += kChunk)
    good = put(data + at, static_cast<size_t>(std::min<uint64_t>(kChunk, content.data.bytes() - at)));
  if (good) {
    good = operate("fsync", content.path, [&] { return ::fsync(file.fd()); }) == 0 &&
           operate("close", content.path, [&] { return file.close(); }) == 0;
  }
  if (!good) return out_of_space() ? no_space(content.path, total) : errno_status(Code::io, content.path, "write");
  written = {total, hash.finish(), {}};
  for (const auto& [begin, bytes] : content.tensors) {
    Sha256 part;
    part.update(data + begin, bytes);
    written.tensors += part.finish().substr(0, kTensorDigits);
  }
  return ok_status();
}

}  // namespace

float half_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16, exponent = bits >> 10 & 31u, mantissa = bits & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  const float subnormal = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -subnormal : subnormal;
}

uint16_t float_to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffffu;
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 0.5 leaves the rounded multiple of 2^-24 in the low mantissa bits.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

Status check_transfers(const Memory& memory, const std::vector<TensorTransfer>& tensors, uint64_t data_bytes) {
  for (size_t n = 0; n < tensors.size(); ++n) {
    const TensorTransfer& t = tensors[n];
    if (static_cast<int>(t.arena) > static_cast<int>(plan::Arena::ema))
      return error(Code::invalid_argument, "tensor %zu: arena %d is not kept in files", n, static_cast<int>(t.arena));
    if (t.permute == Permute::hwc && t.i != 1)
      return error(Code::invalid_argument, "tensor %zu: layout 'hwc' needs shape [C, 1, kh, kw]", n);
    // Four 32-bit factors: compared step by step, so that the product cannot wrap.
    const uint64_t limit = uint64_t{1} << 40;
    uint64_t elements = 1;
    for (const uint32_t dim : {t.o, t.i, t.kh, t.kw}) {
      elements *= dim;
      if (elements > limit) return error(Code::invalid_argument, "tensor %zu: too many elements", n);
    }
    const uint64_t arena_bytes = memory.bytes(t.arena);
    if (t.offset % 4 != 0 || t.offset > arena_bytes || elements * 4 > arena_bytes - t.offset)
      return error(Code::invalid_argument, "tensor %zu: %llu elements at byte %llu lie outside arena %d of %llu bytes",
                   n, static_cast<unsigned long long>(elements), static_cast<unsigned long long>(t.offset),
                   static_cast<int>(t.arena), static_cast<unsigned long long>(arena_bytes));
    if (t.file_offset > data_bytes || elements * dtype_bytes(t.dtype) > data_bytes - t.file_offset)
      return error(Code::invalid_argument, "tensor %zu: %llu bytes at %llu lie outside the file's data of %llu bytes",
                   n, static_cast<unsigned long long>(elements * dtype_bytes(t.dtype)),
                   static_cast<unsigned long long>(t.file_offset), static_cast<unsigned long long>(data_bytes));
  }
  return ok_status();
}

Status load_tensors(Memory& memory, const std::string& path, uint64_t data_start,
                    const std::vector<TensorTransfer>& tensors) {
  File file(path, kRead);
  if (!file) return errno_status(Code::io, path, "open");
  struct stat info = {};
  if (::fstat(file.fd(), &info) != 0) return errno_status(Code::io, path, "stat");
  const auto size = static_cast<uint64_t>(info.st_size);
  if (data_start > size)
    return error(Code::io, "%s: has %llu bytes, its data should begin at %llu", path.c_str(),
                 static_cast<unsigned long long>(size), static_cast<unsigned long long>(data_start));
  if (const Status status = check_transfers(memory, tensors, size - data_start); !status.ok())
    return error(status.code(), "%s: %s", path.c_str(), status.message().c_str());
  std::vector<uint8_t> bytes;
  std::vector<float> values;
  for (const TensorTransfer& t : tensors) {
    bytes.resize(t.elements() * dtype_bytes(t.dtype));
    if (!read_at(file.fd(), data_start + t.file_offset, bytes.data(), bytes.size())) {
      if (errno == 0) return error(Code::io, "%s: became shorter while it was read", path.c_str());
      return errno_status(Code::io, path, "read");
    }
    EFF_RETURN_IF_ERROR(to_arena(t, bytes.data(), memory, values));
  }
  return ok_status();
}

StatusOr<std::shared_ptr<Snapshot>> take_snapshot(const Memory& memory, const std::vector<FileSpec>& files) {
  auto snapshot = std::make_shared<Snapshot>();
  std::vector<float> values;
  for (const FileSpec& spec : files) {
    if (const Status status = check_transfers(memory, spec.tensors, spec.data_bytes); !status.ok())
      return error(status.code(), "%s: %s", spec.path.c_str(), status.message().c_str());
    auto data = Block::allocate(spec.data_bytes, Block::Kind::arena);
    if (!data.ok()) return data.status();
    auto* file = reinterpret_cast<uint8_t*>(data.value().data());
    for (const TensorTransfer& t : spec.tensors) EFF_RETURN_IF_ERROR(to_file(t, memory, file + t.file_offset, values));
    std::vector<std::pair<uint64_t, uint64_t>> tensors;
    for (const TensorTransfer& t : spec.tensors)
      tensors.emplace_back(t.file_offset, t.elements() * dtype_bytes(t.dtype));
    std::sort(tensors.begin(), tensors.end());
    snapshot->files.push_back({spec.path, spec.header, std::move(data.value()), std::move(tensors)});
  }
  return snapshot;
}

StatusOr<std::vector<WrittenFile>> write_snapshot(const Snapshot& snapshot) {
  std::vector<WrittenFile> written(snapshot.files.size());
  for (size_t n = 0; n < snapshot.files.size(); ++n) {
    const Snapshot::File& content = snapshot.files[n];
    std::optional<File> opened;
    const auto create = [&] {
      opened.emplace(content.path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
      return opened->fd();
    };
    if (operate("create", content.path, create) < 0)
      return out_of_space() ? no_space(content.path, content.header.size() + content.data.bytes())
                            : errno_status(Code::io, content.path, "create");
    File& file = *opened;
    struct stat info = {};
    const bool regular = ::fstat(file.fd(), &info) == 0 && S_ISREG(info.st_mode);
    if (Status status = write_contents(file, content, written[n]); !status.ok()) {
      if (regular) ::unlink(content.path.c_str());
      return status;
    }
  }
  return written;
}

Status fsync_path(const std::string& path) {
  const File file(path, kRead);
  if (!file) return errno_status(Code::io, path, "open");
  if (operate("fsync", path, [&] { return ::fsync(file.fd()); }) == 0) return ok_status();
  return out_of_space() ? no_space(path, 0) : errno_status(Code::io, path, "fsync");
}

StatusOr<WrittenFile> hash_file(const std::string& path) {
  const File file(path, kRead);
  if (!file) return errno_status(Code::io, path, "open");
  Sha256 hash;
  WrittenFile result;
  std::vector<uint8_t> chunk(kChunk);
  for (;;) {
    const ssize_t n = ::read(file.fd(), chunk.data(), chunk.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_status(Code::io, path, "read");
    if (n == 0) break;
    hash.update(chunk.data(), static_cast<size_t>(n));
    result.bytes += static_cast<uint64_t>(n);
  }
  result.sha256 = hash.finish();
  return result;
}

Status read_file(const std::string& path, std::vector<uint8_t>& bytes) {
  const File file(path, kRead);
  if (!file) return errno_status(errno == ENOENT || errno == ENOTDIR ? Code::data_missing : Code::io, path, "open");
  struct stat info = {};
  if (::fstat(file.fd(), &info) != 0) return errno_status(Code::io, path, "stat");
  if (!S_ISREG(info.st_mode)) return error(Code::io, "%s: not a regular file", path.c_str());
  constexpr uint64_t kLargest = uint64_t{1} << 31;
  if (static_cast<uint64_t>(info.st_size) > kLargest)
    return error(Code::data_limit, "%s: %llu bytes are more than an image may have", path.c_str(),
                 static_cast<unsigned long long>(info.st_size));
  bytes.resize(static_cast<size_t>(info.st_size));
  if (read_at(file.fd(), 0, bytes.data(), bytes.size())) return ok_status();
  if (errno == 0) return error(Code::io, "%s: became shorter while it was read", path.c_str());
  return errno_status(Code::io, path, "read");
}

}  // namespace effnet::io
