// Softmax and its cross entropy: a block a row, sums in double.
//   loss = mean over rows with a label of (1-s) * NLL + s * mean_k(-log p_k),  diff_logits = (p - target) / their
//   number * loss scale
#include "cuda/kernels/loss.h"

#include "cuda/device/vector.h"

namespace effnet::cuda {

// ---- over a block ------------------------------------------------------------------------------------------------

struct Add {
  EFF_DEVICE double operator()(double a, double b) const { return a + b; }
};
// A NaN makes the maximum one.
struct Max {
  EFF_DEVICE double operator()(double a, double b) const { return !(b <= a) && a == a ? b : a; }
};

template <class Combine>
EFF_DEVICE double over_warp(double v, Combine combine) {
  for (int mask = 16; mask > 0; mask /= 2) v = combine(v, EFF_SHUFFLE_XOR(v, static_cast<unsigned>(mask)));
  return v;
}

// N values at once, each over all threads in a fixed order, the same in all of them.
template <int N, class... Combine>
EFF_DEVICE void over_block(double* scratch, double (&v)[N], Combine... combine) {
  constexpr int kWarps = kLossThreads / 32;
  static_assert(N <= 3 && sizeof...(Combine) == N);
  int i = 0;
  ((v[i] = over_warp(v[i], combine), ++i), ...);
  EFF_SYNC_BLOCK();  // what was there before may still be read
  if (thread_id() % 32 == 0) {
    EFF_UNROLL
    for (int k = 0; k < N; ++k) scratch[k * kWarps + static_cast<int>(thread_id() / 32)] = v[k];
  }
  EFF_SYNC_BLOCK();
  const auto gather = [&](int k, auto f) {
    v[k] = scratch[k * kWarps];
    EFF_UNROLL
    for (int w = 1; w < kWarps; ++w) v[k] = f(v[k], scratch[k * kWarps + w]);
  };
  i = 0;
  ((gather(i, combine), ++i), ...);
}

// ---- a row -------------------------------------------------------------------------------------------------------

// The values of a row that a thread has, by rounds of kLossHeld a thread, in vectors of V.
template <int V>
struct Row {
  static constexpr int64_t kRound = static_cast<int64_t>(kLossThreads) * kLossHeld;
  const float* x;
  int64_t classes;
  float held[kLossHeld];

  EFF_DEVICE int64_t rounds() const { return (classes + kRound - 1) / kRound; }
  EFF_DEVICE static int64_t index(int64_t round, int slot) {
    return round * kRound + (slot / V * static_cast<int64_t>(kLossThreads) + thread_id()) * V + slot % V;
  }
  EFF_DEVICE void load(int64_t round) {
    EFF_UNROLL
    for (int slot = 0; slot < kLossHeld; slot += V) {
      const int64_t at = index(round, slot);
      float part[V];
      EFF_UNROLL
      for (int i = 0; i < V; ++i) part[i] = -kInfinity;
      if (at < classes) {
        if constexpr (V == 1)
          part[0] = x[at];
        else
          load_floats(x + at, part);
      }
      EFF_UNROLL
      for (int i = 0; i < V; ++i) held[slot + i] = part[i];
    }
  }
  EFF_DEVICE void store(float* dst, int64_t round) const {
    EFF_UNROLL
    for (int slot = 0; slot < kLossHeld; slot += V) {
      const int64_t at = index(round, slot);
      if (at >= classes) continue;
      if constexpr (V == 1) {
        dst[at] = held[slot];
      } else {
        float part[V];
        EFF_UNROLL
        for (int i = 0; i < V; ++i) part[i] = held[slot + i];
        store_vec<float>(dst + at, part);
      }
    }
  }
  // f(value, index) over what exists, loaded again unless it is held still.
  template <class F>
  EFF_DEVICE void for_each(int64_t round, bool again, F&& f) {
    if (again) load(round);
    EFF_UNROLL
    for (int slot = 0; slot < kLossHeld; ++slot)
      if (index(round, slot) < classes) f(held[slot], index(round, slot));
  }
  EFF_DEVICE double max() {
    float best = -kInfinity;
    for (int64_t round = 0; round < rounds(); ++round)
      for_each(round, true, [&](float v, int64_t) {
        if (!(v <= best) && !is_nan(best)) best = v;
      });
    return best;
  }
};

template <int V>
EFF_DEVICE void row_entropy(const CrossEntropyArgs& a, double* scratch, int64_t row, int64_t label) {
  Row<V> x{a.logits + row * a.classes, a.classes, {}};
  const int64_t rounds = x.rounds();
  double first[2] = {x.max(), 0};
  for (int64_t r = thread_id(); r < a.rows; r += kLossThreads) first[1] += a.labels[r] >= 0 ? 1 : 0;
  over_block(scratch, first, Max(), Add());
  const float max = static_cast<float>(first[0]), own = x.x[label];
  const double labelled = first[1];
  double sums[3] = {};  // of exponentials, of x, of classes above
  for (int64_t round = 0; round < rounds; ++round) {
    x.for_each(round, rounds > 1, [&](float& v, int64_t k) {
      // What is not a number counts as above: a broken row is never right.
      sums[2] += !(v <= own) || (v == own && k < label) ? 1 : 0;
      sums[1] += v;
      v = exp_of(v - max);
      sums[0] += v;
    });
  }
  over_block(scratch, sums, Add(), Add(), Add());
  const double classes = static_cast<double>(a.classes), s = a.smoothing;
  if (thread_id() == 0) {
    const double log_sum = log_of(sums[0]);
    double loss = (1 - s) * (log_sum - (static_cast<double>(own) - max));
    if (s > 0) loss += s * (log_sum + max - sums[1] / classes);
    a.row_loss[row] = loss / labelled;
    a.rank[row] = static_cast<int32_t>(sums[2]);
  }
  const double of_row = a.state->loss_scale.scale / labelled;
  const double factor = of_row / sums[0], of_all = s / classes * of_row, of_label = (1 - s) * of_row;
  for (int64_t round = 0; round < rounds; ++round) {
    x.for_each(round, rounds > 1, [&](float& v, int64_t k) {
      const float e = rounds > 1 ? exp_of(v - max) : v;
      v = static_cast<float>(fma(static_cast<double>(e), factor, -(of_all + (k == label ? of_label : 0.0))));
    });
    x.store(a.diff_logits + row * a.classes, round);
  }
}

template <int V>
EFF_DEVICE void cross_entropy(const CrossEntropyArgs& a) {
  Shared shared;
  double* scratch = shared.take<double>(kLossThreads / 32 * 3);
  uint32_t* flag = shared.take<uint32_t>(1);
  const int64_t row = block_x(), label = a.labels[row];
  if (label >= 0 && label < a.classes) {
    row_entropy<V>(a, scratch, row, label);
  } else {
    for (int64_t k = thread_id(); k < a.classes; k += kLossThreads) a.diff_logits[row * a.classes + k] = 0.0f;
    if (thread_id() == 0) {
      a.rank[row] = label < 0 ? -1 : static_cast<int32_t>(a.classes);
      a.row_loss[row] = label < 0 ? 0.0 : static_cast<double>(kNan);
    }
  }
  if (!comes_last(a.state->block_counters, grid_x(), flag)) return;
  double loss[1] = {};
  for (int64_t r = thread_id(); r < a.rows; r += kLossThreads) loss[0] += load_shared_by_blocks(a.row_loss + r);
  over_block(scratch, loss, Add());
  if (thread_id() > 0) return;
  *a.loss = static_cast<float>(loss[0]);
  if (a.updates && !is_finite(*a.loss)) store_relaxed(&a.state->skip, 1u);
}

template <int V>
EFF_DEVICE void softmax(const SoftmaxArgs& a) {
  Shared shared;
  double* scratch = shared.take<double>(kLossThreads / 32 * 3 + 2);
  Row<V> x{a.logits + static_cast<int64_t>(block_x()) * a.classes, a.classes, {}};
  float* probs = a.probs + static_cast<int64_t>(block_x()) * a.classes;
  const int64_t rounds = x.rounds();
  double max[1] = {x.max()}, sum[1] = {};
  over_block(scratch, max, Max());
  const float best = static_cast<float>(max[0]);
  for (int64_t round = 0; round < rounds; ++round) {
    x.for_each(round, rounds > 1, [&](float& v, int64_t) {
      v = exp_of(v - best);
      sum[0] += v;
    });
  }
  over_block(scratch, sum, Add());
  const double factor = 1 / sum[0];
  for (int64_t round = 0; round < rounds; ++round) {
    x.for_each(round, rounds > 1,
               [&](float& v, int64_t) { v = static_cast<float>((rounds > 1 ? exp_of(v - best) : v) * factor); });
    x.store(probs, round);
  }
}

EFF_KERNEL(cross_entropy, CrossEntropyArgs, kLossThreads) { cross_entropy<4>(a); }
EFF_KERNEL(cross_entropy_plain, CrossEntropyArgs, kLossThreads) { cross_entropy<1>(a); }
EFF_KERNEL(softmax, SoftmaxArgs, kLossThreads) { softmax<4>(a); }
EFF_KERNEL(softmax_plain, SoftmaxArgs, kLossThreads) { softmax<1>(a); }

}  // namespace effnet::cuda
