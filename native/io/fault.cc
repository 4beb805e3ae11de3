#include "io/fault.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

namespace effnet::io {
namespace {

enum class Kind { none, kill, torn, no_space, io };

struct Order {
  Kind kind = Kind::none;
  unsigned long at = 0;
  int log = -1;

  // `save:N:KIND` among the comma-separated words of EFFNET_FAULT; the others are not ours.
  Order() {
    if (const char* file = std::getenv("EFFNET_FAULT_LOG"); file && *file)
      log = ::open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    const char* words = std::getenv("EFFNET_FAULT");
    const char* found = words ? std::strstr(words, "save:") : nullptr;
    if (!found) return;
    char* end = nullptr;
    at = std::strtoul(found + 5, &end, 10);
    if (*end != ':') return;
    std::string_view name(end + 1);
    name = name.substr(0, name.find(','));
    if (name == "kill") kind = Kind::kill;
    if (name == "torn") kind = Kind::torn;
    if (name == "enospc") kind = Kind::no_space;
    if (name == "eio") kind = Kind::io;
  }
};

}  // namespace

Fault save_operation(const char* operation, const std::string& path) {
  static const Order order;
  if (order.kind == Kind::none && order.log < 0) return Fault::none;
  static std::atomic<unsigned long> count{0};
  const unsigned long number = ++count;
  if (order.log >= 0) {
    const std::string line = std::to_string(number) + ' ' + operation + ' ' + path + '\n';
    // A list for the test's eyes: what it lacks the test will miss.
    if (::write(order.log, line.data(), line.size()) < 0) std::perror("EFFNET_FAULT_LOG");
  }
  if (number != order.at) return Fault::none;
  switch (order.kind) {
    case Kind::none:
      return Fault::none;
    case Kind::kill:
      die();
    case Kind::torn:
      return Fault::torn;
    case Kind::no_space:
      return Fault::no_space;
    case Kind::io:
      return Fault::io;
  }
  return Fault::none;
}

void die() {
  ::kill(::getpid(), SIGKILL);
  // Delivered while this waits.
  for (;;) ::pause();
}

}  // namespace effnet::io
