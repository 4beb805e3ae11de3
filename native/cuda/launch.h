// A kernel launch as data: what an op's binding makes, and what a driver, a graph capture or the emulation runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "core/status.h"

namespace effnet::cuda {

struct Dim {
  uint32_t x = 1, y = 1, z = 1;
};

struct Launch {
  std::string kernel;  // as in kernels/*.cu; of a library's call, its name
  Dim grid;
  uint32_t threads = 0;  // of a block
  uint32_t shared_bytes = 0;
  std::vector<std::byte> args;  // the kernel's one parameter, by value
  // Set: no kernel of ours, but a library that queues its own on a stream (a CUstream). It keeps what it uses.
  std::function<Status(void* stream)> call = nullptr;
};

template <class Args>
Launch make_launch(std::string kernel, Dim grid, uint32_t threads, size_t shared_bytes, const Args& args) {
  static_assert(std::is_trivially_copyable_v<Args>);
  Launch launch{std::move(kernel), grid, threads, static_cast<uint32_t>(shared_bytes), {}};
  launch.args.resize(sizeof args);
  std::memcpy(launch.args.data(), &args, sizeof args);
  return launch;
}

}  // namespace effnet::cuda
