#include "io/resize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "io/resize_kernels.h"

namespace effnet::io {
namespace {

double triangle(double x) {
  if (x < 0) x = -x;
  return x < 1 ? 1 - x : 0;
}

// Keys' cubic with a = -0.5, in Pillow's order of operations.
double cubic(double x) {
  constexpr double a = -0.5;
  if (x < 0) x = -x;
  if (x < 1) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

int32_t fixed(double weight) {
  const double scaled = weight * (1 << kPrecisionBits);
  return static_cast<int32_t>(weight < 0 ? -0.5 + scaled : 0.5 + scaled);
}

// Calls begin(taps at most), then of each output place(i, first, count) and put(i, t, weight).
template <class Begin, class Place, class Put>
void make_weights(int64_t in_size, float in0, float in1, int64_t out_size, int64_t begin, int count, Filter filter,
                  Begin start, Place place, Put put) {
  const bool bicubic = filter == Filter::bicubic;
  const double scale = static_cast<double>(in1 - in0) / static_cast<double>(out_size);
  const double widening = scale < 1 ? 1 : scale;
  const double support = (bicubic ? 2.0 : 1.0) * widening;
  const double inverse = 1.0 / widening;
  const int most = static_cast<int>(std::min<int64_t>(static_cast<int64_t>(std::ceil(support)) * 2 + 1, in_size));
  start(most);
  std::vector<double> weights(static_cast<size_t>(most));
  for (int i = 0; i < count; ++i) {
    const double center = in0 + (static_cast<double>(begin + i) + 0.5) * scale;
    const auto first = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
    const auto end = std::min<int64_t>(static_cast<int64_t>(center + support + 0.5), in_size);
    const int n = static_cast<int>(std::min<int64_t>(end - first, most));
    double sum = 0;
    for (int t = 0; t < n; ++t) {
      const double x = (static_cast<double>(t + first) - center + 0.5) * inverse;
      weights[static_cast<size_t>(t)] = bicubic ? cubic(x) : triangle(x);
      sum += weights[static_cast<size_t>(t)];
    }
    place(static_cast<size_t>(i), static_cast<int>(first), n);
    for (int t = 0; t < n; ++t) {
      const double weight = weights[static_cast<size_t>(t)];
      put(static_cast<size_t>(i), static_cast<size_t>(t), fixed(sum != 0 ? weight / sum : weight));
    }
  }
}

}  // namespace

AxisWeights axis_weights(int64_t in_size, float in0, float in1, int64_t out_size, int64_t begin, int count,
                         Filter filter) {
  AxisWeights axis;
  const auto n = static_cast<size_t>(count);
  axis.first.resize(n);
  axis.count.resize(n);
  make_weights(
      in_size, in0, in1, out_size, begin, count, filter,
      [&](int most) {
        axis.taps = most;
        axis.weight.resize(n * static_cast<size_t>(most));
      },
      [&](size_t i, int first, int taps) {
        axis.first[i] = first;
        axis.count[i] = taps;
      },
      [&](size_t i, size_t t, int32_t weight) { axis.weight[t * n + i] = weight; });
  return axis;
}

void Resizer::compute(Coefficients& c, int64_t in_size, float in0, float in1, int64_t out_size, int64_t begin,
                      int count, Filter filter) {
  make_weights(
      in_size, in0, in1, out_size, begin, count, filter,
      [&](int most) {
        c.taps = (most + 3) / 4 * 4;
        c.first.resize(static_cast<size_t>(count));
        c.count.resize(static_cast<size_t>(count));
        c.high.assign(static_cast<size_t>(count) * c.taps, 0);
        c.low.assign(static_cast<size_t>(count) * c.taps, 0);
      },
      [&](size_t i, int first, int taps) {
        c.first[i] = first;
        c.count[i] = taps;
      },
      [&](size_t i, size_t t, int32_t weight) {
        c.high[i * static_cast<size_t>(c.taps) + t] = static_cast<int16_t>(weight >> kLowBits);
        c.low[i * static_cast<size_t>(c.taps) + t] = static_cast<int16_t>(weight & ((1 << kLowBits) - 1));
      });
}

Status Resizer::run(const View& src, const Box& box, int64_t width, int64_t height, const Rect& window, Filter filter,
                    bool mirror, uint8_t* dst, size_t dst_stride) {
  if (!(box.x0 >= 0 && box.y0 >= 0 && box.x1 <= static_cast<float>(src.width) &&
        box.y1 <= static_cast<float>(src.height) && box.x1 > box.x0 && box.y1 > box.y0))
    return error(Code::invalid_argument, "crop box [%g, %g, %g, %g] outside the image of %dx%d", box.x0, box.y0, box.x1,
                 box.y1, src.width, src.height);
  if (window.x < 0 || window.y < 0 || window.width <= 0 || window.height <= 0 ||
      window.x + int64_t{window.width} > width || window.y + int64_t{window.height} > height)
    return error(Code::invalid_argument, "window outside the resized image of %lldx%lld", static_cast<long long>(width),
                 static_cast<long long>(height));
  const bool wide = width != src.width || box.x0 != 0 || box.x1 != static_cast<float>(width);
  const bool tall = height != src.height || box.y0 != 0 || box.y1 != static_cast<float>(height);
  const size_t row_bytes = static_cast<size_t>(window.width) * 3;

  // Source rows that the second pass needs.
  int row_begin = window.y, row_end = window.y + window.height;
  if (tall) {
    compute(rows_, src.height, box.y0, box.y1, height, window.y, window.height, filter);
    row_begin = rows_.first.front();
    row_end = rows_.first.back() + rows_.count.back();
  }

  // First pass: `middle` holds rows row_begin..row_end of window.width pixels.
  View middle = src.part({window.x, row_begin, window.width, row_end - row_begin});
  if (wide || mirror) {
    const size_t stride = row_bytes + kSlack;
    uint8_t* temp = temp_.reserve(stride * static_cast<size_t>(row_end - row_begin));
    if (!temp)
      return error(Code::oom, "%zu bytes to resize an image", stride * static_cast<size_t>(row_end - row_begin));
    // Without scaling the filter is the identity: one tap of weight 1.
    compute(columns_, src.width, wide ? box.x0 : 0.0f, wide ? box.x1 : static_cast<float>(width), width, window.x,
            window.width, filter);
    const size_t read = static_cast<size_t>(src.width) * 3;
    const size_t overrun = static_cast<size_t>(columns_.taps) * 3 + 16;
    for (int y = row_begin; y < row_end; y += 4) {
      const int n = std::min(4, row_end - y);
      const uint8_t* in[4];
      uint8_t* out[4];
      for (int r = 0; r < n; ++r) {
        in[r] = src.row(y + r);
        out[r] = temp + static_cast<size_t>(y + r - row_begin) * stride;
        // Only rows near the end of the buffer could be read past it; those are copied to where that is allowed.
        const size_t behind = static_cast<size_t>(src.height - 1 - (y + r)) * src.stride + src.slack;
        if (behind < overrun) {
          uint8_t* copy = last_row_.reserve((read + overrun) * 4);
          if (!copy) return error(Code::oom, "%zu bytes to resize an image", (read + overrun) * 4);
          copy += static_cast<size_t>(r) * (read + overrun);
          std::memcpy(copy, in[r], read);
          in[r] = copy;
        }
      }
      resample_columns(in, out, n, window.width, columns_.first.data(), columns_.high.data(), columns_.low.data(),
                       columns_.taps, mirror);
    }
    middle = {temp, window.width, row_end - row_begin, stride, kSlack};
  }

  if (!tall) {
    for (int y = 0; y < window.height; ++y)
      std::memcpy(dst + static_cast<size_t>(y) * dst_stride, middle.row(y), row_bytes);
    return ok_status();
  }
  std::vector<const uint8_t*> rows(static_cast<size_t>(rows_.taps));
  for (int y = 0; y < window.height; ++y) {
    const int first = rows_.first[static_cast<size_t>(y)] - row_begin, count = rows_.count[static_cast<size_t>(y)];
    for (int t = 0; t < rows_.taps; ++t) rows[static_cast<size_t>(t)] = middle.row(first + std::min(t, count - 1));
    const size_t at = static_cast<size_t>(y) * rows_.taps;
    resample_rows(rows.data(), dst + static_cast<size_t>(y) * dst_stride, row_bytes, rows_.high.data() + at,
                  rows_.low.data() + at, (count + 1) / 2 * 2);
  }
  return ok_status();
}

}  // namespace effnet::io
