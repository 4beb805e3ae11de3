#include "cuda/image_batches.h"

#include <algorithm>
#include <cstring>

#include "core/byte_text.h"
#include "core/math.h"
#include "cuda/ops/resample.h"
#include "cuda/providers/library.h"

namespace effnet::cuda {
namespace {

constexpr size_t kAlign = 256;
uint64_t aligned(uint64_t bytes) { return round_up(bytes, kAlign); }
size_t pitch_of(const DeviceImage& image) { return aligned(static_cast<size_t>(image.width) * 3); }

// Of a limit, for decoded images; the rest is for the model.
constexpr uint64_t kShareOfLimit = 16, kLeastScratch = uint64_t{16} << 20;

uint64_t scratch_within(const DeviceImages::Options& options) {
  if (!options.budget || options.budget->limit() == Budget::kNoLimit) return options.scratch_bytes;
  return std::min(options.scratch_bytes, std::max(kLeastScratch, aligned(options.budget->limit() / kShareOfLimit)));
}

// With room for batches somewhat larger, so that sizes settle soon.
uint64_t grown(uint64_t bytes) { return aligned(bytes + bytes / 4); }

NvJpeg::File file_of(const DeviceImage& image) { return std::as_bytes(std::span(image.file)); }

}  // namespace

// ---- a batch -----------------------------------------------------------------------------------------------------

StatusOr<std::unique_ptr<DeviceBatch>> DeviceBatch::create(const std::shared_ptr<Device>& device, uint64_t bytes,
                                                           CUstream maker, std::shared_ptr<Budget> budget) {
  std::unique_ptr<DeviceBatch> batch(new DeviceBatch(device));
  auto block = DeviceBlock::allocate(device, bytes, maker, std::move(budget));
  if (!block.ok()) return block.status();
  batch->block_ = std::move(block.value());
  batch->maker_ = maker;
  EFF_CUDA(device->driver(), cuEventCreate, &batch->ready_, CU_EVENT_DISABLE_TIMING);
  EFF_CUDA(device->driver(), cuEventCreate, &batch->copied_, CU_EVENT_DISABLE_TIMING);
  return batch;
}

DeviceBatch::~DeviceBatch() {
  if (!device_->enter().ok()) return;
  for (const CUevent event : {ready_, copied_})
    if (event) device_->driver().cuEventDestroy(event);
}

Status DeviceBatch::begin() const {
  EFF_CUDA(device_->driver(), cuStreamWaitEvent, maker_, copied_, 0);
  return ok_status();
}

Status DeviceBatch::end() const {
  EFF_CUDA(device_->driver(), cuEventRecord, ready_, maker_);
  return ok_status();
}

Status DeviceBatch::copy_to(CUdeviceptr to, uint64_t bytes, CUstream stream) const {
  const Driver& driver = device_->driver();
  if (bytes > block_.bytes())
    return error(Code::invalid_argument, "the batch has %llu bytes, the plan reads %llu",
                 static_cast<unsigned long long>(block_.bytes()), static_cast<unsigned long long>(bytes));
  EFF_CUDA(driver, cuStreamWaitEvent, stream, ready_, 0);
  // Who waits for this copy waits for those on other streams too: there is one event for all.
  EFF_CUDA(driver, cuStreamWaitEvent, stream, copied_, 0);
  EFF_CUDA(driver, cuMemcpyDtoDAsync, to, block_.address(), bytes, stream);
  EFF_CUDA(driver, cuEventRecord, copied_, stream);
  return ok_status();
}

Status DeviceBatch::read(std::span<std::byte> into) const {
  if (into.size() > block_.bytes()) return error(Code::invalid_argument, "the batch is smaller");
  EFF_RETURN_IF_ERROR(device_->enter());
  EFF_CUDA(device_->driver(), cuMemcpyDtoHAsync, into.data(), block_.address(), into.size(), maker_);
  EFF_CUDA(device_->driver(), cuStreamSynchronize, maker_);
  return ok_status();
}

struct ImageBatches::Pool : std::enable_shared_from_this<Pool> {
  Pool(std::shared_ptr<Device> d, std::shared_ptr<Budget> b) : device(std::move(d)), budget(std::move(b)) {}
  ~Pool() {
    if (!stream || !device->enter().ok()) return;
    device->driver().cuStreamSynchronize(stream);
    free.clear();
    device->driver().cuStreamDestroy(stream);
  }

  StatusOr<std::shared_ptr<DeviceBatch>> take(uint64_t bytes, size_t keep) {
    std::unique_ptr<DeviceBatch> batch;
    {
      const std::lock_guard lock(mutex);
      if (!free.empty()) {
        batch = std::move(free.back());
        free.pop_back();
      }
    }
    if (!batch) {
      auto created = DeviceBatch::create(device, bytes, stream, budget);
      if (!created.ok()) return created.status();
      batch = std::move(created.value());
    }
    return std::shared_ptr<DeviceBatch>(batch.release(), [pool = shared_from_this(), keep](DeviceBatch* b) {
      std::unique_ptr<DeviceBatch> back(b);
      const std::lock_guard lock(pool->mutex);
      if (pool->free.size() < keep) pool->free.push_back(std::move(back));
    });
  }

  const std::shared_ptr<Device> device;
  const std::shared_ptr<Budget> budget;
  CUstream stream = nullptr;
  std::mutex mutex;
  std::vector<std::unique_ptr<DeviceBatch>> free;
};

// ---- batches -----------------------------------------------------------------------------------------------------

ImageBatches::ImageBatches(std::shared_ptr<Device> device, const Options& options)
    : device_(std::move(device)), options_([&] {
        Options within = options;
        within.scratch_bytes = scratch_within(options);
        return within;
      }()) {}

Status ImageBatches::without_room(const Status& why) const {
  const std::string most = byte_text(options_.scratch_bytes + options_.keep * options_.bytes);
  return error(Code::oom, "%s, for images decoded on the GPU, which take %s and the decoder's own memory",
               why.message().c_str(), most.c_str());
}

Status ImageBatches::take_at_start() {
  if (!options_.budget || options_.budget->limit() == Budget::kNoLimit) return ok_status();
  auto scratch = allocate(options_.scratch_bytes);
  if (!scratch.ok()) return scratch.status();
  scratch_ = std::move(scratch.value());
  std::vector<std::shared_ptr<DeviceBatch>> batches;
  while (batches.size() < options_.keep) {
    auto batch = pool_->take(options_.bytes, options_.keep);
    if (!batch.ok()) return batch.status();
    batches.push_back(std::move(batch.value()));
  }
  return ok_status();
}

StatusOr<std::unique_ptr<ImageBatches>> ImageBatches::create(const std::shared_ptr<Device>& device,
                                                             const Options& options) {
  std::unique_ptr<ImageBatches> made(new ImageBatches(device, options));
  EFF_RETURN_IF_ERROR(device->enter());
  made->of_decoder_ = std::make_unique<LibraryMemory>(device, options.budget);
  EFF_RETURN_IF_ERROR(made->of_decoder_->start());
  const NvJpeg::Memory memory{made->of_decoder_->device_blocks(), made->of_decoder_->host_blocks()};
  auto decoder = NvJpeg::create(&memory);
  if (decoder.status().code() == Code::oom) {
    const Status refusal = made->of_decoder_->take_refusal();
    return made->without_room(refusal.ok() ? decoder.status() : refusal);
  }
  if (!decoder.ok()) {
    const LibraryFacts facts = library_facts(kNvJpeg);
    const std::string mend = facts.mend.empty() ? "" : ". " + facts.mend;
    return Status(decoder.status().code(),
                  "images cannot be decoded on the GPU without nvJPEG: " + decoder.status().message() + mend);
  }
  made->decoder_ = std::move(decoder.value());
  made->pool_ = std::make_shared<Pool>(device, options.budget);
  EFF_CUDA(device->driver(), cuStreamCreateWithPriority, &made->pool_->stream, CU_STREAM_NON_BLOCKING, 0);
  for (Staging& staging : made->stagings_)
    EFF_CUDA(device->driver(), cuEventCreate, &staging.done, CU_EVENT_DISABLE_TIMING);
  const Status taken = made->take_at_start();
  if (taken.code() == Code::oom) return made->without_room(taken);
  EFF_RETURN_IF_ERROR(taken);
  return made;
}

ImageBatches::~ImageBatches() {
  if (!pool_ || !device_->enter().ok()) return;
  if (pool_->stream) driver().cuStreamSynchronize(pool_->stream);
  for (const Staging& staging : stagings_)
    if (staging.done) driver().cuEventDestroy(staging.done);
}

CUstream ImageBatches::stream() const { return pool_->stream; }

Status ImageBatches::accepts(std::span<const uint8_t> file, int width, int height) const {
  const auto size = decoder_->size(std::as_bytes(file));
  if (!size.ok()) return size.status();
  // What it writes goes where so much room was made.
  if (size.value().width != width || size.value().height != height)
    return error(Code::data_decode, "nvJPEG reads another size from it");
  return ok_status();
}

// As many images at once as the scratch memory has room for; one that is larger than that has it alone.
std::vector<ImageBatches::Part> ImageBatches::parts(std::span<const std::shared_ptr<const DeviceImage>> images) const {
  std::vector<Part> parts;
  for (size_t i = 0; i < images.size(); ++i) {
    const DeviceImage& image = *images[i];
    if (image.file.empty()) continue;
    const uint64_t pixels = aligned(pitch_of(image) * static_cast<uint64_t>(image.height));
    const uint64_t middle = resample_middle_bytes(image.how, options_.size);
    if (parts.empty() || parts.back().pixels + parts.back().middle + pixels + middle > options_.scratch_bytes ||
        parts.back().images.size() == kMostResampled)
      parts.emplace_back();
    Part& part = parts.back();
    part.images.push_back(i);
    part.at.push_back(part.pixels);
    part.pixels += pixels;
    part.middle += middle;
  }
  return parts;
}

Status ImageBatches::make_room(const std::vector<Part>& parts) {
  uint64_t needed = 0;
  for (const Part& part : parts) needed = std::max(needed, part.pixels + part.middle);
  if (needed <= scratch_.bytes()) return ok_status();
  EFF_CUDA(driver(), cuStreamSynchronize, stream());
  scratch_ = DeviceBlock();  // freed first, so that the peak is not the sum
  auto block = allocate(std::max(needed, std::min(grown(needed), options_.scratch_bytes)));
  if (!block.ok()) return block.status();
  scratch_ = std::move(block.value());
  return ok_status();
}

Status ImageBatches::make_room(Staging& staging, uint64_t host_bytes, uint64_t table_bytes) {
  if (host_bytes > staging.host.bytes()) {
    staging.host = HostBlock();
    auto host = HostBlock::allocate(device_, grown(host_bytes));
    if (!host.ok()) return host.status();
    staging.host = std::move(host.value());
  }
  if (table_bytes > staging.tables.bytes()) {
    staging.tables = DeviceBlock();
    auto tables = allocate(grown(table_bytes));
    if (!tables.ok()) return tables.status();
    staging.tables = std::move(tables.value());
  }
  return ok_status();
}

Status ImageBatches::stage(Staging& staging, const DeviceBatch& batch, std::vector<Part>& parts) {
  const auto& images = staging.images;
  std::vector<std::vector<ResampleSource>> sources(parts.size());
  std::vector<uint64_t> tables_at{0};
  for (size_t p = 0; p < parts.size(); ++p) {
    for (size_t i = 0; i < parts[p].images.size(); ++i) {
      const DeviceImage& image = *images[parts[p].images[i]];
      sources[p].push_back({&image.how, image.width, image.height, scratch_.data() + parts[p].at[i], pitch_of(image),
                            reinterpret_cast<std::byte*>(batch.address()) + parts[p].images[i] * square_bytes()});
    }
    tables_at.push_back(aligned(tables_at.back() + resample_table_bytes(sources[p], options_.size)));
  }
  const uint64_t labels_at = tables_at.back();
  const size_t label_bytes = static_cast<size_t>(options_.batch_size) * sizeof(int32_t);
  uint64_t host_bytes = labels_at + aligned(label_bytes);
  for (const auto& image : images) host_bytes += image->pixels.size();
  EFF_RETURN_IF_ERROR(make_room(staging, host_bytes, tables_at.back()));
  std::byte* host = staging.host.data();
  for (size_t p = 0; p < parts.size(); ++p)
    record_resample(sources[p], options_.size, host + tables_at[p], staging.tables.data() + tables_at[p],
                    scratch_.data() + parts[p].pixels, parts[p].launches);
  const auto upload = [&](CUdeviceptr to, const std::byte* from, size_t bytes) -> Status {
    if (bytes) EFF_CUDA(driver(), cuMemcpyHtoDAsync, to, from, bytes, stream());
    return ok_status();
  };
  EFF_RETURN_IF_ERROR(upload(staging.tables.address(), host, tables_at.back()));

  auto* labels = reinterpret_cast<int32_t*>(host + labels_at);
  for (size_t i = 0; i < static_cast<size_t>(options_.batch_size); ++i)
    labels[i] = i < images.size() ? images[i]->label : -1;
  EFF_RETURN_IF_ERROR(upload(batch.address() + options_.labels_offset, host + labels_at, label_bytes));
  std::byte* pixels = host + labels_at + aligned(label_bytes);
  for (size_t i = 0; i < images.size(); ++i) {
    const std::vector<uint8_t>& finished = images[i]->pixels;
    if (finished.empty()) continue;
    std::memcpy(pixels, finished.data(), finished.size());
    EFF_RETURN_IF_ERROR(upload(batch.address() + i * square_bytes(), pixels, finished.size()));
    pixels += finished.size();
  }
  const size_t missing = static_cast<size_t>(options_.batch_size) - images.size();
  if (missing)
    EFF_CUDA(driver(), cuMemsetD8Async, batch.address() + images.size() * square_bytes(), 0, missing * square_bytes(),
             stream());
  return ok_status();
}

Status ImageBatches::decode(const Staging& staging, const Part& part) {
  std::vector<NvJpeg::File> files;
  std::vector<NvJpeg::Place> places;
  for (size_t i = 0; i < part.images.size(); ++i) {
    const DeviceImage& image = *staging.images[part.images[i]];
    files.push_back(file_of(image));
    places.push_back({scratch_.data() + part.at[i], pitch_of(image)});
  }
  // A hardware engine writes where kernels of the part before may still read (NvJpeg::decode).
  EFF_CUDA(driver(), cuStreamSynchronize, stream());
  return decoder_->decode(files, places, stream());
}

// A batch is refused whole; one file after another tells which.
Status ImageBatches::find_refused(const Staging& staging, const Part& part, std::vector<size_t>& refused) {
  const size_t before = refused.size();
  for (size_t i = 0; i < part.images.size(); ++i) {
    Part alone;
    alone.images = {part.images[i]};
    alone.at = {part.at[i]};
    const Status status = decode(staging, alone);
    if (status.code() == Code::data_decode)
      refused.push_back(part.images[i]);
    else if (!status.ok())
      return status;
  }
  if (refused.size() == before) refused.insert(refused.end(), part.images.begin(), part.images.end());
  return ok_status();
}

StatusOr<std::shared_ptr<DeviceInput>> ImageBatches::make_in(Staging& staging, std::vector<size_t>& refused) {
  std::vector<Part> parts = this->parts(staging.images);
  EFF_RETURN_IF_ERROR(make_room(parts));
  auto taken = pool_->take(options_.bytes, options_.keep);
  if (!taken.ok()) return taken.status();
  const DeviceBatch& batch = *taken.value();
  EFF_RETURN_IF_ERROR(batch.begin());
  EFF_RETURN_IF_ERROR(stage(staging, batch, parts));
  for (const Part& part : parts) {
    const Status decoded = decode(staging, part);
    if (decoded.code() == Code::data_decode) {
      EFF_RETURN_IF_ERROR(find_refused(staging, part, refused));
      return std::shared_ptr<DeviceInput>();
    }
    EFF_RETURN_IF_ERROR(decoded);
    for (const Launch& launch : part.launches) {
      const auto function = device_->function(launch.kernel);
      if (!function.ok()) return function.status();
      EFF_RETURN_IF_ERROR(device_->launch(launch, function.value(), stream()));
    }
  }
  EFF_RETURN_IF_ERROR(batch.end());
  EFF_CUDA(driver(), cuEventRecord, staging.done, stream());
  return std::shared_ptr<DeviceInput>(std::move(taken.value()));
}

StatusOr<std::shared_ptr<DeviceInput>> ImageBatches::make(std::span<const std::shared_ptr<const DeviceImage>> images,
                                                          std::vector<size_t>& refused) {
  EFF_RETURN_IF_ERROR(device_->enter());
  Staging& staging = stagings_[next_];
  next_ = (next_ + 1) % std::size(stagings_);
  EFF_CUDA(driver(), cuEventSynchronize, staging.done);  // of the batch before: its files and tables have been read
  staging.images.assign(images.begin(), images.end());
  of_decoder_->take_refusal();  // of an earlier batch
  auto made = make_in(staging, refused);
  if (made.status().code() == Code::oom) {
    const Status refusal = of_decoder_->take_refusal();
    made = without_room(refusal.ok() ? made.status() : refusal);
  }
  // What was queued of it reads what is staged; and a fault of the device, which a refusal may look like, is told here.
  if (!made.ok() || !made.value()) EFF_CUDA(driver(), cuStreamSynchronize, stream());
  return made;
}

}  // namespace effnet::cuda
