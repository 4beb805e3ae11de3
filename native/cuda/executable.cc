#include "cuda/executable.h"

#include <algorithm>
#include <cstring>

#include "cuda/ops/weights.h"
#include "plan/op_traits.h"

namespace effnet::cuda {
namespace {

using plan::Arena;

#include "plan/factory_of.inc"

constexpr size_t kInputOffset = 256;  // of the input arena in the staging block, behind the scalars
static_assert(sizeof(StepScalars) <= kInputOffset);

// Arenas that belong to one plan; the others are the memory's.
bool is_own(Arena a) { return a == Arena::prepared || a == Arena::input || a == Arena::output || a == Arena::image; }

}  // namespace

StatusOr<std::shared_ptr<Executable>> Executable::bind(std::shared_ptr<ThreadPool> pool,
                                                       std::shared_ptr<DeviceMemory> memory,
                                                       std::span<const std::byte> plan) {
  auto loaded = plan::Plan::load(plan);
  if (!loaded.ok()) return loaded.status();
  std::shared_ptr<Executable> executable(new Executable(std::move(pool), std::move(memory)));
  executable->plan_ = loaded.value();
  EFF_RETURN_IF_ERROR(executable->memory_->device()->enter());
  EFF_RETURN_IF_ERROR(executable->bind_ops());
  EFF_RETURN_IF_ERROR(executable->allocate());
  return executable;
}

Executable::~Executable() {
  if (!memory_->device()->enter().ok()) return;
  memory_->device()->driver().cuStreamSynchronize(memory_->stream());
  const Driver& driver = memory_->device()->driver();
  for (const CUevent mark : marks_) driver.cuEventDestroy(mark);
  forget_graphs();
}

void Executable::forget_graphs() {
  const Driver& driver = memory_->device()->driver();
  for (CUgraphExec* graph : {&step_graph_, &prepare_graph_})
    if (*graph) driver.cuGraphExecDestroy(std::exchange(*graph, nullptr));
}

Status Executable::check_arenas() const {
  for (int i = 0; i < plan::kArenaCount; ++i) {
    const auto arena = static_cast<Arena>(i);
    if (is_own(arena) || plan_->arena_bytes(arena) <= memory_->bytes(arena)) continue;
    return error(Code::plan_invalid, "plan: needs %llu bytes of arena %d, the memory has %llu",
                 static_cast<unsigned long long>(plan_->arena_bytes(arena)), i,
                 static_cast<unsigned long long>(memory_->bytes(arena)));
  }
  return ok_status();
}

Status Executable::bind_ops() {
  if (plan_->region().count > 0)
    return error(Code::plan_invalid, "plan: goes image by image, which is for CPUs; a GPU takes the batch whole");
  EFF_RETURN_IF_ERROR(check_arenas());
  for (const plan::Op& op : plan_->ops()) {
    auto kernel = memory_->device()->providers().bind(op, factory_of(op.id));
    if (!kernel.ok())
      return Status(kernel.status().code(),
                    "op " + std::string(op.name) + " (" + plan::op_name(op.id) + "): " + kernel.status().message());
    updates_weights_ |= !op.updates.empty();
    const plan::DType working = kernel.value()->working;
    if (working != plan::DType::f32 && working_ != plan::DType::f32 && working != working_)
      return error(Code::plan_invalid, "plan: its weights would be needed in two 16-bit types");
    if (working != plan::DType::f32) working_ = working;
    bound_.push_back({&op, std::move(kernel.value())});
  }
  return ok_status();
}

Status Executable::allocate() {
  const auto& device = memory_->device();
  const CUstream stream = memory_->stream();
  size_t scratch = 0, constants = 0;
  for (Bound& bound : bound_) {
    scratch = std::max(scratch, bound.kernel->scratch_bytes);
    bound.constants_at = constants;
    constants += align256(bound.kernel->constants.size());
  }
  const auto on_device = [&](DeviceBlock& block, uint64_t bytes) -> Status {
    auto allocated = DeviceBlock::allocate(device, bytes, stream);
    if (!allocated.ok()) return allocated.status();
    block = std::move(allocated.value());
    return ok_status();
  };
  const auto pinned = [&](PinnedBlock& block, uint64_t bytes) -> Status {
    auto allocated = PinnedBlock::allocate(device, bytes);
    if (!allocated.ok()) return allocated.status();
    block = std::move(allocated.value());
    return ok_status();
  };
  const uint64_t input = kInputOffset + plan_->arena_bytes(Arena::input);
  EFF_RETURN_IF_ERROR(on_device(prepared_arena_, plan_->arena_bytes(Arena::prepared)));
  EFF_RETURN_IF_ERROR(on_device(output_, plan_->arena_bytes(Arena::output)));
  if (working_ != plan::DType::f32)
    for (const Arena a : {Arena::weights, Arena::prepared})
      EFF_RETURN_IF_ERROR(on_device(working_arenas_[static_cast<int>(a)], plan_->arena_bytes(a) / 2));
  EFF_RETURN_IF_ERROR(on_device(scratch_, scratch));
  EFF_RETURN_IF_ERROR(on_device(constants_, constants));
  EFF_RETURN_IF_ERROR(on_device(state_, sizeof(StepState)));
  EFF_RETURN_IF_ERROR(on_device(in_.device, input));
  EFF_RETURN_IF_ERROR(pinned(in_.host, input));
  EFF_RETURN_IF_ERROR(pinned(out_, align256(plan_->arena_bytes(Arena::output)) + sizeof(StepState)));
  for (const Bound& bound : bound_) {
    const auto& bytes = bound.kernel->constants;
    if (bytes.empty()) continue;
    EFF_CUDA(device->driver(), cuMemcpyHtoDAsync, constants_.address() + bound.constants_at, bytes.data(), bytes.size(),
             stream);
  }
  EFF_CUDA(device->driver(), cuStreamSynchronize, stream);
  return ok_status();
}

Status Executable::record() {
  Addresses at;
  for (int i = 0; i < plan::kArenaCount; ++i) at.arenas[i] = memory_->arena(static_cast<Arena>(i));
  at.arenas[static_cast<int>(Arena::prepared)] = prepared_arena_.data();
  at.arenas[static_cast<int>(Arena::input)] = in_.device.data() + kInputOffset;
  at.arenas[static_cast<int>(Arena::output)] = output_.data();
  at.scalars = reinterpret_cast<const StepScalars*>(in_.device.data());
  at.scratch = scratch_.data();
  at.state = reinterpret_cast<StepState*>(state_.data());
  for (int i = 0; i < plan::kArenaCount; ++i) {
    casts_[i].clear();
    if (!working_arenas_[i].bytes()) continue;
    at.working_arenas[i] = working_arenas_[i].data();
    const auto count = static_cast<int64_t>(plan_->arena_bytes(static_cast<Arena>(i)) / sizeof(float));
    Launch cast = cast_weights_launch(at.arenas[i], at.working_arenas[i], count, working_);
    auto function = memory_->device()->function(cast.kernel);
    if (!function.ok()) return function.status();
    casts_[i].emplace_back(std::move(cast), function.value());
  }
  for (Bound& bound : bound_) {
    at.constants = constants_.data() + bound.constants_at;
    std::vector<Launch> launches;
    bound.kernel->record(at, launches);
    bound.launches.clear();
    for (Launch& launch : launches) {
      StatusOr<CUfunction> function = CUfunction{};
      if (!launch.call) function = memory_->device()->function(launch.kernel);
      if (!function.ok()) return function.status();
      bound.launches.emplace_back(std::move(launch), function.value());
    }
  }
  recorded_generation_ = memory_->generation();
  return ok_status();
}

Status Executable::queue_input() const {
  const Driver& driver = memory_->device()->driver();
  EFF_CUDA(driver, cuMemcpyHtoDAsync, in_.device.address(), in_.host.data(), in_.host.bytes(), memory_->stream());
  EFF_CUDA(driver, cuMemsetD8Async, state_.address(), 0, sizeof(StepState), memory_->stream());
  return updates_weights_ ? queue_cast(Arena::weights) : ok_status();
}

Status Executable::queue_cast(Arena arena) const {
  for (const auto& [launch, function] : casts_[static_cast<int>(arena)])
    EFF_RETURN_IF_ERROR(memory_->device()->launch(launch, function, memory_->stream()));
  return ok_status();
}

Status Executable::queue_op(size_t op) const {
  for (const auto& [launch, function] : bound_[op].launches)
    EFF_RETURN_IF_ERROR(memory_->device()->launch(launch, function, memory_->stream()));
  return ok_status();
}

Status Executable::queue_output() const {
  const Driver& driver = memory_->device()->driver();
  const CUstream stream = memory_->stream();
  if (output_.bytes()) EFF_CUDA(driver, cuMemcpyDtoHAsync, out_.data(), output_.address(), output_.bytes(), stream);
  EFF_CUDA(driver, cuMemcpyDtoHAsync, out_.data() + align256(output_.bytes()), state_.address(), sizeof(StepState),
           stream);
  return ok_status();
}

// Everything of a step, or what is done when weights changed: a step that changes them copies them itself.
Status Executable::queue(bool prepare) const {
  if (!prepare)
    EFF_RETURN_IF_ERROR(queue_input());
  else if (!updates_weights_)
    EFF_RETURN_IF_ERROR(queue_cast(Arena::weights));
  for (size_t i = 0; i < bound_.size(); ++i)
    if (bound_[i].op->is_prepare() == prepare) EFF_RETURN_IF_ERROR(queue_op(i));
  return prepare ? queue_cast(Arena::prepared) : queue_output();
}

bool Executable::prepares() const {
  if (working_ != plan::DType::f32 && !updates_weights_) return true;
  return std::any_of(bound_.begin(), bound_.end(), [](const Bound& bound) { return bound.op->is_prepare(); });
}

Status Executable::capture(bool prepare, CUgraphExec* graph) {
  const Driver& driver = memory_->device()->driver();
  const CUstream stream = memory_->stream();
  EFF_CUDA(driver, cuStreamBeginCapture, stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
  const Status queued = queue(prepare);
  CUgraph captured = nullptr;
  const CUresult ended = driver.cuStreamEndCapture(stream, &captured);
  Status status = queued.ok() ? driver_status(driver, "cuStreamEndCapture", ended) : queued;
  if (status.ok())
    status = driver_status(driver, "cuGraphInstantiate", driver.cuGraphInstantiateWithFlags(graph, captured, 0));
  if (captured) driver.cuGraphDestroy(captured);
  return status;
}

Status Executable::make_current() {
  if (recorded_ && recorded_generation_ == memory_->generation()) return ok_status();
  EFF_RETURN_IF_ERROR(check_arenas());  // one whose growth failed may be gone
  forget_graphs();
  recorded_ = false;
  EFF_RETURN_IF_ERROR(record());
  if (prepares()) EFF_RETURN_IF_ERROR(capture(true, &prepare_graph_));
  EFF_RETURN_IF_ERROR(capture(false, &step_graph_));
  recorded_ = true;
  weights_changed = true;
  return ok_status();
}

Status Executable::stage(const std::byte* input, const StepScalars& scalars) {
  memory_->wait_unpinned();
  if (pool_->stopping()) return error(Code::aborted, "closed before a step");
  EFF_RETURN_IF_ERROR(memory_->device()->enter());
  EFF_RETURN_IF_ERROR(make_current());
  std::memcpy(in_.host.data(), &scalars, sizeof scalars);
  const uint64_t input_bytes = plan_->arena_bytes(Arena::input);
  if (input_bytes) std::memcpy(in_.host.data() + kInputOffset, input, input_bytes);
  const uint64_t version = memory_->weights_version.load();
  if (!prepare_graph_ || (!weights_changed.exchange(false) && version == prepared_version_)) return ok_status();
  const Driver& driver = memory_->device()->driver();
  const Status folded = driver_status(driver, "cuGraphLaunch", driver.cuGraphLaunch(prepare_graph_, memory_->stream()));
  if (!folded.ok()) weights_changed = true;
  prepared_version_ = version;
  return folded;
}

Status Executable::step(const std::byte* input, const StepScalars& scalars, std::byte* output) {
  EFF_RETURN_IF_ERROR(stage(input, scalars));
  const Driver& driver = memory_->device()->driver();
  if (updates_weights_) ++memory_->weights_version;
  if (profiling.load(std::memory_order_relaxed))
    EFF_RETURN_IF_ERROR(profiled_step());
  else
    EFF_CUDA(driver, cuGraphLaunch, step_graph_, memory_->stream());
  EFF_CUDA(driver, cuStreamSynchronize, memory_->stream());
  StepState state;
  std::memcpy(&state, out_.data() + align256(output_.bytes()), sizeof state);
  if (state.unsound) return error(Code::nan, "the update made weights that are not finite");
  if (output_.bytes()) std::memcpy(output, out_.data(), output_.bytes());
  return ok_status();
}

// The same launches as the graph's, with the time between them.
Status Executable::profiled_step() {
  const Driver& driver = memory_->device()->driver();
  const CUstream stream = memory_->stream();
  while (marks_.size() <= bound_.size()) {
    CUevent mark = nullptr;
    EFF_CUDA(driver, cuEventCreate, &mark, CU_EVENT_DEFAULT);
    marks_.push_back(mark);
  }
  EFF_RETURN_IF_ERROR(queue_input());
  for (size_t i = 0; i < bound_.size(); ++i) {
    EFF_CUDA(driver, cuEventRecord, marks_[i], stream);
    if (!bound_[i].op->is_prepare()) EFF_RETURN_IF_ERROR(queue_op(i));
  }
  EFF_CUDA(driver, cuEventRecord, marks_[bound_.size()], stream);
  EFF_RETURN_IF_ERROR(queue_output());
  EFF_CUDA(driver, cuStreamSynchronize, stream);
  for (size_t i = 0; i < bound_.size(); ++i) {
    float ms = 0;
    EFF_CUDA(driver, cuEventElapsedTime, &ms, marks_[i], marks_[i + 1]);
    if (!bound_[i].op->is_prepare()) bound_[i].ms += ms;
  }
  ++profiled_steps_;
  return ok_status();
}

std::byte* Executable::data(const plan::Tensor& tensor) const {
  switch (tensor.arena) {
    case Arena::prepared:
      return prepared_arena_.data() + tensor.offset;
    case Arena::input:
      return in_.device.data() + kInputOffset + tensor.offset;
    case Arena::output:
      return output_.data() + tensor.offset;
    default:
      return memory_->arena(tensor.arena) + tensor.offset;
  }
}

Status Executable::read(const plan::Tensor& tensor, std::span<std::byte> into) const {
  if (tensor.arena == Arena::input)
    return error(Code::invalid_argument, "a tensor of the input is there during a step only");
  const size_t bytes = std::min<size_t>(into.size(), tensor.bytes);
  if (bytes == 0) return ok_status();
  const Driver& driver = memory_->device()->driver();
  EFF_RETURN_IF_ERROR(memory_->device()->enter());
  EFF_CUDA(driver, cuMemcpyDtoHAsync, into.data(), reinterpret_cast<CUdeviceptr>(data(tensor)), bytes,
           memory_->stream());
  EFF_CUDA(driver, cuStreamSynchronize, memory_->stream());
  return ok_status();
}

std::vector<OpReport> Executable::report() const {
  std::vector<OpReport> rows;
  for (const Bound& bound : bound_)
    rows.push_back({std::string(bound.op->name), plan::op_name(bound.op->id), bound.kernel->name, bound.op->flags,
                    bound.kernel->flops, plan::operand_bytes(*bound.op, 1),
                    profiled_steps_ ? bound.ms / profiled_steps_ : 0});
  return rows;
}

uint64_t Executable::owned_bytes() const { return in_.host.bytes() + out_.bytes(); }

}  // namespace effnet::cuda
