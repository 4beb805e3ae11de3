// How ops of a plan that have several kernels come to one (cuda/tuning.h).
#include <set>

#include "cuda/executable.h"
#include "cuda/ops/weights.h"
#include "cuda/tuning.h"

namespace effnet::cuda {
namespace {

using plan::Arena;

#include "plan/factory_of.inc"

// In every type a small finite number.
constexpr unsigned char kFiller = 0x3c;

}  // namespace

StatusOr<KernelPtr> Executable::bind_op(const plan::Op& op, const Tuning& tuning, bool& to_tune) {
  Providers& providers = memory_->device()->providers();
  const KernelFactory own = factory_of(op.id);
  if ((!tuning.measure && tuning.kept.empty()) || !providers.has_choice(op)) return providers.bind(op, own);
  EFF_RETURN_IF_ERROR(providers.check_libraries());
  const std::string key = signature(op);
  if (const auto kept = tuning.kept.find(key); kept != tuning.kept.end()) {
    auto kernel = providers.bind_to(kept->second, op, own);
    if (kernel.ok()) {
      tuning_.choices[key] = kept->second;
      return kernel;
    }
    if (kernel.status().code() != Code::plan_invalid) return kernel;
    ++tuning_.refused;
  }
  to_tune = tuning.measure;
  return providers.bind(op, own);
}

// Ops are measured on numbers as they could be: the weights that are there, the filler for what a step makes first.
Status Executable::fill_to_tune() {
  const auto fill = [&](std::byte* data, uint64_t bytes) -> Status {
    if (bytes) EFF_CUDA(driver(), cuMemsetD8Async, reinterpret_cast<CUdeviceptr>(data), kFiller, bytes, stream());
    return ok_status();
  };
  EFF_RETURN_IF_ERROR(fill(memory_->arena(Arena::activations), memory_->bytes(Arena::activations)));
  EFF_RETURN_IF_ERROR(fill(folded().prepared.data(), folded().prepared.bytes()));
  EFF_RETURN_IF_ERROR(fill(folded().working.data(), folded().working.bytes()));
  if (working_ == plan::DType::f32) return ok_status();
  const DeviceBlock& copy = memory_->working(working_).copy;
  if (!copy.bytes()) return ok_status();
  const auto cast =
      bind_launches(*memory_->device(), {cast_weights_launch(memory_->arena(Arena::weights), copy.data(),
                                                             static_cast<int64_t>(copy.bytes() / 2), working_)});
  return cast.ok() ? queue_launches(cast.value()) : cast.status();
}

Status Executable::tune(const Tuning& tuning) {
  std::set<std::string> to_measure;
  for (const Bound& bound : bound_)
    if (bound.to_tune) to_measure.insert(signature(*bound.op));
  if (to_measure.empty()) return ok_status();
  if (tuning.begins) tuning.begins(static_cast<int>(to_measure.size()));
  memory_->wait_unpinned();  // a snapshot would see what the kernels write before it is put back
  EFF_RETURN_IF_ERROR(fill_to_tune());
  EFF_RETURN_IF_ERROR(measure());
  return allocate_scratch();
}

Status Executable::measure() {
  Providers& providers = memory_->device()->providers();
  Tuner tuner(memory_);
  const Addresses at = addresses(*ring_.slots()[0]);
  memory_->outdate_working();  // what is measured may write it
  for (Bound& bound : bound_) {
    if (!bound.to_tune) continue;
    const plan::Op& op = *bound.op;
    const std::string key = signature(op);
    if (const auto found = tuning_.choices.find(key); found != tuning_.choices.end()) {
      auto kernel = providers.bind_to(found->second, op, factory_of(op.id));
      if (!kernel.ok()) return kernel.status();
      bound.kernel = std::move(kernel.value());
      continue;
    }
    auto candidates = providers.candidates(op, factory_of(op.id));
    // The copies of weights are of one type, and were decided on by the table's kernels.
    std::erase_if(candidates, [&](const Candidate& candidate) {
      return candidate.kernel->working != plan::DType::f32 && candidate.kernel->working != working_;
    });
    if (candidates.empty()) continue;
    const auto fastest = candidates.size() == 1 ? StatusOr(Tuner::Fastest{0, true}) : tuner.fastest(op, candidates, at);
    if (!fastest.ok()) return fastest.status();
    Candidate& chosen = candidates[fastest.value().index];
    // In force, and so a checkpoint's; what counts as measured is kept for other starts.
    tuning_.choices[key] = chosen.id;
    if (fastest.value().of_all) ++tuning_.measured;
    bound.kernel = std::move(chosen.kernel);
  }
  return ok_status();
}

}  // namespace effnet::cuda
