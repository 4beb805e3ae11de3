// Image input: RGB pixels and where they lie. Files -> jpeg.h (or sharp) -> transform.h (crop, resize.h, flip) ->
// loader.h (batches); transfer.h moves tensors between files and arenas.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace effnet::io {

struct Rect {
  int x = 0, y = 0, width = 0, height = 0;
};

// RGB rows, 3 bytes a pixel, `stride` bytes apart. `slack` bytes after the last pixel may be read (never used).
struct View {
  const uint8_t* data = nullptr;
  int width = 0, height = 0;
  size_t stride = 0;
  size_t slack = 0;

  const uint8_t* row(int y) const { return data + static_cast<size_t>(y) * stride; }
  // The part of this view inside `r`; the pixels beside it become slack only at the end of the buffer.
  View part(const Rect& r) const { return {row(r.y) + static_cast<size_t>(r.x) * 3, r.width, r.height, stride, slack}; }
};

inline constexpr size_t kSlack = 64;

// Bytes that grow and are not initialised; reused from image to image.
class ByteBuffer {
 public:
  // Null when memory is short. The contents are undefined after a growth.
  uint8_t* reserve(size_t bytes) {
    if (bytes > capacity_) {
      data_.reset();
      capacity_ = 0;
      data_.reset(static_cast<uint8_t*>(std::malloc(bytes)));
      if (data_) capacity_ = bytes;
    }
    return data_.get();
  }
  // One huge image must not keep its memory in every worker.
  void trim(size_t keep = size_t{64} << 20) {
    if (capacity_ <= keep) return;
    data_.reset();
    capacity_ = 0;
  }
  uint8_t* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t, Free> data_;
  size_t capacity_ = 0;
};

}  // namespace effnet::io
