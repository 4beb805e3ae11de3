// Pillow's 8-bit antialiased resampling, bit for bit: two passes (rows, then columns), a filter widened by the scale
// factor, coefficients normalised in double and rounded to 22 fractional bits, each pass rounded to 8 bits.
// Source of the arithmetic: Pillow src/libImaging/Resample.c up to version 12. (Pillow 13 runs the columns first where
// the height shrinks much more than the width; ours keeps rows first.)
#pragma once

#include <cstdint>
#include <vector>

#include "core/device_images.h"
#include "core/status.h"
#include "io/pixels.h"

namespace effnet::io {

enum class Filter { bilinear, bicubic };

// In source pixels, edges included and possibly fractional; Pillow's `box`. Pixels of the source outside the box but
// under the filter count, as in Pillow.
struct Box {
  float x0, y0, x1, y1;
};

// The weights by which `in_size` source positions, of which [in0, in1) are resized to `out_size`, give `count` outputs
// from `begin` on.
AxisWeights axis_weights(int64_t in_size, float in0, float in1, int64_t out_size, int64_t begin, int count,
                         Filter filter);

class Resizer {
 public:
  // Resizes `box` of src to width x height and writes only `window` of the result (each pixel is what the whole result
  // would hold), mirrored left to right on request, to dst: rows of window.width*3 bytes, `dst_stride` apart.
  // invalid_argument: box outside the image or empty, window outside the result; oom.
  Status run(const View& src, const Box& box, int64_t width, int64_t height, const Rect& window, Filter filter,
             bool mirror, uint8_t* dst, size_t dst_stride);

 private:
  // Coefficients of consecutive output positions. The weight of 22 fractional bits is split as high * 2048 + low, so
  // that products with 8-bit pixels can be formed by 16-bit multiply-add: sum = (sum of high) * 2048 + sum of low,
  // exact modulo 2^32.
  struct Coefficients {
    std::vector<int> first, count;  // source positions of each output
    int taps = 0;                   // per output, a multiple of 4, the rest zero
    std::vector<int16_t> high, low;
  };
  static void compute(Coefficients& c, int64_t in_size, float in0, float in1, int64_t out_size, int64_t begin,
                      int count, Filter filter);

  Coefficients columns_, rows_;
  ByteBuffer temp_, last_row_;
};

}  // namespace effnet::io
