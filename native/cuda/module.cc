#include "cuda/module.h"

#include <map>
#include <mutex>

#include "cuda/driver_release.h"
#include "cuda/executable.h"
#include "cuda/image_batches.h"
#include "cuda/images.h"
#include "cuda/providers/cudnn.h"
#include "cuda/providers/library.h"

namespace effnet::cuda {
namespace {

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(std::shared_ptr<Device> device) : device_(std::move(device)) {}

  std::string name() const override { return device_->name(); }
  StatusOr<uint64_t> available_bytes() const override {
    EFF_RETURN_IF_ERROR(device_->enter());
    size_t free = 0, total = 0;
    EFF_CUDA(device_->driver(), cuMemGetInfo, &free, &total);
    return uint64_t{free};
  }
  StatusOr<std::unique_ptr<DeviceImages>> create_images(const DeviceImages::Options& options) override {
    auto images = ImageBatches::create(device_, options);
    if (!images.ok()) return images.status();
    return std::unique_ptr<DeviceImages>(std::move(images.value()));
  }
  StatusOr<std::shared_ptr<std::byte>> page_locked(uint64_t bytes) override {
    auto block = HostBlock::allocate_locked(device_, bytes);
    if (!block.ok()) return block.status();
    if (!block.value().data()) return std::shared_ptr<std::byte>();
    const auto owner = std::make_shared<HostBlock>(std::move(block.value()));
    return std::shared_ptr<std::byte>(owner, owner->data());
  }
  uint64_t unlocked_bytes() const override { return device_->unlocked_bytes(); }
  uint64_t total_bytes() const override { return device_->total_bytes(); }
  StatusOr<Peaks> measure_peaks(ThreadPool&) override { return device_->measure_peaks(); }
  StatusOr<std::shared_ptr<Memory>> create_memory(const uint64_t (&arena_bytes)[plan::kArenaCount],
                                                  uint64_t limit) override {
    auto memory = DeviceMemory::create(device_, limit);
    if (!memory.ok()) return memory.status();
    for (int i = 0; i < plan::kArenaCount; ++i)
      EFF_RETURN_IF_ERROR(memory.value()->ensure(static_cast<plan::Arena>(i), arena_bytes[i]));
    return std::shared_ptr<Memory>(std::move(memory.value()));
  }

  StatusOr<std::shared_ptr<effnet::Executable>> bind(std::shared_ptr<ThreadPool> pool, std::shared_ptr<Memory> memory,
                                                     std::span<const std::byte> plan, const Tuning& tuning) override {
    auto bound =
        Executable::bind(std::move(pool), std::static_pointer_cast<DeviceMemory>(std::move(memory)), plan, tuning);
    if (!bound.ok()) return bound.status();
    return std::shared_ptr<effnet::Executable>(std::move(bound.value()));
  }

 private:
  std::shared_ptr<Device> device_;
};

StatusOr<std::shared_ptr<Backend>> open(int ordinal) {
  static std::mutex* const mutex = new std::mutex;
  static auto* const open_ones = new std::map<int, std::weak_ptr<Backend>>;
  const std::lock_guard lock(*mutex);
  if (auto known = (*open_ones)[ordinal].lock()) return known;
  auto device = Device::open(ordinal);
  if (!device.ok()) return device.status();
  std::shared_ptr<Backend> backend = std::make_shared<CudaBackend>(std::move(device.value()));
  (*open_ones)[ordinal] = backend;
  return backend;
}

Status describe(Facts& facts) {
  facts.architectures = kernel_architectures();
  facts.cudnn = Cudnn::absent() == nullptr;
  for (const LibraryKind* kind : library_kinds()) facts.libraries.push_back(library_facts(*kind));
  DriverFacts of_driver;
  const auto found = driver(&of_driver);
  facts.driver_path = of_driver.path;
  facts.driver_version = of_driver.version;
  if (!of_driver.path.empty()) facts.driver_release = driver_release();
  if (!found.ok()) return found.status();
  const Driver& cuda = *found.value();
  int count = 0;
  EFF_CUDA(cuda, cuDeviceGetCount, &count);
  for (int i = 0; i < count; ++i) {
    auto gpu = Device::properties(cuda, i);
    if (!gpu.ok()) return gpu.status();
    const Device::Properties& p = gpu.value();
    facts.gpus.push_back(
        {p.name, p.capability, p.total_bytes, unusable_gpu(p.name, p.capability, kernel_architectures())});
  }
  return ok_status();
}

const Module kModule{EFFNET_INTERFACE, open, describe};

}  // namespace
}  // namespace effnet::cuda

extern "C" __attribute__((visibility("default"))) const effnet::cuda::Module* effnet_cuda_module() {
  return &effnet::cuda::kModule;
}
