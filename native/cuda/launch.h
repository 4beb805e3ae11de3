// A kernel launch as data: what an op's binding makes, and what a driver, a graph capture or the emulation runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

namespace effnet::cuda {

struct Dim {
  uint32_t x = 1, y = 1, z = 1;
};

struct Launch {
  std::string kernel;  // as in kernels/*.cu
  Dim grid;
  uint32_t threads = 0;  // of a block
  uint32_t shared_bytes = 0;
  std::vector<std::byte> args;  // the kernel's one parameter, by value
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
