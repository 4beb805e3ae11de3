// The part of cuBLASLt 13 that the backend calls, so that it builds where the library's header is not installed;
// native/tests/cuda_headers_test.cc holds it against that header where it is.
#pragma once

#include <cstddef>
#include <cstdint>

namespace effnet::cuda::lt {

// Of types of their own, so that none is taken for another.
using Handle = struct HandleOpaque*;
using MatmulDesc = struct MatmulDescOpaque*;
using Layout = struct LayoutOpaque*;
using Preference = struct PreferenceOpaque*;
using Stream = void*;

struct Algorithm {
  uint64_t data[8];
};

struct Heuristic {
  Algorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

enum Result : int { kSuccess = 0, kAllocFailed = 3, kInvalidValue = 7, kArchMismatch = 8, kNotSupported = 15 };
enum DataType : int { kF32 = 0, kF16 = 2, kBf16 = 14 };
enum Compute : int { kCompute32F = 68, kCompute32FFastTf32 = 77 };
enum Operation : int { kPlain = 0, kTransposed = 1 };
enum DescAttribute : int { kTransA = 3, kTransB = 4, kEpilogue = 7, kBiasPointer = 8, kBiasDataType = 26 };
enum Epilogue : uint32_t { kEpilogueNone = 1, kEpilogueBias = 4 };
enum PreferenceAttribute : int {
  kMaxWorkspaceBytes = 1,
  kReductionSchemes = 3,
  kAlignmentA = 5,
  kAlignmentB = 6,
  kAlignmentC = 7,
  kAlignmentD = 8,
  kImplementations = 12,
};
enum ReductionScheme : uint32_t { kReduceInComputeType = 2 };
enum AlgorithmAttribute : int { kAlgorithmImplementation = 15 };
// What an algorithm computes with.
enum Implementation : uint64_t {
  kMultiplyAdds = 0x01,
  kTensorOps = 0xfe,
  kSumsF32 = 0x02 << 8,
  kFactorsF32 = 0x08 << 16,
};

// All return a Result.
#define EFF_CUBLASLT(X)                                                                                             \
  X(cublasLtCreate, Handle*)                                                                                        \
  X(cublasLtDestroy, Handle)                                                                                        \
  X(cublasLtMatmulDescCreate, MatmulDesc*, int compute, int scale_type)                                             \
  X(cublasLtMatmulDescDestroy, MatmulDesc)                                                                          \
  X(cublasLtMatmulDescSetAttribute, MatmulDesc, int attribute, const void* value, size_t bytes)                     \
  X(cublasLtMatrixLayoutCreate, Layout*, int type, uint64_t rows, uint64_t columns, int64_t leading)                \
  X(cublasLtMatrixLayoutDestroy, Layout)                                                                            \
  X(cublasLtMatmulPreferenceCreate, Preference*)                                                                    \
  X(cublasLtMatmulPreferenceDestroy, Preference)                                                                    \
  X(cublasLtMatmulPreferenceSetAttribute, Preference, int attribute, const void* value, size_t bytes)               \
  X(cublasLtMatmulAlgoGetHeuristic, Handle, MatmulDesc, Layout a, Layout b, Layout c, Layout d, Preference,         \
    int wanted, Heuristic* results, int* count)                                                                     \
  X(cublasLtMatmulAlgoCapGetAttribute, const Algorithm*, int attribute, void* value, size_t bytes, size_t* written) \
  X(cublasLtMatmul, Handle, MatmulDesc, const void* alpha, const void* a, Layout a_layout, const void* b,           \
    Layout b_layout, const void* beta, const void* c, Layout c_layout, void* d, Layout d_layout, const Algorithm*,  \
    void* workspace, size_t workspace_bytes, Stream)

using GetVersion = size_t();  // cublasLtGetVersion, which library.cc asks first

struct Functions {
#define X(name, ...) int (*name)(__VA_ARGS__) = nullptr;
  EFF_CUBLASLT(X)
#undef X
};

}  // namespace effnet::cuda::lt
