#include "io/device_samples.h"

#include <algorithm>

namespace effnet::io {
namespace {

size_t square_bytes(const TransformOptions& options) {
  return static_cast<size_t>(options.size) * static_cast<size_t>(options.size) * 3;
}

}  // namespace

Status prepare_for_device(const DeviceImages& device, std::vector<uint8_t>& file, const TransformOptions& options,
                          const SampleKey& key, Transformer& transformer, const std::atomic<bool>* abort,
                          DeviceImage& image) {
  JpegReader reader;
  EFF_RETURN_IF_ERROR(reader.open(file.data(), file.size(), options.limits, abort));
  EFF_RETURN_IF_ERROR(reader.check_whole());
  const JpegInfo& info = reader.info();
  // Only of the usual colours decoders agree on what the components are.
  if (!info.usual_colors || !device.accepts(file, info.width, info.height).ok()) {
    image.pixels.resize(square_bytes(options));
    return transformer.jpeg(file.data(), file.size(), options, key, image.pixels.data(), abort);
  }
  auto how = resampling(info.width, info.height, options.exif_orientation ? info.orientation : 1, options, key);
  if (!how.ok()) return how.status();
  image.width = info.width;
  image.height = info.height;
  image.how = std::move(how.value());
  image.file.swap(file);
  return ok_status();
}

StatusOr<std::shared_ptr<DeviceInput>> make_on_device(DeviceImages& device, std::vector<DeviceSample>& samples,
                                                      size_t wanted, const TransformOptions& options,
                                                      const std::atomic<bool>* abort,
                                                      std::vector<BadDeviceSample>& bad) {
  Transformer transformer;
  while (!samples.empty() && samples.size() >= wanted) {
    std::vector<std::shared_ptr<const DeviceImage>> images;
    for (const DeviceSample& sample : samples) images.push_back(sample.image);
    std::vector<size_t> refused;
    auto made = device.make(images, refused);
    if (!made.ok() || made.value()) return made;
    std::sort(refused.rbegin(), refused.rend());
    for (const size_t at : refused) {
      DeviceSample& sample = samples[at];
      auto image = std::make_shared<DeviceImage>();
      image->label = sample.image->label;
      image->pixels.resize(square_bytes(options));
      const std::vector<uint8_t>& file = sample.image->file;
      const Status status =
          transformer.jpeg(file.data(), file.size(), options, sample.key, image->pixels.data(), abort);
      if (status.ok()) {
        sample.image = std::move(image);
      } else {
        bad.push_back({sample.key, status});
        samples.erase(samples.begin() + static_cast<std::ptrdiff_t>(at));
      }
    }
  }
  return std::shared_ptr<DeviceInput>();
}

}  // namespace effnet::io
