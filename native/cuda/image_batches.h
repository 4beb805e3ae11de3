// Batches made on a GPU: nvJPEG decodes files, own kernels crop, resize and flip them (ops/resample.h), all on a stream
// beside the steps. Memory is taken as it is needed and kept: once warm, a batch allocates nothing.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "core/device_images.h"
#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/library_memory.h"
#include "cuda/providers/nvjpeg.h"

namespace effnet::cuda {

// An input arena, and the events that order who makes it and who reads it.
class DeviceBatch final : public DeviceInput {
 public:
  static StatusOr<std::unique_ptr<DeviceBatch>> create(const std::shared_ptr<Device>& device, uint64_t bytes,
                                                       CUstream maker, std::shared_ptr<Budget> budget);
  ~DeviceBatch() override;
  DeviceBatch(const DeviceBatch&) = delete;
  DeviceBatch& operator=(const DeviceBatch&) = delete;

  const Device& device() const { return *device_; }
  CUdeviceptr address() const { return block_.address(); }
  uint64_t bytes() const override { return block_.bytes(); }
  Status read(std::span<std::byte> into) const override;

  // The maker, before it writes and after: it waits for copies of what was there before.
  Status begin() const;
  Status end() const;
  // Queues a copy of the first bytes on a stream, behind the maker's work and copies asked for before. One caller at a
  // time.
  Status copy_to(CUdeviceptr to, uint64_t bytes, CUstream stream) const;

 private:
  explicit DeviceBatch(std::shared_ptr<Device> device) : device_(std::move(device)) {}

  std::shared_ptr<Device> device_;
  DeviceBlock block_;
  CUstream maker_ = nullptr;
  CUevent ready_ = nullptr, copied_ = nullptr;
};

class ImageBatches final : public DeviceImages {
 public:
  // Code::backend_missing with the mend where there is no nvJPEG; Code::oom where the budget has no room for it.
  static StatusOr<std::unique_ptr<ImageBatches>> create(const std::shared_ptr<Device>& device, const Options& options);
  ~ImageBatches() override;

  Status accepts(std::span<const uint8_t> file, int width, int height) const override;
  StatusOr<std::shared_ptr<DeviceInput>> make(std::span<const std::shared_ptr<const DeviceImage>> images,
                                              std::vector<size_t>& refused) override;

 private:
  // Of batches that go round, and the stream that makes them. Outlives this while batches are in use.
  struct Pool;
  // What the host has written for a batch in work: labels, tables and finished pixels, and the files being decoded.
  struct Staging {
    HostBlock host;
    DeviceBlock tables;
    CUevent done = nullptr;
    std::vector<std::shared_ptr<const DeviceImage>> images;
  };
  // Images that are decoded at once.
  struct Part {
    std::vector<size_t> images;  // of the batch
    std::vector<size_t> at;      // where each is decoded to
    uint64_t pixels = 0, middle = 0;
    std::vector<Launch> launches;
  };

  ImageBatches(std::shared_ptr<Device> device, const Options& options);
  const Driver& driver() const { return device_->driver(); }
  CUstream stream() const;
  size_t square_bytes() const { return static_cast<size_t>(options_.size) * options_.size * 3; }

  StatusOr<DeviceBlock> allocate(uint64_t bytes) const {
    return DeviceBlock::allocate(device_, bytes, stream(), options_.budget);
  }
  // Of a limited budget: all that can be told now.
  Status take_at_start();
  // Said of what, and with the mend, which ts/binding.ts knows by these words.
  Status without_room(const Status& why) const;
  std::vector<Part> parts(std::span<const std::shared_ptr<const DeviceImage>> images) const;
  Status make_room(const std::vector<Part>& parts);
  Status make_room(Staging& staging, uint64_t host_bytes, uint64_t table_bytes);
  // Writes and copies what the host has of a batch; the parts get their launches.
  Status stage(Staging& staging, const DeviceBatch& batch, std::vector<Part>& parts);
  // Null where some are refused.
  StatusOr<std::shared_ptr<DeviceInput>> make_in(Staging& staging, std::vector<size_t>& refused);
  Status decode(const Staging& staging, const Part& part);
  Status find_refused(const Staging& staging, const Part& part, std::vector<size_t>& refused);

  std::shared_ptr<Device> device_;
  const Options options_;
  std::shared_ptr<Pool> pool_;
  std::unique_ptr<LibraryMemory> of_decoder_;
  std::unique_ptr<NvJpeg> decoder_;
  DeviceBlock scratch_;  // decoded images of a part, then what the first pass makes of them
  Staging stagings_[2];
  size_t next_ = 0;
};

}  // namespace effnet::cuda
