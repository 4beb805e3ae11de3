#include "cpu/executable.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "cpu/kernels/dispatch.h"
#include "plan/op_ports.h"

namespace effnet::cpu {
namespace {

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

double operand_bytes(const plan::Op& op) {
  uint64_t bytes = 0;
  for (const auto* list : {&op.inputs, &op.outputs, &op.updates})
    for (const plan::Tensor* tensor : *list)
      if (tensor) bytes += tensor->bytes;
  return static_cast<double>(bytes);
}

}  // namespace

StatusOr<std::shared_ptr<Executable>> Executable::bind(std::shared_ptr<ThreadPool> pool, std::shared_ptr<Memory> memory,
                                                       std::span<const std::byte> plan) {
  if (const char* reason = unsupported_cpu_reason()) return error(Code::backend_missing, "%s", reason);
  auto loaded = plan::Plan::load(plan);
  if (!loaded.ok()) return loaded.status();
  auto executable = std::make_shared<Executable>();
  executable->pool_ = std::move(pool);
  executable->memory_ = std::move(memory);
  executable->plan_ = loaded.value();
  EFF_RETURN_IF_ERROR(executable->bind_ops());
  return executable;
}

Status Executable::check_arenas() const {
  using plan::Arena;
  for (int i = 0; i < plan::kArenaCount; ++i) {
    const auto arena = static_cast<Arena>(i);
    if (arena == Arena::prepared || arena == Arena::input || arena == Arena::output) continue;
    if (plan_->arena_bytes(arena) > memory_->bytes(arena))
      return error(Code::plan_invalid, "plan: needs %llu bytes of arena %d, the memory has %llu",
                   static_cast<unsigned long long>(plan_->arena_bytes(arena)), i,
                   static_cast<unsigned long long>(memory_->bytes(arena)));
  }
  return ok_status();
}

Status Executable::bind_ops() {
  using plan::Arena;
  EFF_RETURN_IF_ERROR(check_arenas());
  if (plan_->ops().size() > static_cast<size_t>(ThreadPool::kMaxShards))
    return error(Code::plan_invalid, "plan: %zu ops are too many", plan_->ops().size());
  size_t shared = 0;
  bound_.reserve(plan_->ops().size());
  for (const plan::Op& op : plan_->ops()) {
    if (pool_->stopping()) return error(Code::aborted, "closed while a plan was being bound");
    auto kernel = factory_of(op.id)(op);
    if (!kernel.ok())
      return Status(kernel.status().code(),
                    "op " + std::string(op.name) + " (" + plan::op_name(op.id) + "): " + kernel.status().message());
    for (int phase = 0; phase < kernel.value()->phases(); ++phase)
      if (const int shards = kernel.value()->shards(phase); shards < 0 || shards > ThreadPool::kMaxShards)
        return error(Code::plan_invalid, "op %.*s: too large", static_cast<int>(op.name.size()), op.name.data());
    worker_scratch_bytes_ = std::max(worker_scratch_bytes_, kernel.value()->worker_scratch_bytes());
    shared = std::max(shared, kernel.value()->shared_scratch_bytes());
    updates_weights_ |= !op.updates.empty();
    bound_.push_back({&op, std::move(kernel.value())});
  }
  worker_scratch_bytes_ = (worker_scratch_bytes_ + 63) / 64 * 64;
  const auto allocate = [](Block& block, uint64_t bytes, Block::Kind kind) -> Status {
    auto allocated = Block::allocate(bytes, kind);
    if (!allocated.ok()) return allocated.status();
    block = std::move(allocated.value());
    return ok_status();
  };
  EFF_RETURN_IF_ERROR(allocate(prepared_, plan_->arena_bytes(Arena::prepared), Block::Kind::arena));
  EFF_RETURN_IF_ERROR(allocate(output_, plan_->arena_bytes(Arena::output), Block::Kind::arena));
  EFF_RETURN_IF_ERROR(allocate(shared_scratch_, shared, Block::Kind::kernel));
  return allocate(worker_scratch_, worker_scratch_bytes_ * static_cast<size_t>(pool_->threads()), Block::Kind::kernel);
}

void Executable::run(Bound& bound, const ExecContext& base) {
  const auto start = std::chrono::steady_clock::now();
  for (int phase = 0; phase < bound.kernel->phases(); ++phase) {
    pool_->parallel(bound.kernel->shards(phase), [&](int shard, int worker) {
      ExecContext ctx = base;
      ctx.worker = worker;
      ctx.worker_scratch = worker_scratch_.data() + static_cast<size_t>(worker) * worker_scratch_bytes_;
      bound.kernel->run(phase, shard, ctx);
    });
  }
  if (profiling.load(std::memory_order_relaxed))
    bound.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void Executable::prepare(const ExecContext& base) {
  for (Bound& bound : bound_)
    if (bound.op->is_prepare()) run(bound, base);
  pool_->parallel(static_cast<int>(bound_.size()), [&](int i, int worker) {
    ExecContext ctx = base;
    ctx.worker = worker;
    ctx.worker_scratch = worker_scratch_.data() + static_cast<size_t>(worker) * worker_scratch_bytes_;
    bound_[static_cast<size_t>(i)].kernel->prepare(ctx);
  });
}

void Executable::gather_arenas(const std::byte* input, std::byte** arenas) const {
  for (int i = 0; i < plan::kArenaCount; ++i) arenas[i] = memory_->arena(static_cast<plan::Arena>(i));
  arenas[static_cast<int>(plan::Arena::prepared)] = prepared_.data();
  arenas[static_cast<int>(plan::Arena::input)] = const_cast<std::byte*>(input);
  arenas[static_cast<int>(plan::Arena::output)] = output_.data();
}

// Whether the scalar that an op has just made lets the step go on: the loss before the backward part, the norm of the
// gradients before the update. Ordinary steps pay for nothing but reading two numbers.
static bool may_go_on(const plan::Op& op, const ExecContext& ctx) {
  const plan::Tensor* scalar = op.id == plan::OpId::softmax_cross_entropy ? op.out(op::softmax_cross_entropy::out_loss)
                               : op.id == plan::OpId::grad_norm           ? op.out(op::grad_norm::out_norm)
                                                                          : nullptr;
  return !scalar || std::isfinite(*ctx.ptr<const float>(scalar));
}

Status Executable::step(const std::byte* input, const StepScalars& scalars, std::byte* output) {
  memory_->wait_unpinned();
  EFF_RETURN_IF_ERROR(check_arenas());  // an arena whose growth failed may be gone
  std::byte* arenas[plan::kArenaCount];
  gather_arenas(input, arenas);
  std::atomic<int> failure{0};
  std::atomic<bool> unsound{false};
  const ExecContext base{arenas, &scalars, nullptr, shared_scratch_.data(), 0, &failure, &unsound};

  // A training step changes the weights that its kernels packed.
  const uint64_t version = memory_->weights_version.load();
  if (weights_changed.exchange(false) || version != prepared_version_ || updates_weights_) prepare(base);
  if (failure) return error(Code::internal, "oneDNN failed (status %d) while weights were packed", failure.load());
  prepared_version_ = version;
  if (updates_weights_) ++memory_->weights_version;
  for (Bound& bound : bound_) {
    if (bound.op->is_prepare()) continue;
    if (pool_->stopping()) return error(Code::aborted, "closed while a step was running");
    // All groups of parameters are updated before it is said that one is not finite; the average is left alone.
    if (unsound && bound.op->id == plan::OpId::ema_update) break;
    run(bound, base);
    if (failure)
      return error(Code::internal, "op %.*s: oneDNN failed (status %d)", static_cast<int>(bound.op->name.size()),
                   bound.op->name.data(), failure.load());
    if (updates_weights_ && !may_go_on(*bound.op, base)) break;
  }
  if (unsound) return error(Code::nan, "the update made weights that are not finite");
  if (profiling.load(std::memory_order_relaxed)) ++profiled_steps_;
  std::memcpy(output, output_.data(), output_.bytes());
  return ok_status();
}

std::vector<OpReport> Executable::report() const {
  std::vector<OpReport> rows;
  rows.reserve(bound_.size());
  for (const Bound& bound : bound_)
    rows.push_back({std::string(bound.op->name), plan::op_name(bound.op->id), bound.kernel->name(), bound.op->flags,
                    bound.kernel->flops(), operand_bytes(*bound.op),
                    profiled_steps_ ? 1e3 * bound.seconds / profiled_steps_ : 0});
  return rows;
}

uint64_t Executable::owned_bytes() const {
  uint64_t bytes = prepared_.bytes() + output_.bytes() + shared_scratch_.bytes() + worker_scratch_.bytes();
  for (const Bound& bound : bound_) bytes += bound.kernel->persistent_bytes();
  return bytes;
}

const std::byte* Executable::data(const plan::Tensor& tensor) const {
  switch (tensor.arena) {
    case plan::Arena::prepared:
      return prepared_.data() + tensor.offset;
    case plan::Arena::output:
      return output_.data() + tensor.offset;
    case plan::Arena::input:
      return nullptr;
    default:
      return memory_->arena(tensor.arena) + tensor.offset;
  }
}

}  // namespace effnet::cpu
