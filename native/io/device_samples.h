// Samples of batches that a device makes: what it needs of each, and what becomes of those that it refuses.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/device_images.h"
#include "core/status.h"
#include "io/transform.h"

namespace effnet::io {

// What the device needs of a JPEG file, whose bytes it takes; of one that is not for it, the finished pixels. Errors
// are those of the CPU's decoder.
Status prepare_for_device(const DeviceImages& device, std::vector<uint8_t>& file, const TransformOptions& options,
                          const SampleKey& key, Transformer& transformer, const std::atomic<bool>* abort,
                          DeviceImage& image);

struct DeviceSample {
  SampleKey key;
  std::shared_ptr<const DeviceImage> image;

  bool on_cpu() const { return image->file.empty(); }
};
struct BadDeviceSample {
  SampleKey key;
  Status status;
};

// A batch of these samples. The CPU decodes what the device refuses; what neither can is moved to `bad`, and where
// less than `wanted` are left there is no batch.
StatusOr<std::shared_ptr<DeviceInput>> make_on_device(DeviceImages& device, std::vector<DeviceSample>& samples,
                                                      size_t wanted, const TransformOptions& options,
                                                      const std::atomic<bool>* abort,
                                                      std::vector<BadDeviceSample>& bad);

}  // namespace effnet::io
