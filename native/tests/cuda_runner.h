// An op's CUDA kernel as tests bind it, and its launches on the emulation, under its schedules.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <iterator>
#include <set>
#include <string>

#include "cuda/device/emulation.h"
#include "tests/aligned.h"
#include "tests/cuda_binding.h"

namespace effnet::test {

// Runs a launch on the emulation. At the program's end the names of the kernels that ran are appended to the file
// EFFNET_KERNELS_RUN: scripts/sanitize.mjs says which did not.
inline const char* emulate(const cuda::Launch& launch, unsigned schedule) {
  struct Names {
    std::set<std::string> all;
    ~Names() {
      if (const char* file = std::getenv("EFFNET_KERNELS_RUN")) {
        std::ofstream out(file, std::ios::app);
        for (const std::string& name : all) out << name + '\n';
      }
    }
  };
  static Names ran;
  ran.all.insert(launch.kernel);
  return cuda::emulation::run(launch, schedule);
}

namespace backend {

class Runner : public Binding {
 public:
  // What an order changes are results, which the build without a sanitizer compares; races want two of them.
#if defined(__SANITIZE_ADDRESS__)
  static constexpr unsigned kSchedules[] = {7};
#elif defined(__SANITIZE_THREAD__)
  static constexpr unsigned kSchedules[] = {0, 7};
#else
  static constexpr unsigned kSchedules[] = {0, 3, 4, 7};
#endif
  static constexpr int kOrders = std::size(kSchedules);
  static std::string order_name(int order) { return "schedule " + std::to_string(kSchedules[order]); }

  using Binding::Binding;

  void execute(int order, std::byte** arenas, const size_t* sizes, const StepScalars& scalars) {
    Aligned scratch(kernel().scratch_bytes), constants(kernel().constants.size());
    if (!kernel().constants.empty())
      std::memcpy(constants.data(), kernel().constants.data(), kernel().constants.size());
    cuda::Addresses at;
    std::copy(arenas, arenas + plan::kArenaCount, at.arenas);
    cuda::StepState state{};
    at.scalars = &scalars;
    at.scratch = scratch.data();
    at.constants = constants.data();
    at.state = &state;
    std::vector<cuda::Launch> launches;
    std::deque<Aligned> working;
    for (const int a : working_arenas()) {
      at.working_arenas[a] = working.emplace_back(sizes[a] / 2).data();
      launches.push_back(cast(arenas[a], at.working_arenas[a], sizes[a]));
    }
    kernel().record(at, launches);
    for (const cuda::Launch& launch : launches) {
      const char* problem = emulate(launch, kSchedules[order]);
      ASSERT_EQ(problem, nullptr) << launch.kernel << ": " << problem;
      ASSERT_TRUE(counters_are_zero(state)) << launch.kernel;
    }
  }
};

// Memory of a launch that no op's kernel records (gpu_runner.h): what the host has, in its place.
class Mirror {
 public:
  explicit Mirror(size_t bytes) : own_(bytes), data_(own_.data()) {}
  Mirror(const void* host, size_t) : own_(0), data_(static_cast<std::byte*>(const_cast<void*>(host))) {}
  std::byte* data() const { return data_; }
  Status upload(const void*) const { return ok_status(); }
  Status download(void*) const { return ok_status(); }

 private:
  Aligned own_;
  std::byte* data_;
};

inline Status run(const cuda::Launch& launch, int order) {
  const char* problem = emulate(launch, Runner::kSchedules[order]);
  return problem ? error(Code::internal, "%s: %s", launch.kernel.c_str(), problem) : ok_status();
}

}  // namespace backend
}  // namespace effnet::test
