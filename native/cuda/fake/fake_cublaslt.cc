// A libcublasLt.so.13 without a GPU, for tests: it computes products in double, on the streams of the fake driver, and
// is stricter than the real one about what it is given.
//
//   - Every object must be live; attributes must have their sizes; layouts must fit the product, and be those that the
//     algorithm was found for; addresses must have the alignment that was promised.
//   - Only the types that cuBLASLt knows; TF32 rounds the factors. A 16-bit result takes no FP32 bias.
//   - Results of few columns and long sums want a workspace, and overwrite all of it: what overlaps becomes NaN.
//   - FAKE_CUBLASLT_FAIL=name:nth:status makes the nth call of a function fail; FAKE_CUBLASLT_STATE=status is that of
//     every algorithm it finds; FAKE_CUBLASLT_VERSION is what it says it is.
//   - FP32 products without TF32 want algorithms that emulate nothing; with FAKE_CUBLASLT_EMULATE=1 it finds one that
//     does.
//   - fake_cublaslt_live() counts objects, fake_cublaslt_calls(name) calls, fake_cublaslt_misuse() is what it was last
//     given that it should not have been; fake_cublaslt_reset() forgets calls and misuse.
#include <dlfcn.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/fake/fake_calls.h"
#include "cuda/providers/cublaslt_api.h"
#include "tests/half.h"

namespace {

using namespace effnet::cuda::lt;
using effnet::fake::Calls;
using effnet::fake::queue_kernel;

constexpr int kExecutionFailed = 13;

struct Object {
  enum class Kind { handle, desc, layout, preference } kind;
  int compute = 0, bias_type = -1;
  int transposed[2] = {};
  uint32_t epilogue = kEpilogueNone;
  const void* bias = nullptr;
  int type = 0;
  uint64_t rows = 0, columns = 0;
  uint64_t workspace = 0, implementations = ~uint64_t{0};
  uint32_t reductions = 7, alignment[4] = {256, 256, 256, 256};
};

struct Fake {
  std::mutex mutex;
  std::map<void*, Object*> live;
  Calls calls{"FAKE_CUBLASLT_FAIL"};
};
Fake& fake() {
  static Fake* const one = new Fake;
  return *one;
}

int wrong(const std::string& what) {
  fake().calls.misuse = what;
  return kInvalidValue;
}

Object* find(void* object, Object::Kind kind) {
  const auto found = fake().live.find(object);
  return found != fake().live.end() && found->second->kind == kind ? found->second : nullptr;
}
template <class Handle>
int create(Handle* into, Object object) {
  auto* made = new Object(object);
  fake().live[made] = made;
  *into = reinterpret_cast<Handle>(made);
  return kSuccess;
}
int destroy(void* object, Object::Kind kind) {
  Object* found = find(object, kind);
  if (!found) return wrong("something is destroyed that is not there");
  fake().live.erase(object);
  delete found;
  return kSuccess;
}

size_t bytes_of(int type) { return type == kF32 ? 4 : 2; }

struct Shape {
  uint64_t m, n, k;
};
bool shape_of(const Object& desc, const Object& a, const Object& b, const Object& d, Shape& s) {
  s.m = desc.transposed[0] ? a.columns : a.rows;
  s.k = desc.transposed[0] ? a.rows : a.columns;
  s.n = desc.transposed[1] ? b.rows : b.columns;
  return (desc.transposed[1] ? b.columns : b.rows) == s.k && d.rows == s.m && d.columns == s.n;
}
uint64_t workspace_for(const Shape& s) { return s.m * s.n <= 4096 && s.k >= 32 ? 2 * s.m * s.n * sizeof(float) : 0; }

// What an algorithm is for: it may be used for nothing else.
Algorithm algorithm_for(const Object& desc, const Object& a, const Object& b, const Object& d, const Object& p,
                        uint64_t nth) {
  return {{a.rows << 32 | a.columns, b.rows << 32 | b.columns, d.rows << 32 | d.columns,
           static_cast<uint64_t>(a.type) << 32 | static_cast<uint64_t>(d.type),
           static_cast<uint64_t>(desc.compute) << 32 | desc.epilogue,
           uint64_t{p.alignment[0]} << 48 | uint64_t{p.alignment[1]} << 32 | p.alignment[2] << 16 | p.alignment[3], nth,
           0xc0b1a5}};
}

double value_at(const void* data, int type, uint64_t i) {
  if (type == kF32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  return type == kBf16 ? effnet::test::bf16_to_float(bits) : effnet::test::f16_to_float(bits);
}
void store(void* data, int type, uint64_t i, double value) {
  const auto single = static_cast<float>(value);
  if (type == kF32)
    static_cast<float*>(data)[i] = single;
  else
    static_cast<uint16_t*>(data)[i] =
        type == kBf16 ? effnet::test::float_to_bf16(single) : effnet::test::float_to_f16(single);
}
// To 10 bits of mantissa, halves away from 0.
double to_tf32(double value) {
  float single = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &single, 4);
  bits = (bits + 0x1000) & ~0x1fffu;
  std::memcpy(&single, &bits, 4);
  return single;
}

struct Work {
  Object desc, a_layout, b_layout, d_layout;
  Shape shape;
  const void *a, *b, *c;
  void *d, *workspace;
  size_t workspace_bytes;
  double alpha, beta;

  void run() const {
    const auto in = [&](const void* data, const Object& layout, bool transposed, uint64_t row, uint64_t column) {
      const double v =
          value_at(data, layout.type, transposed ? row * layout.rows + column : column * layout.rows + row);
      return desc.compute == kCompute32FFastTf32 ? to_tf32(v) : v;
    };
    std::vector<double> sums(shape.m * shape.n);
    for (uint64_t j = 0; j < shape.n; ++j)
      for (uint64_t i = 0; i < shape.m; ++i) {
        double sum = 0;
        for (uint64_t k = 0; k < shape.k; ++k)
          sum += in(a, a_layout, desc.transposed[0], i, k) * in(b, b_layout, desc.transposed[1], k, j);
        sum *= alpha;
        if (beta != 0) sum += beta * value_at(c, d_layout.type, j * shape.m + i);
        if (desc.epilogue == kEpilogueBias) sum += value_at(desc.bias, desc.bias_type, i);
        sums[j * shape.m + i] = sum;
      }
    if (workspace) std::memset(workspace, 0xff, workspace_bytes);
    for (uint64_t i = 0; i < sums.size(); ++i) store(d, d_layout.type, i, sums[i]);
  }
};

bool aligned(const void* address, uint32_t to) { return reinterpret_cast<uintptr_t>(address) % to == 0; }

}  // namespace

#define EFF_FAKE(name, ...) EFF_EXPORT int name(__VA_ARGS__)
#define EFF_ENTER(name)                                 \
  const std::lock_guard<std::mutex> lock(fake().mutex); \
  if (const int failed = fake().calls.enter(#name)) return failed;

EFF_EXPORT size_t cublasLtGetVersion() {
  const char* version = std::getenv("FAKE_CUBLASLT_VERSION");
  return version ? static_cast<size_t>(std::atoi(version)) : 130002;
}
EFF_FAKE(cublasLtCreate, Handle* handle) {
  EFF_ENTER(cublasLtCreate)
  return create(handle, {Object::Kind::handle});
}
EFF_FAKE(cublasLtDestroy, Handle handle) {
  EFF_ENTER(cublasLtDestroy)
  return destroy(handle, Object::Kind::handle);
}
EFF_FAKE(cublasLtMatmulDescCreate, MatmulDesc* desc, int compute, int scale_type) {
  EFF_ENTER(cublasLtMatmulDescCreate)
  if (scale_type != kF32 || (compute != kCompute32F && compute != kCompute32FFastTf32)) return wrong("compute type");
  Object object{Object::Kind::desc};
  object.compute = compute;
  return create(desc, object);
}
EFF_FAKE(cublasLtMatmulDescDestroy, MatmulDesc desc) {
  EFF_ENTER(cublasLtMatmulDescDestroy)
  return destroy(desc, Object::Kind::desc);
}
EFF_FAKE(cublasLtMatmulDescSetAttribute, MatmulDesc handle, int attribute, const void* value, size_t bytes) {
  EFF_ENTER(cublasLtMatmulDescSetAttribute)
  Object* desc = find(handle, Object::Kind::desc);
  if (!desc || !value) return wrong("an attribute of no description");
  if (bytes != (attribute == kBiasPointer ? 8u : 4u)) return wrong("size of an attribute");
  switch (attribute) {
    case kTransA:
    case kTransB:
      std::memcpy(&desc->transposed[attribute - kTransA], value, 4);
      return kSuccess;
    case kEpilogue:
      std::memcpy(&desc->epilogue, value, 4);
      return desc->epilogue == kEpilogueNone || desc->epilogue == kEpilogueBias ? kSuccess : wrong("epilogue");
    case kBiasPointer:
      std::memcpy(&desc->bias, value, 8);
      return kSuccess;
    case kBiasDataType:
      std::memcpy(&desc->bias_type, value, 4);
      return kSuccess;
    default:
      return wrong("attribute of a product");
  }
}
EFF_FAKE(cublasLtMatrixLayoutCreate, Layout* layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  EFF_ENTER(cublasLtMatrixLayoutCreate)
  if (rows == 0 || columns == 0 || leading != static_cast<int64_t>(rows)) return wrong("layout");
  Object object{Object::Kind::layout};
  object.type = type;
  object.rows = rows;
  object.columns = columns;
  return create(layout, object);
}
EFF_FAKE(cublasLtMatrixLayoutDestroy, Layout layout) {
  EFF_ENTER(cublasLtMatrixLayoutDestroy)
  return destroy(layout, Object::Kind::layout);
}
EFF_FAKE(cublasLtMatmulPreferenceCreate, Preference* preference) {
  EFF_ENTER(cublasLtMatmulPreferenceCreate)
  return create(preference, {Object::Kind::preference});
}
EFF_FAKE(cublasLtMatmulPreferenceDestroy, Preference preference) {
  EFF_ENTER(cublasLtMatmulPreferenceDestroy)
  return destroy(preference, Object::Kind::preference);
}
EFF_FAKE(cublasLtMatmulPreferenceSetAttribute, Preference handle, int attribute, const void* value, size_t bytes) {
  EFF_ENTER(cublasLtMatmulPreferenceSetAttribute)
  Object* preference = find(handle, Object::Kind::preference);
  if (!preference || !value) return wrong("an attribute of no preference");
  if (bytes != (attribute == kMaxWorkspaceBytes || attribute == kImplementations ? 8u : 4u))
    return wrong("size of an attribute");
  switch (attribute) {
    case kMaxWorkspaceBytes:
      std::memcpy(&preference->workspace, value, 8);
      return kSuccess;
    case kImplementations:
      std::memcpy(&preference->implementations, value, 8);
      return kSuccess;
    case kReductionSchemes:
      std::memcpy(&preference->reductions, value, 4);
      return kSuccess;
    case kAlignmentA:
    case kAlignmentB:
    case kAlignmentC:
    case kAlignmentD:
      std::memcpy(&preference->alignment[attribute - kAlignmentA], value, 4);
      return kSuccess;
    default:
      return wrong("attribute of a preference");
  }
}
EFF_FAKE(cublasLtMatmulAlgoGetHeuristic, Handle handle, MatmulDesc desc_handle, Layout a_handle, Layout b_handle,
         Layout c_handle, Layout d_handle, Preference preference_handle, int wanted, Heuristic* results, int* count) {
  EFF_ENTER(cublasLtMatmulAlgoGetHeuristic)
  *count = 0;
  const Object *desc = find(desc_handle, Object::Kind::desc), *a = find(a_handle, Object::Kind::layout),
               *b = find(b_handle, Object::Kind::layout), *c = find(c_handle, Object::Kind::layout),
               *d = find(d_handle, Object::Kind::layout), *p = find(preference_handle, Object::Kind::preference);
  if (!find(handle, Object::Kind::handle) || !desc || !a || !b || !c || !d || !p || wanted < 1)
    return wrong("an algorithm asked for without all objects");
  Shape shape;
  if (!shape_of(*desc, *a, *b, *d, shape) || c->rows != d->rows || c->columns != d->columns || c->type != d->type)
    return wrong("layouts that do not fit each other");
  if (p->reductions != kReduceInComputeType) return wrong("sums in another type, or in any order");
  if (a->type == kF32 && desc->compute == kCompute32F && p->implementations & kTensorOps)
    return wrong("FP32 that may be emulated");
  const bool bias = desc->epilogue == kEpilogueBias;
  if (bias && desc->bias_type < 0) return wrong("a bias of no type");
  if (a->type != b->type || (d->type != a->type && d->type != kF32)) return kNotSupported;
  if (desc->compute == kCompute32FFastTf32 && a->type != kF32) return kNotSupported;
  if (bias && desc->bias_type != d->type) return kNotSupported;
  for (const uint32_t alignment : p->alignment)
    if (alignment < bytes_of(d->type)) return kNotSupported;
  const uint64_t workspace = workspace_for(shape);
  for (int i = 0; i < std::min(wanted, 2); ++i) {
    const uint64_t needs = i == 0 ? workspace : 0;
    if (needs > p->workspace) continue;
    const char* state = std::getenv("FAKE_CUBLASLT_STATE");
    results[(*count)++] = {algorithm_for(*desc, *a, *b, *d, *p, static_cast<uint64_t>(i)),
                           needs,
                           state ? std::atoi(state) : kSuccess,
                           1.0f,
                           {}};
  }
  return *count > 0 ? kSuccess : kNotSupported;
}
EFF_FAKE(cublasLtMatmulAlgoCapGetAttribute, const Algorithm* algorithm, int attribute, void* value, size_t bytes,
         size_t* written) {
  EFF_ENTER(cublasLtMatmulAlgoCapGetAttribute)
  if (!algorithm || attribute != kAlgorithmImplementation || !value || bytes != 8 || !written)
    return wrong("attribute of an algorithm");
  constexpr uint64_t kHmma = 2;
  const bool fp32 = algorithm->data[3] >> 32 == kF32 && algorithm->data[4] >> 32 == kCompute32F;
  const char* emulates = std::getenv("FAKE_CUBLASLT_EMULATE");
  const uint64_t implementation = fp32 && !emulates ? kMultiplyAdds | kSumsF32 | kFactorsF32 : kHmma | kSumsF32;
  std::memcpy(value, &implementation, 8);
  *written = 8;
  return kSuccess;
}
EFF_FAKE(cublasLtMatmul, Handle handle, MatmulDesc desc_handle, const void* alpha, const void* a, Layout a_handle,
         const void* b, Layout b_handle, const void* beta, const void* c, Layout c_handle, void* d, Layout d_handle,
         const Algorithm* algorithm, void* workspace, size_t workspace_bytes, Stream stream) {
  EFF_ENTER(cublasLtMatmul)
  const Object *desc = find(desc_handle, Object::Kind::desc), *a_layout = find(a_handle, Object::Kind::layout),
               *b_layout = find(b_handle, Object::Kind::layout), *d_layout = find(d_handle, Object::Kind::layout);
  if (!find(handle, Object::Kind::handle) || !desc || !a_layout || !b_layout || !d_layout || c_handle != d_handle)
    return wrong("a product without all objects");
  if (!alpha || !beta || !a || !b || !c || !d || !algorithm) return wrong("a product without all operands");
  Object promised{Object::Kind::preference};
  const uint64_t word = algorithm->data[5];
  const uint32_t alignments[] = {static_cast<uint32_t>(word >> 48), static_cast<uint32_t>(word >> 32 & 0xffff),
                                 static_cast<uint32_t>(word >> 16 & 0xffff), static_cast<uint32_t>(word & 0xffff)};
  std::copy(alignments, alignments + 4, promised.alignment);
  const Algorithm expected = algorithm_for(*desc, *a_layout, *b_layout, *d_layout, promised, algorithm->data[6]);
  if (std::memcmp(&expected, algorithm, sizeof expected) != 0) return wrong("an algorithm for another product");
  const void* addresses[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i)
    if (!aligned(addresses[i], alignments[i])) return wrong("an address that is not aligned as promised");
  Shape shape;
  if (!shape_of(*desc, *a_layout, *b_layout, *d_layout, shape)) return wrong("layouts changed");
  const uint64_t needs = algorithm->data[6] == 0 ? workspace_for(shape) : 0;
  if (workspace_bytes < needs || (needs > 0 && (!workspace || !aligned(workspace, 256)))) return wrong("workspace");
  if (desc->epilogue == kEpilogueBias && (!desc->bias || !aligned(desc->bias, 4)))
    return wrong("a bias without address");
  const Work work{*desc,
                  *a_layout,
                  *b_layout,
                  *d_layout,
                  shape,
                  a,
                  b,
                  c,
                  d,
                  needs > 0 ? workspace : nullptr,
                  needs,
                  *static_cast<const float*>(alpha),
                  *static_cast<const float*>(beta)};
  const std::string kernel = "cublaslt/" + std::to_string(algorithm->data[6]);
  return queue_kernel(stream, kernel, [work] { work.run(); }) ? kSuccess : kExecutionFailed;
}

EFF_EXPORT int fake_cublaslt_live() {
  const std::lock_guard<std::mutex> lock(fake().mutex);
  return static_cast<int>(fake().live.size());
}
EFF_FAKE_CALLS(cublaslt)
