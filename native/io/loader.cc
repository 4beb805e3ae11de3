#include "io/loader.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#include "core/caught.h"
#include "core/math.h"
#include "io/device_samples.h"
#include "io/transfer.h"

namespace effnet::io {
namespace {

// Samples that may be in work ahead of the first unfinished one: a slow image holds the others up only after these.
constexpr int kSamplesPerWorker = 4;
constexpr size_t kLeastInFlight = 32;
constexpr size_t kKeptFileBytes = size_t{64} << 20;

// Batch memory that goes round. Outlives the loader while batches are in use.
class Ring : public std::enable_shared_from_this<Ring> {
 public:
  using Memory = decltype(LoaderOptions::batch_memory);
  Ring(size_t bytes, size_t labels_offset, size_t keep, Memory memory)
      : bytes_(bytes), labels_offset_(labels_offset), keep_(keep), memory_(std::move(memory)) {}

  StatusOr<std::shared_ptr<Batch>> take() {
    auto batch = std::make_unique<Batch>();
    batch->labels_offset = labels_offset_;
    {
      std::lock_guard lock(mutex_);
      if (!free_.empty()) {
        batch->block = std::move(free_.back());
        free_.pop_back();
      }
    }
    if (batch->bytes() == 0) {
      auto block = allocate();
      if (!block.ok()) return block.status();
      batch->block = std::move(block.value());
    }
    return std::shared_ptr<Batch>(batch.release(), [ring = shared_from_this()](Batch* b) {
      ring->give_back(std::move(b->block));
      delete b;
    });
  }
  void close() {
    std::lock_guard lock(mutex_);
    closed_ = true;
    free_.clear();
  }
  size_t bytes() const { return bytes_; }
  size_t labels_offset() const { return labels_offset_; }

 private:
  void give_back(Block block) {
    std::lock_guard lock(mutex_);
    if (!closed_ && free_.size() < keep_) free_.push_back(std::move(block));
  }

  StatusOr<Block> allocate() const {
    if (memory_) {
      auto memory = memory_(bytes_);
      if (!memory.ok()) return memory.status();
      if (memory.value()) return Block::adopt(std::move(memory.value()), bytes_, Block::Kind::batch);
    }
    return Block::allocate(bytes_, Block::Kind::batch);
  }

  const size_t bytes_, labels_offset_, keep_;
  const Memory memory_;
  std::mutex mutex_;
  std::vector<Block> free_;
  bool closed_ = false;
};

struct Sample {
  uint64_t generation = 0;
  uint32_t index = 0;
  SampleKey key;
  bool done = false;
  Status status;
  std::vector<uint8_t> pixels;                 // of a batch made here
  std::shared_ptr<DeviceImage> image;          // of one made on a device
  std::optional<StatusOr<OtherPixels>> other;  // what somebody else decoded, to be transformed
};

Status prefixed(const Status& status, const std::string& path) {
  if (status.ok() || status.message().starts_with(path)) return status;
  return Status(status.code(), path + ": " + status.message());
}

}  // namespace

class Loader::Core : public std::enable_shared_from_this<Loader::Core> {
 public:
  explicit Core(LoaderOptions options)
      : options_(std::move(options)),
        image_bytes_(static_cast<size_t>(options_.transform.size) * options_.transform.size * 3),
        batch_size_(static_cast<size_t>(options_.batch_size)),
        window_(std::max(kLeastInFlight, static_cast<size_t>(options_.workers) * kSamplesPerWorker)) {
    const size_t labels_offset = align64(image_bytes_ * batch_size_);
    // As long as a plan's input arena, whose end is aligned too.
    ring_ = std::make_shared<Ring>(align64(labels_offset + batch_size_ * sizeof(int32_t)), labels_offset,
                                   static_cast<size_t>(options_.prefetch) + 1, options_.batch_memory);
  }

  Status open_device() {
    if (!options_.device) return ok_status();
    auto device = options_.device({options_.batch_size, options_.transform.size, ring_->bytes(), ring_->labels_offset(),
                                   static_cast<size_t>(options_.prefetch) + 1});
    if (!device.ok()) return device.status();
    device_ = std::move(device.value());
    // Files are read ahead while a batch of them is decoded.
    window_ = std::max(window_, batch_size_);
    return ok_status();
  }

  Status spawn() {
    for (int i = 0; i < options_.workers; ++i) {
      try {
        std::lock_guard lock(mutex_);
        std::thread([core = shared_from_this()] { core->work(); }).detach();
        ++live_;
      } catch (const std::system_error& e) {
        if (i == 0) return error(Code::oom, "no thread for the loader: %s", e.what());
        break;  // fewer workers give the same batches
      }
    }
    return ok_status();
  }

  Status start(std::vector<uint32_t> order, uint64_t start, uint64_t epoch, uint64_t seed, bool drop_last);
  void next(Next done);
  void close();
  void wait_stopped() {
    std::unique_lock lock(mutex_);
    stopped_.wait(lock, [this] { return live_ == 0; });
  }
  size_t batch_bytes() const { return ring_->bytes(); }

 private:
  using Lock = std::unique_lock<std::mutex>;
  using SamplePtr = std::shared_ptr<Sample>;

  void work();
  bool can_claim() const;
  SamplePtr claim();
  // False: somebody else decodes it and will call revive().
  bool process(const SamplePtr& sample, Transformer& transformer, std::vector<uint8_t>& file);
  Status read_and_decode(const SamplePtr& sample, Transformer& transformer, std::vector<uint8_t>& file,
                         bool& handed_over);
  void revive(const SamplePtr& sample, StatusOr<OtherPixels> pixels);
  void finish(Lock& lock, const SamplePtr& sample);
  void commit(Lock& lock);
  void commit_done(Lock& lock);
  bool place(Lock& lock, const SamplePtr& sample);
  bool make_batch(Lock& lock, size_t wanted);
  bool at_end() const {
    return started_ && !closed_ && !ended_ && failure_.ok() && in_flight_.empty() && next_position_ >= order_.size();
  }
  void end_epoch();
  void drop_epoch();
  void deliver(Lock& lock);
  void blank(Batch& batch, size_t from) const;

  const LoaderOptions options_;
  const size_t image_bytes_, batch_size_;
  size_t window_;
  std::shared_ptr<Ring> ring_;
  std::unique_ptr<DeviceImages> device_;
  std::atomic<bool> abort_{false};

  std::mutex mutex_;
  std::condition_variable wake_, stopped_;
  int live_ = 0;
  bool closed_ = false, started_ = false, ended_ = false, committing_ = false;
  Status failure_;
  uint64_t generation_ = 0, epoch_ = 0, seed_ = 0;
  bool drop_last_ = false;
  std::vector<uint32_t> order_;
  size_t next_position_ = 0;         // in order_, the next to be claimed
  std::deque<SamplePtr> in_flight_;  // claimed and not committed, in order
  std::deque<SamplePtr> revived_;
  std::vector<SamplePtr> spare_;
  LoadedBatch filling_;
  std::vector<DeviceSample> filling_samples_;  // of a batch made on a device
  std::deque<LoadedBatch> ready_;
  std::deque<Next> waiting_;
};

Status Loader::Core::start(std::vector<uint32_t> order, uint64_t start, uint64_t epoch, uint64_t seed, bool drop_last) {
  for (const uint32_t index : order)
    if (index >= options_.files.size())
      return error(Code::invalid_argument, "the order names file %u of %zu", index, options_.files.size());
  if (start > order.size())
    return error(Code::invalid_argument, "start is %llu, the order has %zu samples",
                 static_cast<unsigned long long>(start), order.size());
  std::deque<Next> dropped;
  {
    Lock lock(mutex_);
    if (closed_) return error(Code::closed, "the loader has been closed");
    dropped.swap(waiting_);
    drop_epoch();
    order_ = std::move(order);
    next_position_ = start;
    epoch_ = epoch;
    seed_ = seed;
    drop_last_ = drop_last;
    started_ = true;
    ended_ = false;
    failure_ = Status();
    if (!committing_) commit(lock);  // an empty order ends at once
    wake_.notify_all();
  }
  for (const Next& done : dropped) done(error(Code::aborted, "another epoch was started"));
  return ok_status();
}

void Loader::Core::drop_epoch() {
  ++generation_;  // what is in work belongs to nobody now
  in_flight_.clear();
  revived_.clear();
  ready_.clear();
  filling_ = LoadedBatch();
  filling_samples_.clear();
}

void Loader::Core::next(Next done) {
  Lock lock(mutex_);
  if (closed_ || !started_) {
    const Status status = closed_ ? error(Code::closed, "the loader has been closed")
                                  : error(Code::invalid_argument, "no epoch has been started");
    lock.unlock();
    return done(status);
  }
  waiting_.push_back(std::move(done));
  deliver(lock);
}

void Loader::Core::close() {
  std::deque<Next> dropped;
  {
    Lock lock(mutex_);
    if (closed_) return;
    closed_ = true;
    abort_ = true;
    dropped.swap(waiting_);
    drop_epoch();
    spare_.clear();
    order_ = {};
    wake_.notify_all();
  }
  ring_->close();
  for (const Next& done : dropped) done(error(Code::closed, "the loader has been closed"));
}

bool Loader::Core::can_claim() const {
  if (!started_ || ended_ || !failure_.ok() || next_position_ >= order_.size()) return false;
  const size_t held = in_flight_.size() + static_cast<size_t>(filling_.count) + ready_.size() * batch_size_;
  return in_flight_.size() < window_ && held < static_cast<size_t>(options_.prefetch) * batch_size_;
}

Loader::Core::SamplePtr Loader::Core::claim() {
  SamplePtr sample;
  if (spare_.empty()) {
    sample = std::make_shared<Sample>();
  } else {
    sample = std::move(spare_.back());
    spare_.pop_back();
  }
  sample->generation = generation_;
  sample->index = order_[next_position_++];
  sample->key = {seed_, epoch_, sample->index};
  sample->done = false;
  sample->status = Status();
  in_flight_.push_back(sample);
  return sample;
}

void Loader::Core::work() {
  Transformer transformer;
  std::vector<uint8_t> file;
  Lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return closed_ || !revived_.empty() || can_claim(); });
    if (closed_) break;
    SamplePtr sample;
    if (!revived_.empty()) {
      sample = std::move(revived_.front());
      revived_.pop_front();
    } else {
      sample = claim();
    }
    lock.unlock();
    const bool finished = process(sample, transformer, file);
    lock.lock();
    if (finished) finish(lock, sample);
  }
  if (--live_ == 0) stopped_.notify_all();
}

bool Loader::Core::process(const SamplePtr& sample, Transformer& transformer, std::vector<uint8_t>& file) {
  // Handed over, the sample is another worker's from the reply on, which may come at once: nothing of it is touched.
  bool handed_over = false;
  Status status;
  try {
    if (device_) {
      sample->image = std::make_shared<DeviceImage>();
      sample->image->label = options_.labels[sample->index];
    } else {
      sample->pixels.resize(image_bytes_);
    }
    if (sample->other) {
      std::vector<uint8_t>& pixels = device_ ? sample->image->pixels : sample->pixels;
      pixels.resize(image_bytes_);
      status = sample->other->status();
      if (status.ok())
        status = transformer.pixels(sample->other->value().view, options_.transform, sample->key, pixels.data());
      sample->other.reset();
    } else {
      status = read_and_decode(sample, transformer, file, handed_over);
    }
  } catch (const std::bad_alloc&) {
    status = error(Code::oom, "not enough memory to decode");
  } catch (const std::exception& e) {
    status = error(Code::internal, "%s", e.what());
  }
  transformer.trim();
  if (file.capacity() > kKeptFileBytes) file = {};
  if (handed_over) return false;
  sample->status = prefixed(status, options_.files[sample->index]);
  return true;
}

Status Loader::Core::read_and_decode(const SamplePtr& sample, Transformer& transformer, std::vector<uint8_t>& file,
                                     bool& handed_over) {
  const std::string& path = options_.files[sample->index];
  EFF_RETURN_IF_ERROR(read_file(path, file));
  const FileKind kind = file_kind(file.data(), file.size());
  if (kind == FileKind::jpeg && device_)
    return prepare_for_device(*device_, file, options_.transform, sample->key, transformer, &abort_, *sample->image);
  if (kind == FileKind::jpeg)
    return transformer.jpeg(file.data(), file.size(), options_.transform, sample->key, sample->pixels.data(), &abort_);
  if (kind == FileKind::empty) return error(Code::data_decode, "the file is empty");
  if (!options_.decode_other)
    return error(Code::data_decode, "%s, not a JPEG, and no decoder for it is at hand", file_kind_name(kind));
  OtherRequest request{path, std::move(file), [core = weak_from_this(), sample](StatusOr<OtherPixels> pixels) {
                         if (const auto alive = core.lock()) alive->revive(sample, std::move(pixels));
                       }};
  file = {};
  options_.decode_other(std::move(request));
  handed_over = true;
  return ok_status();
}

void Loader::Core::revive(const SamplePtr& sample, StatusOr<OtherPixels> pixels) {
  Lock lock(mutex_);
  if (closed_ || sample->generation != generation_) return;
  sample->other.emplace(std::move(pixels));
  revived_.push_back(sample);
  wake_.notify_one();
}

// A sample is done, well or badly. Commits what can be committed and answers who waits; unlocks meanwhile.
void Loader::Core::finish(Lock& lock, const SamplePtr& sample) {
  sample->done = true;
  if (closed_) return;
  if (sample->generation != generation_) {
    spare_.push_back(sample);
    return;
  }
  if (!committing_) commit(lock);
  wake_.notify_all();
  deliver(lock);
}

// One thread at a time: samples go into batches in order. Copies outside the lock.
void Loader::Core::commit(Lock& lock) {
  committing_ = true;
  do {
    commit_done(lock);
    if (at_end() && device_ && !drop_last_ && filling_.count > 0) make_batch(lock, 1);
    if (at_end()) end_epoch();  // another may have begun meanwhile
  } while (!in_flight_.empty() && in_flight_.front()->done && failure_.ok());
  committing_ = false;
}

void Loader::Core::commit_done(Lock& lock) {
  while (!in_flight_.empty() && in_flight_.front()->done && failure_.ok()) {
    const SamplePtr sample = in_flight_.front();
    if (!sample->status.ok()) {
      filling_.bad.push_back({sample->index, sample->status});
    } else if (!place(lock, sample)) {
      continue;  // another epoch began, or memory is short
    }
    in_flight_.pop_front();
    spare_.push_back(sample);
    if (static_cast<size_t>(filling_.count) == batch_size_) {
      if (device_ && !make_batch(lock, batch_size_)) continue;
      ready_.push_back(std::move(filling_));
      filling_ = LoadedBatch();
      wake_.notify_all();
      deliver(lock);
    }
  }
}

// Copies a sample into the next slot of the batch being filled. False when the epoch changed meanwhile.
bool Loader::Core::place(Lock& lock, const SamplePtr& sample) {
  if (device_) {
    filling_samples_.push_back({sample->key, std::move(sample->image)});
    filling_.indices.push_back(sample->index);
    ++filling_.count;
    return true;
  }
  const uint64_t generation = generation_;
  std::shared_ptr<Batch> batch = filling_.batch;
  const auto slot = static_cast<size_t>(filling_.count);
  lock.unlock();
  Status status;
  if (!batch) {
    auto taken = ring_->take();
    if (taken.ok())
      batch = std::move(taken.value());
    else
      status = taken.status();
  }
  if (batch) {
    std::memcpy(batch->data() + slot * image_bytes_, sample->pixels.data(), image_bytes_);
    const int32_t label = options_.labels[sample->index];
    std::memcpy(batch->data() + batch->labels_offset + slot * sizeof label, &label, sizeof label);
  }
  lock.lock();
  if (generation != generation_) return false;
  if (!batch) {
    failure_ = status;
    return false;
  }
  filling_.batch = std::move(batch);
  filling_.indices.push_back(sample->index);
  ++filling_.count;
  return true;
}

// The batch being filled, on the device. False where less than `wanted` samples could be decoded after all, another
// epoch has begun or it failed.
bool Loader::Core::make_batch(Lock& lock, size_t wanted) {
  const uint64_t generation = generation_;
  std::vector<DeviceSample> samples = std::exchange(filling_samples_, {});
  std::vector<BadDeviceSample> bad;
  lock.unlock();
  auto made = caught([&] { return io::make_on_device(*device_, samples, wanted, options_.transform, &abort_, bad); });
  lock.lock();
  if (generation != generation_) return false;
  filling_.count = static_cast<int>(samples.size());
  filling_.indices.clear();
  for (const DeviceSample& sample : samples) filling_.indices.push_back(sample.key.index);
  for (const auto& [key, status] : bad)
    filling_.bad.push_back({key.index, prefixed(status, options_.files[key.index])});
  if (!made.ok()) {
    failure_ = made.status();
    return false;
  }
  if (!made.value()) {
    filling_samples_ = std::move(samples);
    return false;
  }
  for (const DeviceSample& sample : samples)
    if (sample.on_cpu()) filling_.on_cpu.push_back(sample.key.index);
  filling_.batch = std::make_shared<Batch>();
  filling_.batch->device = std::move(made.value());
  filling_.batch->labels_offset = ring_->labels_offset();
  return true;
}

void Loader::Core::blank(Batch& batch, size_t from) const {
  std::memset(batch.data() + from * image_bytes_, 0, (batch_size_ - from) * image_bytes_);
  std::memset(batch.data() + batch.labels_offset + from * sizeof(int32_t), 0xff,
              (batch_size_ - from) * sizeof(int32_t));
}

void Loader::Core::end_epoch() {
  ended_ = true;
  if (drop_last_) {
    filling_.count = 0;
    filling_.indices.clear();
  }
  if (filling_.count > 0 || !filling_.bad.empty()) {
    if (!filling_.batch && device_) filling_.batch = std::make_shared<Batch>();  // of nothing but bad samples
    if (!filling_.batch) {
      auto taken = ring_->take();
      if (!taken.ok()) {
        failure_ = taken.status();
        return;
      }
      filling_.batch = std::move(taken.value());
    }
    if (!device_) blank(*filling_.batch, static_cast<size_t>(filling_.count));
    ready_.push_back(std::move(filling_));
  }
  filling_ = LoadedBatch();
  filling_samples_.clear();
}

// Answers waiting calls as far as there is something to say; unlocks while it calls.
void Loader::Core::deliver(Lock& lock) {
  while (!waiting_.empty() && !closed_) {
    std::optional<LoadedBatch> batch;
    if (!ready_.empty()) {
      batch = std::move(ready_.front());
      ready_.pop_front();
      wake_.notify_all();
    } else if (!failure_.ok() || ended_) {
      // nothing more will come
    } else {
      return;
    }
    const Next done = std::move(waiting_.front());
    waiting_.pop_front();
    const Status failure = batch ? Status() : failure_;
    lock.unlock();
    if (failure.ok())
      done(std::move(batch));
    else
      done(failure);
    lock.lock();
  }
}

Loader::Loader(std::shared_ptr<Core> core) : core_(std::move(core)) {}
Loader::~Loader() { close(); }

StatusOr<std::unique_ptr<Loader>> Loader::create(LoaderOptions options) {
  if (options.transform.mode == Mode::full)
    return error(Code::invalid_argument, "a loader's mode is 'eval' or 'train', images of any size make no batch");
  EFF_RETURN_IF_ERROR(options.transform.check());
  if (options.labels.size() != options.files.size())
    return error(Code::invalid_argument, "%zu labels for %zu files", options.labels.size(), options.files.size());
  if (options.batch_size < 1 || options.batch_size > 1 << 20)
    return error(Code::invalid_argument, "batchSize is %d, expected 1 to 1048576", options.batch_size);
  if (options.workers < 1 || options.workers > 1024)
    return error(Code::invalid_argument, "workers is %d, expected 1 to 1024", options.workers);
  if (options.prefetch < 1 || options.prefetch > 1024)
    return error(Code::invalid_argument, "prefetch is %d, expected 1 to 1024", options.prefetch);
  auto core = std::make_shared<Core>(std::move(options));
  EFF_RETURN_IF_ERROR(core->open_device());
  std::unique_ptr<Loader> loader(new Loader(core));
  EFF_RETURN_IF_ERROR(core->spawn());
  return loader;
}

Status Loader::start(std::vector<uint32_t> order, uint64_t start, uint64_t epoch, uint64_t seed, bool drop_last) {
  return core_->start(std::move(order), start, epoch, seed, drop_last);
}
void Loader::next(Next done) { core_->next(std::move(done)); }
void Loader::close() { core_->close(); }
void Loader::wait_stopped() { core_->wait_stopped(); }
size_t Loader::batch_bytes() const { return core_->batch_bytes(); }

}  // namespace effnet::io
