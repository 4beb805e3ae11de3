#include "cuda/providers/cudnn.h"

#include <cudnn_frontend.h>
#include <dlfcn.h>

#include <map>
#include <mutex>
#include <set>
#include <unordered_map>

#include "cuda/providers/library.h"

namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;  // where it looks cuDNN's functions up
}

namespace effnet::cuda {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Graph;
using fe::graph::Tensor_attributes;
using Tensor = std::shared_ptr<Tensor_attributes>;
using plan::DType;

// What an engine may want beside its operands. The scratch of a plan's ops is one for all of them, and the fastest
// engines of these layers want none or a copy of an operand; a few want gigabytes.
constexpr int64_t kMostWorkspace = int64_t{256} << 20;
// Of candidates for measuring: building one, or finding that it does not build, may take seconds.
constexpr size_t kMostTried = 24;

enum Uid : int64_t { kA = 1, kB, kBias, kResidual, kResult };

fe::DataType_t data_type(DType dtype) {
  return dtype == DType::f16    ? fe::DataType_t::HALF
         : dtype == DType::bf16 ? fe::DataType_t::BFLOAT16
                                : fe::DataType_t::FLOAT;
}

Status fe_status(const char* what, fe::error_object result, Code code = Code::plan_invalid) {
  if (result.is_good()) return ok_status();
  std::string text = result.get_message();
  for (char& c : text)
    if (c == '\n') c = ' ';
  return error(code, "cuDNN: %s: %.300s", what, text.c_str());
}

// NCHW dimensions of what lies as NHWC.
struct Dims {
  int64_t n, c, h, w;
  std::vector<int64_t> dims() const { return {n, c, h, w}; }
  std::vector<int64_t> strides() const { return {h * w * c, 1, w * c, c}; }
};

class Builder {
 public:
  explicit Builder(const Convolution& c) : c_(c) {
    graph_->set_io_data_type(data_type(c.dtype))
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    // The plan lives as long as the graph that it is captured into.
    graph_->set_cuda_graph_retention(fe::CudaGraphRetention_t::NONE);
  }

  std::shared_ptr<Graph> build() {
    const Dims src{c_.n, c_.ic, c_.h, c_.w}, dst{c_.n, c_.oc, c_.oh, c_.ow}, weights{c_.oc, c_.ic, c_.kh, c_.kw};
    Tensor result;
    switch (c_.pass) {
      case Convolution::Pass::forward:
        result = forward(src, dst, weights);
        break;
      case Convolution::Pass::bwd_data:
        result = graph_->conv_dgrad(input(kA, dst), input(kB, weights), geometry<fe::graph::Conv_dgrad_attributes>());
        shape(result, src);
        break;
      case Convolution::Pass::bwd_weights:
        result = graph_->conv_wgrad(input(kA, dst), input(kB, src), geometry<fe::graph::Conv_wgrad_attributes>());
        shape(result, weights);
    }
    result->set_output(true).set_uid(kResult).set_data_type(data_type(c_.result));
    return graph_;
  }

 private:
  Tensor input(Uid uid, const Dims& d) {
    return graph_->tensor(Tensor_attributes().set_uid(uid).set_dim(d.dims()).set_stride(d.strides()));
  }
  static void shape(const Tensor& t, const Dims& d) { t->set_dim(d.dims()).set_stride(d.strides()); }

  template <class Attributes>
  Attributes geometry() const {
    Attributes attributes;
    attributes.set_pre_padding({c_.pad_t, c_.pad_l})
        .set_post_padding({c_.pad_b, c_.pad_r})
        .set_stride({c_.stride, c_.stride})
        .set_dilation({1, 1});
    return attributes;
  }

  Tensor forward(const Dims& src, const Dims& dst, const Dims& weights) {
    using fe::graph::Pointwise_attributes;
    Tensor result =
        graph_->conv_fprop(input(kA, src), input(kB, weights), geometry<fe::graph::Conv_fprop_attributes>());
    if (c_.bias) {
      const Tensor bias = input(kBias, {1, c_.oc, 1, 1});
      bias->set_data_type(fe::DataType_t::FLOAT);
      result = graph_->pointwise(result, bias, Pointwise_attributes().set_mode(fe::PointwiseMode_t::ADD));
    }
    if (c_.silu) result = graph_->pointwise(result, Pointwise_attributes().set_mode(fe::PointwiseMode_t::SWISH_FWD));
    if (c_.residual)
      result =
          graph_->pointwise(result, input(kResidual, dst), Pointwise_attributes().set_mode(fe::PointwiseMode_t::ADD));
    return result;
  }

  const Convolution& c_;
  std::shared_ptr<Graph> graph_ = std::make_shared<Graph>();
};

// The handle, which takes one call at a time; without one for a GPU that is described.
struct Opened {
  cudnnHandle_t handle = nullptr;
  mutable std::mutex mutex;
  std::shared_ptr<fe::DeviceProperties> properties;
  ~Opened() {
    if (handle) fe::detail::destroy_handle(handle);
  }
};

class Plan final : public ConvolutionPlan {
 public:
  Plan(std::shared_ptr<const Opened> opened, std::shared_ptr<Graph> graph, size_t workspace, std::string engine)
      : opened_(std::move(opened)), graph_(std::move(graph)), workspace_(workspace), engine_(std::move(engine)) {}
  size_t workspace_bytes() const override { return workspace_; }
  const std::string& engine() const override { return engine_; }

  Status queue(const Operands& at, void* stream) const override {
    if (!opened_->handle) return error(Code::internal, "cuDNN: a plan for a GPU that was only described");
    std::unordered_map<int64_t, void*> addresses{
        {kA, const_cast<void*>(at.a)}, {kB, const_cast<void*>(at.b)}, {kResult, at.result}};
    if (at.bias) addresses[kBias] = const_cast<void*>(at.bias);
    if (at.residual) addresses[kResidual] = const_cast<void*>(at.residual);
    const std::lock_guard lock(opened_->mutex);
    try {
      if (fe::detail::set_stream(opened_->handle, static_cast<cudaStream_t>(stream)) != CUDNN_STATUS_SUCCESS)
        return error(Code::internal, "cudnnSetStream failed");
      return fe_status("execute", graph_->execute(opened_->handle, addresses, at.workspace), Code::internal);
    } catch (const std::exception& failure) {
      return error(Code::internal, "cuDNN: %s", failure.what());
    }
  }

 private:
  std::shared_ptr<const Opened> opened_;
  std::shared_ptr<Graph> graph_;
  size_t workspace_;
  std::string engine_;
};

class Frontend final : public Cudnn {
 public:
  explicit Frontend(std::shared_ptr<const Opened> opened) : opened_(std::move(opened)) {}

  StatusOr<std::shared_ptr<const ConvolutionPlan>> plan(const Convolution& convolution,
                                                        const std::string& engine) const override {
    const std::lock_guard lock(opened_->mutex);
    if (const auto known = plans_.find({convolution, engine}); known != plans_.end())
      if (auto plan = known->second.lock()) return plan;
    Status status = error(Code::plan_invalid, "cuDNN has no engine %s for this graph", engine.c_str());
    const auto built = build(convolution, engine, 1, status);
    if (built.empty()) return status;
    plans_[{convolution, engine}] = built[0];
    return built[0];
  }

  std::vector<std::shared_ptr<const ConvolutionPlan>> plans(const Convolution& convolution, int most) const override {
    const std::lock_guard lock(opened_->mutex);
    Status status;
    const auto built = build(convolution, {}, static_cast<size_t>(most), status, kMostTried);
    for (const auto& plan : built) plans_[{convolution, plan->engine()}] = plan;
    return built;
  }

 private:
  using Built = std::vector<std::shared_ptr<const ConvolutionPlan>>;

  // A graph each: who is not chosen is freed. `status`: why there is none.
  Built build(const Convolution& c, const std::string& engine, size_t most, Status& status,
              size_t most_tried = SIZE_MAX) const {
    Built built;
    std::set<std::string> tried;
    try {
      while (built.size() < most) {
        auto next = build_next(c, engine, tried, most_tried);
        if (!next.ok()) {
          status = next.status();
          break;
        }
        built.push_back(std::move(next.value()));
      }
    } catch (const std::exception& failure) {
      status = error(Code::plan_invalid, "cuDNN: %s", failure.what());
    }
    return built;
  }

  // The first engine that builds and is none of `tried`, to which it goes with those that do not build: `most_tried` in
  // all.
  StatusOr<std::shared_ptr<const ConvolutionPlan>> build_next(const Convolution& c, const std::string& wanted,
                                                              std::set<std::string>& tried, size_t most_tried) const {
    const std::shared_ptr<Graph> graph = Builder(c).build();
    if (opened_->properties) graph->set_device_properties(opened_->properties);
    EFF_RETURN_IF_ERROR(fe_status("graph", graph->validate()));
    EFF_RETURN_IF_ERROR(fe_status("graph", graph->build_operation_graph(opened_->handle)));
    using Note = fe::NumericalNote_t;
    // Transforms are many times as far off as the sum of products.
    std::vector<Note> refused{Note::NONDETERMINISTIC,  Note::FFT,
                              Note::WINOGRAD,          Note::WINOGRAD_TILE_4x4,
                              Note::WINOGRAD_TILE_6x6, Note::WINOGRAD_TILE_13x13};
    if (c.dtype == DType::f32 && !c.tf32)
      refused.insert(refused.end(), {Note::TENSOR_CORE, Note::DOWN_CONVERT_INPUTS, Note::REDUCED_PRECISION_REDUCTION});
    // A guess is no answer: heuristics offer engines that then fail to build.
    Status status = error(Code::plan_invalid, "cuDNN has no engine %s for this graph", wanted.c_str());
    graph->deselect_workspace_greater_than(kMostWorkspace);
    for (const fe::HeurMode_t mode : {fe::HeurMode_t::A, fe::HeurMode_t::FALLBACK}) {
      // Engines of a heuristic come behind those of the one before.
      const int64_t first = graph->get_execution_plan_count();
      if (graph->create_execution_plans({mode}).is_bad()) continue;
      graph->deselect_numeric_notes(refused);
      for (int64_t i = first; i < graph->get_execution_plan_count(); ++i) {
        std::string engine;
        (void)graph->get_plan_name_at_index(i, engine);
        if ((!wanted.empty() && engine != wanted) || tried.count(engine) > 0) continue;
        if (tried.size() >= most_tried) return status;
        tried.insert(engine);
        const Status built = fe_status("plan", graph->build_plan_at_index(i));
        if (!built.ok()) {
          status = built;
          continue;
        }
        const auto workspace = static_cast<size_t>(graph->get_workspace_size_plan_at_index(i));
        return std::shared_ptr<const ConvolutionPlan>(std::make_shared<Plan>(opened_, graph, workspace, engine));
      }
    }
    return status;
  }

  std::shared_ptr<const Opened> opened_;
  // By engine, "" the first that builds; under the handle's mutex.
  mutable std::map<std::pair<Convolution, std::string>, std::weak_ptr<const ConvolutionPlan>> plans_;
};

Status load() {
  const auto found = open_library(kCudnn);
  if (!found.ok()) return found.status();
  fe::cudnn_dlhandle = found.value().handle;
  return ok_status();
}

}  // namespace

const char* Cudnn::absent() { return nullptr; }

StatusOr<std::shared_ptr<const Cudnn>> Cudnn::create() {
  EFF_RETURN_IF_ERROR(load());
  auto opened = std::make_shared<Opened>();
  if (const auto result = fe::detail::create_handle(&opened->handle); result != CUDNN_STATUS_SUCCESS) {
    opened->handle = nullptr;
    const bool full = result == CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ||
                      result == CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED;
    return does_not_start(kCudnn, "cudnnCreate", static_cast<int>(result), full);
  }
  return std::shared_ptr<const Cudnn>(std::make_shared<Frontend>(std::move(opened)));
}

StatusOr<std::shared_ptr<const Cudnn>> Cudnn::for_device(const std::string& properties) {
  EFF_RETURN_IF_ERROR(load());
  auto opened = std::make_shared<Opened>();
  opened->properties = std::make_shared<fe::DeviceProperties>();
  EFF_RETURN_IF_ERROR(fe_status("device properties",
                                opened->properties->deserialize({properties.begin(), properties.end()}),
                                Code::invalid_argument));
  return std::shared_ptr<const Cudnn>(std::make_shared<Frontend>(std::move(opened)));
}

StatusOr<std::string> Cudnn::describe_device(int device) {
  EFF_RETURN_IF_ERROR(load());
  fe::DeviceProperties properties;
  EFF_RETURN_IF_ERROR(fe_status("device properties", properties.set_device_id(device).build(), Code::internal));
  std::vector<uint8_t> text;
  EFF_RETURN_IF_ERROR(fe_status("device properties", properties.serialize(text), Code::internal));
  while (!text.empty() && text.back() == 0) text.pop_back();
  return std::string(text.begin(), text.end());
}

}  // namespace effnet::cuda
