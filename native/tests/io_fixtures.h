// Fixtures of the image tests: tables in test/fixtures/io and real files named by EFFNET_TEST_DATA.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "io/pixels.h"
#include "io/sha256.h"

namespace effnet::test {

inline std::filesystem::path fixture_dir() {
  return std::filesystem::path(__FILE__).parent_path() / "../../test/fixtures/io";
}

// Empty when the variable is not set.
inline std::filesystem::path test_data() {
  const char* folder = std::getenv("EFFNET_TEST_DATA");
  return folder ? folder : "";
}

inline std::vector<uint8_t> read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

using Row = std::vector<std::string>;
inline std::vector<Row> read_table(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::vector<Row> rows;
  for (std::string line; std::getline(file, line);) {
    Row row;
    size_t start = 0;
    for (size_t tab; (tab = line.find('\t', start)) != std::string::npos; start = tab + 1)
      row.push_back(line.substr(start, tab - start));
    row.push_back(line.substr(start));
    rows.push_back(std::move(row));
  }
  return rows;
}

inline std::string sha256(const io::View& view) {
  io::Sha256 hash;
  for (int y = 0; y < view.height; ++y) hash.update(view.row(y), static_cast<size_t>(view.width) * 3);
  return hash.finish();
}
inline std::string sha256(const std::vector<uint8_t>& bytes) {
  io::Sha256 hash;
  hash.update(bytes.data(), bytes.size());
  return hash.finish();
}

// The image of scripts/fixtures/io_images.py.
inline std::vector<uint8_t> made_up(int width, int height) {
  std::vector<uint8_t> data(static_cast<size_t>(width) * height * 3);
  uint32_t x = 12345;
  for (uint8_t& byte : data) {
    byte = static_cast<uint8_t>(x >> 24);
    x = x * 1664525u + 1013904223u;
  }
  return data;
}

}  // namespace effnet::test
