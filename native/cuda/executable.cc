#include "cuda/executable.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cuda/image_batches.h"
#include "cuda/kernels/step.h"
#include "cuda/nvtx.h"
#include "cuda/ops/weights.h"
#include "plan/op_traits.h"
#include "plan/segments.h"

namespace effnet::cuda {
namespace {

using plan::Arena;

// Arenas that belong to one plan; the others are the memory's.
bool is_own(Arena a) { return a == Arena::prepared || a == Arena::input || a == Arena::output || a == Arena::image; }

// The StepReport, behind the output arena.
size_t report_at(uint64_t output_bytes) { return align256(output_bytes); }

}  // namespace

StatusOr<std::shared_ptr<Executable>> Executable::bind(std::shared_ptr<ThreadPool> pool,
                                                       std::shared_ptr<DeviceMemory> memory,
                                                       std::span<const std::byte> plan, const Tuning& tuning) {
  auto loaded = plan::Plan::load(plan);
  if (!loaded.ok()) return loaded.status();
  std::shared_ptr<Executable> executable(new Executable(std::move(pool), std::move(memory)));
  executable->plan_ = loaded.value();
  const char* synchronous = std::getenv("EFFNET_CUDA_SYNC");  // ts/runtime/cuda_variables.ts refuses all but 0 and 1
  executable->synchronous_ = synchronous && std::strcmp(synchronous, "1") == 0;
  EFF_RETURN_IF_ERROR(executable->memory_->device()->enter());
  EFF_RETURN_IF_ERROR(executable->bind_ops(tuning));
  EFF_RETURN_IF_ERROR(executable->allocate());
  EFF_RETURN_IF_ERROR(executable->tune(tuning));
  return executable;
}

Executable::~Executable() {
  if (!device().enter().ok()) return;
  driver().cuStreamSynchronize(stream());
  driver().cuStreamSynchronize(memory_->copy_stream());
  for (const CUevent mark : marks_) driver().cuEventDestroy(mark);
  for (auto& of_slot : recordings_)
    for (Recording& recording : of_slot) recording.forget(driver());
  ring_.destroy(driver());
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

Status Executable::bind_ops(const Tuning& tuning) {
  if (plan_->region().count > 0)
    return error(Code::plan_invalid, "plan: goes image by image, which is for CPUs; a GPU takes the batch whole");
  EFF_RETURN_IF_ERROR(check_arenas());
  update_at_ = plan_->ops().size();
  for (const plan::Op& op : plan_->ops()) {
    bool to_tune = false;
    auto kernel = bind_op(op, tuning, to_tune);
    if (!kernel.ok()) {
      const Status why = device().failure_of_library(kernel.status(), stream());
      // Binding runs nothing: a fault is of what ran before.
      const char* where = why.code() == Code::gpu_fault ? "before op " : "op ";
      return Status(why.code(), where + std::string(op.name) + " (" + plan::op_name(op.id) + "): " + why.message());
    }
    updates_weights_ |= !op.updates.empty();
    const plan::DType working = kernel.value()->working;
    if (working != plan::DType::f32 && working_ != plan::DType::f32 && working != working_)
      return error(Code::plan_invalid, "plan: its weights would be needed in two 16-bit types");
    if (working != plan::DType::f32) working_ = working;
    if (plan::is_of_update(op.id)) update_at_ = std::min(update_at_, bound_.size());
    bound_.push_back({&op, std::move(kernel.value())});
    bound_.back().to_tune = to_tune;
  }
  gather_statistics();
  return ok_status();
}

void Executable::gather_statistics() {
  plan::Segments segments;
  for (const Bound& bound : bound_) {
    if (plan::updates_parameters(bound.op->id)) continue;
    for (const plan::Tensor* t : bound.op->updates) {
      if (t->arena != Arena::weights) continue;
      segments.add(t->offset, statistics_bytes_, t->elements());
      statistics_bytes_ += t->bytes;
    }
  }
  segments.finish();
  statistics_ = segments.pieces();
}

Status Executable::allocate() {
  size_t constants = 0;
  for (Bound& bound : bound_) {
    bound.constants_at = constants;
    constants += align256(bound.kernel->constants.size());
  }
  const std::pair<DeviceBlock*, uint64_t> blocks[] = {{&output_, plan_->arena_bytes(Arena::output)},
                                                      {&constants_, constants},
                                                      {&statistics_list_, statistics_.size() * sizeof(plan::Segment)},
                                                      {&aside_, statistics_bytes_}};
  for (const auto& [block, bytes] : blocks) {
    auto allocated = memory_->allocate(bytes);
    if (!allocated.ok()) return allocated.status();
    *block = std::move(allocated.value());
  }
  EFF_RETURN_IF_ERROR(allocate_scratch());
  EFF_RETURN_IF_ERROR(allocate(folded()));
  if (working_ != plan::DType::f32) EFF_RETURN_IF_ERROR(memory_->ensure_working(working_));
  EFF_RETURN_IF_ERROR(ring_.create(*memory_, plan_->arena_bytes(Arena::input),
                                   report_at(plan_->arena_bytes(Arena::output)) + sizeof(StepReport)));
  const auto upload = [&](CUdeviceptr to, std::span<const std::byte> bytes) -> Status {
    if (!bytes.empty()) EFF_CUDA(driver(), cuMemcpyHtoDAsync, to, bytes.data(), bytes.size(), stream());
    return ok_status();
  };
  for (const Bound& bound : bound_)
    EFF_RETURN_IF_ERROR(upload(constants_.address() + bound.constants_at, bound.kernel->constants));
  EFF_RETURN_IF_ERROR(upload(statistics_list_.address(), std::as_bytes(std::span(statistics_))));
  EFF_CUDA(driver(), cuStreamSynchronize, stream());
  return ok_status();
}

Status Executable::allocate_scratch() {
  size_t bytes = 0;
  for (const Bound& bound : bound_) bytes = std::max(bytes, bound.kernel->scratch_bytes);
  if (bytes <= scratch_.bytes()) return ok_status();
  auto allocated = memory_->allocate(bytes);
  if (!allocated.ok()) return allocated.status();
  scratch_ = std::move(allocated.value());
  return ok_status();
}

Status Executable::allocate(Folded& folded) {
  const auto on_device = [&](DeviceBlock& block, uint64_t bytes) -> Status {
    auto allocated = memory_->allocate(bytes);
    if (!allocated.ok()) return allocated.status();
    block = std::move(allocated.value());
    return ok_status();
  };
  const uint64_t prepared = plan_->arena_bytes(Arena::prepared);
  EFF_RETURN_IF_ERROR(on_device(folded.prepared, prepared));
  if (working_ != plan::DType::f32) EFF_RETURN_IF_ERROR(on_device(folded.working, prepared / 2));
  folded.allocated = true;
  return ok_status();
}

// ---- recording ---------------------------------------------------------------------------------------------------

Addresses Executable::addresses(const Slot& slot) {
  Addresses at;
  for (int i = 0; i < plan::kArenaCount; ++i) at.arenas[i] = memory_->arena(static_cast<Arena>(i));
  if (working_ != plan::DType::f32) {
    at.working_arenas[static_cast<int>(Arena::weights)] = memory_->working(working_).copy.data();
    at.working_arenas[static_cast<int>(Arena::prepared)] = folded().working.data();
  }
  at.working_type = working_;
  at.arenas[static_cast<int>(Arena::prepared)] = folded().prepared.data();
  at.arenas[static_cast<int>(Arena::input)] = slot.device_input();
  at.arenas[static_cast<int>(Arena::output)] = output_.data();
  at.scalars = slot.device_scalars();
  at.scratch = scratch_.data();
  at.state = memory_->state();
  at.updates = updates_weights_;
  return at;
}

Status Executable::prepare_to_accumulate() {
  const uint64_t bytes = plan_->arena_bytes(Arena::grads);
  if (gradient_sums_.bytes() >= bytes) return ok_status();
  auto sums = memory_->allocate(bytes);
  if (!sums.ok()) return sums.status();
  gradient_sums_ = std::move(sums.value());
  for (auto& of_slot : recordings_)
    for (Recording& recording : of_slot) recording.forget(driver());
  return ok_status();
}

Status Executable::record(const Slot& slot, Recording& recording) {
  Addresses at = addresses(slot);
  const auto bind = [&](BoundLaunches& into, std::vector<Launch> launches) -> Status {
    auto bound = bind_launches(*memory_->device(), std::move(launches));
    if (bound.ok()) into = std::move(bound.value());
    return bound.status();
  };
  for (const Arena arena : cast_arenas()) {
    const auto i = static_cast<int>(arena);
    EFF_RETURN_IF_ERROR(bind(recording.casts[i],
                             {cast_weights_launch(at.arenas[i], at.working_arenas[i], cast_count(arena), working_)}));
  }
  if (updates_weights_) {
    const StepEndsArgs ends{reinterpret_cast<const plan::Segment*>(statistics_list_.data()),
                            static_cast<int64_t>(statistics_.size()),
                            at.arena(Arena::weights),
                            aside_.data(),
                            at.scalars,
                            at.state};
    const Dim blocks{static_cast<uint32_t>(std::max<size_t>(1, statistics_.size())), 1, 1};
    EFF_RETURN_IF_ERROR(bind(recording.begin, {make_launch("begin_step", blocks, kStepThreads, 0, ends)}));
    if (gradient_sums_.bytes()) {
      const auto count = static_cast<int64_t>(plan_->arena_bytes(Arena::grads) / sizeof(float));
      const AccumulateArgs args{reinterpret_cast<float*>(at.arena(Arena::grads)),
                                reinterpret_cast<float*>(gradient_sums_.data()), count, at.scalars};
      EFF_RETURN_IF_ERROR(bind(recording.accumulate,
                               {make_launch("accumulate", grid_for(count, kStepThreads), kStepThreads, 0, args)}));
    }
    EFF_RETURN_IF_ERROR(bind(recording.finish, {make_launch("finish_step", blocks, kStepThreads, 0, ends)}));
  }
  recording.ops.resize(bound_.size());
  for (size_t i = 0; i < bound_.size(); ++i) {
    at.constants = constants_.data() + bound_[i].constants_at;
    std::vector<Launch> launches;
    bound_[i].kernel->record(at, launches);
    EFF_RETURN_IF_ERROR(bind(recording.ops[i], std::move(launches)));
  }
  recording.generation = memory_->generation();
  recording.valid = true;
  return ok_status();
}

std::vector<Arena> Executable::cast_arenas() const {
  std::vector<Arena> arenas;
  if (working_ == plan::DType::f32) return arenas;
  for (const Arena arena : {Arena::weights, Arena::prepared})
    if (cast_count(arena) > 0) arenas.push_back(arena);
  return arenas;
}

int64_t Executable::cast_count(Arena arena) const {
  const uint64_t bytes = arena == Arena::weights ? memory_->bytes(arena) : plan_->arena_bytes(arena);
  return static_cast<int64_t>(bytes / sizeof(float));
}

Status Executable::queue_scalars(const Slot& slot) const {
  EFF_CUDA(driver(), cuMemcpyHtoDAsync, slot.device.address(), slot.scalars.data(), slot.scalars.bytes(), stream());
  return ok_status();
}

Status Executable::queue_begin(const Use& use) const {
  EFF_RETURN_IF_ERROR(queue_scalars(use.slot));
  return queue_launches(use.recording.begin);
}

Status Executable::queue_op(const Recording& recording, size_t op) const {
  const Range range(bound_[op].op->name);
  const Status queued = queue_launches(recording.ops[op]);
  if (queued.ok() || !synchronous_) return queued;
  const Bound& bound = bound_[op];
  return Status(queued.code(),
                "op " + std::string(bound.op->name) + " (" + bound.kernel->name + "): " + queued.message());
}

Status Executable::queue_output(const Slot& slot) const {
  std::byte* into = slot.output.data();
  if (output_.bytes()) EFF_CUDA(driver(), cuMemcpyDtoHAsync, into, output_.address(), output_.bytes(), stream());
  EFF_CUDA(driver(), cuMemcpyDtoHAsync, into + report_at(output_.bytes()),
           reinterpret_cast<CUdeviceptr>(memory_->state()), sizeof(StepReport), stream());
  return ok_status();
}

Status Executable::queue(Part part, const Use& use) const {
  const Recording& recording = use.recording;
  const bool prepare = part == Part::prepare, begins = part == Part::step || part == Part::batch;
  if (begins) EFF_RETURN_IF_ERROR(queue_scalars(use.slot));
  EFF_RETURN_IF_ERROR(queue_on_device(part, recording));
  return prepare ? ok_status() : queue_output(use.slot);
}

Status Executable::queue_on_device(Part part, const Recording& recording) const {
  const bool prepare = part == Part::prepare;
  if (prepare) EFF_RETURN_IF_ERROR(queue_launches(recording.casts[static_cast<int>(Arena::weights)]));
  if (part == Part::step || part == Part::batch) EFF_RETURN_IF_ERROR(queue_launches(recording.begin));
  const size_t first = part == Part::update ? update_at_ : 0, end = part == Part::batch ? update_at_ : bound_.size();
  for (size_t i = first; i < end; ++i)
    if (bound_[i].op->is_prepare() == prepare) EFF_RETURN_IF_ERROR(queue_op(recording, i));
  if (prepare) return queue_launches(recording.casts[static_cast<int>(Arena::prepared)]);
  return queue_launches(part == Part::batch ? recording.accumulate : recording.finish);
}

bool Executable::calls_libraries(const Recording& recording) {
  const auto is_call = [](const BoundLaunch& bound) { return bound.first.call != nullptr; };
  return std::any_of(recording.ops.begin(), recording.ops.end(),
                     [&](const BoundLaunches& of_op) { return std::any_of(of_op.begin(), of_op.end(), is_call); });
}

bool Executable::has_prepare_ops() const {
  return std::any_of(bound_.begin(), bound_.end(), [](const Bound& bound) { return bound.op->is_prepare(); });
}

StatusOr<CUgraphExec> Executable::graph(Part part, const Use& use) {
  CUgraphExec& graph = use.recording.graphs[static_cast<int>(part)];
  if (!graph)
    EFF_RETURN_IF_ERROR(capture(driver(), stream(), &graph, [&] {
      return use.slot.locked() ? queue(part, use) : queue_on_device(part, use.recording);
    }));
  return graph;
}

// ---- steps -------------------------------------------------------------------------------------------------------

StatusOr<uint64_t> Executable::prefetch(const std::byte* input) {
  EFF_RETURN_IF_ERROR(device().enter());
  return ring_.stage_ahead(*memory_, input);
}

StatusOr<uint64_t> Executable::prefetch(const DeviceInput& input) {
  const auto& batch = static_cast<const DeviceBatch&>(input);
  EFF_RETURN_IF_ERROR(enter_for(batch));
  return ring_.stage_ahead(*memory_, batch);
}

Status Executable::take(const DeviceInput& input) {
  const auto& batch = static_cast<const DeviceBatch&>(input);
  EFF_RETURN_IF_ERROR(enter_for(batch));
  return ring_.stage(*memory_, batch);
}

Status Executable::enter_for(const DeviceBatch& batch) const {
  if (&batch.device() != &device()) return error(Code::invalid_argument, "the batch was made on another GPU");
  return device().enter();
}

StatusOr<Slot*> Executable::take_slot(const std::byte* input, const StepScalars& scalars) {
  memory_->wait_unpinned();
  if (pool_->stopping()) return error(Code::aborted, "closed before a step");
  EFF_RETURN_IF_ERROR(device().enter());
  EFF_RETURN_IF_ERROR(check_arenas());  // one whose growth failed may be gone
  if (!folded().allocated) EFF_RETURN_IF_ERROR(allocate(folded()));
  if (working_ != plan::DType::f32) EFF_RETURN_IF_ERROR(memory_->ensure_working(working_));
  if (scalars.parts > 1) EFF_RETURN_IF_ERROR(prepare_to_accumulate());
  if (input || plan_->arena_bytes(Arena::input) == 0) return ring_.stage(*memory_, input);
  Slot* slot = ring_.take();
  if (!slot) return error(Code::invalid_argument, "no input was given, and none is staged ahead");
  return slot;
}

Status Executable::stage(Slot& slot, const StepScalars& scalars) {
  if (slot.waits_for_results) return error(Code::internal, "a step's results were not taken before its slot was used");
  EFF_CUDA(driver(), cuEventSynchronize, slot.done);  // the step before has read its scalars
  std::memcpy(slot.scalars.data(), &scalars, sizeof scalars);
  if (slot.copied_on != stream()) EFF_CUDA(driver(), cuStreamWaitEvent, stream(), slot.copied, 0);
  Recording& recording = this->recording(slot);
  if (!recording.valid || recording.generation != memory_->generation()) {
    recording.forget(driver());
    EFF_RETURN_IF_ERROR(record(slot, recording));
    folded().stale = true;
  }
  return fold({slot, recording});
}

Status Executable::fold(const Use& use) {
  DeviceMemory::Working* working = working_ == plan::DType::f32 ? nullptr : &memory_->working(working_);
  if (!working && !has_prepare_ops()) return ok_status();
  if (weights_changed.exchange(false)) {
    folded_[0].stale = folded_[1].stale = true;
    memory_->outdate_working();
  }
  Folded& now = folded();
  const uint64_t version = memory_->weights_version.load();
  const auto is_of_now = [version](const auto& made) { return !made.stale && made.version == version; };
  if ((!working || is_of_now(*working)) && (!has_prepare_ops() || is_of_now(now))) return ok_status();
  const auto mark = [&](bool stale) {
    now.stale = stale;
    now.version = version;
    if (!working) return;
    working->stale = stale;
    working->version = version;
  };
  mark(true);  // until it has been queued
  EFF_RETURN_IF_ERROR(run(Part::prepare, use));
  mark(false);
  return ok_status();
}

Status Executable::run(Part part, const Use& use) {
  static constexpr const char* kNames[kParts] = {"prepare", "step", "batch", "update"};
  const Range range(kNames[static_cast<int>(part)]);
  if (synchronous_) return queue(part, use);
  const auto captured = graph(part, use);
  // What a library does at its first launch, a capture may refuse: it is launched once without, and captured next time.
  if (captured.status().code() == Code::internal && calls_libraries(use.recording) &&
      !std::exchange(ungraphed_[static_cast<int>(part)], true))
    return queue(part, use);
  if (!captured.ok()) return captured.status();
  const bool beside = !use.slot.locked() && part != Part::prepare;
  if (beside && part != Part::update) EFF_RETURN_IF_ERROR(queue_scalars(use.slot));
  EFF_CUDA(driver(), cuGraphLaunch, captured.value(), stream());
  return beside ? queue_output(use.slot) : ok_status();
}

StatusOr<Slot*> Executable::queue_step(const std::byte* input, const StepScalars& scalars) {
  const auto with_input = take_slot(input, scalars);
  if (!with_input.ok()) return with_input.status();
  Slot& slot = *with_input.value();
  Taken taken(*this, slot);
  EFF_RETURN_IF_ERROR(stage(slot, scalars));
  const Use use{slot, recording(slot)};
  const uint64_t version = updates_weights_ ? ++memory_->weights_version : 0;
  if (scalars.parts > 1) {
    EFF_RETURN_IF_ERROR(run(Part::batch, use));
    if (scalars.part + 1 == scalars.parts) EFF_RETURN_IF_ERROR(run(Part::update, use));
  } else if (profiling.load(std::memory_order_relaxed)) {
    EFF_RETURN_IF_ERROR(profiled_step(use));
  } else {
    EFF_RETURN_IF_ERROR(run(Part::step, use));
  }
  // An update writes the 16-bit copy of what it changes itself.
  if (working_ != plan::DType::f32)
    if (DeviceMemory::Working& working = memory_->working(working_); version == working.version + 1)
      working.version = version;
  EFF_RETURN_IF_ERROR(taken.release());
  slot.waits_for_results = true;
  return &slot;
}

Status Executable::finish_step(Slot& slot, std::byte* output) {
  slot.waits_for_results = false;
  EFF_CUDA(driver(), cuEventSynchronize, slot.done);
  StepReport report;
  std::memcpy(static_cast<void*>(&report), slot.output.data() + report_at(output_.bytes()), sizeof report);
  memory_->note_loss_scale(report.loss_scale);
  const bool skipped = report.skip && slot.host_scalars()->scale_interval > 0;
  if (updates_weights_ && report.unsound && !skipped)
    return error(Code::nan, "the update made weights that are not finite");
  if (output_.bytes()) std::memcpy(output, slot.output.data(), output_.bytes());
  return ok_status();
}

Status Executable::step(const std::byte* input, const StepScalars& scalars, std::byte* output) {
  const auto slot = queue_step(input, scalars);
  return slot.ok() ? finish_step(*slot.value(), output) : slot.status();
}

// The same launches as the graph's, with the time between them.
Status Executable::profiled_step(const Use& use) {
  const Range range("profiled step");
  const size_t ops = bound_.size();
  while (marks_.size() < ops + 3) {
    CUevent mark = nullptr;
    EFF_CUDA(driver(), cuEventCreate, &mark, CU_EVENT_DEFAULT);
    marks_.push_back(mark);
  }
  const auto mark = [&](size_t i) {
    return driver_status(driver(), "cuEventRecord", driver().cuEventRecord(marks_[i], stream()));
  };
  EFF_RETURN_IF_ERROR(mark(0));
  EFF_RETURN_IF_ERROR(queue_begin(use));
  for (size_t i = 0; i < ops; ++i) {
    EFF_RETURN_IF_ERROR(mark(i + 1));
    if (!bound_[i].op->is_prepare()) EFF_RETURN_IF_ERROR(queue_op(use.recording, i));
  }
  EFF_RETURN_IF_ERROR(mark(ops + 1));
  EFF_RETURN_IF_ERROR(queue_launches(use.recording.finish));
  EFF_RETURN_IF_ERROR(mark(ops + 2));
  EFF_RETURN_IF_ERROR(queue_output(use.slot));
  EFF_CUDA(driver(), cuStreamSynchronize, stream());
  const auto add = [&](double& into, size_t from) -> Status {
    float ms = 0;
    EFF_CUDA(driver(), cuEventElapsedTime, &ms, marks_[from], marks_[from + 1]);
    into += ms;
    return ok_status();
  };
  for (size_t i = 0; i < ops; ++i)
    if (!bound_[i].op->is_prepare()) EFF_RETURN_IF_ERROR(add(bound_[i].ms, i + 1));
  EFF_RETURN_IF_ERROR(add(begin_ms_, 0));
  EFF_RETURN_IF_ERROR(add(finish_ms_, ops + 1));
  ++profiled_steps_;
  return ok_status();
}

// ---- what others see ---------------------------------------------------------------------------------------------

std::byte* Executable::data(const plan::Tensor& tensor) const {
  switch (tensor.arena) {
    case Arena::prepared:
      return folded().prepared.data() + tensor.offset;
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
  EFF_RETURN_IF_ERROR(device().enter());
  EFF_CUDA(driver(), cuMemcpyDtoHAsync, into.data(), reinterpret_cast<CUdeviceptr>(data(tensor)), bytes, stream());
  EFF_CUDA(driver(), cuStreamSynchronize, stream());
  return ok_status();
}

std::vector<OpReport> Executable::report() const {
  std::vector<OpReport> rows;
  for (const Bound& bound : bound_)
    rows.push_back({std::string(bound.op->name), plan::op_name(bound.op->id), bound.kernel->name, bound.op->flags,
                    bound.kernel->flops, plan::operand_bytes(*bound.op, 1), mean_ms(bound.ms)});
  for (OpReport& row : report_beside_ops()) rows.push_back(std::move(row));
  return rows;
}

std::vector<OpReport> Executable::report_beside_ops() const {
  std::vector<OpReport> rows;
  const auto add = [&](const char* name, const char* op, std::string kernel, double bytes, double ms) {
    rows.push_back({name, op, kernel + ":cuda", 0, 0, bytes, mean_ms(ms)});
  };
  for (const Arena arena : cast_arenas())
    add(arena == Arena::weights ? "weights" : "prepared", "cast_weights",
        cast_weights_launch(nullptr, nullptr, 1, working_).kernel,
        static_cast<double>(cast_count(arena)) * (sizeof(float) + plan::dtype_bytes(working_)), 0);
  if (!updates_weights_) return rows;
  const auto aside = static_cast<double>(statistics_bytes_), grads = static_cast<double>(gradient_sums_.bytes());
  add("begin_step", "begin_step", "begin_step", 2 * aside, begin_ms_);
  if (grads > 0) add("accumulate", "accumulate", "accumulate", 3 * grads, 0);
  add("finish_step", "finish_step", "finish_step", 0, finish_ms_);
  return rows;
}

uint64_t Executable::owned_bytes() const {
  uint64_t bytes = 0;
  for (const auto& slot : ring_.slots()) bytes += slot->input.bytes() + slot->output.bytes() + slot->scalars.bytes();
  return bytes;
}

}  // namespace effnet::cuda
