// C[m][n] = sum over k of A(m, k) * B(n, k): tiles in shared memory, 4 x 4 sums a thread. What A and B are, and what
// becomes of a sum, is a policy: convolution forward, gradient of its source, gradient of its weights.
#include "cuda/kernels/gemm.h"

#include "cuda/kernels/activation.cuh"
#include "cuda/kernels/pixels.cuh"
#include "cuda/kernels/reduce.cuh"

namespace effnet::cuda {

// A long sum in two levels, so that its error does not grow with the number of terms alone.
constexpr int kGemmFlush = 4;  // tiles of depth

template <class Policy>
EFF_DEVICE void gemm(const Policy& p, int64_t m_count, int64_t n_count, int64_t k_first, int64_t k_last) {
  Shared shared;
  float* tiles = shared.take<float>(2 * kGemmDepth * kGemmPitch);
  float *tile_a = tiles, *tile_b = tiles + kGemmDepth * kGemmPitch;
  const int t = static_cast<int>(thread_id()), row = t / 16 * 4, column = t % 16 * 4;
  const int64_t m0 = static_cast<int64_t>(block_x()) * kGemmTile, n0 = static_cast<int64_t>(block_y()) * kGemmTile;
  float part[4][4] = {}, total[4][4] = {};
  int filled = 0;
  for (int64_t k0 = k_first; k0 < k_last; k0 += kGemmDepth) {
    for (int i = t; i < kGemmTile * kGemmDepth; i += static_cast<int>(kGemmThreads)) {
      const int at = i / kGemmDepth, k = i % kGemmDepth;
      const bool inside = k0 + k < k_last;
      tile_a[k * kGemmPitch + at] = inside && m0 + at < m_count ? p.a(m0 + at, k0 + k) : 0.0f;
      tile_b[k * kGemmPitch + at] = inside && n0 + at < n_count ? p.b(n0 + at, k0 + k) : 0.0f;
    }
    EFF_SYNC_BLOCK();
    for (int k = 0; k < kGemmDepth; ++k) {
      EFF_UNROLL
      for (int i = 0; i < 4; ++i) EFF_UNROLL
      for (int j = 0; j < 4; ++j)
        part[i][j] = fma(tile_a[k * kGemmPitch + row + i], tile_b[k * kGemmPitch + column + j], part[i][j]);
    }
    EFF_SYNC_BLOCK();
    if (++filled == kGemmFlush) {
      filled = 0;
      EFF_UNROLL
      for (int i = 0; i < 4; ++i) {
        EFF_UNROLL
        for (int j = 0; j < 4; ++j) {
          total[i][j] += part[i][j];
          part[i][j] = 0.0f;
        }
      }
    }
  }
  EFF_UNROLL
  for (int i = 0; i < 4; ++i) EFF_UNROLL
  for (int j = 0; j < 4; ++j)
    if (m0 + row + i < m_count && n0 + column + j < n_count)
      p.result(m0 + row + i, n0 + column + j, total[i][j] + part[i][j]);
}

template <class T>
EFF_DEVICE float edited_value(const ConvSource& src, const ConvGeometry& g, int64_t n, int64_t c, float v) {
  if (src.norm.mean) v = normalised(src.norm, v, c);
  if (src.act != plan::Act::identity) v = activate<T>(src.act, v);
  if (src.gate) v *= src.gate[n * g.ic + c];
  return round_to<T>(v);
}

// Channel c of pixel (n, h, w), as it is multiplied: of images of T, or of uint8 ones.
template <class T, class Stored>
EFF_DEVICE float source_value(const ConvSource& src, const ConvGeometry& g, int64_t n, int64_t h, int64_t w,
                              int64_t c) {
  if (h < 0 || h >= g.h || w < 0 || w >= g.w) return 0.0f;
  const Stored value = static_cast<const Stored*>(src.data)[((n * g.h + h) * g.w + w) * g.ic + c];
  if constexpr (sizeof(Stored) == 1)
    return round_to<T>(normalised_pixel(static_cast<float>(value), src.pixels, static_cast<int>(c)));
  else
    return edited_value<T>(src, g, n, c, to_float(value));
}

// m: destination pixels, n: output channels, k: taps x input channels.
template <class T, class Stored>
struct ForwardPolicy {
  const ConvArgs& args;

  EFF_DEVICE float a(int64_t m, int64_t k) const {
    const ConvGeometry& g = args.g;
    const int64_t c = k % g.ic, tap = k / g.ic, x = m % g.ow, y = m / g.ow % g.oh, n = m / (g.ow * g.oh);
    const int64_t h = y * g.stride - g.pad_t + tap / g.kw, w = x * g.stride - g.pad_l + tap % g.kw;
    return source_value<T, Stored>(args.src, g, n, h, w, c);
  }
  EFF_DEVICE float b(int64_t n, int64_t k) const {
    return round_to<T>(static_cast<const float*>(args.weights)[n * args.g.kh * args.g.kw * args.g.ic + k]);
  }
  EFF_DEVICE void result(int64_t m, int64_t n, float sum) const {
    const int64_t at = m * args.g.oc + n;
    float v = activate<T>(args.act, args.bias ? sum + args.bias[n] : sum);
    if (args.residual) v += to_float(static_cast<const T*>(args.residual)[at]);
    static_cast<T*>(args.dst)[at] = from_float<T>(v);
  }
};

// m: source pixels, n: input channels, k: taps x output channels.
template <class T>
struct BackwardDataPolicy {
  const ConvBwdDataArgs& args;

  EFF_DEVICE float a(int64_t m, int64_t k) const {
    const ConvGeometry& g = args.g;
    const int64_t o = k % g.oc, tap = k / g.oc, w = m % g.w, h = m / g.w % g.h, n = m / (g.w * g.h);
    const int64_t y = h + g.pad_t - tap / g.kw, x = w + g.pad_l - tap % g.kw;
    if (y < 0 || x < 0 || y % g.stride || x % g.stride) return 0.0f;
    if (y / g.stride >= g.oh || x / g.stride >= g.ow) return 0.0f;
    return to_float(static_cast<const T*>(args.diff_dst)[((n * g.oh + y / g.stride) * g.ow + x / g.stride) * g.oc + o]);
  }
  EFF_DEVICE float b(int64_t c, int64_t k) const {
    const ConvGeometry& g = args.g;
    const int64_t o = k % g.oc, tap = k / g.oc;
    return round_to<T>(static_cast<const float*>(args.weights)[(o * g.kh * g.kw + tap) * g.ic + c]);
  }
  EFF_DEVICE void result(int64_t m, int64_t c, float sum) const {
    const int64_t at = m * args.g.ic + c;
    if (args.end.addend) sum += to_float(static_cast<const T*>(args.end.addend)[at]);
    if (args.slope_of) {
      const float x = to_float(static_cast<const T*>(args.slope_of)[at]);
      sum *= activation_slope<T>(args.act, args.slope_norm.mean ? normalised(args.slope_norm, x, c) : x);
    }
    static_cast<T*>(args.diff_src)[at] = from_float<T>(sum);
  }
};

// m: output channels, n: taps x input channels, k: destination pixels.
template <class T, class Stored>
struct BackwardWeightsPolicy {
  const ConvBwdWeightsArgs& args;

  EFF_DEVICE float a(int64_t o, int64_t k) const {
    return to_float(static_cast<const T*>(args.diff_dst)[k * args.g.oc + o]);
  }
  EFF_DEVICE float b(int64_t n, int64_t k) const {
    const ConvGeometry& g = args.g;
    const int64_t c = n % g.ic, tap = n / g.ic, x = k % g.ow, y = k / g.ow % g.oh, image = k / (g.ow * g.oh);
    const int64_t h = y * g.stride - g.pad_t + tap / g.kw, w = x * g.stride - g.pad_l + tap % g.kw;
    return source_value<T, Stored>(args.src, g, image, h, w, c);
  }
  EFF_DEVICE void result(int64_t o, int64_t n, float sum) const {
    const int64_t width = args.g.kh * args.g.kw * args.g.ic;
    args.parts[(block_z() * args.g.oc + o) * width + n] = sum;
  }
};

template <class T, class Stored = T>
EFF_DEVICE void conv2d(const ConvArgs& a) {
  gemm(ForwardPolicy<T, Stored>{a}, a.g.n * a.g.oh * a.g.ow, a.g.oc, 0, a.g.kh * a.g.kw * a.g.ic);
}

template <class T>
EFF_DEVICE void conv2d_bwd_data(const ConvBwdDataArgs& a) {
  gemm(BackwardDataPolicy<T>{a}, a.g.n * a.g.h * a.g.w, a.g.ic, 0, a.g.kh * a.g.kw * a.g.oc);
}

template <class T, class Stored = T>
EFF_DEVICE void conv2d_bwd_weights(const ConvBwdWeightsArgs& a) {
  const int64_t pixels = a.g.n * a.g.oh * a.g.ow, first = block_z() * a.split_pixels;
  const int64_t last = first + a.split_pixels < pixels ? first + a.split_pixels : pixels;
  gemm(BackwardWeightsPolicy<T, Stored>{a}, a.g.oc, a.g.kh * a.g.kw * a.g.ic, first, last);
}

template <class T>
EFF_DEVICE void conv2d_pixels(const ConvArgs& a) {
  conv2d<T, uint8_t>(a);
}
template <class T>
EFF_DEVICE void conv2d_bwd_weights_pixels(const ConvBwdWeightsArgs& a) {
  conv2d_bwd_weights<T, uint8_t>(a);
}

EFF_KERNEL_OF_TYPES(conv2d, ConvArgs, kGemmThreads)
EFF_KERNEL_OF_TYPES(conv2d_pixels, ConvArgs, kGemmThreads)
EFF_KERNEL_OF_TYPES(conv2d_bwd_data, ConvBwdDataArgs, kGemmThreads)
EFF_KERNEL_OF_TYPES(conv2d_bwd_weights, ConvBwdWeightsArgs, kGemmThreads)
EFF_KERNEL_OF_TYPES(conv2d_bwd_weights_pixels, ConvBwdWeightsArgs, kGemmThreads)

}  // namespace effnet::cuda
