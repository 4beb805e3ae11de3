// Squeeze-and-excitation: two small matrix products with a batch of a few to some thousand rows, forward in two
// launches and backward in two. Weights are read in order; the batch and the results are split over blocks.
#include "cuda/device/vector.h"
#include "cuda/kernels/activation.cuh"
#include "cuda/kernels/se.h"

namespace effnet::cuda {

// ---- forward -----------------------------------------------------------------------------------------------------

template <int V>
EFF_DEVICE void load_part(const float* p, float (&v)[V]) {
  if constexpr (V == 1)
    v[0] = *p;
  else
    load_floats(p, v);
}

template <int V>
EFF_DEVICE void se_squeeze(const SeSqueezeArgs& a) {
  const uint32_t lane = thread_id() % 32;
  const int64_t j = static_cast<int64_t>(block_x()) * (kSeThreads / 32) + thread_id() / 32;
  const int64_t first = static_cast<int64_t>(block_y()) * kSeImages;
  float sums[kSeImages] = {};
  if (j < a.s.r) {
    const float *weights = a.weights0 + j * a.s.c, *pooled = a.pooled + first * a.s.c;
    const int64_t images = a.s.n - first;
    for (int64_t k = lane * V; k < a.s.c; k += 32 * V) {
      float w[V];
      load_part(weights + k, w);
      EFF_UNROLL
      for (int i = 0; i < kSeImages; ++i) {
        float x[V];
        load_part(pooled + (i < images ? i : 0) * a.s.c + k, x);  // behind the last image the first once more
        EFF_UNROLL
        for (int l = 0; l < V; ++l) sums[i] = fma(w[l], x[l], sums[i]);
      }
    }
  }
  EFF_UNROLL
  for (int i = 0; i < kSeImages; ++i) {
    const float sum = warp_sum(sums[i]);
    if (lane == 0 && j < a.s.r && first + i < a.s.n) a.hidden[(first + i) * a.s.r + j] = sum + a.bias0[j];
  }
}
EFF_KERNEL(se_squeeze, SeSqueezeArgs, kSeThreads) { se_squeeze<4>(a); }
EFF_KERNEL(se_squeeze_plain, SeSqueezeArgs, kSeThreads) { se_squeeze<1>(a); }

// A thread has one channel of 4 images.
EFF_KERNEL(se_excite, SeExciteArgs, kSeThreads) {
  constexpr int kPitch = kSeDepth + 1, kMine = kSeTileN / (kSeThreads / kSeTileC);
  Shared shared;
  float* weights = shared.take<float>(kSeTileC * kPitch);
  float* hidden = shared.take<float>(kSeTileN * kPitch);
  const auto thread = static_cast<int>(thread_id());
  const int64_t first_c = static_cast<int64_t>(block_x()) * kSeTileC,
                first_n = static_cast<int64_t>(block_y()) * kSeTileN;
  const int own_c = thread % kSeTileC, own_n = thread / kSeTileC * kMine;
  float sums[kMine] = {};
  for (int64_t first = 0; first < a.s.r; first += kSeDepth) {
    EFF_SYNC_BLOCK();
    const int64_t j = first + thread % kSeDepth;
    EFF_UNROLL
    for (int i = thread / kSeDepth; i < kSeTileC; i += static_cast<int>(kSeThreads) / kSeDepth) {
      const bool inside = j < a.s.r && first_c + i < a.s.c;
      weights[i * kPitch + thread % kSeDepth] = inside ? a.weights1[(first_c + i) * a.s.r + j] : 0.0f;
    }
    for (int i = thread / kSeDepth; i < kSeTileN; i += static_cast<int>(kSeThreads) / kSeDepth) {
      const bool inside = j < a.s.r && first_n + i < a.s.n;
      hidden[i * kPitch + thread % kSeDepth] = inside ? activate(a.act, a.hidden[(first_n + i) * a.s.r + j]) : 0.0f;
    }
    EFF_SYNC_BLOCK();
    EFF_UNROLL_BY(8)
    for (int l = 0; l < kSeDepth; ++l) {
      const float w = weights[own_c * kPitch + l];
      EFF_UNROLL
      for (int i = 0; i < kMine; ++i) sums[i] = fma(w, hidden[(own_n + i) * kPitch + l], sums[i]);
    }
  }
  const int64_t c = first_c + own_c;
  if (c >= a.s.c) return;
  const float bias = a.bias1[c];
  EFF_UNROLL
  for (int i = 0; i < kMine; ++i) {
    const int64_t n = first_n + own_n + i;
    if (n < a.s.n) a.gate[n * a.s.c + c] = sigmoid(sums[i] + bias);
  }
}

// ---- backward ----------------------------------------------------------------------------------------------------

EFF_DEVICE void finish_d0(const SeBwdSqueezeArgs& a, int64_t n, int64_t j, float sum) {
  float value, slope;
  activate_both(a.act, a.hidden[n * a.s.r + j], value, slope);
  a.activated[n * a.s.r + j] = value;
  a.d0[n * a.s.r + j] = sum * slope;
}

// A warp takes every 8th channel, a lane a squeezed channel.
EFF_KERNEL(se_bwd_squeeze, SeBwdSqueezeArgs, kSeThreads) {
  constexpr int kWarps = kSeThreads / 32, kPart = static_cast<int>(kSePart);
  Shared shared;
  float* d1 = shared.take<float>(kSeImages * kPart);
  float* scratch = shared.take<float>(kSeThreads * kSeImages);
  uint32_t* flag = shared.take<uint32_t>(1);
  const auto thread = static_cast<int>(thread_id());
  const int64_t first_n = static_cast<int64_t>(block_x()) * kSeImages, j = block_y() * 32 + thread_id() % 32;
  float sums[kSeImages] = {};
  for (int64_t first_c = block_z() * kSePart; first_c < a.s.c; first_c += a.parts_count * kSePart) {
    EFF_SYNC_BLOCK();
    for (int i = thread; i < kSeImages * kPart; i += static_cast<int>(kSeThreads)) {
      const int64_t n = first_n + i / kPart, c = first_c + i % kPart, at = n * a.s.c + c;
      float d = 0.0f;
      if (n < a.s.n && c < a.s.c) {
        const float gate = a.gate[at];
        d = a.diff_gate[at] * (gate * (1.0f - gate));
        if (block_y() == 0) a.d1[at] = d;
      }
      d1[i] = d;
    }
    EFF_SYNC_BLOCK();
    if (j >= a.s.r) continue;
    const float* weights = a.weights1 + first_c * a.s.r + j;
    const int64_t left = a.s.c - first_c;
    EFF_UNROLL_BY(8)
    for (int c = thread / 32; c < kPart; c += kWarps) {
      if (c >= left) continue;
      const float w = weights[c * a.s.r];
      EFF_UNROLL
      for (int i = 0; i < kSeImages; ++i) sums[i] = fma(w, d1[i * kPart + c], sums[i]);
    }
  }
  EFF_UNROLL
  for (int i = 0; i < kSeImages; ++i) scratch[i * static_cast<int>(kSeThreads) + thread] = sums[i];
  EFF_SYNC_BLOCK();
  // Of 4 images and 32 squeezed channels a thread has one.
  const int64_t n = first_n + thread / 32;
  const bool writes = thread < 32 * kSeImages && n < a.s.n && j < a.s.r;
  if (writes) {
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += scratch[thread / 32 * static_cast<int>(kSeThreads) + w * 32 + thread % 32];
    if (a.parts_count == 1)
      finish_d0(a, n, j, sum);
    else
      a.parts[(block_z() * a.s.n + n) * a.s.r + j] = sum;
  }
  if (a.parts_count == 1) return;
  const uint32_t counter = block_x() * grid_y() + block_y();
  if (!comes_last(&a.state->block_counters[counter], static_cast<uint32_t>(a.parts_count), flag) || !writes) return;
  float sum = 0.0f;
  for (int64_t p = 0; p < a.parts_count; ++p) sum += load_shared_by_blocks(a.parts + (p * a.s.n + n) * a.s.r + j);
  finish_d0(a, n, j, sum);
}

// Of sum over n of left[n][c] * right[n][r] a tile of kSeTileC x kSeTileR, by a thread 4 x 2 of it, to
// dst[c * c_step + r * r_step]; the tiles of the first r also sum left, those of the first c right.
struct SeProduct {
  const float *left, *right;
  float *dst, *left_sums, *right_sums;
  int64_t c_step, r_step;
};
EFF_DEVICE void sum_over_images(const SeShape& s, const SeProduct& m, int64_t block, float* scratch) {
  float *left = scratch, *right = scratch + kSeDepthN * kSeTileC;
  const auto thread = static_cast<int>(thread_id());
  const int64_t tiles_r = (s.r + kSeTileR - 1) / kSeTileR, tile_c = block / tiles_r;
  const int64_t first_c = tile_c * kSeTileC, first_r = (block - tile_c * tiles_r) * kSeTileR;
  const int own_c = thread % 16 * 4, own_r = thread / 16 * 2;
  float sums[4][2] = {}, sums_c[4] = {}, sums_r[2] = {};
  for (int64_t first = 0; first < s.n; first += kSeDepthN) {
    EFF_SYNC_BLOCK();
    EFF_UNROLL_BY(8)
    for (int i = thread; i < kSeDepthN * kSeTileC; i += static_cast<int>(kSeThreads)) {
      const int64_t n = first + i / kSeTileC, c = first_c + i % kSeTileC;
      left[i] = n < s.n && c < s.c ? m.left[n * s.c + c] : 0.0f;
    }
    EFF_UNROLL_BY(8)
    for (int i = thread; i < kSeDepthN * kSeTileR; i += static_cast<int>(kSeThreads)) {
      const int64_t n = first + i / kSeTileR, r = first_r + i % kSeTileR;
      right[i] = n < s.n && r < s.r ? m.right[n * s.r + r] : 0.0f;
    }
    EFF_SYNC_BLOCK();
    EFF_UNROLL_BY(4)
    for (int n = 0; n < kSeDepthN; ++n) {
      float x[4];
      load_floats(left + n * kSeTileC + own_c, x);
      const float y[2] = {right[n * kSeTileR + own_r], right[n * kSeTileR + own_r + 1]};
      EFF_UNROLL
      for (int i = 0; i < 4; ++i) {
        sums_c[i] += x[i];
        EFF_UNROLL
        for (int j = 0; j < 2; ++j) sums[i][j] = fma(x[i], y[j], sums[i][j]);
      }
      EFF_UNROLL
      for (int j = 0; j < 2; ++j) sums_r[j] += y[j];
    }
  }
  EFF_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int64_t c = first_c + own_c + i;
    if (c >= s.c) continue;
    if (m.left_sums && first_r == 0 && own_r == 0) m.left_sums[c] = sums_c[i];
    EFF_UNROLL
    for (int j = 0; j < 2; ++j)
      if (first_r + own_r + j < s.r) m.dst[c * m.c_step + (first_r + own_r + j) * m.r_step] = sums[i][j];
  }
  EFF_UNROLL
  for (int j = 0; j < 2; ++j)
    if (m.right_sums && first_c == 0 && own_c == 0 && first_r + own_r + j < s.r)
      m.right_sums[first_r + own_r + j] = sums_r[j];
}

// A thread has one channel of 4 images.
EFF_DEVICE void gradient_of_pooled(const SeBwdArgs& a, int64_t block, float* scratch) {
  constexpr int kMine = kSeTileN / (kSeThreads / kSeTileC);
  float *weights = scratch, *d0 = scratch + kSeDepth * kSeTileC;
  const auto thread = static_cast<int>(thread_id());
  const int64_t tiles_c = (a.s.c + kSeTileC - 1) / kSeTileC, tile_n = block / tiles_c;
  const int64_t first_c = (block - tile_n * tiles_c) * kSeTileC, first_n = tile_n * kSeTileN;
  const int own_c = thread % kSeTileC, own_n = thread / kSeTileC * kMine;
  const int64_t c = first_c + own_c;
  float sums[kMine] = {};
  for (int64_t first = 0; first < a.s.r; first += kSeDepth) {
    EFF_SYNC_BLOCK();
    EFF_UNROLL
    for (int j = thread / kSeTileC; j < kSeDepth; j += static_cast<int>(kSeThreads) / kSeTileC)
      weights[j * kSeTileC + own_c] = first + j < a.s.r && c < a.s.c ? a.weights0[(first + j) * a.s.c + c] : 0.0f;
    const int64_t j = first + thread % kSeDepth;
    for (int i = thread / kSeDepth; i < kSeTileN; i += static_cast<int>(kSeThreads) / kSeDepth)
      d0[i * kSeDepth + thread % kSeDepth] = first_n + i < a.s.n && j < a.s.r ? a.d0[(first_n + i) * a.s.r + j] : 0.0f;
    EFF_SYNC_BLOCK();
    EFF_UNROLL_BY(8)
    for (int l = 0; l < kSeDepth; ++l) {
      const float w = weights[l * kSeTileC + own_c];
      EFF_UNROLL
      for (int i = 0; i < kMine; ++i) sums[i] = fma(w, d0[(own_n + i) * kSeDepth + l], sums[i]);
    }
  }
  EFF_UNROLL
  for (int i = 0; i < kMine; ++i)
    if (c < a.s.c && first_n + own_n + i < a.s.n) a.diff_pooled[(first_n + own_n + i) * a.s.c + c] = sums[i];
}

EFF_KERNEL(se_bwd, SeBwdArgs, kSeThreads) {
  Shared shared;
  float* scratch = shared.take<float>(kSeBwdShared / sizeof(float));
  const int64_t block = block_x();
  if (block < a.weights_blocks)
    sum_over_images(a.s, {a.d1, a.activated, a.diff_weights1, a.diff_bias1, nullptr, a.s.r, 1}, block, scratch);
  else if (block < 2 * a.weights_blocks)
    sum_over_images(a.s, {a.pooled, a.d0, a.diff_weights0, nullptr, a.diff_bias0, 1, a.s.c}, block - a.weights_blocks,
                    scratch);
  else
    gradient_of_pooled(a, block - 2 * a.weights_blocks, scratch);
}

}  // namespace effnet::cuda
