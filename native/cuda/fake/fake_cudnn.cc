// A libcudnn.so.9 without a GPU, for tests: it takes the descriptors that cudnn-frontend makes, offers engines 7, 8,
// ... for every graph (FAKE_CUDNN_ENGINES of them, one by default; with FAKE_CUDNN_FALLBACK=1 also engine 107, by that
// heuristic), and computes graphs of a convolution and pointwise operations in double, on the streams of the fake
// driver.
//
//   - Attributes are set before a descriptor is finalised, and read or referred to only after; descriptors must be
//     live.
//   - Addresses must have the alignment that their tensors promise; a workspace must be there, and is overwritten.
//   - A plan must be live when it is executed, and when the captured work runs: a graph replays its kernels.
//   - FAKE_CUDNN_FAIL=name:nth:status makes the nth call of a function fail; FAKE_CUDNN_VERSION is what it says it is.
//     FAKE_CUDNN_NO_PLAN=1: no engine builds. FAKE_CUDNN_NO_PLAN=A: none but 107. FAKE_CUDNN_WORKSPACE: what engine 7
//     says that it wants.
//   - fake_cudnn_live() counts descriptors and handles, fake_cudnn_calls(name) calls, fake_cudnn_misuse() is what it
//     was last given that it should not have been; fake_cudnn_reset() forgets calls and misuse.
#include <cudnn.h>
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/fake/fake_calls.h"
#include "tests/half.h"

namespace {

using effnet::fake::Calls;
using effnet::fake::queue_kernel;

constexpr int64_t kWorkspace = 4096;
constexpr int64_t kFirstEngine = 7, kFallbackEngine = 107;

struct Descriptor;
using Ref = std::shared_ptr<Descriptor>;

struct Descriptor {
  cudnnBackendDescriptorType_t type;
  bool final = false;
  std::map<int, std::vector<uint8_t>> bytes;  // of plain attributes
  std::map<int, std::vector<Ref>> refs;       // of those that are descriptors

  template <class T>
  std::vector<T> values(int attribute) const {
    const auto found = bytes.find(attribute);
    if (found == bytes.end()) return {};
    std::vector<T> v(found->second.size() / sizeof(T));
    std::memcpy(v.data(), found->second.data(), v.size() * sizeof(T));
    return v;
  }
  template <class T>
  T value(int attribute, T otherwise = {}) const {
    const auto v = values<T>(attribute);
    return v.empty() ? otherwise : v[0];
  }
  const Descriptor* ref(int attribute) const {
    const auto found = refs.find(attribute);
    return found == refs.end() || found->second.empty() ? nullptr : found->second[0].get();
  }
};

struct Fake {
  std::recursive_mutex mutex;
  std::map<void*, Ref> live;
  std::map<void*, cudaStream_t> handles;
  Calls calls{"FAKE_CUDNN_FAIL"};
};
Fake& fake() {
  static Fake* const one = new Fake;
  return *one;
}

cudnnStatus_t wrong(const std::string& what) {
  fake().calls.misuse = what;
  return CUDNN_STATUS_BAD_PARAM;
}

Ref find(void* descriptor) {
  const auto found = fake().live.find(descriptor);
  return found == fake().live.end() ? nullptr : found->second;
}

// ---- graphs ------------------------------------------------------------------------------------------------------

struct Values {
  std::vector<int64_t> dims, strides;
  std::vector<double> data;  // dense, in the order of dims
  size_t at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return static_cast<size_t>(((n * dims[1] + c) * dims[2] + h) * dims[3] + w);
  }
};

class Interpreter {
 public:
  Interpreter(const Descriptor& graph, std::map<int64_t, void*> addresses)
      : graph_(graph), addresses_(std::move(addresses)) {}

  void run() {
    std::vector<Ref> pending = graph_.refs.at(CUDNN_ATTR_OPERATIONGRAPH_OPS);
    while (!pending.empty()) {  // in any order: what has its inputs
      const auto ready = std::find_if(pending.begin(), pending.end(), [&](const Ref& op) { return is_ready(*op); });
      if (ready == pending.end()) std::abort();
      execute(**ready);
      pending.erase(ready);
    }
  }

 private:
  struct Ports {
    std::vector<int> in;
    int out;
  };
  static Ports ports(const Descriptor& op) {
    switch (op.type) {
      case CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR:
        return {{CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W},
                CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y};
      case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR:
        return {{CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W},
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX};
      case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR:
        return {{CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X},
                CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW};
      case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
        if (op.ref(CUDNN_ATTR_OPERATION_POINTWISE_BDESC))
          return {{CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_ATTR_OPERATION_POINTWISE_BDESC},
                  CUDNN_ATTR_OPERATION_POINTWISE_YDESC};
        return {{CUDNN_ATTR_OPERATION_POINTWISE_XDESC}, CUDNN_ATTR_OPERATION_POINTWISE_YDESC};
      default:
        std::abort();
    }
  }
  static int64_t uid(const Descriptor& tensor) { return tensor.value<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID); }
  static bool is_virtual(const Descriptor& tensor) { return tensor.value<uint8_t>(CUDNN_ATTR_TENSOR_IS_VIRTUAL) != 0; }

  bool is_ready(const Descriptor& op) const {
    for (const int port : ports(op).in) {
      const Descriptor& tensor = *op.ref(port);
      if (is_virtual(tensor) && !between_.count(uid(tensor))) return false;
    }
    return true;
  }

  static Values shaped(const Descriptor& tensor) {
    Values v{
        tensor.values<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS), tensor.values<int64_t>(CUDNN_ATTR_TENSOR_STRIDES), {}};
    v.data.resize(static_cast<size_t>(v.dims[0] * v.dims[1] * v.dims[2] * v.dims[3]));
    return v;
  }
  template <class F>
  static void for_each(const Values& v, F&& f) {
    for (int64_t n = 0; n < v.dims[0]; ++n)
      for (int64_t c = 0; c < v.dims[1]; ++c)
        for (int64_t h = 0; h < v.dims[2]; ++h)
          for (int64_t w = 0; w < v.dims[3]; ++w)
            f(v.at(n, c, h, w),
              static_cast<size_t>(n * v.strides[0] + c * v.strides[1] + h * v.strides[2] + w * v.strides[3]));
  }

  Values load(const Descriptor& tensor) const {
    if (is_virtual(tensor)) return between_.at(uid(tensor));
    Values v = shaped(tensor);
    const auto type = tensor.value<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE);
    const void* from = addresses_.at(uid(tensor));
    for_each(v, [&](size_t at, size_t stored) {
      if (type == CUDNN_DATA_FLOAT) {
        v.data[at] = static_cast<const float*>(from)[stored];
      } else {
        const uint16_t bits = static_cast<const uint16_t*>(from)[stored];
        v.data[at] = type == CUDNN_DATA_HALF ? effnet::test::f16_to_float(bits) : effnet::test::bf16_to_float(bits);
      }
    });
    return v;
  }
  void store(const Descriptor& tensor, Values v) {
    if (is_virtual(tensor)) {
      between_[uid(tensor)] = std::move(v);
      return;
    }
    const auto type = tensor.value<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE);
    void* to = addresses_.at(uid(tensor));
    for_each(v, [&](size_t at, size_t stored) {
      const auto single = static_cast<float>(v.data[at]);
      if (type == CUDNN_DATA_FLOAT)
        static_cast<float*>(to)[stored] = single;
      else
        static_cast<uint16_t*>(to)[stored] =
            type == CUDNN_DATA_HALF ? effnet::test::float_to_f16(single) : effnet::test::float_to_bf16(single);
    });
  }

  void execute(const Descriptor& op) {
    const Ports p = ports(op);
    const Values a = load(*op.ref(p.in[0])), b = p.in.size() > 1 ? load(*op.ref(p.in[1])) : Values();
    Values result = shaped(*op.ref(p.out));
    if (op.type == CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)
      pointwise(op, a, b, result);
    else
      convolution(op, a, b, result);
    store(*op.ref(p.out), std::move(result));
  }

  static void pointwise(const Descriptor& op, const Values& a, const Values& b, Values& result) {
    const auto mode =
        op.ref(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR)->value<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE);
    const auto broadcast = [](const Values& v, int64_t n, int64_t c, int64_t h, int64_t w) {
      const auto in = [&](int i, int64_t at) { return v.dims[static_cast<size_t>(i)] == 1 ? 0 : at; };
      return v.data[v.at(in(0, n), in(1, c), in(2, h), in(3, w))];
    };
    for (int64_t n = 0; n < result.dims[0]; ++n)
      for (int64_t c = 0; c < result.dims[1]; ++c)
        for (int64_t h = 0; h < result.dims[2]; ++h)
          for (int64_t w = 0; w < result.dims[3]; ++w) {
            const double x = broadcast(a, n, c, h, w);
            result.data[result.at(n, c, h, w)] = mode == CUDNN_POINTWISE_SWISH_FWD ? x / (1 + std::exp(-x))
                                                 : mode == CUDNN_POINTWISE_ADD
                                                     ? x + broadcast(b, n, c, h, w)
                                                     : std::numeric_limits<double>::quiet_NaN();
          }
  }

  // All three directions go over the same products of source, weight and destination.
  static void convolution(const Descriptor& op, const Values& a, const Values& b, Values& result) {
    const bool forward = op.type == CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
               data = op.type == CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR;
    const Descriptor* conv = op.ref(forward ? CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC
                                    : data  ? CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC
                                            : CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC);
    const auto stride = conv->values<int64_t>(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES),
               pad = conv->values<int64_t>(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS);
    const Values &src = forward ? a
                        : data  ? result
                                : b,
                 &weights = forward || data ? b : result, &dst = forward ? result : a;
    for (int64_t n = 0; n < dst.dims[0]; ++n)
      for (int64_t y = 0; y < dst.dims[2]; ++y)
        for (int64_t x = 0; x < dst.dims[3]; ++x)
          for (int64_t r = 0; r < weights.dims[2]; ++r)
            for (int64_t s = 0; s < weights.dims[3]; ++s) {
              const int64_t h = y * stride[0] - pad[0] + r, w = x * stride[1] - pad[1] + s;
              if (h < 0 || w < 0 || h >= src.dims[2] || w >= src.dims[3]) continue;
              for (int64_t o = 0; o < dst.dims[1]; ++o)
                for (int64_t i = 0; i < src.dims[1]; ++i) {
                  const size_t t = dst.at(n, o, y, x), k = weights.at(o, i, r, s), u = src.at(n, i, h, w);
                  if (forward)
                    result.data[t] += a.data[u] * b.data[k];
                  else if (data)
                    result.data[u] += a.data[t] * b.data[k];
                  else
                    result.data[k] += a.data[t] * b.data[u];
                }
            }
  }

  const Descriptor& graph_;
  std::map<int64_t, void*> addresses_;
  std::map<int64_t, Values> between_;
};

// Of a plan, or of a configuration itself.
const Descriptor* engine_of(const Descriptor& of) {
  const Descriptor* config =
      of.type == CUDNN_BACKEND_ENGINECFG_DESCRIPTOR ? &of : of.ref(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
  return config ? config->ref(CUDNN_ATTR_ENGINECFG_ENGINE) : nullptr;
}

int64_t index_of(const Descriptor& of) {
  const Descriptor* engine = engine_of(of);
  return engine ? engine->value<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX) : 0;
}

int64_t workspace_of(const Descriptor& of) {
  const char* wanted = std::getenv("FAKE_CUDNN_WORKSPACE");
  return wanted && index_of(of) == kFirstEngine ? std::atoll(wanted) : kWorkspace;
}

const Descriptor* graph_of(const Descriptor& plan) {
  const Descriptor* engine = engine_of(plan);
  return engine ? engine->ref(CUDNN_ATTR_ENGINE_OPERATION_GRAPH) : nullptr;
}

void for_each_tensor(const Descriptor& graph, const std::function<void(const Descriptor&)>& visit) {
  for (const Ref& op : graph.refs.at(CUDNN_ATTR_OPERATIONGRAPH_OPS))
    for (const auto& [attribute, refs] : op->refs)
      for (const Ref& ref : refs)
        if (ref->type == CUDNN_BACKEND_TENSOR_DESCRIPTOR) visit(*ref);
}

}  // namespace

#define EFF_ENTER(name)                                           \
  const std::lock_guard<std::recursive_mutex> lock(fake().mutex); \
  if (const int failed = fake().calls.enter(#name)) return static_cast<cudnnStatus_t>(failed);

EFF_EXPORT size_t cudnnGetVersion() {
  const char* version = std::getenv("FAKE_CUDNN_VERSION");
  return version ? static_cast<size_t>(std::atoi(version)) : 91900;
}
EFF_EXPORT size_t cudnnGetCudartVersion() { return 13000; }
EFF_EXPORT const char* cudnnGetErrorString(cudnnStatus_t) { return "a status of the fake cuDNN"; }
EFF_EXPORT void cudnnGetLastErrorString(char* text, size_t bytes) {
  std::snprintf(text, bytes, "%s", fake().calls.misuse.c_str());
}

EFF_EXPORT cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
  EFF_ENTER(cudnnCreate)
  auto* made = new char;
  fake().handles[made] = nullptr;
  *handle = reinterpret_cast<cudnnHandle_t>(made);
  return CUDNN_STATUS_SUCCESS;
}
EFF_EXPORT cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  EFF_ENTER(cudnnDestroy)
  if (!fake().handles.erase(handle)) return wrong("a handle is destroyed that is not there");
  delete reinterpret_cast<char*>(handle);
  return CUDNN_STATUS_SUCCESS;
}
EFF_EXPORT cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  EFF_ENTER(cudnnSetStream)
  if (!fake().handles.count(handle)) return wrong("no such handle");
  fake().handles[handle] = stream;
  return CUDNN_STATUS_SUCCESS;
}
EFF_EXPORT cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t* stream) {
  EFF_ENTER(cudnnGetStream)
  if (!fake().handles.count(handle)) return wrong("no such handle");
  *stream = fake().handles[handle];
  return CUDNN_STATUS_SUCCESS;
}

EFF_EXPORT cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                                      cudnnBackendDescriptor_t* descriptor) {
  EFF_ENTER(cudnnBackendCreateDescriptor)
  auto made = std::make_shared<Descriptor>();
  made->type = type;
  fake().live[made.get()] = made;
  *descriptor = made.get();
  return CUDNN_STATUS_SUCCESS;
}
EFF_EXPORT cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  EFF_ENTER(cudnnBackendDestroyDescriptor)
  return fake().live.erase(descriptor) ? CUDNN_STATUS_SUCCESS : wrong("a descriptor is destroyed that is not there");
}
EFF_EXPORT cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t handle) {
  EFF_ENTER(cudnnBackendFinalize)
  const Ref descriptor = find(handle);
  if (!descriptor || descriptor->final) return wrong("finalised twice, or never made");
  if (descriptor->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
    const char* none = std::getenv("FAKE_CUDNN_NO_PLAN");
    if (none && (std::strcmp(none, "A") != 0 || index_of(*descriptor) != kFallbackEngine))
      return CUDNN_STATUS_NOT_SUPPORTED;
    if (!graph_of(*descriptor)) return wrong("a plan of no graph");
  }
  descriptor->final = true;
  return CUDNN_STATUS_SUCCESS;
}
EFF_EXPORT cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t handle, cudnnBackendAttributeName_t name,
                                                  cudnnBackendAttributeType_t type, int64_t count, const void* values) {
  EFF_ENTER(cudnnBackendSetAttribute)
  const Ref descriptor = find(handle);
  if (!descriptor || descriptor->final) return wrong("an attribute is set of a descriptor that is final or not there");
  if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
    std::vector<Ref> refs;
    for (int64_t i = 0; i < count; ++i) {
      const Ref ref = find(static_cast<void* const*>(values)[i]);
      if (!ref || !ref->final) return wrong("a descriptor refers to one that is not final");
      refs.push_back(ref);
    }
    descriptor->refs[name] = std::move(refs);
    return CUDNN_STATUS_SUCCESS;
  }
  size_t size = 8;
  if (type == CUDNN_TYPE_DATA_TYPE || type == CUDNN_TYPE_POINTWISE_MODE || type == CUDNN_TYPE_CONVOLUTION_MODE ||
      type == CUDNN_TYPE_HEUR_MODE || type == CUDNN_TYPE_FLOAT || type == CUDNN_TYPE_INT32 ||
      type == CUDNN_TYPE_NAN_PROPOGATION || type == CUDNN_TYPE_TENSOR_REORDERING_MODE)
    size = 4;
  if (type == CUDNN_TYPE_BOOLEAN || type == CUDNN_TYPE_CHAR) size = 1;
  const auto* from = static_cast<const uint8_t*>(values);
  descriptor->bytes[name].assign(from, from + size * static_cast<size_t>(count));
  return CUDNN_STATUS_SUCCESS;
}
EFF_EXPORT cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t handle, cudnnBackendAttributeName_t name,
                                                  cudnnBackendAttributeType_t, int64_t wanted, int64_t* count,
                                                  void* values) {
  EFF_ENTER(cudnnBackendGetAttribute)
  const Ref descriptor = find(handle);
  if (!descriptor) return wrong("an attribute of a descriptor that is not there");
  if (count) *count = 0;
  const auto answer = [&](auto value) {
    if (count) *count = 1;
    if (values && wanted > 0) std::memcpy(values, &value, sizeof value);
    return CUDNN_STATUS_SUCCESS;
  };
  switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS: {
      if (!descriptor->final) return wrong("results of heuristics that are not final");
      const char* engines = std::getenv("FAKE_CUDNN_ENGINES");
      const bool fallback =
          descriptor->value<cudnnBackendHeurMode_t>(CUDNN_ATTR_ENGINEHEUR_MODE) == CUDNN_HEUR_MODE_FALLBACK;
      const int64_t offered =
          fallback ? std::getenv("FAKE_CUDNN_FALLBACK") != nullptr : (engines ? std::atoi(engines) : 1);
      if (count) *count = offered;
      for (int64_t i = 0; values && i < std::min(wanted, offered); ++i) {
        const Ref config = find(static_cast<void**>(values)[i]);
        if (!config) return wrong("no place for results");
        auto engine = std::make_shared<Descriptor>();
        engine->type = CUDNN_BACKEND_ENGINE_DESCRIPTOR;
        engine->refs[CUDNN_ATTR_ENGINE_OPERATION_GRAPH] = descriptor->refs[CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH];
        const int64_t index = fallback ? kFallbackEngine : kFirstEngine + i;
        const auto* bytes = reinterpret_cast<const uint8_t*>(&index);
        engine->bytes[CUDNN_ATTR_ENGINE_GLOBAL_INDEX].assign(bytes, bytes + sizeof index);
        engine->final = true;
        config->refs[CUDNN_ATTR_ENGINECFG_ENGINE] = {engine};
        config->final = true;
      }
      return CUDNN_STATUS_SUCCESS;
    }
    case CUDNN_ATTR_ENGINECFG_ENGINE: {
      if (count) *count = 1;
      const Ref into = values && wanted > 0 ? find(*static_cast<void**>(values)) : nullptr;
      const Descriptor* engine = descriptor->ref(CUDNN_ATTR_ENGINECFG_ENGINE);
      if (into && engine) *into = *engine;
      return CUDNN_STATUS_SUCCESS;
    }
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
    case CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE:
      return answer(workspace_of(*descriptor));
    case CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION: {
      if (!descriptor->final) return wrong("properties of a device that are not final");
      constexpr char kText[] = R"({"cudaDeviceId": 0, "deviceName": "no GPU"})";  // with its end, as the real one
      if (count) *count = sizeof kText;
      if (values) std::memcpy(values, kText, std::min<size_t>(sizeof kText, static_cast<size_t>(wanted)));
      return CUDNN_STATUS_SUCCESS;
    }
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
      return answer(descriptor->value<int64_t>(CUDNN_ATTR_ENGINE_GLOBAL_INDEX));
    case CUDNN_ATTR_ENGINECFG_SHARED_MEMORY_USED:
      return answer(int32_t{0});
    default:
      return CUDNN_STATUS_SUCCESS;
  }
}

EFF_EXPORT cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan_handle,
                                             cudnnBackendDescriptor_t pack_handle) {
  EFF_ENTER(cudnnBackendExecute)
  const Ref plan = find(plan_handle), pack = find(pack_handle);
  if (!fake().handles.count(handle)) return wrong("no such handle");
  if (!plan || !plan->final || plan->type != CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)
    return wrong("a plan that is not final or not there");
  if (!pack || !pack->final) return wrong("addresses that are not final");
  const auto uids = pack->values<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
  const auto pointers = pack->values<void*>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
  auto* workspace = pack->value<void*>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
  if (uids.size() != pointers.size()) return wrong("as many addresses as tensors");
  if (!workspace || reinterpret_cast<uintptr_t>(workspace) % 256 != 0) return wrong("workspace");
  std::map<int64_t, void*> addresses;
  for (size_t i = 0; i < uids.size(); ++i) addresses[uids[i]] = pointers[i];
  std::string problem;
  for_each_tensor(*graph_of(*plan), [&](const Descriptor& t) {
    if (t.value<uint8_t>(CUDNN_ATTR_TENSOR_IS_VIRTUAL)) return;
    const auto found = addresses.find(t.value<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID));
    const auto alignment = static_cast<uintptr_t>(t.value<int64_t>(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, 16));
    if (found == addresses.end() || !found->second)
      problem = "a tensor without address";
    else if (reinterpret_cast<uintptr_t>(found->second) % alignment != 0)
      problem = "an address that is not aligned as promised";
  });
  if (!problem.empty()) return wrong(problem);
  const bool queued = queue_kernel(fake().handles[handle], "cudnn/eng" + std::to_string(index_of(*plan)),
                                   [plan_handle, workspace, addresses] {
                                     const std::lock_guard<std::recursive_mutex> running(fake().mutex);
                                     const Ref still = find(plan_handle);
                                     if (!still) {
                                       wrong("a plan is gone whose work has not run");
                                       return;
                                     }
                                     Interpreter(*graph_of(*still), addresses).run();
                                     std::memset(workspace, 0xff, kWorkspace);
                                   });
  return queued ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_EXECUTION_FAILED;
}

EFF_EXPORT int fake_cudnn_live() {
  const std::lock_guard<std::recursive_mutex> lock(fake().mutex);
  return static_cast<int>(fake().live.size() + fake().handles.size());
}
EFF_FAKE_CALLS(cudnn)
