// Tensors between files and arenas. An input says how large arenas and file are, which tensors are asked for, and holds
// the file's bytes; any number may be anything. (The JSON header of a safetensors file is read in TypeScript.)
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/caught.h"
#include "fuzz/fuzz.h"
#include "io/sha256.h"
#include "io/transfer.h"

namespace effnet::fuzz {
namespace {

constexpr size_t kMaxBytes = 8192;
constexpr size_t kTensorBytes = 28;
constexpr size_t kHeadBytes = 16;
constexpr size_t kMostTensors = 8;

// Little-endian numbers from the front; zeros behind the end.
class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  uint64_t take(size_t bytes) {
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; ++i, ++at_)
      if (at_ < size_) value |= static_cast<uint64_t>(data_[at_]) << (8 * i);
    return value;
  }
  const uint8_t* rest() const { return data_ + std::min(at_, size_); }
  size_t left() const { return size_ - std::min(at_, size_); }

 private:
  const uint8_t* data_;
  size_t size_, at_ = 0;
};

// A file in memory, opened again by its path as any file is.
class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("effnet-fuzz", MFD_CLOEXEC)), path_("/proc/self/fd/" + std::to_string(fd_)) {
    if (fd_ < 0) broken("no file in memory", "memfd_create");
  }
  const std::string& put(const uint8_t* data, size_t size) {
    if (ftruncate(fd_, 0) != 0 || pwrite(fd_, data, size, 0) != static_cast<ssize_t>(size))
      broken("no file in memory", "pwrite");
    return path_;
  }
  const std::string& path() const { return path_; }
  Bytes get() const {
    Bytes bytes(static_cast<size_t>(lseek(fd_, 0, SEEK_END)));
    if (pread(fd_, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) broken("read", path_);
    return bytes;
  }

 private:
  int fd_;
  std::string path_;
};

uint32_t side(uint64_t word) {
  // Mostly small; the high bit asks for the whole range.
  return word >> 31 ? static_cast<uint32_t>(word << 1) : static_cast<uint32_t>(word % 41);
}

template <class T>
T value_at(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

// Whether `after` is what a file's value `before` must be when it has been through an arena's FP32.
bool survives(io::FileDType dtype, const uint8_t* before, const uint8_t* after) {
  const auto like = [&]<class T>(T a, T b) {
    return std::memcmp(&a, &b, sizeof(T)) == 0 || (std::isnan(a) && std::isnan(b));
  };
  switch (dtype) {
    case io::FileDType::f32:
      return std::memcmp(before, after, 4) == 0;
    case io::FileDType::f16:
      return like(io::half_to_float(value_at<uint16_t>(before)), io::half_to_float(value_at<uint16_t>(after)));
    case io::FileDType::bf16:
      return like(std::bit_cast<float>(uint32_t{value_at<uint16_t>(before)} << 16),
                  std::bit_cast<float>(uint32_t{value_at<uint16_t>(after)} << 16));
    case io::FileDType::f64:
      return like(static_cast<double>(static_cast<float>(value_at<double>(before))), value_at<double>(after));
  }
  return false;
}

// Tensors that were loaded and saved again; of those that share bytes with another one, the last wins.
void check_round_trip(const std::vector<io::TensorTransfer>& tensors, const uint8_t* loaded, const uint8_t* saved) {
  const auto apart = [](uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes) {
    return a + a_bytes <= b || b + b_bytes <= a;
  };
  for (const io::TensorTransfer& t : tensors) {
    const uint64_t elements = t.elements(), bytes = elements * io::dtype_bytes(t.dtype);
    const bool alone = std::all_of(tensors.begin(), tensors.end(), [&](const io::TensorTransfer& other) {
      return &other == &t ||
             ((t.arena != other.arena || apart(t.offset, 4 * elements, other.offset, 4 * other.elements())) &&
              apart(t.file_offset, bytes, other.file_offset, other.elements() * io::dtype_bytes(other.dtype)));
    });
    if (!alone) continue;
    for (uint64_t at = t.file_offset; at < t.file_offset + bytes; at += io::dtype_bytes(t.dtype))
      if (!survives(t.dtype, loaded + at, saved + at)) broken("a value is not what was loaded", std::to_string(at));
  }
}

Outcome run(const uint8_t* data, size_t size) {
  static MemoryFile source, sink;
  Reader in(data, size);
  uint64_t arena_bytes[plan::kArenaCount] = {in.take(2), in.take(2)};
  const uint64_t data_start = in.take(8);
  const uint64_t claimed = in.take(3) % (1 << 17);
  const size_t count = in.take(1) % (kMostTensors + 1);
  std::vector<io::TensorTransfer> tensors(count);
  for (io::TensorTransfer& t : tensors) {
    const uint64_t kind = in.take(4);
    t.arena = static_cast<plan::Arena>(kind & 1);
    t.dtype = static_cast<io::FileDType>(kind >> 1 & 3);
    t.permute = static_cast<io::Permute>((kind >> 3) % 3);
    t.offset = in.take(4);
    t.file_offset = in.take(4);
    if (kind >> 16 & 1) t.offset <<= 32;
    if (kind >> 17 & 1) t.file_offset = ~t.file_offset;
    for (uint32_t* dim : {&t.o, &t.i, &t.kh, &t.kw}) *dim = side(in.take(4));
  }
  auto memory = HostMemory::create(arena_bytes);
  if (!memory.ok()) broken("arenas", memory.status().message());

  const auto& path = source.put(in.rest(), in.left());
  const Status loaded = caught([&] { return io::load_tensors(*memory.value(), path, data_start, tensors); });
  std::string where = without_numbers(loaded.message());
  if (!loaded.ok() && loaded.code() != Code::io && loaded.code() != Code::invalid_argument &&
      loaded.code() != Code::oom)
    broken("code of a load", loaded.message());

  const std::vector<io::FileSpec> specs = {{sink.path(), {'h', 'e', 'a', 'd'}, claimed, tensors}};
  auto snapshot = caught([&] { return io::take_snapshot(*memory.value(), specs); });
  if (snapshot.ok()) {
    const auto written = io::write_snapshot(*snapshot.value());
    if (!written.ok()) broken("a snapshot is not written", written.status().message());
    const Bytes bytes = sink.get();
    const Block& block = snapshot.value()->files[0].data;
    if (bytes.size() != 4 + claimed || std::memcmp(bytes.data(), "head", 4) != 0 ||
        (claimed && std::memcmp(bytes.data() + 4, block.data(), claimed) != 0))
      broken("a file is not what was saved", std::to_string(bytes.size()));
    io::Sha256 hash;
    hash.update(bytes.data(), bytes.size());
    if (written.value()[0].bytes != bytes.size() || written.value()[0].sha256 != hash.finish())
      broken("a file is not of the size or hash that were told", written.value()[0].sha256);
    if (loaded.ok()) check_round_trip(tensors, in.rest() + data_start, bytes.data() + 4);
    where += " saved";
  } else if (snapshot.status().code() != Code::invalid_argument && snapshot.status().code() != Code::oom) {
    broken("code of a snapshot", snapshot.status().message());
  }
  for (const io::TensorTransfer& t : tensors)
    where += static_cast<char>('0' + static_cast<int>(t.dtype)),
        where += static_cast<char>('a' + static_cast<int>(t.permute));
  return {code_name(loaded.code()), where};
}

void put(Bytes& bytes, size_t at, uint64_t value, size_t count) {
  for (size_t i = 0; i < count && at + i < bytes.size(); ++i) bytes[at + i] = static_cast<uint8_t>(value >> (8 * i));
}

void mutate(Bytes& bytes, Random& random) {
  if (bytes.size() < kHeadBytes || random.chance(15)) return mutate_bytes(bytes, random);
  const size_t count = bytes[15] % (kMostTensors + 1);
  static constexpr uint64_t kEdges[] = {0,
                                        1,
                                        2,
                                        4,
                                        40,
                                        41,
                                        64,
                                        255,
                                        4096,
                                        65535,
                                        0x7fffffff,
                                        0x80000000,
                                        0x80000001,
                                        0xaaaaaaab,
                                        0xfffffffc,
                                        0xffffffff,
                                        0xfffffffffffffff0u,
                                        ~uint64_t{0}};
  if (count == 0 || random.chance(25)) {
    switch (random.below(4)) {
      case 0:
        return put(bytes, random.chance(50) ? 0 : 2, random.chance(50) ? 65532 : random.next(), 2);
      case 1:
        return put(bytes, 4, random.chance(50) ? random.below(64) : random.pick(kEdges), 8);
      case 2:
        return put(bytes, 12, random.chance(70) ? random.below(8192) : random.next(), 3);
      default:
        return put(bytes, 15, random.below(kMostTensors + 1), 1);
    }
  }
  const size_t at = kHeadBytes + kTensorBytes * random.below(count);
  switch (random.below(5)) {
    case 0:
      return put(bytes, at, random.chance(80) ? random.below(32) : random.next(), 4);
    case 1:
      return put(bytes, at + 4, random.chance(60) ? 4 * random.below(4096) : random.pick(kEdges), 4);
    case 2:
      return put(bytes, at + 8, random.chance(60) ? random.below(4096) : random.pick(kEdges), 4);
    case 3:
      return put(bytes, at + 12 + 4 * random.below(4), random.chance(70) ? random.below(41) : random.pick(kEdges), 4);
    default: {
      // A tensor at the very end of the arena or of the file.
      const uint64_t o = 1 + random.below(40);
      put(bytes, at, random.below(16), 4);
      put(bytes, at + 4, random.chance(50) ? (65532 / 4 - o) * 4 : 0, 4);
      put(bytes, at + 12, o, 4);
      for (size_t d = 1; d < 4; ++d) put(bytes, at + 12 + 4 * d, 1, 4);
    }
  }
}

}  // namespace

const Target kTransfer = {"transfer", kMaxBytes, run, mutate};

}  // namespace effnet::fuzz
