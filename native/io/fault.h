// Fault injection for tests of crash safety: one file operation of a save goes wrong. Where it is not asked for, an
// operation costs one look at a constant.
#pragma once

#include <cerrno>
#include <string>

namespace effnet::io {

enum class Fault {
  none,
  torn,      // a write is to end half done, any other operation is done; then call `die`
  no_space,  // not done, fails with ENOSPC
  io,        // not done, fails with EIO
};

// Counts one operation of the process's saves, from 1. EFFNET_FAULT=save:N:KIND (kill, torn, enospc, eio) says what the
// N-th meets; `kill` ends the process here. EFFNET_FAULT_LOG=FILE gets a line an operation: number, operation, path.
Fault save_operation(const char* operation, const std::string& path);

// SIGKILL to this process.
[[noreturn]] void die();

// One operation with its fault: what `work` returns, or -1 and errno.
template <class F>
int operate(const char* operation, const std::string& path, F&& work) {
  switch (save_operation(operation, path)) {
    case Fault::none:
      return work();
    case Fault::torn:
      work();
      die();
    case Fault::no_space:
      errno = ENOSPC;
      return -1;
    case Fault::io:
      errno = EIO;
      return -1;
  }
  return -1;
}

}  // namespace effnet::io
