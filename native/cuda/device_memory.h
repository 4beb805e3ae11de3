// The arenas of a model on a GPU, shared by its plans; they grow to what the plans need.
#pragma once

#include <memory>
#include <span>

#include "core/memory.h"
#include "cuda/device.h"
#include "cuda/kernels/step_state.h"
#include "plan/format.h"

namespace effnet::cuda {

class DeviceMemory final : public Memory {
 public:
  static StatusOr<std::shared_ptr<DeviceMemory>> create(std::shared_ptr<Device> device,
                                                        uint64_t limit = Budget::kNoLimit);
  ~DeviceMemory() override;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  const std::shared_ptr<Device>& device() const { return device_; }
  // Counted in the budget; zeroed by `stream`, or the one of the steps.
  StatusOr<DeviceBlock> allocate(uint64_t bytes, CUstream stream) const {
    return DeviceBlock::allocate(device_, bytes, stream, budget());
  }
  StatusOr<DeviceBlock> allocate(uint64_t bytes) const { return allocate(bytes, stream_); }
  // Where all steps of the model run, one after another.
  CUstream stream() const { return stream_; }
  // Where inputs are copied beside a step.
  CUstream copy_stream() const { return copy_stream_; }
  StepState* state() const { return reinterpret_cast<StepState*>(state_.data()); }
  // What a step has left of it, as it came with the results.
  void note_loss_scale(const LossScale& scale) { loss_scale_ = scale; }
  std::byte* arena(plan::Arena a) const { return blocks_[static_cast<int>(a)].data(); }
  // Counts the times that an arena got another address: addresses recorded before are stale. Weights and average that
  // are exchanged do not count: addresses recorded while they were so before hold again.
  uint64_t generation() const { return generation_; }
  bool exchanged() const { return exchanged_; }

  // The 16-bit copy of the weights that the plans of a model read, or of the moving average while the two are
  // exchanged: each has its own, so that recorded addresses hold.
  struct Working {
    DeviceBlock copy;
    uint64_t version = 0;  // Memory::weights_version that it was made from
    bool stale = true;
  };
  Working& working(plan::DType dtype) { return working_[exchanged_][dtype == plan::DType::bf16]; }
  // Makes room for it. Another address, where the weights have grown, is another generation.
  Status ensure_working(plan::DType dtype);
  // Weights changed otherwise than by a step.
  void outdate_working();

  uint64_t bytes(plan::Arena a) const override { return blocks_[static_cast<int>(a)].bytes(); }
  Status ensure(plan::Arena a, uint64_t bytes) override;
  Status clear(plan::Arena a) override;
  Status copy(plan::Arena from, plan::Arena to) override;
  Status swap(plan::Arena a, plan::Arena b) override;
  // Both after the work queued so far, and done when they return.
  Status read(plan::Arena a, uint64_t offset, std::span<std::byte> into) const override;
  Status write(plan::Arena a, uint64_t offset, std::span<const std::byte> from) override;
  Status set_loss_scale(const LossScale& scale) override;

 private:
  DeviceMemory(std::shared_ptr<Device> device, uint64_t limit) : Memory(limit), device_(std::move(device)) {}
  CUdeviceptr address(plan::Arena a) const { return blocks_[static_cast<int>(a)].address(); }

  std::shared_ptr<Device> device_;
  CUstream stream_ = nullptr, copy_stream_ = nullptr;
  DeviceBlock blocks_[plan::kArenaCount];
  Working working_[2][2];  // by whether weights and average are exchanged, and type
  DeviceBlock state_;
  uint64_t generation_ = 0;
  bool exchanged_ = false;
};

}  // namespace effnet::cuda
