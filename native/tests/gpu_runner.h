// Runs an op's CUDA launches on GPU 0 (EFFNET_LIB_DIR may name a driver without one).
#pragma once

#include <gtest/gtest.h>

#include "cuda/device.h"
#include "tests/cuda_binding.h"

namespace effnet::test {

namespace backend {

struct Gpu {
  std::shared_ptr<cuda::Device> device;
  CUstream stream = nullptr;
  Status status = open();

 private:
  Status open() {
    auto opened = cuda::Device::open(0);
    if (!opened.ok()) return opened.status();
    device = opened.value();
    EFF_CUDA(device->driver(), cuStreamCreateWithPriority, &stream, CU_STREAM_NON_BLOCKING, 0);
    return ok_status();
  }
};

// Opened once; the process ends with it.
inline const Gpu& gpu() {
  static const Gpu* const one = new Gpu;
  return *one;
}

// Host memory and as much on the GPU, for launches that no op's kernel records.
class Mirror {
 public:
  explicit Mirror(size_t bytes) : status_(allocate(bytes)) {}
  Mirror(const void*, size_t bytes) : Mirror(bytes) {}
  std::byte* data() const { return block_.data(); }
  Status upload(const void* from) const {
    EFF_RETURN_IF_ERROR(status_);
    EFF_CUDA(gpu().device->driver(), cuMemcpyHtoDAsync, block_.address(), from, block_.bytes(), gpu().stream);
    EFF_CUDA(gpu().device->driver(), cuStreamSynchronize, gpu().stream);
    return ok_status();
  }
  Status download(void* into) const {
    EFF_RETURN_IF_ERROR(status_);
    EFF_CUDA(gpu().device->driver(), cuMemcpyDtoHAsync, into, block_.address(), block_.bytes(), gpu().stream);
    EFF_CUDA(gpu().device->driver(), cuStreamSynchronize, gpu().stream);
    return ok_status();
  }

 private:
  Status allocate(size_t bytes) {
    EFF_RETURN_IF_ERROR(gpu().status);
    auto block = cuda::DeviceBlock::allocate(gpu().device, bytes, gpu().stream);
    if (!block.ok()) return block.status();
    block_ = std::move(block.value());
    return ok_status();
  }
  cuda::DeviceBlock block_;
  Status status_;
};

inline Status run(const cuda::Launch& launch, int) {
  EFF_RETURN_IF_ERROR(gpu().device->enter());
  const auto function = gpu().device->function(launch.kernel);
  if (!function.ok()) return function.status();
  return gpu().device->launch(launch, function.value(), gpu().stream);
}

class Runner : public Binding {
 public:
  // A GPU orders blocks as it likes: the same bits again and again.
  static constexpr int kOrders = 3;
  static std::string order_name(int order) { return "launch " + std::to_string(order); }

  using Binding::Binding;

  void execute(int, std::byte** arenas, const size_t* sizes, const StepScalars& scalars) {
    ASSERT_TRUE(gpu().status.ok()) << gpu().status.message();
    const Status status = launch(arenas, sizes, scalars);
    ASSERT_TRUE(status.ok()) << status.message();
  }

 private:
  StatusOr<cuda::KernelPtr> bind(const plan::Op& op, KernelFactory factory) override {
    if (!gpu().status.ok()) return gpu().status;
    EFF_RETURN_IF_ERROR(gpu().device->enter());
    return gpu().device->providers().bind(op, factory);
  }

  // Zeroed by its owner; here full of NaN, as the emulation's scratch is.
  static StatusOr<cuda::DeviceBlock> filled(const void* from, size_t bytes) {
    auto block = cuda::DeviceBlock::allocate(gpu().device, std::max<size_t>(bytes, 1), gpu().stream);
    if (!block.ok()) return block;
    const cuda::Driver& driver = gpu().device->driver();
    if (from && bytes)
      EFF_CUDA(driver, cuMemcpyHtoDAsync, block.value().address(), from, bytes, gpu().stream);
    else
      EFF_CUDA(driver, cuMemsetD8Async, block.value().address(), 0xff, std::max<size_t>(bytes, 1), gpu().stream);
    return block;
  }

  Status launch(std::byte** arenas, const size_t* sizes, const StepScalars& scalars) {
    EFF_RETURN_IF_ERROR(gpu().device->enter());
    const cuda::Driver& driver = gpu().device->driver();
    cuda::StepState state{};
    cuda::DeviceBlock blocks[plan::kArenaCount], extra[4];
    cuda::Addresses at;
    for (int a = 0; a < plan::kArenaCount; ++a) {
      auto block = filled(arenas[a], sizes[a]);
      if (!block.ok()) return block.status();
      blocks[a] = std::move(block.value());
      at.arenas[a] = blocks[a].data();
    }
    const std::pair<const void*, size_t> others[] = {{&scalars, sizeof scalars},
                                                     {nullptr, kernel().scratch_bytes},
                                                     {kernel().constants.data(), kernel().constants.size()},
                                                     {&state, sizeof state}};
    for (int i = 0; i < 4; ++i) {
      auto block = filled(others[i].first, others[i].second);
      if (!block.ok()) return block.status();
      extra[i] = std::move(block.value());
    }
    at.scalars = reinterpret_cast<const StepScalars*>(extra[0].data());
    at.scratch = extra[1].data();
    at.constants = extra[2].data();
    at.state = reinterpret_cast<cuda::StepState*>(extra[3].data());
    std::vector<cuda::Launch> launches;
    cuda::DeviceBlock working[plan::kArenaCount];
    for (const int a : working_arenas()) {
      auto block = filled(nullptr, sizes[a] / 2);
      if (!block.ok()) return block.status();
      working[a] = std::move(block.value());
      at.working_arenas[a] = working[a].data();
      launches.push_back(cast(at.arenas[a], at.working_arenas[a], sizes[a]));
    }
    kernel().record(at, launches);
    for (const cuda::Launch& one : launches) {
      StatusOr<CUfunction> function = CUfunction{};
      if (!one.call) function = gpu().device->function(one.kernel);
      if (!function.ok()) return function.status();
      EFF_RETURN_IF_ERROR(gpu().device->launch(one, function.value(), gpu().stream));
    }
    for (int a = 0; a < plan::kArenaCount; ++a)
      if (sizes[a]) EFF_CUDA(driver, cuMemcpyDtoHAsync, arenas[a], blocks[a].address(), sizes[a], gpu().stream);
    EFF_CUDA(driver, cuMemcpyDtoHAsync, &state, extra[3].address(), sizeof state, gpu().stream);
    EFF_CUDA(driver, cuStreamSynchronize, gpu().stream);
    if (!counters_are_zero(state))
      return error(Code::internal, "%s leaves counters that are not 0", kernel().name.c_str());
    return ok_status();
  }
};

}  // namespace backend
}  // namespace effnet::test
