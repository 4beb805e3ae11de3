// Launches that no op's kernel records, on what a test has in host memory.
#pragma once

#include <deque>
#include <ranges>
#include <type_traits>
#include <vector>

#include "tests/aligned.h"
#include "tests/kernel_rig.h"

namespace effnet::test {

// The device has each operand as the host has it when run() begins, and run() brings back what is not const.
class HostOperands {
 public:
  // The device's address of a vector or array.
  template <std::ranges::contiguous_range Range>
  auto of(Range& host) {
    using T = std::remove_reference_t<std::ranges::range_reference_t<Range>>;
    return static_cast<T*>(add(std::ranges::data(host), std::ranges::size(host) * sizeof(T), std::is_const_v<T>));
  }
  template <class T>
  T* of_one(T& host) {
    return static_cast<T*>(add(&host, sizeof(T), std::is_const_v<T>));
  }
  // What kernels leave to one another, full of NaN.
  std::byte* scratch(size_t bytes) {
    Aligned& memory = scratch_.emplace_back(bytes);
    return static_cast<std::byte*>(add(memory.data(), bytes, true));
  }

  // In the given order of the runner (backend::Runner::kOrders).
  Status run(const std::vector<cuda::Launch>& launches, int order) {
    for (const Operand& one : operands_) EFF_RETURN_IF_ERROR(one.mirror.upload(one.host));
    for (const cuda::Launch& launch : launches) EFF_RETURN_IF_ERROR(backend::run(launch, order));
    for (const Operand& one : operands_)
      if (!one.is_const) EFF_RETURN_IF_ERROR(one.mirror.download(one.host));
    return ok_status();
  }
  Status run(const cuda::Launch& launch, int order) { return run(std::vector{launch}, order); }

 private:
  struct Operand {
    backend::Mirror mirror;
    void* host;
    bool is_const;
  };
  void* add(const void* host, size_t bytes, bool is_const) {
    if (bytes == 0) return nullptr;
    return operands_.emplace_back(backend::Mirror(host, bytes), const_cast<void*>(host), is_const).mirror.data();
  }

  std::deque<Operand> operands_;
  std::deque<Aligned> scratch_;
};

}  // namespace effnet::test
