// Batches of a dataset, decoded ahead by own threads. What a batch holds depends on the order, the seed and the epoch
// only: never on the number of workers or on timing.
//
// Workers claim samples in order and finish them in any order; finished ones are committed in order into the batch
// that is being filled. An unreadable sample is noted and skipped: the next good one takes its slot.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/status.h"
#include "io/batch.h"
#include "io/transform.h"

namespace effnet::io {

// RGB pixels decoded elsewhere; `owner` keeps them alive and may be let go on any thread.
struct OtherPixels {
  View view;
  std::shared_ptr<void> owner;
};

// A file that is not a JPEG, for somebody else to decode. `reply` must be called once, from any thread.
struct OtherRequest {
  std::string path;
  std::vector<uint8_t> bytes;
  std::function<void(StatusOr<OtherPixels>)> reply;
};

struct LoaderOptions {
  std::vector<std::string> files;
  std::vector<int32_t> labels;  // one per file
  int batch_size = 1;
  TransformOptions transform;  // eval or train
  int workers = 1;
  int prefetch = 2;  // batches ready or in work
  // Called on a worker, must return at once. Absent: such files are unreadable.
  std::function<void(OtherRequest)> decode_other;
  // Where batches of so many bytes lie; absent, or nullptr: in any memory. On any worker.
  std::function<StatusOr<std::shared_ptr<std::byte>>(uint64_t)> batch_memory;
  // Makes the batches on a device, from the files that it takes. Absent: they are made here. Called by a worker at a
  // time.
  std::function<StatusOr<std::unique_ptr<DeviceImages>>(const DeviceImages::Options&)> device;
};

struct BadSample {
  uint32_t index;
  Status status;
};

struct LoadedBatch {
  std::shared_ptr<Batch> batch;
  // Real samples. Below the batch size in a tail batch, whose other labels are -1 and images zero. 0 only at the end
  // of an epoch whose last files were unreadable: such a batch carries nothing but `bad`.
  int count = 0;
  std::vector<uint32_t> indices;  // into files, in order
  std::vector<uint32_t> on_cpu;   // of a batch made on a device: those that the CPU decoded
  std::vector<BadSample> bad;
};

class Loader {
 public:
  // Absent value: the epoch has ended.
  using Next = std::function<void(StatusOr<std::optional<LoadedBatch>>)>;

  static StatusOr<std::unique_ptr<Loader>> create(LoaderOptions options);
  ~Loader();  // close()

  // Begins an epoch over `order` at sample `start`; an epoch that still runs is dropped, its waiting calls are
  // answered with Code::aborted.
  Status start(std::vector<uint32_t> order, uint64_t start, uint64_t epoch, uint64_t seed, bool drop_last);
  // Calls `done` once: now, or from a worker when a batch is ready. Calls are answered in order.
  void next(Next done);
  // Returns at once: waiting calls are answered with Code::closed, workers stop at their next row of pixels. Batches
  // handed out stay valid.
  void close();
  // Until every worker has ended; after close(). For tests: nobody needs to wait.
  void wait_stopped();

  size_t batch_bytes() const;

 private:
  class Core;
  explicit Loader(std::shared_ptr<Core> core);
  std::shared_ptr<Core> core_;
};

}  // namespace effnet::io
