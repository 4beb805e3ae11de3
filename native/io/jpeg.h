// JPEG to RGB with libjpeg-turbo, bit for bit what Pillow's convert('RGB') gives at full scale: accurate integer DCT,
// fancy upsampling, CMYK and YCCK by Adobe's inverted convention.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/status.h"
#include "io/pixels.h"

namespace effnet::io {

enum class FileKind { empty, jpeg, png, gif, webp, bmp, tiff, avif, heif, jpeg_xl, jpeg2000, svg, unknown };

// By content, never by file name.
FileKind file_kind(const uint8_t* data, size_t size);
const char* file_kind_name(FileKind kind);

struct DecodeLimits {
  uint64_t max_pixels = 178956970;  // twice Pillow's warning level: where Pillow refuses
  int max_scans = 100;              // progressive files with thousands of scans cost minutes
};

struct JpegInfo {
  int width = 0, height = 0;  // as stored, before the EXIF orientation
  int components = 0;
  int orientation = 1;  // EXIF 1..8; 1 when absent or malformed
  bool progressive = false;
  // Gray or YCbCr, as nearly all files; else RGB as it is, by an Adobe marker or its components' names, CMYK or YCCK.
  bool usual_colors = true;
};

struct JpegSession;

// Reads one JPEG held in memory. Any content is safe: errors come as Status, naming the byte where known.
class JpegReader {
 public:
  JpegReader();
  ~JpegReader();
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;

  // Parses the header. `data` must stay until decode() returns. `abort` is polled while decoding.
  // data_decode: not a readable JPEG; data_limit: above the limits.
  Status open(const uint8_t* data, size_t size, const DecodeLimits& limits, const std::atomic<bool>* abort = nullptr);
  const JpegInfo& info() const;
  // After open(): whether decode() elsewhere may be given it. data_decode where it is cut, data_limit for too many
  // scans.
  Status check_whole() const;

  // Size of the image decoded at `eighths`/8 of full scale (1..8): ceil(size * eighths / 8).
  static int scaled(int size, int eighths) { return static_cast<int>((static_cast<int64_t>(size) * eighths + 7) / 8); }

  // Decodes the whole image (window null) or only `window` of the scaled image, into `buffer`; `out` views it. Once
  // per open(). A window equals the same window of the whole image, pixel for pixel. Whole images must be complete to
  // the EOI marker; for a window it is enough that an EOI follows.
  Status decode(int eighths, const Rect* window, ByteBuffer& buffer, View& out);

 private:
  std::unique_ptr<JpegSession> session_;
};

// Turns stored pixels upright by an EXIF orientation (2..8) into `buffer`.
Status apply_orientation(const View& src, int orientation, ByteBuffer& buffer, View& out);
// The rectangle of the stored image that becomes `upright` of the upright one.
Rect stored_rect(const Rect& upright, int stored_width, int stored_height, int orientation);

}  // namespace effnet::io
