#include "cuda/tuning.h"

#include <algorithm>
#include <limits>

#include "cuda/ops/common.h"
#include "cuda/recording.h"
#include "plan/op_traits.h"

namespace effnet::cuda {
namespace {

using plan::Arena;

constexpr int kRuns = 11;
// A graph of less than this is run several times over, so that its start does not count.
constexpr double kShortMs = 0.05;
constexpr int kRepeats = 8;
// So many times as slow as the best in its first run: not run again. Of a short run the start may be the most.
constexpr double kHopeless = 4;

// What tensors of a plan are aligned to; less is another op to a library.
constexpr uint64_t kAlignment = 64;

std::string describe(const plan::Tensor* t) {
  if (!t) return " -";
  // Of weights there are 16-bit copies.
  const bool weights = t->arena == Arena::weights || t->arena == Arena::prepared;
  std::string text = std::string(weights ? " w:" : " ") + plan::dtype_name(t->dtype) + "[";
  for (int i = 0; i < t->rank; ++i) {
    if (i) text += ',';
    text += std::to_string(t->dims[i]);
  }
  text += ']';
  if (const uint64_t odd = t->offset % kAlignment; odd != 0) text += '@' + std::to_string(odd);
  return text;
}

// An attribute, as far as a kernel's time depends on it: with stochastic depth each block has a rate and a stream of
// its own, and equal layers are equal all the same.
double timed_attr(const plan::Op& op, int i) {
  namespace bwd = op::conv2d_bwd;
  if (op.id != plan::OpId::conv2d_bwd) return op.attr(i);
  if (i == bwd::attr_drop_rate || i == bwd::attr_end_drop_rate) return op.attr(i) > 0;
  return i == bwd::attr_rng_stream || i == bwd::attr_end_rng_stream ? 0 : op.attr(i);
}

bool may_change(Arena arena) { return arena == Arena::activations || arena == Arena::output; }

}  // namespace

std::string signature(const plan::Op& op) {
  std::string text = plan::op_name(op.id);
  if (op.allows_tf32()) text += " tf32";
  if (op.has_half_gradient()) text += " half gradient";
  for (const auto* operands : {&op.inputs, &op.outputs, &op.updates})
    for (const plan::Tensor* t : *operands) text += describe(t);
  for (int i = 0; i < static_cast<int>(op.attrs.size()); ++i) {
    char number[32];
    std::snprintf(number, sizeof number, " %g", timed_attr(op, i));
    text += number;
  }
  return text;
}

// Captured launches, `repeats` times.
struct Tuner::Graph {
  Graph(const Driver& with) : driver(with) {}
  ~Graph() {
    if (exec) driver.cuGraphExecDestroy(exec);
  }
  Status make(const Device& device, const BoundLaunches& launches, CUstream stream, int times) {
    repeats = times;
    return capture(driver, stream, &exec, [&] {
      for (int i = 0; i < times; ++i) EFF_RETURN_IF_ERROR(queue_launches(device, launches, stream));
      return ok_status();
    });
  }
  const Driver& driver;
  CUgraphExec exec = nullptr;
  int repeats = 1;
};

Tuner::~Tuner() {
  if (!device_->enter().ok()) return;
  driver().cuStreamSynchronize(stream_);
  for (const auto& [begin, end] : marks_) {
    driver().cuEventDestroy(begin);
    driver().cuEventDestroy(end);
  }
}

Status Tuner::start() {
  while (marks_.size() < kRuns) {
    Marks marks{};
    EFF_CUDA(driver(), cuEventCreate, &marks.first, CU_EVENT_DEFAULT);
    if (const CUresult result = driver().cuEventCreate(&marks.second, CU_EVENT_DEFAULT); result != CUDA_SUCCESS) {
      driver().cuEventDestroy(marks.first);
      return driver_status(driver(), "cuEventCreate", result);
    }
    marks_.push_back(marks);
  }
  return ok_status();
}

Status Tuner::put_aside(const plan::Op& op, const Addresses& at, bool back) {
  uint64_t bytes = 0;
  const auto for_each = [&](auto&& visit) {
    for (const auto* operands : {&op.outputs, &op.updates})
      for (const plan::Tensor* t : *operands)
        if (t && !may_change(t->arena)) visit(t);
  };
  for_each([&](const plan::Tensor* t) { bytes += align256(t->bytes); });
  if (aside_.bytes() < bytes) {
    auto block = memory_->allocate(bytes);
    if (!block.ok()) return block.status();
    aside_ = std::move(block.value());
  }
  Status status;
  CUdeviceptr place = aside_.address();
  for_each([&](const plan::Tensor* t) {
    const auto live = reinterpret_cast<CUdeviceptr>(at.ptr(t));
    if (status.ok())
      status = driver_status(driver(), "cuMemcpyDtoDAsync",
                             driver().cuMemcpyDtoDAsync(back ? live : place, back ? place : live, t->bytes, stream_));
    place += align256(t->bytes);
  });
  return status;
}

StatusOr<Tuner::Fastest> Tuner::fastest(const plan::Op& op, const std::vector<Candidate>& candidates, Addresses at) {
  EFF_RETURN_IF_ERROR(start());
  const Status kept = put_aside(op, at, false);
  if (kept.code() == Code::oom) return Fastest{0, false};
  EFF_RETURN_IF_ERROR(kept);
  EFF_CUDA(driver(), cuStreamSynchronize, stream_);  // a fault from here on is of what is measured
  // Tensors that the cache does not hold are not there either when a step comes to the op.
  const auto cache = static_cast<uint64_t>(device_->cache_bytes());
  bool cold = cache > 0 && plan::operand_bytes(op, 1) > static_cast<double>(cache);
  if (cold && !flush_.bytes()) {
    auto block = memory_->allocate(cache);
    if (block.ok()) flush_ = std::move(block.value());
  }
  cold = cold && flush_.bytes();
  size_t best = 0;
  double least = std::numeric_limits<double>::infinity();
  bool without_memory = false;
  Status gpu;
  for (size_t i = 0; i < candidates.size() && gpu.ok(); ++i) {
    const auto ms = time(*candidates[i].kernel, at, cold, least);
    if (!ms.ok()) {
      without_memory |= ms.status().code() == Code::oom;
      gpu = driver_status(driver(), "cuStreamSynchronize", driver().cuStreamSynchronize(stream_));
      if (gpu.code() == Code::gpu_fault)
        gpu = Status(gpu.code(), "op " + std::string(op.name) + " (" + candidates[i].kernel->name +
                                     "), while it was measured: " + gpu.message());
    } else if (ms.value() < least) {
      least = ms.value();
      best = i;
    }
  }
  const Status back = put_aside(op, at, true);
  EFF_RETURN_IF_ERROR(gpu);
  EFF_RETURN_IF_ERROR(back);
  EFF_CUDA(driver(), cuStreamSynchronize, stream_);
  return Fastest{best, !without_memory};
}

StatusOr<double> Tuner::time(const Kernel& kernel, Addresses at, bool cold, double best) {
  if (scratch_.bytes() < kernel.scratch_bytes) {
    auto block = memory_->allocate(kernel.scratch_bytes);
    if (!block.ok()) return block.status();
    scratch_ = std::move(block.value());
  }
  at.scratch = scratch_.data();
  std::vector<Launch> launches;
  kernel.record(at, launches);
  auto bound = bind_launches(*device_, std::move(launches));
  if (!bound.ok()) return bound.status();
  Graph once(driver()), often(driver());
  EFF_RETURN_IF_ERROR(once.make(*device_, bound.value(), stream_, 1));
  // The first loads code; the second says how long it takes.
  for (int i = 0; i < 2; ++i) {
    EFF_RETURN_IF_ERROR(run(once, marks_[0], cold));
  }
  EFF_CUDA(driver(), cuStreamSynchronize, stream_);
  float first = 0;
  EFF_CUDA(driver(), cuEventElapsedTime, &first, marks_[0].first, marks_[0].second);
  if (first >= kShortMs && first > kHopeless * best) return std::numeric_limits<double>::infinity();
  const bool repeated = !cold && first < kShortMs;
  if (repeated) EFF_RETURN_IF_ERROR(often.make(*device_, bound.value(), stream_, kRepeats));
  const Graph& graph = repeated ? often : once;
  for (const Marks& marks : marks_) {
    EFF_RETURN_IF_ERROR(run(graph, marks, cold));
  }
  EFF_CUDA(driver(), cuStreamSynchronize, stream_);
  std::vector<float> times(marks_.size());
  for (size_t i = 0; i < marks_.size(); ++i)
    EFF_CUDA(driver(), cuEventElapsedTime, &times[i], marks_[i].first, marks_[i].second);
  std::nth_element(times.begin(), times.begin() + kRuns / 2, times.end());
  return static_cast<double>(times[kRuns / 2]) / graph.repeats;
}

Status Tuner::run(const Graph& graph, const Marks& marks, bool cold) {
  if (cold) EFF_CUDA(driver(), cuMemsetD8Async, flush_.address(), 0, flush_.bytes(), stream_);
  EFF_CUDA(driver(), cuEventRecord, marks.first, stream_);
  EFF_CUDA(driver(), cuGraphLaunch, graph.exec, stream_);
  EFF_CUDA(driver(), cuEventRecord, marks.second, stream_);
  return ok_status();
}

}  // namespace effnet::cuda
