// What the backend declares of NVIDIA's libraries by itself, beside their own headers.
#include <cublasLt.h>
#if __has_include(<cudnn.h>)
#include <cudnn.h>
#endif
#include <gtest/gtest.h>
#include <nvjpeg.h>

#include <type_traits>

#include "cuda/providers/cublaslt_api.h"
#include "cuda/providers/cudnn_api.h"
#include "cuda/providers/nvjpeg_api.h"

namespace effnet::test {
namespace {

namespace lt = cuda::lt;
namespace nj = cuda::nvjpeg;

#define EFF_SAME(ours, theirs) static_assert(static_cast<long>(ours) == static_cast<long>(theirs))
EFF_SAME(lt::kSuccess, CUBLAS_STATUS_SUCCESS);
EFF_SAME(lt::kAllocFailed, CUBLAS_STATUS_ALLOC_FAILED);
EFF_SAME(lt::kInvalidValue, CUBLAS_STATUS_INVALID_VALUE);
EFF_SAME(lt::kNotSupported, CUBLAS_STATUS_NOT_SUPPORTED);
EFF_SAME(lt::kF32, CUDA_R_32F);
EFF_SAME(lt::kF16, CUDA_R_16F);
EFF_SAME(lt::kBf16, CUDA_R_16BF);
EFF_SAME(lt::kCompute32F, CUBLAS_COMPUTE_32F);
EFF_SAME(lt::kCompute32FFastTf32, CUBLAS_COMPUTE_32F_FAST_TF32);
EFF_SAME(lt::kPlain, CUBLAS_OP_N);
EFF_SAME(lt::kTransposed, CUBLAS_OP_T);
EFF_SAME(lt::kTransA, CUBLASLT_MATMUL_DESC_TRANSA);
EFF_SAME(lt::kTransB, CUBLASLT_MATMUL_DESC_TRANSB);
EFF_SAME(lt::kEpilogue, CUBLASLT_MATMUL_DESC_EPILOGUE);
EFF_SAME(lt::kBiasPointer, CUBLASLT_MATMUL_DESC_BIAS_POINTER);
EFF_SAME(lt::kBiasDataType, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE);
EFF_SAME(lt::kEpilogueNone, CUBLASLT_EPILOGUE_DEFAULT);
EFF_SAME(lt::kEpilogueBias, CUBLASLT_EPILOGUE_BIAS);
EFF_SAME(lt::kMaxWorkspaceBytes, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
EFF_SAME(lt::kReductionSchemes, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
EFF_SAME(lt::kAlignmentA, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
EFF_SAME(lt::kAlignmentB, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
EFF_SAME(lt::kAlignmentC, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
EFF_SAME(lt::kAlignmentD, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
EFF_SAME(lt::kImplementations, CUBLASLT_MATMUL_PREF_IMPL_MASK);
EFF_SAME(lt::kAlgorithmImplementation, CUBLASLT_ALGO_CAP_NUMERICAL_IMPL_FLAGS);
EFF_SAME(lt::kMultiplyAdds, CUBLASLT_NUMERICAL_IMPL_FLAGS_FMA);
EFF_SAME(lt::kTensorOps, CUBLASLT_NUMERICAL_IMPL_FLAGS_TENSOR_OP_MASK);
EFF_SAME(lt::kSumsF32, CUBLASLT_NUMERICAL_IMPL_FLAGS_ACCUMULATOR_32F);
EFF_SAME(lt::kFactorsF32, CUBLASLT_NUMERICAL_IMPL_FLAGS_INPUT_32F);
EFF_SAME(lt::kArchMismatch, CUBLAS_STATUS_ARCH_MISMATCH);
EFF_SAME(lt::kReduceInComputeType, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
EFF_SAME(sizeof(lt::Algorithm), sizeof(cublasLtMatmulAlgo_t));
EFF_SAME(sizeof(lt::Heuristic), sizeof(cublasLtMatmulHeuristicResult_t));
EFF_SAME(offsetof(lt::Heuristic, workspace_bytes), offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
EFF_SAME(offsetof(lt::Heuristic, state), offsetof(cublasLtMatmulHeuristicResult_t, state));

EFF_SAME(nj::kSuccess, NVJPEG_STATUS_SUCCESS);
EFF_SAME(nj::kNotInitialized, NVJPEG_STATUS_NOT_INITIALIZED);
EFF_SAME(nj::kInvalidParameter, NVJPEG_STATUS_INVALID_PARAMETER);
EFF_SAME(nj::kBadJpeg, NVJPEG_STATUS_BAD_JPEG);
EFF_SAME(nj::kJpegNotSupported, NVJPEG_STATUS_JPEG_NOT_SUPPORTED);
EFF_SAME(nj::kAllocatorFailure, NVJPEG_STATUS_ALLOCATOR_FAILURE);
EFF_SAME(nj::kExecutionFailed, NVJPEG_STATUS_EXECUTION_FAILED);
EFF_SAME(nj::kInternalError, NVJPEG_STATUS_INTERNAL_ERROR);
EFF_SAME(nj::kImplementationNotSupported, NVJPEG_STATUS_IMPLEMENTATION_NOT_SUPPORTED);
EFF_SAME(nj::kIncompleteBitstream, NVJPEG_STATUS_INCOMPLETE_BITSTREAM);
EFF_SAME(nj::kBackendDefault, NVJPEG_BACKEND_DEFAULT);
EFF_SAME(nj::kOutputRgbInterleaved, NVJPEG_OUTPUT_RGBI);
EFF_SAME(nj::kInterpolatedChroma, NVJPEG_FLAGS_UPSAMPLING_WITH_INTERPOLATION);
EFF_SAME(sizeof(nj::Image), sizeof(nvjpegImage_t));
EFF_SAME(sizeof(nj::Allocator), sizeof(nvjpegDevAllocatorV2_t));
EFF_SAME(sizeof(nj::Allocator), sizeof(nvjpegPinnedAllocatorV2_t));
EFF_SAME(offsetof(nj::Allocator, free), offsetof(nvjpegDevAllocatorV2_t, dev_free));
EFF_SAME(offsetof(nj::Allocator, free), offsetof(nvjpegPinnedAllocatorV2_t, pinned_free));
EFF_SAME(offsetof(nj::Allocator, context), offsetof(nvjpegDevAllocatorV2_t, dev_ctx));
EFF_SAME(offsetof(nj::Allocator, context), offsetof(nvjpegPinnedAllocatorV2_t, pinned_ctx));
EFF_SAME(offsetof(nj::Image, pitch), offsetof(nvjpegImage_t, pitch));

EFF_SAME(nj::kMajor, MAJOR_VERSION);
EFF_SAME(nj::kMinor, MINOR_VERSION);
EFF_SAME(nj::kPatch, PATCH_LEVEL);

// Whether a type of ours stands for the header's: it is the same, an int for an enumeration, or one of the pairs below;
// of pointers, what they point to.
template <class Ours, class Theirs>
constexpr bool kStandsFor = std::is_same_v<Ours, Theirs>;
template <class Theirs>
requires(std::is_enum_v<Theirs>) constexpr bool kStandsFor<int, Theirs> = sizeof(Theirs) == sizeof(int);
template <class Ours, class Theirs>
constexpr bool kStandsFor<Ours*, Theirs*> =
    std::is_const_v<Ours> ==
    std::is_const_v<Theirs>&& kStandsFor<std::remove_const_t<Ours>, std::remove_const_t<Theirs>>;
#define EFF_STANDS_FOR(ours, theirs) \
  template <>                        \
  constexpr bool kStandsFor<ours, theirs> = true;
EFF_STANDS_FOR(lt::Handle, cublasLtHandle_t)
EFF_STANDS_FOR(lt::MatmulDesc, cublasLtMatmulDesc_t)
EFF_STANDS_FOR(lt::Layout, cublasLtMatrixLayout_t)
EFF_STANDS_FOR(lt::Preference, cublasLtMatmulPreference_t)
EFF_STANDS_FOR(lt::Algorithm, cublasLtMatmulAlgo_t)
EFF_STANDS_FOR(lt::Heuristic, cublasLtMatmulHeuristicResult_t)
EFF_STANDS_FOR(nj::Handle, nvjpegHandle_t)
EFF_STANDS_FOR(nj::State, nvjpegJpegState_t)
EFF_STANDS_FOR(nj::Image, nvjpegImage_t)
EFF_STANDS_FOR(nj::Allocator, nvjpegDevAllocatorV2_t)
EFF_STANDS_FOR(nj::Allocator, nvjpegPinnedAllocatorV2_t)
EFF_STANDS_FOR(lt::Stream, cudaStream_t)  // the same for nj::Stream

// Of functions, their results and as many parameters.
template <class Ours, class Theirs>
constexpr bool kSameCall = false;
template <class R, class... Ours, class S, class... Theirs>
requires(sizeof...(Ours) ==
         sizeof...(Theirs)) constexpr bool kSameCall<R(Ours...), S(Theirs...)> = kStandsFor<R, S> &&
                                                                                 (kStandsFor<Ours, Theirs> && ...);
#define EFF_CHECK(name, ...) EXPECT_TRUE((kSameCall<int(__VA_ARGS__), decltype(::name)>)) << #name;

static_assert(kSameCall<lt::GetVersion, decltype(cublasLtGetVersion)>);
static_assert(kSameCall<nj::GetProperty, decltype(nvjpegGetProperty)>);
#if __has_include(<cudnn.h>)
static_assert(kSameCall<cuda::CudnnGetVersion, decltype(cudnnGetVersion)>);
#endif
template <class Ours, class Theirs>
constexpr bool kSamePointer = kSameCall<std::remove_pointer_t<Ours>, std::remove_pointer_t<Theirs>>;
static_assert(kSamePointer<decltype(nj::Allocator::allocate), decltype(nvjpegDevAllocatorV2_t::dev_malloc)>);
static_assert(kSamePointer<decltype(nj::Allocator::allocate), decltype(nvjpegPinnedAllocatorV2_t::pinned_malloc)>);
static_assert(kSamePointer<decltype(nj::Allocator::free), decltype(nvjpegDevAllocatorV2_t::dev_free)>);
static_assert(kSamePointer<decltype(nj::Allocator::free), decltype(nvjpegPinnedAllocatorV2_t::pinned_free)>);

// Mistakes that have as many bytes as what is right.
using Decode = decltype(nvjpegDecodeBatchedInitialize);
static_assert(kSameCall<int(nj::Handle, nj::State, int, int, int), Decode>);
static_assert(!kSameCall<int(nj::State, nj::Handle, int, int, int), Decode>, "two handles that change places");
static_assert(!kSameCall<int(nj::Handle, nj::State, int, int, float), Decode>, "a number of another kind");
static_assert(!kSameCall<int(nj::Handle, nj::State, int, int, unsigned), Decode>);
static_assert(!kSameCall<float(nj::Handle, nj::State, int, int, int), Decode>);
static_assert(!kSameCall<int(nj::Handle, nj::State, int, int), Decode>, "a parameter less");
using Create = decltype(cublasLtMatrixLayoutCreate);
static_assert(kSameCall<int(lt::Layout*, int, uint64_t, uint64_t, int64_t), Create>);
static_assert(!kSameCall<int(lt::Layout*, int, uint64_t, int64_t, uint64_t), Create>, "two sizes that change places");
static_assert(!kSameCall<int(lt::Layout, int, uint64_t, uint64_t, int64_t), Create>, "a handle for where one comes to");
static_assert(!kSameCall<int(const lt::Layout*, int, uint64_t, uint64_t, int64_t), Create>);

TEST(CudaHeaders, CublasLt) {
  using namespace cuda::lt;
  EFF_CUBLASLT(EFF_CHECK)
}

TEST(CudaHeaders, NvJpeg) {
  using namespace cuda::nvjpeg;
  EFF_NVJPEG(EFF_CHECK)
}

}  // namespace
}  // namespace effnet::test
