// Depthwise backward weights, vector code. The sums of all taps (or of a group of tap rows) stay in registers while a
// tile of diff_dst pixels, held in registers too, meets the source row under each tap row: 5x5 on AVX-512 is 25 sums,
// 4 pixels and 1 source vector, 100 multiply-adds for 44 loads.
//
// Sums run over at most a few rows in registers, then over rows and images in memory, then over shards: three levels
// instead of one long chain, so the rounding error stays near that of a pairwise sum.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/depthwise_grad.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/depthwise_ring-inl.h"
#include "cpu/kernels/depthwise.h"

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

// Some output rows and the source rows under them: output row r and tap row i meet rows[r * stride + i].
template <class D>
struct Sweep {
  const float* const* rows;
  int64_t count;       // output rows
  const D* diff;       // at the first of them
  int64_t pixel, row;  // elements from pixel to pixel and from row to row of diff
  int64_t cols;
  float* sums;  // [kh * kw][kLanes], added to
};

// Registers decide: sums + pixels + 1.
constexpr int tap_rows_at_once(int k) { return kAvx512 ? k : k == 3 ? 3 : 2; }
constexpr int pixels_at_once(int k) { return kAvx512 && k == 3 ? 8 : 4; }

template <int K, int S, int G, int P, class D>
HWY_INLINE void grad_tile(const Sweep<D>& sweep, int64_t r, int tap_row, int64_t x, Vec (&acc)[G * K]) {
  Vec d[P];
  const D* diff = sweep.diff + r * sweep.row + x * sweep.pixel;
  EFF_UNROLL for (int p = 0; p < P; ++p) d[p] = load(diff + p * sweep.pixel);
  EFF_UNROLL for (int g = 0; g < G; ++g) {
    const float* src = fresh(sweep.rows[r * S + tap_row + g] + x * S * kLanes);
    EFF_UNROLL for (int j = 0; j < (P - 1) * S + K; ++j) {
      const Vec v = load(src + j * kLanes);
      EFF_UNROLL for (int p = 0; p < P; ++p) {
        const int k = j - p * S;
        if (k >= 0 && k < K) acc[g * K + k] = hn::MulAdd(v, d[p], acc[g * K + k]);
      }
    }
  }
}

// The last `rest` <= P pixels of a row.
template <int K, int S, int G, int P, class D>
HWY_INLINE void grad_rest(const Sweep<D>& sweep, int64_t r, int tap_row, int64_t x, int64_t rest, Vec (&acc)[G * K]) {
  if (rest == P) {
    grad_tile<K, S, G, P>(sweep, r, tap_row, x, acc);
  } else if constexpr (P > 1) {
    grad_rest<K, S, G, P - 1>(sweep, r, tap_row, x, rest, acc);
  }
}

template <int K, int S, int G, class D>
HWY_INLINE void grad_tap_rows(const Sweep<D>& sweep, int tap_row) {
  constexpr int P = pixels_at_once(K);
  Vec acc[G * K];
  EFF_UNROLL for (int i = 0; i < G * K; ++i) acc[i] = zero();
  for (int64_t r = 0; r < sweep.count; ++r) {
    int64_t x = 0;
    for (; x + P <= sweep.cols; x += P) grad_tile<K, S, G, P>(sweep, r, tap_row, x, acc);
    grad_rest<K, S, G, P - 1>(sweep, r, tap_row, x, sweep.cols - x, acc);
  }
  EFF_UNROLL for (int i = 0; i < G * K; ++i) {
    float* sum = sweep.sums + (tap_row * K + i) * kLanes;
    store(hn::Add(load(sum), acc[i]), sum);
  }
}

template <int K, int S, class D>
void grad_sweep(const DepthwiseGrad&, const Sweep<D>& sweep) {
  constexpr int G = tap_rows_at_once(K);
  for (int i = 0; i + G <= K; i += G) grad_tap_rows<K, S, G>(sweep, i);
  if constexpr (K % G != 0) grad_tap_rows<K, S, K % G>(sweep, K - K % G);
}

// Any kernel and stride: a few taps of one row at a time.
template <int T, class D>
HWY_INLINE void grad_taps_any(const DepthwiseGrad& grad, const Sweep<D>& sweep, int64_t i, int64_t j) {
  Vec acc[T];
  EFF_UNROLL for (int t = 0; t < T; ++t) { acc[t] = zero(); }
  for (int64_t r = 0; r < sweep.count; ++r) {
    const float* HWY_RESTRICT src = sweep.rows[r * grad.stride + i] + j * static_cast<int64_t>(kLanes);
    const D* HWY_RESTRICT diff = sweep.diff + r * sweep.row;
    for (int64_t x = 0; x < sweep.cols; ++x) {
      const Vec d = load(diff + x * sweep.pixel);
      EFF_UNROLL for (int t = 0; t < T; ++t) { acc[t] = hn::MulAdd(load(src + t * kLanes), d, acc[t]); }
      src += grad.stride * static_cast<int64_t>(kLanes);
    }
  }
  EFF_UNROLL for (int t = 0; t < T; ++t) {
    float* HWY_RESTRICT sum = sweep.sums + (i * grad.kw + j + t) * static_cast<int64_t>(kLanes);
    store(hn::Add(load(sum), acc[t]), sum);
  }
}

template <class D>
void grad_sweep_any(const DepthwiseGrad& grad, const Sweep<D>& sweep) {
  for (int64_t i = 0; i < grad.kh; ++i) {
    int64_t j = 0;
    for (; j + 7 <= grad.kw; j += 7) grad_taps_any<7>(grad, sweep, i, j);
    for (; j + 2 <= grad.kw; j += 2) grad_taps_any<2>(grad, sweep, i, j);
    for (; j < grad.kw; ++j) grad_taps_any<1>(grad, sweep, i, j);
  }
}

template <class D>
using SweepFunction = void (*)(const DepthwiseGrad&, const Sweep<D>&);

template <class D>
SweepFunction<D> sweep_function(const DepthwiseGrad& grad) {
  if (grad.kh == 3 && grad.kw == 3 && grad.stride == 1) return grad_sweep<3, 1, D>;
  if (grad.kh == 3 && grad.kw == 3 && grad.stride == 2) return grad_sweep<3, 2, D>;
  if (grad.kh == 5 && grad.kw == 5 && grad.stride == 1) return grad_sweep<5, 1, D>;
  if (grad.kh == 5 && grad.kw == 5 && grad.stride == 2) return grad_sweep<5, 2, D>;
  return grad_sweep_any<D>;
}

// Copies diff rows of a block with missing channels, so that the sweep may load whole vectors.
template <class T>
void copy_block(const T* HWY_RESTRICT diff, int64_t pixels, int64_t c, size_t lanes, float* HWY_RESTRICT to) {
  for (int64_t x = 0; x < pixels; ++x) store(load_n(diff + x * c, lanes), to + x * kLanes);
}

template <class T>
void grad_shard(const DepthwiseGradArgs& args, const DepthwiseGradShard& shard) {
  const DepthwiseGrad& grad = *args.grad;
  constexpr int64_t kWidth = kLanes;
  const int64_t c = grad.c, taps = grad.kh * grad.kw, step = grad.rows_at_once();
  const int64_t ring_rows = grad.ring_rows(), ring_cols = grad.ring_cols();
  const int64_t most_blocks = grad.blocks_at_once() * (kMaxLanes / kWidth);
  float* sums = args.scratch;
  float* zero_row = sums + most_blocks * taps * kWidth;
  float* diff_block = zero_row + ring_cols * kWidth;
  float* ring_memory = diff_block + step * grad.out_w * kWidth;
  const float** rows = reinterpret_cast<const float**>(ring_memory + most_blocks * ring_rows * ring_cols * kWidth);
  Ring ring(ring_memory, most_blocks, ring_rows, ring_cols, grad.pad_l, grad.w);
  const SweepFunction<T> sweep_diff = sweep_function<T>(grad);
  const SweepFunction<float> sweep_copy = sweep_function<float>(grad);
  for (int64_t x = 0; x < ring_cols; ++x) store(zero(), zero_row + x * kWidth);

  for (int64_t c0 = shard.c0; c0 < shard.c1; c0 += most_blocks * kWidth) {
    const int64_t channels = std::min(most_blocks * kWidth, shard.c1 - c0);
    const int64_t blocks = ceil_div(channels, kWidth);
    const auto lanes = [&](int64_t b) { return static_cast<size_t>(std::min(kWidth, channels - b * kWidth)); };
    for (int64_t i = 0; i < blocks * taps; ++i) store(zero(), sums + i * kWidth);
    for (int64_t n = shard.n0; n < shard.n1; ++n) {
      const SourceImage<T> src{static_cast<const T*>(args.src) + n * grad.h * grad.w * c + c0,
                               grad.h,
                               grad.w,
                               c,
                               channels / kWidth,
                               static_cast<size_t>(channels % kWidth)};
      int64_t filled = 0;
      for (int64_t y = shard.row0; y < shard.row1; y += step) {
        const int64_t count = std::min(step, shard.row1 - y), top = y * grad.stride - grad.pad_t;
        const int64_t bottom = top + (count - 1) * grad.stride + grad.kh;
        filled = std::max(filled, top);
        for (; filled < std::min(bottom, grad.h); ++filled) ring.fill(src, filled);
        const T* diff = static_cast<const T*>(args.diff_dst) + (n * grad.out_h + y) * grad.out_w * c + c0;
        for (int64_t b = 0; b < blocks; ++b) {
          for (int64_t i = top; i < bottom; ++i) rows[i - top] = i < 0 || i >= grad.h ? zero_row : ring.row(b, i);
          float* block_sums = sums + b * taps * kWidth;
          if (lanes(b) == kLanes) {
            sweep_diff(grad, {rows, count, diff + b * kWidth, c, grad.out_w * c, grad.out_w, block_sums});
          } else {
            copy_block(diff + b * kWidth, count * grad.out_w, c, lanes(b), diff_block);
            sweep_copy(grad, {rows, count, diff_block, kWidth, grad.out_w * kWidth, grad.out_w, block_sums});
          }
        }
      }
    }
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t i = 0; i < taps; ++i) {
        store_n(load(sums + (b * taps + i) * kWidth), args.diff_weights + i * c + c0 + b * kWidth, lanes(b));
      }
    }
  }
}

void grad_depthwise_target(const DepthwiseGradArgs& args, const DepthwiseGradShard& shard) {
  if (args.grad->bf16) {
    grad_shard<BFloat16>(args, shard);
  } else {
    grad_shard<float>(args, shard);
  }
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {
HWY_EXPORT(grad_depthwise_target);

void grad_depthwise(const DepthwiseGradArgs& args, const DepthwiseGradShard& shard) {
  EFF_DISPATCH(grad_depthwise_target)(args, shard);
}

}  // namespace effnet::cpu
#endif
