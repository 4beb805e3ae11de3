#include "cuda/kernels/optimizer.h"

#include <array>
#include <cstring>
#include <map>

#include "cuda/ops/common.h"

namespace effnet::cuda {
namespace {

using plan::Arena;
using plan::DType;
using plan::Op;
using plan::Tensor;

// The chunks of the arenas in which tensors lie, and the table of their granules, as a kernel's constants.
class ChunkTable {
 public:
  void add(const Tensor* t, uint8_t flags) {
    const int64_t first = static_cast<int64_t>(t->offset / sizeof(float)), count = t->elements();
    for (int64_t done = 0; done < count; done += kGranule) {
      const int64_t granule = (first + done) / kGranule;
      auto& chunk = chunks_[static_cast<uint32_t>(granule / kChunkGranules)];
      chunk[static_cast<size_t>(granule % kChunkGranules)] =
          static_cast<uint8_t>(std::min(kGranule, count - done) | flags);
    }
  }
  size_t count() const { return chunks_.size(); }
  std::vector<std::byte> bytes() const {
    std::vector<std::byte> bytes(table_at(count()) + count() * kChunkGranules);
    size_t i = 0;
    for (const auto& [index, table] : chunks_) {
      std::memcpy(bytes.data() + i * sizeof index, &index, sizeof index);
      std::memcpy(bytes.data() + table_at(count()) + i * kChunkGranules, table.data(), kChunkGranules);
      ++i;
    }
    return bytes;
  }
  static Chunks at(const std::byte* constants, size_t count) {
    return {reinterpret_cast<const uint32_t*>(constants),
            reinterpret_cast<const uint8_t*>(constants + table_at(count))};
  }

 private:
  static size_t table_at(size_t count) { return align256(count * sizeof(uint32_t)); }
  std::map<uint32_t, std::array<uint8_t, kChunkGranules>> chunks_;
};
static_assert(kGranule * sizeof(float) == plan::kAlignment);

KernelPtr over_chunks(const char* name, const ChunkTable& table, Kernel::Record record, size_t scratch_bytes = 0) {
  KernelPtr kernel = make_kernel(name, DType::f32, std::move(record), scratch_bytes);
  kernel->constants = table.bytes();
  return kernel;
}

float* floats(const Addresses& at, Arena arena) { return reinterpret_cast<float*>(at.arena(arena)); }

KernelPtr update(const char* name, const Op& op, Rule rule, double decay_mult, bool averages) {
  // The three optimizer ops have the same ports: norm, then a gradient for each updated parameter.
  const Tensor* norm = op.in(op::optimizer_sgd::in_norm);
  const uint8_t done = kGranuleUpdated | kGranuleDecays | (averages ? kGranuleAveraged : 0);
  ChunkTable table;
  for (const Tensor* parameter : op.updates) table.add(parameter, done);
  const size_t count = table.count();
  return over_chunks(name, table, [=](const Addresses& at, std::vector<Launch>& launches) {
    if (count == 0) return;
    const UpdateArgs args{ChunkTable::at(at.constants, count),
                          rule,
                          floats(at, Arena::weights),
                          floats(at, Arena::moment0),
                          floats(at, Arena::moment1),
                          floats(at, Arena::grads),
                          averages ? floats(at, Arena::ema) : nullptr,
                          at.working_arenas[static_cast<int>(Arena::weights)],
                          at.working_type,
                          at.scalars,
                          at.ptr<const float>(norm),
                          decay_mult,
                          at.state};
    launches.push_back(
        make_launch("update_weights", {static_cast<uint32_t>(count), 1, 1}, kOptimizerThreads, kUpdateShared, args));
  });
}

}  // namespace

StatusOr<KernelPtr> make_optimizer_sgd(const Op& op) {
  using namespace op::optimizer_sgd;
  return update("optimizer_sgd", op, op.attr(attr_nesterov) == 1 ? Rule::sgd_nesterov : Rule::sgd,
                op.attr(attr_decay_mult), op.attr(attr_ema) == 1);
}

StatusOr<KernelPtr> make_optimizer_rmsprop(const Op& op) {
  using namespace op::optimizer_rmsprop;
  return update("optimizer_rmsprop", op, op.attr(attr_tf_form) == 1 ? Rule::rmsprop_tf : Rule::rmsprop_torch,
                op.attr(attr_decay_mult), op.attr(attr_ema) == 1);
}

StatusOr<KernelPtr> make_optimizer_adamw(const Op& op) {
  using namespace op::optimizer_adamw;
  return update("optimizer_adamw", op, Rule::adamw, op.attr(attr_decay_mult), op.attr(attr_ema) == 1);
}

StatusOr<KernelPtr> make_ema_update(const Op& op) {
  ChunkTable table;
  for (const Tensor* src : op.inputs) table.add(src, kGranuleAveraged);
  const size_t count = table.count();
  return over_chunks("ema_update", table, [=](const Addresses& at, std::vector<Launch>& launches) {
    if (count == 0) return;
    const EmaArgs args{ChunkTable::at(at.constants, count), floats(at, Arena::weights), floats(at, Arena::ema),
                       at.scalars, at.state};
    launches.push_back(make_launch("update_ema", {static_cast<uint32_t>(count), 1, 1}, kOptimizerThreads, 0, args));
  });
}

StatusOr<KernelPtr> make_grad_norm(const Op& op) {
  using namespace op::grad_norm;
  if (op.inputs.empty()) return error(Code::plan_invalid, "op %s: no gradients", std::string(op.name).c_str());
  ChunkTable table;
  for (const Tensor* grad : op.inputs) table.add(grad, 0);
  const size_t count = table.count();
  const auto blocks = static_cast<uint32_t>(std::min<size_t>(count, kNormBlocks));
  const Tensor* norm = op.out(out_norm);
  return over_chunks(
      "grad_norm", table,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        const NormArgs args{
            ChunkTable::at(at.constants, count),   floats(at, Arena::grads), static_cast<int64_t>(count),
            reinterpret_cast<double*>(at.scratch), at.ptr<float>(norm),      at.state};
        launches.push_back(make_launch("grad_norm", {blocks, 1, 1}, kOptimizerThreads, kNormShared, args));
      },
      blocks * sizeof(double));
}

}  // namespace effnet::cuda
