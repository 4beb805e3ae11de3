// A verified plan in memory. Everything in here has been bounds-checked by load(): indices, offsets, sizes, ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "plan/format.h"

namespace effnet::plan {

enum class OpId : uint16_t {
#define EFF_OP(id, name, ...) name = id,
#include "plan/op_table.inc"
#undef EFF_OP
};

size_t dtype_bytes(DType dtype);
const char* dtype_name(DType dtype);
const char* op_name(OpId id);

struct Tensor {
  std::string_view name;
  DType dtype;
  Arena arena;
  int rank;
  int64_t dims[4];  // unused dims are 1
  uint64_t offset, bytes;
  uint64_t image_stride = 0;  // of a slice: bytes from one image of the region to the next

  int64_t elements() const { return dims[0] * dims[1] * dims[2] * dims[3]; }
  // NHWC views of rank-4 tensors, and of rank-2 [N, C] ones (h = w = 1).
  int64_t n() const { return dims[0]; }
  int64_t h() const { return rank == 4 ? dims[1] : 1; }
  int64_t w() const { return rank == 4 ? dims[2] : 1; }
  int64_t c() const { return rank == 4 ? dims[3] : rank >= 1 ? dims[rank - 1] : 1; }
};

class Plan;

// Ops [first, first + count) run image by image; count 0: none.
struct Region {
  size_t first = 0, count = 0;
  int64_t images = 0;

  bool has(size_t op) const { return op - first < count; }
};

// One op of a plan with its tensors resolved. Positions are the enums of plan/op_ports.h:
//   using namespace op::conv2d;  op.in(in_src), op.out(out_dst), op.attr_int(attr_stride)
struct Op {
  OpId id;
  uint16_t flags;
  std::string_view name;
  std::vector<const Tensor*> inputs, outputs, updates;  // nullptr = absent optional
  std::vector<double> attrs;

  const Tensor* in(int i) const { return inputs[static_cast<size_t>(i)]; }
  const Tensor* out(int i) const { return outputs[static_cast<size_t>(i)]; }
  const Tensor* upd(int i) const { return updates[static_cast<size_t>(i)]; }
  double attr(int i) const { return attrs[static_cast<size_t>(i)]; }
  int64_t attr_int(int i) const { return static_cast<int64_t>(attr(i)); }
  Act act(int i) const { return static_cast<Act>(attr_int(i)); }
  bool is_prepare() const { return flags & kOpPrepare; }
  bool allows_tf32() const { return flags & kOpTf32; }
  bool has_half_gradient() const { return flags & kOpHalfGradient; }
};

class Plan {
 public:
  // Copies `bytes`, checks everything, or says what is wrong.
  static StatusOr<std::shared_ptr<const Plan>> load(std::span<const std::byte> bytes);

  const std::vector<Tensor>& tensors() const { return tensors_; }
  const std::vector<Op>& ops() const { return ops_; }
  const Region& region() const { return region_; }
  uint64_t arena_bytes(Arena a) const { return arena_bytes_[static_cast<int>(a)]; }
  const Tensor* find(std::string_view name) const;

 private:
  Plan() = default;
  std::vector<std::byte> storage_;
  std::vector<Tensor> tensors_;
  std::vector<Op> ops_;
  Region region_;
  uint64_t arena_bytes_[kArenaCount] = {};
};

}  // namespace effnet::plan
