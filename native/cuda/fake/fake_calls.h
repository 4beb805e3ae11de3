// What the fake libraries have in common: calls are counted, one of them can be made to fail, misuse is kept for the
// test to read, and work is queued on the fake driver's streams.
#pragma once

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>

#define EFF_EXPORT extern "C" __attribute__((visibility("default")))

namespace effnet::fake {

class Calls {
 public:
  // `fail`: the variable that makes the nth call of a function fail, as "name:nth:code" or "name:nth:code:once".
  explicit Calls(const char* fail) : fail_(fail) {}

  // Counts a call; the code that it is to fail with, else 0.
  int enter(const std::string& name) {
    const int call = ++counts_[name];
    const char* fail = std::getenv(fail_);
    char who[64] = {}, how[8] = {};
    int nth = 0, code = 0;
    if (!fail || std::sscanf(fail, "%63[^:]:%d:%d:%7s", who, &nth, &code, how) < 3) return 0;
    once_ = std::string(how) == "once";
    return name == who && nth == call ? code : 0;
  }
  int count(const char* name) { return counts_[name]; }
  // Whether the failure of the present call leaves those behind it alone, whatever its code.
  bool once() const { return once_; }
  void reset() {
    counts_.clear();
    misuse.clear();
  }

  std::string misuse;

 private:
  const char* fail_;
  bool once_ = false;
  std::map<std::string, int> counts_;
};

// fake_LIBRARY_calls(name), _misuse() and _reset() for the tests, of a fake() that has `calls` and `mutex`.
#define EFF_FAKE_CALLS(library)                             \
  EFF_EXPORT int fake_##library##_calls(const char* name) { \
    const std::lock_guard lock(fake().mutex);               \
    return fake().calls.count(name);                        \
  }                                                         \
  EFF_EXPORT const char* fake_##library##_misuse() {        \
    const std::lock_guard lock(fake().mutex);               \
    return fake().calls.misuse.c_str();                     \
  }                                                         \
  EFF_EXPORT void fake_##library##_reset() {                \
    const std::lock_guard lock(fake().mutex);               \
    fake().calls.reset();                                   \
  }

// On a stream of the fake driver, as a kernel of that name; at once where there is no driver. Whether it was taken.
inline bool queue_kernel(void* stream, const std::string& kernel, const std::function<void()>& work) {
  using Queue = int (*)(void*, const char*, const std::function<void()>&);
  const auto on_stream = reinterpret_cast<Queue>(dlsym(RTLD_DEFAULT, "fake_cuda_queue_kernel"));
  if (on_stream) return on_stream(stream, kernel.c_str(), work) == 0;
  work();
  return true;
}

// Before what the streams of the fake driver still have to do. Whether it was taken.
inline bool run_at_once(const std::function<void()>& work) {
  using Run = int (*)(const std::function<void()>&);
  const auto on_device = reinterpret_cast<Run>(dlsym(RTLD_DEFAULT, "fake_cuda_run_at_once"));
  if (on_device) return on_device(work) == 0;
  work();
  return true;
}

}  // namespace effnet::fake
