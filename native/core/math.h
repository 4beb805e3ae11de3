// Integers that are rounded up. For values from 0 on.
#pragma once

#include <concepts>
#include <cstddef>

namespace effnet {

template <std::integral A, std::integral B>
constexpr auto ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

// To a multiple of `to`.
template <std::integral A, std::integral B>
constexpr auto round_up(A value, B to) {
  return ceil_div(value, to) * to;
}

// To a cache line, the alignment of tensors and scratch.
constexpr size_t align64(size_t bytes) { return round_up(bytes, size_t{64}); }

}  // namespace effnet
