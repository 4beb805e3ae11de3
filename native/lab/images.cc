// Speed of the image input on one thread: lab_images FOLDER [size] prints images/s per stage for every JPEG below it.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "io/transform.h"

namespace {

using namespace effnet;
using namespace effnet::io;
using Clock = std::chrono::steady_clock;

template <class F>
void measure(const char* what, size_t images, F&& pass) {
  pass();
  int rounds = 0;
  const auto start = Clock::now();
  double seconds = 0;
  do {
    pass();
    ++rounds;
    seconds = std::chrono::duration<double>(Clock::now() - start).count();
  } while (seconds < 1.5);
  std::printf("%-28s %8.1f images/s  %7.3f ms\n", what, images * rounds / seconds, seconds * 1e3 / (images * rounds));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: lab_images FOLDER [size]\n");
    return 2;
  }
  const int size = argc > 2 ? std::atoi(argv[2]) : 224;
  std::vector<std::vector<uint8_t>> files;
  size_t bytes = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(argv[1])) {
    if (!entry.is_regular_file()) continue;
    std::ifstream file(entry.path(), std::ios::binary);
    std::vector<uint8_t> data{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (file_kind(data.data(), data.size()) != FileKind::jpeg) continue;
    bytes += data.size();
    files.push_back(std::move(data));
  }
  std::printf("%zu files, %.1f KB each, result %d\n", files.size(), bytes / 1e3 / files.size(), size);
  std::vector<uint8_t> dst(static_cast<size_t>(size) * size * 3);
  Transformer transformer;
  for (const int eighths : {8, 7, 6, 5, 4, 2, 1}) {
    char name[32];
    std::snprintf(name, sizeof name, "decode %d/8", eighths);
    measure(name, files.size(), [&] {
      static ByteBuffer buffer;
      for (const auto& file : files) {
        JpegReader reader;
        View view;
        if (reader.open(file.data(), file.size(), {}).ok()) (void)reader.decode(eighths, nullptr, buffer, view);
      }
    });
  }
  TransformOptions options;
  options.size = size;
  options.resize_to = size * 8 / 7;
  measure("eval", files.size(), [&] {
    for (const auto& file : files) (void)transformer.jpeg(file.data(), file.size(), options, {}, dst.data());
  });
  options.mode = Mode::train;
  for (const double scale_min : {0.08, 0.35}) {
    options.scale_min = scale_min;
    uint64_t epoch = 0;
    measure(scale_min < 0.1 ? "train, area 0.08-1" : "train, area 0.35-1", files.size(), [&] {
      ++epoch;
      for (uint32_t i = 0; i < files.size(); ++i)
        (void)transformer.jpeg(files[i].data(), files[i].size(), options, {1, epoch, i}, dst.data());
    });
  }
}
