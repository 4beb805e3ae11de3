// An op of a shape file on a GPU: its operands in device memory alone, filled there, and the references' launches.
#pragma once

#include <deque>
#include <map>

#include "cuda/ops/weights.h"
#include "plan/shapes.h"
#include "tests/device/reference.h"
#include "tests/reference.h"
#include "tests/shape_rows.h"

namespace effnet::test {

// A program that cannot go on says why.
inline void need(const Status& status, const std::string& what) {
  if (status.ok()) return;
  std::printf("%s: %s\n", what.c_str(), status.message().c_str());
  std::exit(1);
}

// Memory of one op and its references, freed with it.
class DeviceScratch {
 public:
  template <class T>
  T* make(int64_t count) {
    auto block = cuda::DeviceBlock::allocate(backend::gpu().device, static_cast<uint64_t>(count) * sizeof(T),
                                             backend::gpu().stream);
    need(block.ok() ? ok_status() : block.status(), "memory");
    blocks_.push_back(std::move(block.value()));
    return reinterpret_cast<T*>(blocks_.back().data());
  }
  template <class T>
  T* copy_of(const T* host, int64_t count) {
    T* device = make<T>(count);
    const auto copied = [&]() -> Status {
      EFF_CUDA(backend::gpu().device->driver(), cuMemcpyHtoDAsync, reinterpret_cast<CUdeviceptr>(device), host,
               static_cast<size_t>(count) * sizeof(T), backend::gpu().stream);
      EFF_CUDA(backend::gpu().device->driver(), cuStreamSynchronize, backend::gpu().stream);
      return ok_status();
    };
    need(copied(), "copy to the GPU");
    return device;
  }

 private:
  std::deque<cuda::DeviceBlock> blocks_;
};

template <class T>
std::vector<T> to_host(const T* device, int64_t count) {
  std::vector<T> host(static_cast<size_t>(count));
  const auto copied = [&]() -> Status {
    EFF_CUDA(backend::gpu().device->driver(), cuMemcpyDtoHAsync, host.data(), reinterpret_cast<CUdeviceptr>(device),
             host.size() * sizeof(T), backend::gpu().stream);
    EFF_CUDA(backend::gpu().device->driver(), cuStreamSynchronize, backend::gpu().stream);
    return ok_status();
  };
  need(copied(), "copy from the GPU");
  return host;
}

// A thread for each of `count` results.
template <class Args>
void launch_reference(const char* kernel, int64_t count, const Args& args) {
  constexpr int64_t kThreads = 128;
  const auto blocks = static_cast<uint32_t>((count + kThreads - 1) / kThreads);
  need(backend::run(cuda::make_launch(kernel, {blocks, 1, 1}, kThreads, 0, args), 0), kernel);
}

inline RefType ref_type(DType dtype) { return static_cast<RefType>(dtype); }

class ShapeOp {
 public:
  ShapeOp(const ShapeRow& row, uint16_t flags) : row_(row) {
    op_.flags = static_cast<uint16_t>(flags | (row.half_gradient ? plan::kOpHalfGradient : 0));
    op_.name = row.op;
    for (const auto& [name, value] : row.attrs) op_.attrs.push_back(value);
    const auto place = [&](const std::vector<ShapePort>& ports, std::vector<const Tensor*>& list) {
      for (const ShapePort& port : ports) list.push_back(port.there ? add(port) : nullptr);
    };
    place(row.inputs, op_.inputs);
    place(row.outputs, op_.outputs);
    place(row.updates, op_.updates);
    scalars_.seed = 5'000'000'123;
    scalars_.step = 77;
  }

  // Fills its operands and runs it. The kernel's name.
  std::string run();
  // Once more on the same operands, under an order of the driver without a GPU: whether every byte is what it was.
  bool same_under(const std::string& order);

  double attr(const char* name, double absent = 0) const {
    for (const auto& [given, value] : row_.attrs)
      if (given == name) return value;
    return absent;
  }
  const Tensor* find(const std::string& name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : found->second;
  }
  // No data where there is no such operand.
  RefTensor ref(const std::string& name, RefType rounding = RefType::f64) const {
    const Tensor* t = find(name);
    return t ? RefTensor{data(t), ref_type(t->dtype), rounding} : RefTensor{};
  }
  std::byte* data(const Tensor* t) const { return arenas_[static_cast<int>(t->arena)] + t->offset; }
  // The values that the operand was filled with, into other memory.
  void fill_again(const std::string& name, void* into) const {
    const Tensor* t = find(name);
    fill(t, seeds_.at(name), into);
  }
  const StepScalars& scalars() const { return scalars_; }
  DeviceScratch& scratch() { return scratch_; }
  const ShapeRow& row() const { return row_; }

 private:
  const Tensor* add(const ShapePort& port) {
    Tensor t{};
    t.name = port.name;
    t.dtype = port.dtype;
    t.arena = port.among_weights ? Arena::weights : Arena::activations;
    t.rank = static_cast<int>(port.dims.size());
    for (size_t i = 0; i < 4; ++i) t.dims[i] = i < port.dims.size() ? port.dims[i] : 1;
    t.bytes = static_cast<uint64_t>(t.elements()) * bytes_of(t.dtype);
    uint64_t& end = bytes_[static_cast<int>(t.arena)];
    t.offset = end;
    end += (t.bytes + 255) / 256 * 256;
    tensors_.push_back(t);
    return by_name_[port.name] = &tensors_.back();
  }
  // Of the size that they have in a network, so that no term of a sum vanishes beside the others.
  void fill(const Tensor* t, uint64_t seed, void* into) const {
    const std::string name(t->name);
    const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
    double mean = 0, spread = 1.7;
    const Tensor* behind = find("diff_dst");
    if (has("weights")) {
      const int64_t outputs = row_.op.starts_with("depthwise") ? t->dims[2] : t->dims[0];
      spread = 2 / std::sqrt(static_cast<double>(t->elements() / outputs));
    } else if (name == "diff_scale" || name == "diff_shift") {
      spread = 0.3 * static_cast<double>(behind->elements() / behind->c());
    } else if (name == "diff_pooled") {
      spread = static_cast<double>(behind->h() * behind->w());
    } else if (has("inv_std") || has("scale") || has("running_var") || name == "gate") {
      mean = 1;
      spread = 0.4;
    } else if (t->rank == 1) {
      spread = 0.4;
    }
    launch_reference("ref_fill", t->elements(),
                     RefFillArgs{into, ref_type(t->dtype), t->elements(), seed, mean, spread});
  }
  void fill_operands();
  Status launch(const cuda::Kernel& kernel);

  const ShapeRow& row_;
  plan::Op op_;
  cuda::KernelPtr kernel_;
  StepScalars scalars_;
  std::deque<Tensor> tensors_;
  std::map<std::string, const Tensor*> by_name_;
  std::map<std::string, uint64_t> seeds_;
  uint64_t bytes_[plan::kArenaCount] = {};
  std::byte* arenas_[plan::kArenaCount] = {};
  DeviceScratch scratch_;
};

inline std::string ShapeOp::run() {
  cuda::KernelFactory factory = nullptr;
#define EFF_OP(number, known, ...)   \
  if (row_.op == #known) {           \
    op_.id = plan::OpId::known;      \
    factory = backend::make_##known; \
  }
#include "plan/op_table.inc"
#undef EFF_OP
  if (!factory) need(error(Code::plan_invalid, "no such op"), row_.text);
  need(plan::check_shapes(op_), row_.text);
  need(backend::gpu().device->enter(), "GPU");
  for (const Arena arena : {Arena::weights, Arena::activations}) {
    const int a = static_cast<int>(arena);
    if (bytes_[a]) arenas_[a] = scratch_.make<std::byte>(static_cast<int64_t>(bytes_[a]));
  }
  fill_operands();
  auto kernel = backend::gpu().device->providers().bind(op_, factory);
  need(kernel.ok() ? ok_status() : kernel.status(), row_.text);
  kernel_ = std::move(kernel.value());
  need(launch(*kernel_), row_.text);
  return kernel_->name;
}

inline void ShapeOp::fill_operands() {
  for (int a = 0; a < plan::kArenaCount; ++a) {
    if (!bytes_[a]) continue;
    const auto cleared = [&]() -> Status {  // NaN: what nobody writes shows
      EFF_CUDA(backend::gpu().device->driver(), cuMemsetD8Async, reinterpret_cast<CUdeviceptr>(arenas_[a]), 0xff,
               bytes_[a], backend::gpu().stream);
      return ok_status();
    };
    need(cleared(), "memory");
  }
  for (const auto* list : {&op_.inputs, &op_.updates})
    for (const Tensor* t : *list) {
      if (!t) continue;
      const uint64_t seed = seeds_.try_emplace(std::string(t->name), seeds_.size() + 1).first->second;
      fill(t, seed, data(t));
    }
}

inline bool ShapeOp::same_under(const std::string& order) {
  const auto contents = [&] {
    std::vector<std::vector<std::byte>> arenas;
    for (int a = 0; a < plan::kArenaCount; ++a)
      if (bytes_[a]) arenas.push_back(to_host(arenas_[a], static_cast<int64_t>(bytes_[a])));
    return arenas;
  };
  const auto before = contents();
  fill_operands();
  setenv("FAKE_CUDA_ORDER", order.c_str(), 1);
  const Status launched = launch(*kernel_);
  unsetenv("FAKE_CUDA_ORDER");
  need(launched, row_.text);
  return contents() == before;
}

inline Status ShapeOp::launch(const cuda::Kernel& kernel) {
  const cuda::StepState state{};
  cuda::Addresses at;
  std::copy(arenas_, arenas_ + plan::kArenaCount, at.arenas);
  at.scalars = scratch_.copy_of(&scalars_, 1);
  at.state = scratch_.copy_of(&state, 1);
  at.scratch = scratch_.make<std::byte>(static_cast<int64_t>(std::max<size_t>(kernel.scratch_bytes, 1)));
  if (!kernel.constants.empty())
    at.constants = scratch_.copy_of(kernel.constants.data(), static_cast<int64_t>(kernel.constants.size()));
  std::vector<cuda::Launch> launches;
  const int w = static_cast<int>(Arena::weights);
  if (kernel.working != DType::f32 && bytes_[w]) {
    at.working_type = kernel.working;
    at.working_arenas[w] = scratch_.make<std::byte>(static_cast<int64_t>(bytes_[w] / 2));
    launches.push_back(cuda::cast_weights_launch(at.arenas[w], at.working_arenas[w],
                                                 static_cast<int64_t>(bytes_[w] / sizeof(float)), kernel.working));
  }
  kernel.record(at, launches);
  for (const cuda::Launch& one : launches) {
    StatusOr<CUfunction> function = CUfunction{};
    if (!one.call) function = backend::gpu().device->function(one.kernel);
    if (!function.ok()) return function.status();
    EFF_RETURN_IF_ERROR(backend::gpu().device->launch(one, function.value(), backend::gpu().stream));
  }
  EFF_CUDA(backend::gpu().device->driver(), cuStreamSynchronize, backend::gpu().stream);
  return ok_status();
}

}  // namespace effnet::test
