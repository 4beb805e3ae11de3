#pragma once

#include <cstdlib>
#include <string_view>

namespace effnet::test {

// Whether layers are tried at their real sizes and batches too, which takes a GPU: EFFNET_REAL_SIZES=1 (scripts/gpu).
inline bool real_sizes() {
  const char* given = std::getenv("EFFNET_REAL_SIZES");
  return given && std::string_view(given) == "1";
}

}  // namespace effnet::test
