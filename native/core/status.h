// Status: how everything in the core reports failure. No exception crosses a module boundary, nothing aborts.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>

namespace effnet {

// The text is part of the public contract: it becomes `EffnetError.code` in JavaScript as "EFF_" + name.
enum class Code : int {
  ok = 0,
  plan_invalid,      // EFF_PLAN_INVALID: a malformed plan, or one the backend has no kernel for
  oom,               // EFF_OOM
  data_decode,       // EFF_DATA_DECODE
  data_missing,      // EFF_DATA_MISSING
  data_limit,        // EFF_DATA_LIMIT: an image above the limit of pixels, scans or bytes
  io,                // EFF_IO: a file could not be read or written (message has errno)
  no_space,          // EFF_CKPT_NO_SPACE
  backend_missing,   // EFF_BACKEND_MISSING
  gpu_fault,         // EFF_GPU_FAULT: the GPU is lost to this process
  aborted,           // EFF_ABORTED
  closed,            // EFF_CLOSED: used after close()
  nan,               // EFF_NAN
  invalid_argument,  // EFF_INVALID_ARGUMENT
  internal,          // EFF_INTERNAL
};

class Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}
  bool ok() const { return code_ == Code::ok; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::ok;
  std::string message_;
};

inline Status ok_status() { return Status(); }

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
inline Status
error(Code code, const char* format, ...) {
  char text[1024];
  va_list args;
  va_start(args, format);
  std::vsnprintf(text, sizeof text, format, args);
  va_end(args);
  return Status(code, text);
}

template <class T>
class StatusOr {
 public:
  StatusOr(Status status) : status_(std::move(status)) {}  // NOLINT: implicit on purpose
  StatusOr(T value) : value_(std::move(value)) {}          // NOLINT
  bool ok() const { return status_.ok(); }
  const Status& status() const { return status_; }
  T& value() { return *value_; }
  const T& value() const { return *value_; }

 private:
  Status status_;
  std::optional<T> value_;
};

#define EFF_RETURN_IF_ERROR(expr)              \
  do {                                         \
    ::effnet::Status eff_status_ = (expr);     \
    if (!eff_status_.ok()) return eff_status_; \
  } while (0)

}  // namespace effnet
