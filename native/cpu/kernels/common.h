// What the factories of our own kernels share: checks of an op's tensors, and the fixed split of rows into shards.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/math.h"
#include "cpu/caches.h"
#include "cpu/kernel.h"
#include "plan/op_ports.h"

namespace effnet::cpu {

// Collects the first objection to an op; the loader has checked sizes and ranks, not what an op means.
class OpCheck {
 public:
  explicit OpCheck(const plan::Op& op) : op_(op) {}

  OpCheck& that(bool condition, const char* what) {
    if (!condition && status_.ok()) {
      status_ = error(Code::plan_invalid, "op %.*s: no CPU kernel: %s", static_cast<int>(op_.name.size()),
                      op_.name.data(), what);
    }
    return *this;
  }
  // f32 or bf16, of any rank.
  OpCheck& activation(const plan::Tensor* t, const char* port) {
    that(t && (t->dtype == plan::DType::f32 || t->dtype == plan::DType::bf16), port);
    return that(t && t->elements() > 0, port);
  }
  OpCheck& same_shape(const plan::Tensor* t, const plan::Tensor* other, const char* port) {
    return that(t && other && t->rank == other->rank && std::equal(t->dims, t->dims + 4, other->dims), port);
  }
  OpCheck& like(const plan::Tensor* t, const plan::Tensor* other, const char* port) {
    return same_shape(t, other, port).that(t && other && t->dtype == other->dtype, port);
  }
  OpCheck& shape(const plan::Tensor* t, plan::DType dtype, std::initializer_list<int64_t> dims, const char* port) {
    that(t && t->dtype == dtype && t->rank == static_cast<int>(dims.size()), port);
    if (!status_.ok()) return *this;
    return that(std::equal(dims.begin(), dims.end(), t->dims), port);
  }
  OpCheck& f32(const plan::Tensor* t, std::initializer_list<int64_t> dims, const char* port) {
    return shape(t, plan::DType::f32, dims, port);
  }
  OpCheck& optional_f32(const plan::Tensor* t, std::initializer_list<int64_t> dims, const char* port) {
    return t ? f32(t, dims, port) : *this;
  }
  OpCheck& act(int attr) {
    const double code = op_.attr(attr);
    return that(code == 0 || code == 1 || code == 2 || code == 3 || code == 4, "act");
  }
  OpCheck& drop_rate(int attr) { return that(op_.attr(attr) >= 0 && op_.attr(attr) < 1, "drop_rate"); }

  bool ok() const { return status_.ok(); }
  const Status& status() const { return status_; }

 private:
  const plan::Op& op_;
  Status status_;
};

// [0, total) in `count` contiguous pieces of `step`, the last one shorter.
struct Split {
  int64_t total = 0, step = 1;
  int count() const { return static_cast<int>(ceil_div(total, step)); }
  int64_t begin(int i) const { return i * step; }
  int64_t end(int i) const { return std::min(total, (i + 1) * step); }
};

inline constexpr int kMaxShards = 64;
// About 10 us of work: much more than it costs to hand a shard to a thread.
inline constexpr int64_t kShardElements = 32768;

// `total` rows of `width` elements in at most kMaxShards pieces of at least `min_rows` rows, a multiple of `multiple`.
inline Split split_rows(int64_t total, int64_t width, int64_t min_rows = 1, int64_t multiple = 1) {
  int64_t step = std::max({int64_t{1}, min_rows, ceil_div(kShardElements, width), ceil_div(total, kMaxShards)});
  step = round_up(step, multiple);
  return {total, std::min(step, std::max<int64_t>(total, 1))};
}

// "op_f32:avx3"
std::string kernel_name(const char* base, plan::DType dtype);

// Whether a tensor is better written past the caches.
inline bool exceeds_caches(const plan::Tensor* t) { return t->bytes > past_caches_bytes; }

}  // namespace effnet::cpu
