// Sizes as messages have them.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

namespace effnet {

// "37 bytes", "1.5 KiB", "15.4 MiB", "2.0 GiB": never 0.0 of something. `ts/byte_text.ts` has the same.
inline std::string byte_text(uint64_t bytes) {
  if (bytes < 1024) return std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes");
  double amount = static_cast<double>(bytes) / 1024;
  const char* unit = "KiB";
  for (const char* larger : {"MiB", "GiB"}) {
    if (amount < 1023.95) break;
    amount /= 1024;
    unit = larger;
  }
  char text[40];
  std::snprintf(text, sizeof text, "%.1f %s", amount, unit);
  return text;
}

}  // namespace effnet
