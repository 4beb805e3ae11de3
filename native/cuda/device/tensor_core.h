// Words of matrix products: tensor-core instructions, the loads of their fragments, and copies into shared memory that
// run beside the arithmetic. The stand-ins for the emulation are written from the layouts of the PTX ISA:
//
//   mma.m16n8k16   a[0] rows g, a[1] rows g + 8 of columns 2q, 2q + 1; a[2], a[3] the same rows of columns 8 further.
//   (16 bits)      b[0] rows 2q, 2q + 1, b[1] rows 8 further, of column g. The lower half of a word comes first.
//   mma.m16n8k8    a[0] row g, a[1] row g + 8 of column q; a[2], a[3] of column q + 4. b[0] row q, b[1] row q + 4 of
//   (TF32)         column g.
//   both           d[0], d[1] row g, d[2], d[3] row g + 8; columns 2q and 2q + 1.
//   ldmatrix.x4    lanes 8i .. 8i + 7 point to the eight 16-byte rows of matrix i; a lane receives in r[i] the word of
//                  row g, 4q bytes in; transposed, the 16-bit elements 2q and 2q + 1 of column g.
//
// where g = lane / 4 and q = lane % 4.
#pragma once

#include "cuda/device/device.h"
#ifndef __CUDACC__
#include "cuda/device/tensor_core_emulation.h"
#endif

namespace effnet::cuda {

// d += a * b, sums in FP32. All lanes of a warp together.
template <class T>
EFF_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef __CUDACC__
  if constexpr (sizeof(T) == 4)  // TF32
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else if constexpr (T::kIsBf16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emulation::mma<T>(d, a, b, __LINE__);
#endif
}

// The bits of `v` as TF32: to nearest, ties away from zero.
EFF_DEVICE uint32_t to_tf32(float v) {
#ifdef __CUDACC__
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
#else
  return emulation::to_tf32(v);
#endif
}

// Four 8 x 8 matrices of 16-bit elements (or 8 x 4 of 32 bits) out of shared memory. `row`: see above, 16-byte aligned.
EFF_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
#else
  emulation::load_matrices(r, row, false, __LINE__);
#endif
}
EFF_DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
#else
  emulation::load_matrices(r, row, true, __LINE__);
#endif
}

// 16 bytes of global memory into shared memory, or zeros where not `valid`; both addresses 16-byte aligned. A thread
// sees its own copies when copies_wait returns, the block those of others behind a barrier after that.
EFF_DEVICE void copy_async(void* shared, const void* global, bool valid) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(global), "r"(valid ? 16 : 0)
      : "memory");
#else
  emulation::copy_async(shared, global, 16, valid);
#endif
}
// Ends a group of copies, which may be empty.
EFF_DEVICE void copies_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulation::copies_commit();
#endif
}
// Waits until no more than the newest `pending` groups of this thread are under way.
template <int pending>
EFF_DEVICE void copies_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#else
  emulation::copies_wait(pending);
#endif
}

// Orders what lanes of a warp wrote to shared memory before what they read behind it.
EFF_DEVICE void sync_warp() {
#ifdef __CUDACC__
  __syncwarp();
#else
  emulation::sync_warp(~0u, __LINE__);
#endif
}

}  // namespace effnet::cuda
