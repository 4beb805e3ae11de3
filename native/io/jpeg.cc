#include "io/jpeg.h"

#include <algorithm>
#include <csetjmp>
#include <cstdio>
#include <cstring>

#include <jpeglib.h>
#include <jerror.h>

namespace effnet::io {

// Everything libjpeg touches. Functions that call setjmp hold nothing with a destructor: a longjmp would skip it.
struct JpegSession {
  jpeg_decompress_struct info;
  jpeg_error_mgr errors;
  jpeg_source_mgr source;
  jpeg_progress_mgr progress;
  std::jmp_buf escape;
  const uint8_t* data = nullptr;
  size_t size = 0;
  DecodeLimits limits;
  const std::atomic<bool>* abort = nullptr;
  bool created = false;
  Code code = Code::ok;
  char message[JMSG_LENGTH_MAX + 160];
  JpegInfo parsed;
  size_t scan_start = 0;  // first byte after the first SOS header

  size_t position() const { return size - source.bytes_in_buffer; }
  [[noreturn]] void fail(Code c) {
    code = c;
    std::longjmp(escape, 1);
  }
  Status status() const { return Status(code, message); }
};

namespace {

// jpeg_std_error() lives in an object of Debian's libjpeg.a that is not position independent, hence an own table.
#define JCOPYRIGHT_SHORT "libjpeg-turbo"
#define JVERSION "6b"
const char* const kMessages[] = {
#define JMESSAGE(code, string) string,
#include <jerror.h>
    nullptr};
constexpr int kMessageCount = static_cast<int>(sizeof kMessages / sizeof *kMessages) - 1;

constexpr int kExifMarker = JPEG_APP0 + 1;
constexpr uint8_t kStartOfScan = 0xda;
constexpr char kTooManyScans[] = "progressive JPEG with more than %d scans";

JpegSession& session_of(j_common_ptr info) { return *static_cast<JpegSession*>(info->client_data); }

void format_message(j_common_ptr info, char* buffer) {
  const jpeg_error_mgr& e = *info->err;
  const char* format = kMessages[e.msg_code > 0 && e.msg_code < kMessageCount ? e.msg_code : 0];
  const char* percent = std::strchr(format, '%');
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#pragma GCC diagnostic ignored "-Wformat-security"
  if (percent && percent[1] == 's')
    std::snprintf(buffer, JMSG_LENGTH_MAX, format, e.msg_parm.s);
  else
    std::snprintf(buffer, JMSG_LENGTH_MAX, format, e.msg_parm.i[0], e.msg_parm.i[1], e.msg_parm.i[2], e.msg_parm.i[3],
                  e.msg_parm.i[4], e.msg_parm.i[5], e.msg_parm.i[6], e.msg_parm.i[7]);
#pragma GCC diagnostic pop
}

[[noreturn]] void error_exit(j_common_ptr info) {
  JpegSession& s = session_of(info);
  char text[JMSG_LENGTH_MAX];
  format_message(info, text);
  std::snprintf(s.message, sizeof s.message, "%s (at byte %zu of %zu)", text, s.position(), s.size);
  s.fail(info->err->msg_code == JERR_OUT_OF_MEMORY ? Code::oom : Code::data_decode);
}

// Warnings (corrupt entropy data, odd markers) are tolerated, as Pillow does.
void emit_message(j_common_ptr info, int level) {
  if (level < 0) ++info->err->num_warnings;
}

void output_message(j_common_ptr) {}

void reset_errors(j_common_ptr info) {
  info->err->num_warnings = 0;
  info->err->msg_code = 0;
}

void init_source(j_decompress_ptr) {}
void term_source(j_decompress_ptr) {}

boolean fill_input(j_decompress_ptr info) {
  JpegSession& s = session_of(reinterpret_cast<j_common_ptr>(info));
  std::snprintf(s.message, sizeof s.message, "JPEG ends early at byte %zu (marker EOI missing)", s.size);
  s.fail(Code::data_decode);
}

void skip_input(j_decompress_ptr info, long count) {
  if (count <= 0) return;
  jpeg_source_mgr& source = *info->src;
  if (static_cast<size_t>(count) > source.bytes_in_buffer) fill_input(info);
  source.next_input_byte += count;
  source.bytes_in_buffer -= static_cast<size_t>(count);
}

void monitor(j_common_ptr info) {
  JpegSession& s = session_of(info);
  if (s.abort && s.abort->load(std::memory_order_relaxed)) {
    std::snprintf(s.message, sizeof s.message, "decoding was aborted");
    s.fail(Code::aborted);
  }
  if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number > s.limits.max_scans) {
    std::snprintf(s.message, sizeof s.message, kTooManyScans, s.limits.max_scans);
    s.fail(Code::data_limit);
  }
}

// Orientation tag of the first EXIF segment; 1 when there is none or it is malformed.
int exif_orientation(const uint8_t* p, size_t size) {
  if (size < 14 || std::memcmp(p, "Exif\0\0", 6) != 0) return 0;
  const uint8_t* tiff = p + 6;
  const size_t n = size - 6;
  const bool little = tiff[0] == 'I' && tiff[1] == 'I';
  if (!little && !(tiff[0] == 'M' && tiff[1] == 'M')) return 1;
  auto u16 = [&](size_t at) -> uint32_t {
    return little ? tiff[at] | tiff[at + 1] << 8 : tiff[at] << 8 | tiff[at + 1];
  };
  auto u32 = [&](size_t at) -> uint32_t { return little ? u16(at) | u16(at + 2) << 16 : u16(at) << 16 | u16(at + 2); };
  if (u16(2) != 42) return 1;
  const size_t ifd = u32(4);
  if (ifd > n || n - ifd < 2) return 1;
  const size_t entries = u16(ifd);
  for (size_t i = 0; i < entries; ++i) {
    const size_t at = ifd + 2 + i * 12;
    if (at + 12 > n) return 1;
    if (u16(at) != 0x0112) continue;
    const uint32_t type = u16(at + 2);
    const uint32_t value = type == 3 ? u16(at + 8) : type == 4 ? u32(at + 8) : 0;
    return value >= 1 && value <= 8 && u32(at + 4) == 1 ? static_cast<int>(value) : 1;
  }
  return 1;
}

bool read_header(JpegSession& s) {
  if (setjmp(s.escape)) return false;
  jpeg_create_decompress(&s.info);
  s.created = true;
  s.info.src = &s.source;
  s.info.progress = &s.progress;
  jpeg_save_markers(&s.info, kExifMarker, 0xffff);
  jpeg_read_header(&s.info, TRUE);
  s.scan_start = s.position();
  s.parsed.width = static_cast<int>(s.info.image_width);
  s.parsed.height = static_cast<int>(s.info.image_height);
  s.parsed.components = s.info.num_components;
  s.parsed.progressive = s.info.progressive_mode;
  s.parsed.usual_colors = s.info.jpeg_color_space == JCS_YCbCr || s.info.jpeg_color_space == JCS_GRAYSCALE;
  s.parsed.orientation = 1;
  for (const jpeg_marker_struct* m = s.info.marker_list; m; m = m->next) {
    if (m->marker != kExifMarker) continue;
    if (const int orientation = exif_orientation(m->data, m->data_length)) {
      s.parsed.orientation = orientation;
      break;
    }
  }
  return true;
}

struct DecodePlan {
  int eighths;
  // Rows and columns libjpeg is asked for: the window and one more pixel on each side, so that fancy upsampling sees
  // the neighbours it would see in the whole image.
  Rect asked;
};

void configure(JpegSession& s, const DecodePlan& plan) {
  jpeg_decompress_struct& info = s.info;
  info.scale_num = static_cast<unsigned>(plan.eighths);
  info.scale_denom = 8;
  info.dct_method = JDCT_ISLOW;
  info.do_fancy_upsampling = TRUE;
  // Four components are CMYK or YCCK; libjpeg turns both into CMYK, the rest is ours.
  info.out_color_space = info.num_components == 4 ? JCS_CMYK : JCS_RGB;
}

// Adobe stores inverted CMYK, so `raw` is 255 - ink. Pillow's conversion of (255 - raw): rgb = nk - ink * nk / 255.
void cmyk_to_rgb(const uint8_t* raw, uint8_t* rgb, int width) {
  for (int x = 0; x < width; ++x, raw += 4, rgb += 3) {
    const int nk = raw[3];
    for (int c = 0; c < 3; ++c) {
      const int product = (255 - raw[c]) * nk + 128;
      rgb[c] = static_cast<uint8_t>(nk - (((product >> 8) + product) >> 8));
    }
  }
}

bool start(JpegSession& s, const DecodePlan& plan) {
  if (setjmp(s.escape)) return false;
  configure(s, plan);
  jpeg_start_decompress(&s.info);
  return true;
}

// Narrows a started decode to `asked`; tells which columns libjpeg really gives (whole blocks).
bool narrow(JpegSession& s, const DecodePlan& plan, JDIMENSION* first, JDIMENSION* columns) {
  if (setjmp(s.escape)) return false;
  *first = static_cast<JDIMENSION>(plan.asked.x);
  *columns = static_cast<JDIMENSION>(plan.asked.width);
  if (*columns < s.info.output_width)
    jpeg_crop_scanline(&s.info, first, columns);
  else
    *first = 0;
  if (plan.asked.y > 0) jpeg_skip_scanlines(&s.info, static_cast<JDIMENSION>(plan.asked.y));
  return true;
}

bool read_rows(JpegSession& s, uint8_t* rows, size_t stride, int count, uint8_t* cmyk) {
  if (setjmp(s.escape)) return false;
  for (int y = 0; y < count; ++y) {
    JSAMPROW row = cmyk ? cmyk : rows + static_cast<size_t>(y) * stride;
    while (jpeg_read_scanlines(&s.info, &row, 1) == 0) {
    }
    if (cmyk) cmyk_to_rgb(cmyk, rows + static_cast<size_t>(y) * stride, static_cast<int>(s.info.output_width));
  }
  return true;
}

bool finish(JpegSession& s) {
  if (setjmp(s.escape)) return false;
  jpeg_finish_decompress(&s.info);
  return true;
}

// Inside a scan 0xFF is always followed by 0x00 or a restart marker, so a file cut in the scan has no EOI after its
// start. Searched from the end: found at once in a sound file.
bool has_eoi(const JpegSession& s) {
  for (size_t i = s.size; i >= s.scan_start + 2; --i)
    if (s.data[i - 1] == JPEG_EOI && s.data[i - 2] == 0xff) return true;
  return false;
}

Status ends_early(const JpegSession& s) {
  return error(Code::data_decode, "JPEG ends early at byte %zu (marker EOI missing)", s.size);
}

}  // namespace

JpegReader::JpegReader() : session_(std::make_unique<JpegSession>()) {
  JpegSession& s = *session_;
  std::memset(&s.info, 0, sizeof s.info);
  std::memset(&s.errors, 0, sizeof s.errors);
  std::memset(&s.source, 0, sizeof s.source);
  std::memset(&s.progress, 0, sizeof s.progress);
  s.errors.error_exit = error_exit;
  s.errors.emit_message = emit_message;
  s.errors.output_message = output_message;
  s.errors.format_message = format_message;
  s.errors.reset_error_mgr = reset_errors;
  s.errors.jpeg_message_table = kMessages;
  s.errors.last_jpeg_message = kMessageCount - 1;
  s.source.init_source = init_source;
  s.source.fill_input_buffer = fill_input;
  s.source.skip_input_data = skip_input;
  s.source.resync_to_restart = jpeg_resync_to_restart;
  s.source.term_source = term_source;
  s.progress.progress_monitor = monitor;
}

JpegReader::~JpegReader() {
  if (session_->created) jpeg_destroy_decompress(&session_->info);
}

const JpegInfo& JpegReader::info() const { return session_->parsed; }

Status JpegReader::open(const uint8_t* data, size_t size, const DecodeLimits& limits, const std::atomic<bool>* abort) {
  JpegSession& s = *session_;
  if (s.created) jpeg_destroy_decompress(&s.info);
  s.created = false;
  s.data = data;
  s.size = size;
  s.limits = limits;
  s.abort = abort;
  s.source.next_input_byte = data;
  s.source.bytes_in_buffer = size;
  s.info.err = &s.errors;
  s.info.client_data = &s;
  if (!read_header(s)) return s.status();
  const uint64_t pixels = static_cast<uint64_t>(s.parsed.width) * static_cast<uint64_t>(s.parsed.height);
  if (pixels > limits.max_pixels)
    return error(Code::data_limit, "image of %dx%d = %llu pixels, the limit is %llu", s.parsed.width, s.parsed.height,
                 static_cast<unsigned long long>(pixels), static_cast<unsigned long long>(limits.max_pixels));
  if (s.parsed.components != 1 && s.parsed.components != 3 && s.parsed.components != 4)
    return error(Code::data_decode, "JPEG with %d components", s.parsed.components);
  return ok_status();
}

Status JpegReader::check_whole() const {
  const JpegSession& s = *session_;
  if (!has_eoi(s)) return ends_early(s);
  int scans = 1;  // the first one's marker is before scan_start
  for (size_t i = s.scan_start; s.parsed.progressive && i + 1 < s.size; ++i)
    if (s.data[i] == 0xff && s.data[i + 1] == kStartOfScan) ++scans;
  return scans > s.limits.max_scans ? error(Code::data_limit, kTooManyScans, s.limits.max_scans) : ok_status();
}

Status JpegReader::decode(int eighths, const Rect* window, ByteBuffer& buffer, View& out) {
  JpegSession& s = *session_;
  const int full_width = scaled(s.parsed.width, eighths), full_height = scaled(s.parsed.height, eighths);
  DecodePlan plan{eighths, {0, 0, full_width, full_height}};
  if (window) {
    const int x0 = window->x > 0 ? window->x - 1 : 0, y0 = window->y > 0 ? window->y - 1 : 0;
    const int x1 = std::min(window->x + window->width + 1, full_width);
    const int y1 = std::min(window->y + window->height + 1, full_height);
    plan.asked = {x0, y0, x1 - x0, y1 - y0};
    if (!has_eoi(s)) return ends_early(s);
  }
  if (!start(s, plan)) return s.status();
  JDIMENSION first = 0, columns = 0;
  if (!narrow(s, plan, &first, &columns)) return s.status();

  const size_t width = s.info.output_width;
  const size_t stride = width * 3;
  const bool cmyk = s.info.out_color_space == JCS_CMYK;
  const size_t image_bytes = stride * static_cast<size_t>(plan.asked.height);
  uint8_t* pixels = buffer.reserve(image_bytes + kSlack + (cmyk ? width * 4 : 0));
  if (!pixels) return error(Code::oom, "%zu bytes for the decoded image", image_bytes);
  if (!read_rows(s, pixels, stride, plan.asked.height, cmyk ? pixels + image_bytes + kSlack : nullptr))
    return s.status();
  if (!window && !finish(s)) return s.status();

  out = {pixels, static_cast<int>(width), plan.asked.height, stride, kSlack};
  if (window)
    out = out.part({window->x - static_cast<int>(first), window->y - plan.asked.y, window->width, window->height});
  return ok_status();
}

}  // namespace effnet::io
