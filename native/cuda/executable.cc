#include "cuda/executable.h"

#include <algorithm>
#include <cstring>

namespace effnet::cuda {
namespace {

using plan::Arena;

KernelFactory factory_of(plan::OpId id) {
  switch (id) {
#define EFF_OP(number, name, ...) \
  case plan::OpId::name:          \
    return make_##name;
#include "plan/op_table.inc"
#undef EFF_OP
  }
  return nullptr;
}

constexpr size_t kInputOffset = 256;  // of the input arena in the staging block, behind the scalars
static_assert(sizeof(StepScalars) <= kInputOffset);

size_t align256(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Arenas that belong to one plan; the others are the memory's.
bool is_own(Arena a) { return a == Arena::prepared || a == Arena::input || a == Arena::output || a == Arena::image; }

}  // namespace

StatusOr<std::shared_ptr<Executable>> Executable::bind(std::shared_ptr<DeviceMemory> memory,
                                                       std::span<const std::byte> plan) {
  auto loaded = plan::Plan::load(plan);
  if (!loaded.ok()) return loaded.status();
  std::shared_ptr<Executable> executable(new Executable(std::move(memory)));
  executable->plan_ = loaded.value();
  EFF_RETURN_IF_ERROR(executable->memory_->device()->enter());
  EFF_RETURN_IF_ERROR(executable->bind_ops());
  EFF_RETURN_IF_ERROR(executable->allocate());
  return executable;
}

Executable::~Executable() {
  if (!memory_->device()->enter().ok()) return;
  memory_->device()->driver().cuStreamSynchronize(memory_->stream());
  forget_graphs();
}

void Executable::forget_graphs() {
  const Driver& driver = memory_->device()->driver();
  for (CUgraphExec* graph : {&step_graph_, &prepare_graph_})
    if (*graph) driver.cuGraphExecDestroy(std::exchange(*graph, nullptr));
}

Status Executable::bind_ops() {
  if (plan_->region().count > 0)
    return error(Code::plan_invalid, "plan: goes image by image, which is for CPUs; a GPU takes the batch whole");
  for (int i = 0; i < plan::kArenaCount; ++i) {
    const auto arena = static_cast<Arena>(i);
    if (is_own(arena) || plan_->arena_bytes(arena) <= memory_->bytes(arena)) continue;
    return error(Code::plan_invalid, "plan: needs %llu bytes of arena %d, the memory has %llu",
                 static_cast<unsigned long long>(plan_->arena_bytes(arena)), i,
                 static_cast<unsigned long long>(memory_->bytes(arena)));
  }
  for (const plan::Op& op : plan_->ops()) {
    auto kernel = factory_of(op.id)(op);
    if (!kernel.ok())
      return Status(kernel.status().code(),
                    "op " + std::string(op.name) + " (" + plan::op_name(op.id) + "): " + kernel.status().message());
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
  for (Bound& bound : bound_) {
    at.constants = constants_.data() + bound.constants_at;
    std::vector<Launch> launches;
    bound.kernel->record(at, launches);
    bound.launches.clear();
    for (Launch& launch : launches) {
      auto function = memory_->device()->function(launch.kernel);
      if (!function.ok()) return function.status();
      bound.launches.emplace_back(std::move(launch), function.value());
    }
  }
  recorded_generation_ = memory_->generation();
  recorded_ = true;
  return ok_status();
}

// Everything of a step (or of the ops that run when weights changed) onto the memory's stream.
Status Executable::queue(bool prepare) const {
  const Device& device = *memory_->device();
  const Driver& driver = device.driver();
  const CUstream stream = memory_->stream();
  if (!prepare) {
    EFF_CUDA(driver, cuMemcpyHtoDAsync, in_.device.address(), in_.host.data(), in_.host.bytes(), stream);
    EFF_CUDA(driver, cuMemsetD8Async, state_.address(), 0, sizeof(StepState), stream);
  }
  for (const Bound& bound : bound_) {
    if (bound.op->is_prepare() != prepare) continue;
    for (const auto& [launch, function] : bound.launches) EFF_RETURN_IF_ERROR(device.launch(launch, function, stream));
  }
  if (prepare) return ok_status();
  if (output_.bytes()) EFF_CUDA(driver, cuMemcpyDtoHAsync, out_.data(), output_.address(), output_.bytes(), stream);
  EFF_CUDA(driver, cuMemcpyDtoHAsync, out_.data() + align256(output_.bytes()), state_.address(), sizeof(StepState),
           stream);
  return ok_status();
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

Status Executable::step(const std::byte* input, const StepScalars& scalars, std::byte* output) {
  const Device& device = *memory_->device();
  const Driver& driver = device.driver();
  EFF_RETURN_IF_ERROR(device.enter());
  if (!recorded_ || recorded_generation_ != memory_->generation()) {
    forget_graphs();
    recorded_ = false;
    EFF_RETURN_IF_ERROR(record());
    EFF_RETURN_IF_ERROR(capture(true, &prepare_graph_));
    EFF_RETURN_IF_ERROR(capture(false, &step_graph_));
    prepared_ = false;
  }
  std::memcpy(in_.host.data(), &scalars, sizeof scalars);
  const uint64_t input_bytes = plan_->arena_bytes(Arena::input);
  if (input_bytes) std::memcpy(in_.host.data() + kInputOffset, input, input_bytes);
  if (!prepared_) EFF_CUDA(driver, cuGraphLaunch, prepare_graph_, memory_->stream());
  prepared_ = true;
  EFF_CUDA(driver, cuGraphLaunch, step_graph_, memory_->stream());
  EFF_CUDA(driver, cuStreamSynchronize, memory_->stream());
  StepState state;
  std::memcpy(&state, out_.data() + align256(output_.bytes()), sizeof state);
  if (state.unsound) return error(Code::nan, "the update made weights that are not finite");
  if (output_.bytes()) std::memcpy(output, out_.data(), output_.bytes());
  return ok_status();
}

std::vector<Executable::OpReport> Executable::report() const {
  std::vector<OpReport> rows;
  for (const Bound& bound : bound_)
    rows.push_back({std::string(bound.op->name), plan::op_name(bound.op->id), bound.kernel->name, bound.op->flags,
                    bound.kernel->flops});
  return rows;
}

}  // namespace effnet::cuda
