// The only file pair that knows oneDNN (3.x C API): dense convolutions over plain NHWC, weights in whatever layout the
// primitive prefers, and the reorders between that and OHWI. Single-threaded: callers run primitives as shards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/status.h"
#include "plan/format.h"

namespace effnet::onednn {

enum class Pass { forward, backward_data, backward_weights };

struct ConvShape {
  Pass pass;
  plan::DType dtype;  // of src, dst and their gradients: f32 or bf16. Bias and weight gradients are f32.
  int64_t n, ih, iw, ic;
  int64_t oh, ow, oc;
  int64_t kh, kw, stride;
  int64_t pad_t, pad_l, pad_b, pad_r;
  bool bias = false;  // forward only
};

// An opaque layout of a weight tensor.
class WeightsLayout;

class Conv {
 public:
  virtual ~Conv() = default;
  // Refuses (Code::plan_invalid) a shape for which oneDNN has only its reference implementation. `layout`, when given,
  // is the one the weights or their gradient must have, so that primitives of different batch sizes share them.
  static StatusOr<std::shared_ptr<const Conv>> create(const ConvShape& shape, const WeightsLayout* layout = nullptr);

  virtual const std::string& implementation() const = 0;
  virtual const WeightsLayout& layout() const = 0;
  virtual size_t weights_bytes() const = 0;  // packed; of the gradient for backward_weights
  virtual size_t scratch_bytes() const = 0;
  // forward: a = src, b = dst; backward_data: a = diff_dst, b = diff_src; backward_weights: a = src, b = diff_dst and
  // `weights` receives the gradient. Re-entrant: any thread with its own scratch.
  // Returns oneDNN's status, 0 when all is well.
  virtual int execute(const void* a, void* weights, const float* bias, void* b, void* scratch) const = 0;
};

// Copies weights between OHWI f32 and a primitive's layout, converting the type.
class Reorder {
 public:
  virtual ~Reorder() = default;
  static StatusOr<std::shared_ptr<const Reorder>> pack(const ConvShape& shape, const WeightsLayout& to);
  static StatusOr<std::shared_ptr<const Reorder>> unpack(const ConvShape& shape, const WeightsLayout& from);
  virtual size_t scratch_bytes() const = 0;
  virtual int execute(const void* src, void* dst, void* scratch) const = 0;
};

std::string version();
// The instruction set oneDNN dispatches to, e.g. "avx512_core_bf16".
std::string effective_isa();

}  // namespace effnet::onednn
