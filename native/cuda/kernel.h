// What the CUDA backend binds an op to: a list of launches over device addresses. The number and order of launches, the
// split of the work and every reduction follow from shapes alone, so a captured step replays the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "core/step_scalars.h"
#include "cuda/kernels/step_state.h"
#include "cuda/launch.h"
#include "plan/plan.h"

namespace effnet::cuda {

// Where things lie on the device while a step runs.
struct Addresses {
  std::byte* arenas[plan::kArenaCount] = {};
  // 16-bit copies of the arenas that weights lie in, for kernels that ask for them (Kernel::working).
  std::byte* working_arenas[plan::kArenaCount] = {};
  plan::DType working_type = plan::DType::f32;  // of them; f32: there are none
  const StepScalars* scalars = nullptr;
  std::byte* scratch = nullptr;          // of this op: scratch_bytes, 256-byte aligned, undefined at its first launch
  const std::byte* constants = nullptr;  // the op's, as uploaded once
  StepState* state = nullptr;
  bool updates = false;  // the plan updates weights: what is not finite may keep it from that

  std::byte* arena(plan::Arena a) const { return arenas[static_cast<int>(a)]; }
  template <class T = void>
  T* ptr(const plan::Tensor* t) const {
    return t ? reinterpret_cast<T*>(arena(t->arena) + t->offset) : nullptr;
  }
  // The copy of f32 weights: at the same element.
  const void* working(const plan::Tensor* t) const {
    return working_arenas[static_cast<int>(t->arena)] + t->offset / 2;
  }
};

struct Kernel {
  using Record = std::function<void(const Addresses&, std::vector<Launch>&)>;

  std::string name;  // shown by dump() and pinned by tests, e.g. "conv2d_f32:cuda"
  Record record;     // appends the op's launches, in order
  size_t scratch_bytes = 0;
  plan::DType working = plan::DType::f32;  // a 16-bit type: reads Addresses::working in it
  std::vector<std::byte> constants;        // data of the binding, uploaded once
  double flops = 0;                        // of a step; a multiply-add counts 2
};

using KernelPtr = std::unique_ptr<Kernel>;
// Every op has a factory `make_<op>`. Its operands have passed plan::check_shapes.
using KernelFactory = StatusOr<KernelPtr> (*)(const plan::Op& op);

#define EFF_OP(id, name, ...) StatusOr<KernelPtr> make_##name(const plan::Op& op);
#include "plan/op_table.inc"
#undef EFF_OP

}  // namespace effnet::cuda
