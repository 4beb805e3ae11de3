// Exceptions of the standard library as Status, where work runs on a thread of ours.
#pragma once

#include <exception>
#include <new>

#include "core/status.h"

namespace effnet {

// work(), with what it throws (memory ran out, a library's error) as its Status: an exception that left a thread of
// ours would end the process.
template <class F>
auto caught(F&& work) -> decltype(work()) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    return error(Code::oom, "not enough memory");
  } catch (const std::exception& e) {
    return error(Code::internal, "%s", e.what());
  }
}

}  // namespace effnet
