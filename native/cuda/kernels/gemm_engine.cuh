// What a warp does with a stage: its kWarpRows x kWarpColumns sums, on tensor cores or by FP32 multiply-adds.
//
//   multiply(a, b, terms)   sums += a * b over the first `terms` of the stage
//   each(f)                 f(sum) for the sums of this thread, in the same order always
//   visit(slab, f)          f(row, column, v0, v1) for this lane's sums of rows 16 * slab .. + 15, two columns at a
//   time
#pragma once

#include "cuda/device/tensor_core.h"
#include "cuda/device/vector.h"
#include "cuda/kernels/gemm_tile.h"

namespace effnet::cuda {

// Operands of TensorEngine's instructions out of shared memory: 16 rows of A, or 16 columns of B (two fragments), by
// kStep terms from term k on. `row`, `column`: the first of them.
template <class T, Layout kLayout, int kPitch>
struct Fragments {
  static constexpr int kStep = 32 / static_cast<int>(sizeof(T));  // terms of an instruction

  static EFF_DEVICE void load_a(uint32_t (&r)[4], const T* a, int row, int k) {
    const int lane = static_cast<int>(thread_id()) % 32;
    if constexpr (kLayout == Layout::by_rows) {
      load_matrices(r, a + (row + lane % 16) * kPitch + k + lane / 16 * (kStep / 2));
      if constexpr (sizeof(T) == 4) to_tf32_all(r);
    } else if constexpr (sizeof(T) == 2) {
      load_matrices_transposed(r, a + (k + lane / 16 * 8 + lane % 8) * kPitch + row + lane / 8 % 2 * 8);
    } else {
      const T* at = a + (k + lane % 4) * kPitch + row + lane / 4;
      r[0] = to_tf32(at[0]);
      r[1] = to_tf32(at[8]);
      r[2] = to_tf32(at[4 * kPitch]);
      r[3] = to_tf32(at[4 * kPitch + 8]);
    }
  }
  static EFF_DEVICE void load_b(uint32_t (&r)[4], const T* b, int column, int k) {
    const int lane = static_cast<int>(thread_id()) % 32;
    if constexpr (kLayout == Layout::by_rows) {
      load_matrices(r, b + (column + lane / 16 * 8 + lane % 8) * kPitch + k + lane / 8 % 2 * (kStep / 2));
      if constexpr (sizeof(T) == 4) to_tf32_all(r);
    } else if constexpr (sizeof(T) == 2) {
      load_matrices_transposed(r, b + (k + lane % 16) * kPitch + column + lane / 16 * 8);
    } else {
      const T* at = b + (k + lane % 4) * kPitch + column + lane / 4;
      r[0] = to_tf32(at[0]);
      r[1] = to_tf32(at[4 * kPitch]);
      r[2] = to_tf32(at[8]);
      r[3] = to_tf32(at[4 * kPitch + 8]);
    }
  }

 private:
  static EFF_DEVICE void to_tf32_all(uint32_t (&r)[4]) {
    EFF_UNROLL
    for (int i = 0; i < 4; ++i) r[i] = to_tf32(bits_to_float(r[i]));
  }
};

// Bf16, F16: mma.m16n8k16; float: as TF32, mma.m16n8k8.
template <class T, class Shape>
class TensorEngine {
 public:
  static constexpr int kRowTiles = Shape::kWarpRows / 16, kColumnTiles = Shape::kWarpColumns / 8;
  static constexpr int kStep = 32 / static_cast<int>(sizeof(T));  // terms of an instruction

  EFF_DEVICE void clear() {
    EFF_UNROLL
    for (int i = 0; i < kRowTiles; ++i) {
      EFF_UNROLL
      for (int j = 0; j < kColumnTiles; ++j) {
        EFF_UNROLL
        for (int r = 0; r < 4; ++r) sums_[i][j][r] = 0.0f;
      }
    }
  }

  EFF_DEVICE void multiply(const T* a, const T* b, int terms) {
    const int warp = static_cast<int>(thread_id()) / 32;
    const int row = warp / Shape::kWarpsN * Shape::kWarpRows, column = warp % Shape::kWarpsN * Shape::kWarpColumns;
    EFF_UNROLL
    for (int k = 0; k < Shape::kDepth; k += kStep) {
      if (k >= terms) break;
      uint32_t fa[kRowTiles][4];
      EFF_UNROLL
      for (int i = 0; i < kRowTiles; ++i) A::load_a(fa[i], a, row + 16 * i, k);
      EFF_UNROLL
      for (int j = 0; j < kColumnTiles; j += 2) {
        uint32_t fb[4];
        B::load_b(fb, b, column + 8 * j, k);
        EFF_UNROLL
        for (int i = 0; i < kRowTiles; ++i) {
          mma<T>(sums_[i][j], fa[i], {fb[0], fb[1]});
          mma<T>(sums_[i][j + 1], fa[i], {fb[2], fb[3]});
        }
      }
    }
  }

  template <class F>
  EFF_DEVICE void each(F f) {
    EFF_UNROLL
    for (int i = 0; i < kRowTiles; ++i) {
      EFF_UNROLL
      for (int j = 0; j < kColumnTiles; ++j) {
        EFF_UNROLL
        for (int r = 0; r < 4; ++r) f(sums_[i][j][r]);
      }
    }
  }

  template <class F>
  EFF_DEVICE void visit(int slab, F f) const {
    const int lane = static_cast<int>(thread_id()) % 32;
    EFF_UNROLL
    for (int i = 0; i < kRowTiles; ++i) {
      if (i != slab) continue;
      EFF_UNROLL
      for (int j = 0; j < kColumnTiles; ++j) {
        f(lane / 4, 8 * j + lane % 4 * 2, sums_[i][j][0], sums_[i][j][1]);
        f(lane / 4 + 8, 8 * j + lane % 4 * 2, sums_[i][j][2], sums_[i][j][3]);
      }
    }
  }

 private:
  using A = Fragments<T, Shape::kLayoutA, Shape::kPitchA>;
  using B = Fragments<T, Shape::kLayoutB, Shape::kPitchB>;

  float sums_[kRowTiles][kColumnTiles][4];
};

// A lane has 4 consecutive rows of each slab, and pairs of columns 16 apart.
template <class Shape>
class FmaEngine {
 public:
  static constexpr int kSlabs = Shape::kWarpRows / 16, kPairs = Shape::kWarpColumns / 16;

  EFF_DEVICE void clear() {
    EFF_UNROLL
    for (int i = 0; i < 4 * kSlabs; ++i) {
      EFF_UNROLL
      for (int j = 0; j < 2 * kPairs; ++j) sums_[i][j] = 0.0f;
    }
  }

  EFF_DEVICE void multiply(const float* a, const float* b, int terms) {
    const int warp = static_cast<int>(thread_id()) / 32, lane = static_cast<int>(thread_id()) % 32;
    const int row = warp / Shape::kWarpsN * Shape::kWarpRows + lane / 8 * 4;
    const int column = warp % Shape::kWarpsN * Shape::kWarpColumns + lane % 8 * 2;
    EFF_UNROLL
    for (int k = 0; k < Shape::kDepth; k += 4) {
      if (k >= terms) break;
      float fa[4 * kSlabs][4];  // [row][term]
      EFF_UNROLL
      for (int i = 0; i < 4 * kSlabs; ++i) {
        const int at = row + i / 4 * 16;
        if constexpr (Shape::kLayoutA == Layout::by_rows) {
          load_floats(a + (at + i % 4) * kPitchA + k, fa[i]);
        } else {
          float across[4];  // four rows of term i % 4
          load_floats(a + (k + i % 4) * kPitchA + at, across);
          EFF_UNROLL
          for (int r = 0; r < 4; ++r) fa[i / 4 * 4 + r][i % 4] = across[r];
        }
      }
      EFF_UNROLL
      for (int j = 0; j < 2 * kPairs; ++j) {
        float fb[4];  // of one column, by term
        if constexpr (Shape::kLayoutB == Layout::by_rows) {
          load_floats(b + (column + j / 2 * 16 + j % 2) * kPitchB + k, fb);
        } else {
          EFF_UNROLL
          for (int t = 0; t < 4; ++t) fb[t] = b[(k + t) * kPitchB + column + j / 2 * 16 + j % 2];
        }
        EFF_UNROLL
        for (int t = 0; t < 4; ++t) {
          EFF_UNROLL
          for (int i = 0; i < 4 * kSlabs; ++i) sums_[i][j] = fma(fa[i][t], fb[t], sums_[i][j]);
        }
      }
    }
  }

  template <class F>
  EFF_DEVICE void each(F f) {
    EFF_UNROLL
    for (int i = 0; i < 4 * kSlabs; ++i) {
      EFF_UNROLL
      for (int j = 0; j < 2 * kPairs; ++j) f(sums_[i][j]);
    }
  }

  template <class F>
  EFF_DEVICE void visit(int slab, F f) const {
    const int lane = static_cast<int>(thread_id()) % 32;
    EFF_UNROLL
    for (int i = 0; i < 4 * kSlabs; ++i) {
      if (i / 4 != slab) continue;
      EFF_UNROLL
      for (int j = 0; j < kPairs; ++j)
        f(lane / 8 * 4 + i % 4, lane % 8 * 2 + 16 * j, sums_[i][2 * j], sums_[i][2 * j + 1]);
    }
  }

 private:
  static constexpr int kPitchA = Shape::kPitchA, kPitchB = Shape::kPitchB;

  float sums_[4 * kSlabs][2 * kPairs];
};

}  // namespace effnet::cuda
