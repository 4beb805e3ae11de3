#include "cuda/ops/resample.h"

#include <algorithm>
#include <cstring>

#include "cuda/ops/common.h"

namespace effnet::cuda {
namespace {

constexpr size_t kAlign = 16;
size_t aligned(size_t bytes) { return round_up(bytes, kAlign); }

size_t pitch_of(int size) { return aligned(static_cast<size_t>(size) * 3); }

size_t axis_bytes(const AxisWeights& axis) {
  return aligned((axis.first.size() + axis.count.size() + axis.weight.size()) * sizeof(int32_t));
}

int32_t first_row(const Resampling& how) { return how.rows.first.front(); }
int32_t row_count(const Resampling& how) { return how.rows.first.back() + how.rows.count.back() - first_row(how); }

// Where pixel (0, 0) of the upright image is stored, and where its neighbours are.
struct Walk {
  int64_t x0, y0;            // stored
  int64_t right_x, right_y;  // to the next of a row
  int64_t down_x, down_y;    // to the next of a column
};
Walk upright(int orientation, int64_t width, int64_t height) {
  const int64_t last_x = width - 1, last_y = height - 1;
  switch (orientation) {
    case 2:
      return {last_x, 0, -1, 0, 0, 1};
    case 3:
      return {last_x, last_y, -1, 0, 0, -1};
    case 4:
      return {0, last_y, 1, 0, 0, -1};
    case 5:
      return {0, 0, 0, 1, 1, 0};
    case 6:
      return {0, last_y, 0, -1, 1, 0};
    case 7:
      return {last_x, last_y, 0, -1, -1, 0};
    case 8:
      return {last_x, 0, 0, 1, -1, 0};
    default:
      return {0, 0, 1, 0, 0, 1};
  }
}

// Appends the table of a direction; where it will lie.
const int32_t* write_axis(const AxisWeights& axis, std::byte* host, const std::byte* tables, size_t& at) {
  const auto* lies = reinterpret_cast<const int32_t*>(tables + at);
  size_t to = at;
  for (const std::vector<int32_t>* part : {&axis.first, &axis.count, &axis.weight}) {
    std::memcpy(host + to, part->data(), part->size() * sizeof(int32_t));
    to += part->size() * sizeof(int32_t);
  }
  at += axis_bytes(axis);
  return lies;
}

uint32_t blocks_for(int64_t threads) { return blocks_of(threads, kResampleThreads); }

}  // namespace

size_t resample_table_bytes(std::span<const ResampleSource> images, int size) {
  size_t bytes = aligned(images.size() * sizeof(ResampleImage));
  for (const ResampleSource& image : images) bytes += axis_bytes(image.how->columns) + axis_bytes(image.how->rows);
  return bytes;
}

size_t resample_middle_bytes(const Resampling& how, int size) {
  return static_cast<size_t>(row_count(how)) * pitch_of(size);
}

void record_resample(std::span<const ResampleSource> images, int size, std::byte* host, const std::byte* tables,
                     std::byte* middle, std::vector<Launch>& launches) {
  size_t at = aligned(images.size() * sizeof(ResampleImage));
  int32_t most_rows = 0;
  for (size_t i = 0; i < images.size(); ++i) {
    const ResampleSource& image = images[i];
    const Resampling& how = *image.how;
    const Walk walk = upright(how.orientation, image.width, image.height);
    const auto pitch = static_cast<int64_t>(image.pitch);
    ResampleImage entry{};
    entry.step_x = walk.right_x * 3 + walk.right_y * pitch;
    entry.step_y = walk.down_x * 3 + walk.down_y * pitch;
    entry.pixels = reinterpret_cast<const uint8_t*>(image.pixels) + walk.x0 * 3 + walk.y0 * pitch +
                   how.x * entry.step_x + how.y * entry.step_y;
    entry.middle = reinterpret_cast<uint8_t*>(middle);
    entry.square = reinterpret_cast<uint8_t*>(image.square);
    entry.columns = write_axis(how.columns, host, tables, at);
    entry.rows = write_axis(how.rows, host, tables, at);
    entry.first_row = first_row(how);
    entry.row_count = row_count(how);
    entry.mirror = how.mirror ? 1 : 0;
    std::memcpy(host + i * sizeof entry, &entry, sizeof entry);
    middle += resample_middle_bytes(how, size);
    most_rows = std::max(most_rows, entry.row_count);
  }
  const ResampleArgs args{reinterpret_cast<const ResampleImage*>(tables), size, static_cast<int32_t>(pitch_of(size))};
  const auto count = static_cast<uint32_t>(images.size());
  const int64_t groups = ceil_div(most_rows, kResampleRows);
  const int64_t words = ceil_div(int64_t{size} * 3, kResampleBytes);
  launches.push_back(make_launch("resample_columns", {blocks_for(groups * size), count, 1}, kResampleThreads, 0, args));
  launches.push_back(make_launch("resample_rows", {blocks_for(words * size), count, 1}, kResampleThreads, 0, args));
}

}  // namespace effnet::cuda
