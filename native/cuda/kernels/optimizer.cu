// SGD, RMSProp (two forms), AdamW, moving average and gradient norm, in place over flat arenas. Constants are made in
// double from the step's scalars, the arithmetic is FP32, the norm double.
#include "cuda/kernels/optimizer.h"

#include "cuda/device/vector.h"

namespace effnet::cuda {

// ---- a thread's vectors of a chunk -------------------------------------------------------------------------------

// `count` of the four elements at `at` exist; what is done to them is in `flags`.
struct Quad {
  int64_t at;
  int count;
  uint32_t flags;
};
EFF_DEVICE Quad quad_of(const Chunks& chunks, int64_t chunk, int k) {
  const uint32_t vector = thread_id() + static_cast<uint32_t>(k) * kOptimizerThreads;
  const uint32_t flags = chunks.table[chunk * kChunkGranules + vector / 4];
  const int left = static_cast<int>(flags & kGranuleCount) - static_cast<int>(vector % 4) * 4;
  return {chunks.index[chunk] * kChunk + vector * 4, left < 0 ? 0 : left > 4 ? 4 : left, flags};
}
// Elements that do not exist are 0.
EFF_DEVICE void load_quad(const float* p, int count, float (&v)[4]) {
  if (count == 4) return load_floats(p, v);
  EFF_UNROLL
  for (int i = 0; i < 4; ++i) v[i] = i < count ? p[i] : 0.0f;
}
EFF_DEVICE void store_quad(float* p, int count, const float (&v)[4]) {
  if (count == 4) return store_vec<float>(p, v);
  EFF_UNROLL
  for (int i = 0; i < 4; ++i)
    if (i < count) p[i] = v[i];
}
template <class T>
EFF_DEVICE void store_working(void* working, int64_t at, int count, const float (&v)[4]) {
  T* p = static_cast<T*>(working) + at;
  if (count == 4) return store_bits(reinterpret_cast<Bits64*>(p), {{pack<T>(v[0], v[1]), pack<T>(v[2], v[3])}});
  EFF_UNROLL
  for (int i = 0; i < 4; ++i)
    if (i < count) p[i] = from_float<T>(v[i]);
}

// ---- update ------------------------------------------------------------------------------------------------------

struct Constants {
  float lr, momentum, one_minus_momentum, alpha, one_minus_alpha, eps, weight_decay, grad_factor;
  float adam_step, adam_inv_root;  // lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
  float adam_decay;                // lr * weight_decay
  float ema_share;                 // 1 - decay
};

EFF_DEVICE Constants constants_of(const UpdateArgs& a) {
  const StepScalars& s = *a.scalars;
  double factor = 1;
  if (a.norm && s.clip_norm > 0) {
    const double norm = *a.norm;
    factor = s.clip_norm / (norm > s.clip_norm || norm != norm ? norm : s.clip_norm);
  }
  factor /= a.state->loss_scale.scale;
  Constants k;
  k.lr = static_cast<float>(s.lr);
  k.momentum = static_cast<float>(s.momentum);
  k.one_minus_momentum = static_cast<float>(1 - s.momentum);
  k.alpha = static_cast<float>(s.alpha);
  k.one_minus_alpha = static_cast<float>(1 - s.alpha);
  k.eps = static_cast<float>(s.eps);
  k.weight_decay = static_cast<float>(s.weight_decay * a.decay_mult);
  k.grad_factor = static_cast<float>(factor);
  k.ema_share = static_cast<float>(1 - s.ema_decay);
  k.adam_step = k.adam_inv_root = k.adam_decay = 0.0f;
  if (a.rule == Rule::adamw) {
    const double updates = s.optimizer_step - a.state->loss_scale.skipped;
    k.adam_step = static_cast<float>(s.lr / (1 - power(s.momentum, updates)));
    k.adam_inv_root = static_cast<float>(1 / sqrt_of(1 - power(s.alpha, updates)));
    k.adam_decay = static_cast<float>(s.lr * s.weight_decay * a.decay_mult);
  }
  return k;
}

template <Rule rule>
EFF_DEVICE void update(const Constants& k, bool decays, float& w, float g, float& m0, float& m1) {
  if constexpr (rule == Rule::adamw) {
    m0 = fma(k.momentum, m0, k.one_minus_momentum * g);
    m1 = fma(k.alpha, m1, k.one_minus_alpha * (g * g));
    const float root = fma(sqrt_of(m1), k.adam_inv_root, k.eps);
    if (decays) w = fma(-k.adam_decay, w, w);
    w = fma(-k.adam_step, m0 / root, w);
    return;
  }
  if (decays) g = fma(k.weight_decay, w, g);
  if constexpr (rule == Rule::sgd || rule == Rule::sgd_nesterov) {
    m0 = fma(k.momentum, m0, g);
    w = fma(-k.lr, rule == Rule::sgd ? m0 : fma(k.momentum, m0, g), w);
  }
  if constexpr (rule == Rule::rmsprop_tf) {
    m0 = fma(k.alpha, m0, k.one_minus_alpha * (g * g));
    m1 = fma(k.momentum, m1, k.lr * g / sqrt_of(m0 + k.eps));
    w -= m1;
  }
  if constexpr (rule == Rule::rmsprop_torch) {
    m0 = fma(k.alpha, m0, k.one_minus_alpha * (g * g));
    m1 = fma(k.momentum, m1, g / (sqrt_of(m0) + k.eps));
    w = fma(-k.lr, m1, w);
  }
}

// ema += (1-d) * (weights - ema): settles around the weights, where d*ema + (1-d)*weights would settle beside them.
EFF_DEVICE void average(float* ema, const Quad& q, float share, const float (&w)[4]) {
  float e[4];
  load_quad(ema + q.at, q.count, e);
  EFF_UNROLL
  for (int i = 0; i < 4; ++i)
    if (is_finite(w[i])) e[i] = fma(share, w[i] - e[i], e[i]);
  store_quad(ema + q.at, q.count, e);
}

template <Rule rule>
EFF_DEVICE void update_chunk(const UpdateArgs& a, const Constants& k) {
  constexpr bool second = rule != Rule::sgd && rule != Rule::sgd_nesterov;
  float w[kChunkVectors][4], g[kChunkVectors][4], m0[kChunkVectors][4], m1[kChunkVectors][4];
  Quad quads[kChunkVectors];
  EFF_UNROLL
  for (int i = 0; i < kChunkVectors; ++i) {
    quads[i] = quad_of(a.chunks, block_x(), i);
    const Quad& q = quads[i];
    const int count = q.flags & kGranuleUpdated ? q.count : 0;
    load_quad(a.weights + q.at, q.count, w[i]);
    load_quad(a.grads + q.at, count, g[i]);
    load_quad(a.moment0 + q.at, count, m0[i]);
    if (second) load_quad(a.moment1 + q.at, count, m1[i]);
  }
  bool sound = true;
  EFF_UNROLL
  for (int i = 0; i < kChunkVectors; ++i) {
    const Quad& q = quads[i];
    if (q.flags & kGranuleUpdated) {
      EFF_UNROLL
      for (int j = 0; j < 4; ++j) {
        update<rule>(k, q.flags & kGranuleDecays, w[i][j], g[i][j] * k.grad_factor, m0[i][j], m1[i][j]);
        sound = sound && (j >= q.count || is_finite(w[i][j]));
      }
      store_quad(a.weights + q.at, q.count, w[i]);
      store_quad(a.moment0 + q.at, q.count, m0[i]);
      if (second) store_quad(a.moment1 + q.at, q.count, m1[i]);
      if (a.working && a.working_type == plan::DType::bf16) store_working<Bf16>(a.working, q.at, q.count, w[i]);
      if (a.working && a.working_type == plan::DType::f16) store_working<F16>(a.working, q.at, q.count, w[i]);
    }
    if (a.ema && q.flags & kGranuleAveraged) average(a.ema, q, k.ema_share, w[i]);
  }
  if (!sound) store_relaxed(&a.state->unsound, 1u);
}

EFF_KERNEL(update_weights, UpdateArgs, kOptimizerThreads) {
  Shared shared;
  Constants* constants = shared.take<Constants>(1);
  if (a.state->skip) return;
  if (thread_id() == 0) *constants = constants_of(a);
  EFF_SYNC_BLOCK();
  const Constants k = *constants;
  switch (a.rule) {
    case Rule::sgd:
      return update_chunk<Rule::sgd>(a, k);
    case Rule::sgd_nesterov:
      return update_chunk<Rule::sgd_nesterov>(a, k);
    case Rule::rmsprop_torch:
      return update_chunk<Rule::rmsprop_torch>(a, k);
    case Rule::rmsprop_tf:
      return update_chunk<Rule::rmsprop_tf>(a, k);
    case Rule::adamw:
      return update_chunk<Rule::adamw>(a, k);
  }
}

EFF_KERNEL(update_ema, EmaArgs, kOptimizerThreads) {
  if (a.state->skip || a.state->unsound) return;
  const float share = static_cast<float>(1 - a.scalars->ema_decay);
  EFF_UNROLL
  for (int i = 0; i < kChunkVectors; ++i) {
    const Quad q = quad_of(a.chunks, block_x(), i);
    float w[4];
    load_quad(a.weights + q.at, q.count, w);
    average(a.ema, q, share, w);
  }
}

// ---- norm --------------------------------------------------------------------------------------------------------

// The sum over the block, in a fixed order, in all threads of the first warp.
EFF_DEVICE double block_sum(double* scratch, double v) {
  v = warp_sum(v);
  EFF_SYNC_BLOCK();
  if (thread_id() % 32 == 0) scratch[thread_id() / 32] = v;
  EFF_SYNC_BLOCK();
  return thread_id() < 32 ? warp_sum(thread_id() < kOptimizerThreads / 32 ? scratch[thread_id()] : 0.0) : 0.0;
}

EFF_KERNEL(grad_norm, NormArgs, kOptimizerThreads) {
  Shared shared;
  double* scratch = shared.take<double>(kOptimizerThreads / 32);
  uint32_t* flag = shared.take<uint32_t>(1);
  double sum = 0;
  for (int64_t chunk = block_x(); chunk < a.chunk_count; chunk += grid_x()) {
    float g[kChunkVectors][4];
    EFF_UNROLL
    for (int i = 0; i < kChunkVectors; ++i) {
      const Quad q = quad_of(a.chunks, chunk, i);
      load_quad(a.grads + q.at, q.count, g[i]);
    }
    EFF_UNROLL
    for (int i = 0; i < kChunkVectors; ++i) {
      EFF_UNROLL
      for (int j = 0; j < 4; ++j) sum = fma(static_cast<double>(g[i][j]), static_cast<double>(g[i][j]), sum);
    }
  }
  sum = block_sum(scratch, sum);
  if (thread_id() == 0) a.sums[block_x()] = sum;
  if (!comes_last(a.state->block_counters, grid_x(), flag)) return;
  sum = 0;
  for (uint32_t i = thread_id(); i < grid_x(); i += kOptimizerThreads) sum += load_shared_by_blocks(a.sums + i);
  sum = block_sum(scratch, sum);
  if (thread_id() > 0) return;
  *a.norm = static_cast<float>(sqrt_of(sum) / a.state->loss_scale.scale);
  if (!is_finite(*a.norm)) store_relaxed(&a.state->skip, 1u);
}

}  // namespace effnet::cuda
