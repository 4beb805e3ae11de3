#include "cuda/recording.h"

namespace effnet::cuda {

StatusOr<BoundLaunches> bind_launches(Device& device, std::vector<Launch> launches) {
  BoundLaunches bound;
  for (Launch& launch : launches) {
    StatusOr<CUfunction> function = CUfunction{};
    if (!launch.call) function = device.function(launch.kernel);
    if (!function.ok()) return function.status();
    bound.emplace_back(std::move(launch), function.value());
  }
  return bound;
}

Status queue_launches(const Device& device, const BoundLaunches& launches, CUstream stream, bool wait) {
  for (const auto& [launch, function] : launches) {
    EFF_RETURN_IF_ERROR(device.launch(launch, function, stream, wait));
    if (!wait) continue;
    const Status done =
        driver_status(device.driver(), "cuStreamSynchronize", device.driver().cuStreamSynchronize(stream));
    if (!done.ok()) return Status(done.code(), launch.kernel + ": " + done.message());
  }
  return ok_status();
}

}  // namespace effnet::cuda
