// What a CPU kernel is: an op bound to code. The executor runs a step as a list of kernels, each as one or more phases
// with a barrier between them, each phase as independent shards on the pool's threads.
//
// Rules: the number of shards and the split of the work depend on shapes only, never on the thread count, and every
// reduction has a fixed order; so 1, 2 or 16 threads give the same bits. run() never throws or blocks, and allocates
// nothing but the handles that oneDNN wants for a call (onednn/adapter.cc); it changes nothing of the kernel itself:
// several images of a region may be in one kernel at once.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/status.h"
#include "core/step_scalars.h"
#include "plan/plan.h"

namespace effnet::cpu {

struct ExecContext {
  std::byte* const* arenas;  // indexed by plan::Arena
  const StepScalars* scalars;
  std::byte* worker_scratch;  // of this thread: at least worker_scratch_bytes() of the kernel, 64-byte aligned
  std::byte* shared_scratch;  // of this op: shared_scratch_bytes(), kept from phase to phase, undefined at the first
  int worker;                 // 0-based thread number; for diagnostics only, never for results

  std::atomic<int>* failure = nullptr;   // where expect_ok() leaves the first status of a library that is not 0
  std::atomic<bool>* unsound = nullptr;  // set by an update that made a parameter NaN or infinite

  // Of this phase on this thread; if false, the worker scratch is as the one before left it.
  bool first_shard = true;

  uint64_t image = 0;  // which one this is about, in a region of the plan

  void expect_ok(int status) const {
    int none = 0;
    if (status && failure) failure->compare_exchange_strong(none, status);
  }
  void mark_unsound() const {
    if (unsound) unsound->store(true, std::memory_order_relaxed);
  }
  template <class T>
  T* ptr(const plan::Tensor* t) const {
    return t ? reinterpret_cast<T*>(arenas[static_cast<int>(t->arena)] + t->offset + image * t->image_stride) : nullptr;
  }
  std::byte* arena(plan::Arena a) const { return arenas[static_cast<int>(a)]; }
};

class Kernel {
 public:
  virtual ~Kernel() = default;
  // The name shown by dump() and pinned by tests, e.g. "dwconv_fwd_f32:avx3". It names the instruction set.
  virtual const char* name() const = 0;
  virtual int phases() const { return 1; }
  virtual int shards(int phase) const = 0;
  virtual void run(int phase, int shard, const ExecContext& ctx) = 0;
  // Called on one thread when weights changed and before the first step: pack what does not change between steps.
  virtual void prepare(const ExecContext&) {}
  virtual size_t worker_scratch_bytes() const { return 0; }
  virtual size_t shared_scratch_bytes() const { return 0; }
  virtual size_t persistent_bytes() const { return 0; }  // owned by the kernel (packed weights); for accounting
  virtual double flops() const { return 0; }             // one step, a multiply-add counts 2
};

using KernelPtr = std::unique_ptr<Kernel>;
// Every op has a factory `make_<op>`; it refuses dtypes and shapes it has no code for with Code::plan_invalid.
using KernelFactory = StatusOr<KernelPtr> (*)(const plan::Op& op);

// The answer to an op in a form that only passes for GPUs make.
inline Status for_gpus(const char* what) { return error(Code::plan_invalid, "it %s: that is for GPUs", what); }

#define EFF_OP(id, name, ...) StatusOr<KernelPtr> make_##name(const plan::Op& op);
#include "plan/op_table.inc"
#undef EFF_OP

}  // namespace effnet::cpu
