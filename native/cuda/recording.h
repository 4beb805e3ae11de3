// What a plan puts on a stream: its launches over fixed addresses, and the graphs that are captured from them.
#pragma once

#include <utility>
#include <vector>

#include "cuda/device.h"
#include "cuda/kernel.h"

namespace effnet::cuda {

// `prepare`: what is done when weights changed. `step`: all of a step. An update from several batches is `batch` for
// each, then `update`.
enum class Part { prepare, step, batch, update };
inline constexpr int kParts = 4;

using BoundLaunch = std::pair<Launch, CUfunction>;
using BoundLaunches = std::vector<BoundLaunch>;

// Kernels by name, in order.
StatusOr<BoundLaunches> bind_launches(Device& device, std::vector<Launch> launches);
// `wait`: for each before the next, so that a fault is that of the launch it is told of.
Status queue_launches(const Device& device, const BoundLaunches& launches, CUstream stream, bool wait = false);

struct Recording {
  std::vector<BoundLaunches> ops;  // of each op of the plan
  BoundLaunches casts[plan::kArenaCount];
  BoundLaunches begin, accumulate, finish;  // of a step that updates weights
  CUgraphExec graphs[kParts] = {};
  uint64_t generation = 0;  // DeviceMemory::generation of the addresses
  bool valid = false;

  void forget(const Driver& driver) {
    for (CUgraphExec& graph : graphs)
      if (graph) driver.cuGraphExecDestroy(std::exchange(graph, nullptr));
    valid = false;
  }
};

// Captures what `queue` puts on the stream.
template <class Queue>
Status capture(const Driver& driver, CUstream stream, CUgraphExec* graph, Queue&& queue) {
  // Relaxed: at its first call a library loads its kernels, which the other modes take for a mistake.
  EFF_CUDA(driver, cuStreamBeginCapture, stream, CU_STREAM_CAPTURE_MODE_RELAXED);
  const Status queued = queue();
  CUgraph captured = nullptr;
  const CUresult ended = driver.cuStreamEndCapture(stream, &captured);
  Status status = queued.ok() ? driver_status(driver, "cuStreamEndCapture", ended) : queued;
  if (status.ok())
    status = driver_status(driver, "cuGraphInstantiate", driver.cuGraphInstantiateWithFlags(graph, captured, 0));
  if (captured) driver.cuGraphDestroy(captured);
  return status;
}

}  // namespace effnet::cuda
