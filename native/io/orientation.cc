// Which bytes are which image format, and EXIF orientation of decoded pixels.
#include <algorithm>
#include <cstring>

#include "io/jpeg.h"

namespace effnet::io {

FileKind file_kind(const uint8_t* p, size_t n) {
  auto starts = [&](const char* magic, size_t length, size_t at = 0) {
    return n >= at + length && std::memcmp(p + at, magic, length) == 0;
  };
  if (n == 0) return FileKind::empty;
  if (starts("\xff\xd8\xff", 3)) return FileKind::jpeg;
  if (starts("\x89PNG\r\n\x1a\n", 8)) return FileKind::png;
  if (starts("GIF87a", 6) || starts("GIF89a", 6)) return FileKind::gif;
  if (starts("RIFF", 4) && starts("WEBP", 4, 8)) return FileKind::webp;
  if (starts("II*\0", 4) || starts("MM\0*", 4) || starts("II+\0", 4) || starts("MM\0+", 4)) return FileKind::tiff;
  if (starts("ftyp", 4, 4)) {
    if (starts("avif", 4, 8) || starts("avis", 4, 8)) return FileKind::avif;
    if (starts("heic", 4, 8) || starts("heix", 4, 8) || starts("hevc", 4, 8) || starts("mif1", 4, 8) ||
        starts("msf1", 4, 8))
      return FileKind::heif;
  }
  if (starts("\xff\x0a", 2) || starts("\0\0\0\x0cJXL \r\n\x87\n", 12)) return FileKind::jpeg_xl;
  if (starts("\0\0\0\x0cjP  \r\n\x87\n", 12) || starts("\xff\x4f\xff\x51", 4)) return FileKind::jpeg2000;
  if (starts("BM", 2) && n >= 26) return FileKind::bmp;
  if (starts("<svg", 4) || starts("<?xml", 5)) return FileKind::svg;
  return FileKind::unknown;
}

const char* file_kind_name(FileKind kind) {
  switch (kind) {
    case FileKind::empty:
      return "empty file";
    case FileKind::jpeg:
      return "JPEG";
    case FileKind::png:
      return "PNG";
    case FileKind::gif:
      return "GIF";
    case FileKind::webp:
      return "WebP";
    case FileKind::bmp:
      return "BMP";
    case FileKind::tiff:
      return "TIFF";
    case FileKind::avif:
      return "AVIF";
    case FileKind::heif:
      return "HEIF";
    case FileKind::jpeg_xl:
      return "JPEG XL";
    case FileKind::jpeg2000:
      return "JPEG 2000";
    case FileKind::svg:
      return "SVG";
    case FileKind::unknown:
      break;
  }
  return "unknown format";
}

namespace {

// Orientations 5..8 exchange width and height.
bool transposed(int orientation) { return orientation >= 5; }

// Stored position of upright pixel (x, y) is (ax*x + bx*y + cx, ay*x + by*y + cy).
struct Map {
  int ax, bx, cx, ay, by, cy;
};

Map map_of(int orientation, int stored_width, int stored_height) {
  const int right = stored_width - 1, bottom = stored_height - 1;
  switch (orientation) {
    case 2:
      return {-1, 0, right, 0, 1, 0};
    case 3:
      return {-1, 0, right, 0, -1, bottom};
    case 4:
      return {1, 0, 0, 0, -1, bottom};
    case 5:
      return {0, 1, 0, 1, 0, 0};
    case 6:
      return {0, 1, 0, -1, 0, bottom};
    case 7:
      return {0, -1, right, -1, 0, bottom};
    case 8:
      return {0, -1, right, 1, 0, 0};
    default:
      return {1, 0, 0, 0, 1, 0};
  }
}

}  // namespace

Status apply_orientation(const View& src, int orientation, ByteBuffer& buffer, View& out) {
  const int width = transposed(orientation) ? src.height : src.width;
  const int height = transposed(orientation) ? src.width : src.height;
  const size_t stride = static_cast<size_t>(width) * 3;
  uint8_t* dst = buffer.reserve(stride * static_cast<size_t>(height) + kSlack);
  if (!dst) return error(Code::oom, "%zu bytes for the upright image", stride * static_cast<size_t>(height));
  const Map m = map_of(orientation, src.width, src.height);
  const ptrdiff_t step = static_cast<ptrdiff_t>(m.ay) * static_cast<ptrdiff_t>(src.stride) + m.ax * 3;
  // Bands of rows, so that a transposed read touches each cache line of the source a few times only.
  constexpr int kBand = 16;
  for (int y0 = 0; y0 < height; y0 += kBand) {
    const int y1 = std::min(y0 + kBand, height);
    for (int x0 = 0; x0 < width; x0 += kBand) {
      const int x1 = std::min(x0 + kBand, width);
      for (int y = y0; y < y1; ++y) {
        const uint8_t* from = src.row(m.ay * x0 + m.by * y + m.cy) + (m.ax * x0 + m.bx * y + m.cx) * 3;
        uint8_t* to = dst + static_cast<size_t>(y) * stride + static_cast<size_t>(x0) * 3;
        for (int x = x0; x < x1; ++x, from += step, to += 3) {
          to[0] = from[0];
          to[1] = from[1];
          to[2] = from[2];
        }
      }
    }
  }
  out = {dst, width, height, stride, kSlack};
  return ok_status();
}

Rect stored_rect(const Rect& r, int stored_width, int stored_height, int orientation) {
  const Map m = map_of(orientation, stored_width, stored_height);
  const int x1 = r.x + r.width - 1, y1 = r.y + r.height - 1;
  const int xa = m.ax * r.x + m.bx * r.y + m.cx, xb = m.ax * x1 + m.bx * y1 + m.cx;
  const int ya = m.ay * r.x + m.by * r.y + m.cy, yb = m.ay * x1 + m.by * y1 + m.cy;
  return {std::min(xa, xb), std::min(ya, yb), std::abs(xa - xb) + 1, std::abs(ya - yb) + 1};
}

}  // namespace effnet::io
