// Images: JPEG bytes -> crop, resize, flip. What the decoder is asked for (mode, sizes, limits) follows from the bytes.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "fuzz/fuzz.h"
#include "io/jpeg.h"
#include "io/transform.h"

namespace effnet::fuzz {
namespace {

constexpr size_t kMaxBytes = size_t{64} << 10;

// Bytes that end where the readable memory ends: libjpeg is a prebuilt library, in which AddressSanitizer sees nothing.
class GuardedInput {
 public:
  GuardedInput() {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* mapped = mmap(nullptr, kMaxBytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED || mprotect(static_cast<char*>(mapped) + kMaxBytes, page, PROT_NONE) != 0)
      broken("no guarded memory", "mmap");
    end_ = static_cast<uint8_t*>(mapped) + kMaxBytes;
  }
  const uint8_t* put(const uint8_t* data, size_t size) {
    if (size) std::memcpy(end_ - size, data, size);
    return end_ - size;
  }

 private:
  uint8_t* end_;
};

io::TransformOptions options_of(uint64_t h) {
  static constexpr int kSizes[] = {1, 2, 7, 8, 16, 31, 48, 96};
  io::TransformOptions o;
  const auto take = [&h](uint64_t n) {
    const uint64_t value = h % n;
    h /= n;
    return value;
  };
  o.mode = static_cast<io::Mode>(take(3));
  o.size = kSizes[take(8)];
  o.resize_to = o.size + static_cast<int>(take(4)) * 5;
  o.squash = take(4) == 0;
  o.filter = take(2) ? io::Filter::bicubic : io::Filter::bilinear;
  o.exif_orientation = take(4) != 0;
  o.scale_min = take(2) ? 0.08 : 1e-4;
  o.ratio_min = take(2) ? 0.75 : 1e-3;
  o.ratio_max = take(2) ? 4.0 / 3 : 1e3;
  o.limits.max_pixels = take(16) == 0 ? 1 << 17 : 1 << 14;
  o.limits.max_scans = 20;
  return o;
}

Outcome run(const uint8_t* data, size_t size) {
  static GuardedInput guarded;
  static io::Transformer transformer;
  if (size > kMaxBytes) return {"too long", ""};
  const uint8_t* bytes = guarded.put(data, size);
  const uint64_t h = hash_of(bytes, size);
  const io::TransformOptions options = options_of(h);
  if (!options.check().ok()) broken("options refused", options.check().message());
  const io::SampleKey key{h, h >> 7, static_cast<uint32_t>(h >> 13)};
  (void)io::file_kind(bytes, size);

  Status status;
  std::string shape;
  if (options.mode == io::Mode::full) {
    io::View view;
    status = transformer.decode(bytes, size, options, view);
    // Every pixel that is promised can be read.
    unsigned sum = 0;
    if (status.ok())
      for (int y = 0; y < view.height; ++y)
        for (int x = 0; x < view.width * 3; ++x) sum += view.row(y)[x];
    shape = sum % 2 ? " full" : " full.";
  } else {
    // Exactly as large as it must be, so that a write behind it is seen.
    const size_t wanted = static_cast<size_t>(options.size) * static_cast<size_t>(options.size) * 3;
    const std::unique_ptr<uint8_t[]> dst(new uint8_t[wanted]);
    status = transformer.jpeg(bytes, size, options, key, dst.get());
    shape = options.mode == io::Mode::train ? " train" : " eval";
  }
  if (status.ok()) {
    io::JpegReader reader;
    if (reader.open(bytes, size, options.limits).ok()) {
      const io::JpegInfo& info = reader.info();
      shape += std::to_string(info.components) + (info.progressive ? "p" : "b") + std::to_string(info.orientation);
    }
    return {"ok", shape};
  }
  if (status.code() != Code::data_decode && status.code() != Code::data_limit) broken("code", status.message());
  return {code_name(status.code()), without_numbers(status.message())};
}

// ---- mutations by the structure of the file ----------------------------------------------------------------------

struct Segment {
  size_t at, size;  // of the marker's 0xff; with its length field and payload
  uint8_t marker;
};

// Segments up to the scan's data, as far as they make sense.
std::vector<Segment> segments_of(const Bytes& b) {
  std::vector<Segment> list;
  for (size_t at = 2; at + 4 <= b.size() && b[at] == 0xff;) {
    const size_t length = static_cast<size_t>(b[at + 2]) << 8 | b[at + 3];
    if (length < 2 || at + 2 + length > b.size()) break;
    list.push_back({at, 2 + length, b[at + 1]});
    at += 2 + length;
    if (b[at - length - 1] == 0xda) {  // behind the header of a scan: on to the next marker
      while (at + 1 < b.size() && !(b[at] == 0xff && b[at + 1] != 0 && (b[at + 1] & 0xf8) != 0xd0)) ++at;
    }
  }
  return list;
}

Bytes exif(Random& random) {
  const bool little = random.chance(50);
  Bytes b = {0xff, 0xe1, 0, 34, 'E', 'x', 'i', 'f', 0, 0};
  const auto u16 = [&](unsigned v) {
    b.push_back(static_cast<uint8_t>(little ? v : v >> 8));
    b.push_back(static_cast<uint8_t>(little ? v >> 8 : v));
  };
  const auto u32 = [&](unsigned v) {
    u16(little ? v & 0xffff : v >> 16);
    u16(little ? v >> 16 : v & 0xffff);
  };
  b.push_back(little ? 'I' : 'M');
  b.push_back(little ? 'I' : 'M');
  u16(42);
  static constexpr unsigned kOffsets[] = {8, 8, 8, 8, 0, 25, 26, 27, 0x7fffffff, 0xffffffff, 0xfffffff8};
  u32(random.pick(kOffsets));
  u16(random.chance(80) ? 1 : static_cast<unsigned>(random.next()) & 0xffff);
  u16(0x0112);
  u16(random.chance(80) ? 3 : 4);
  u32(random.chance(90) ? 1 : 2);
  u16(static_cast<unsigned>(random.below(11)));
  u16(0);
  return b;
}

void change_frame(Bytes& b, const Segment& s, Random& random) {
  static constexpr unsigned kSides[] = {0, 1, 2, 7, 8, 9, 15, 16, 17, 33, 64, 100, 127, 128, 255, 4096, 65500, 65535};
  if (s.size < 10) return;
  uint8_t* p = b.data() + s.at + 4;
  switch (random.below(5)) {
    case 0:
    case 1: {
      const size_t at = random.chance(50) ? 1 : 3;
      const unsigned side = random.pick(kSides);
      p[at] = static_cast<uint8_t>(side >> 8);
      p[at + 1] = static_cast<uint8_t>(side);
      return;
    }
    case 2:
      p[5] = static_cast<uint8_t>(random.below(6));
      return;
    case 3: {
      // Sampling factors and table of a component.
      const size_t component = 6 + 3 * random.below(4);
      if (s.at + 4 + component + 2 >= b.size()) return;
      p[component + 1] = static_cast<uint8_t>((1 + random.below(4)) << 4 | (1 + random.below(4)));
      if (random.chance(20)) p[component + 2] = static_cast<uint8_t>(random.below(6));
      return;
    }
    default: {
      static constexpr uint8_t kFrames[] = {0xc0, 0xc1, 0xc2, 0xc3, 0xc9, 0xca};
      b[s.at + 1] = random.pick(kFrames);
    }
  }
}

void mutate(Bytes& bytes, Random& random) {
  const std::vector<Segment> segments = segments_of(bytes);
  if (segments.empty() || random.chance(25)) return mutate_bytes(bytes, random);
  const Segment s = segments[random.below(segments.size())];
  const auto begin = bytes.begin() + static_cast<ptrdiff_t>(s.at);
  const auto end = begin + static_cast<ptrdiff_t>(s.size);
  switch (random.below(10)) {
    case 0:
      bytes.erase(begin, end);
      return;
    case 1: {
      const Bytes copy(begin, end);
      const Segment& to = segments[random.below(segments.size())];
      bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(to.at), copy.begin(), copy.end());
      return;
    }
    case 2: {
      const unsigned length = static_cast<unsigned>(s.size - 2 + random.below(9)) - 4;
      bytes[s.at + 2] = static_cast<uint8_t>(length >> 8);
      bytes[s.at + 3] = static_cast<uint8_t>(length);
      return;
    }
    case 3: {
      const Bytes tag = exif(random);
      bytes.insert(bytes.begin() + 2, tag.begin(), tag.end());
      return;
    }
    case 4:
    case 5:
      for (const Segment& frame : segments)
        if (frame.marker >= 0xc0 && frame.marker <= 0xc2) return change_frame(bytes, frame, random);
      return;
    case 6: {
      static constexpr uint8_t kMarkers[] = {0xc4, 0xda, 0xdb, 0xdd, 0xe0, 0xe1, 0xee, 0xd9, 0xd8, 0xfe, 0x01};
      bytes[s.at + 1] = random.pick(kMarkers);
      return;
    }
    case 7: {
      const uint8_t restart[] = {0xff, 0xdd, 0, 4, 0, static_cast<uint8_t>(random.below(5))};
      bytes.insert(begin, restart, restart + sizeof restart);
      return;
    }
    case 8: {
      // A marker inside the scan.
      const size_t at = std::min(bytes.size() - 1, s.at + s.size + random.below(bytes.size()));
      bytes[at] = 0xff;
      if (at + 1 < bytes.size())
        bytes[at + 1] = static_cast<uint8_t>(random.chance(50) ? 0xd0 + random.below(10) : random.next());
      return;
    }
    default:
      if (s.size > 4) bytes[s.at + 4 + random.below(s.size - 4)] = static_cast<uint8_t>(random.next());
  }
}

}  // namespace

const Target kImage = {"image", kMaxBytes, run, mutate};

}  // namespace effnet::fuzz
