// The end of this process, with another program in its place or at once.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "napi/common.h"
#include "napi/process.h"

namespace effnet::napi {
namespace {

std::vector<std::string> get_strings(Napi::Env env, Napi::Value value, const char* what) {
  if (!value.IsArray()) throw_status(env, error(Code::invalid_argument, "%s must be an array", what));
  const auto array = value.As<Napi::Array>();
  std::vector<std::string> texts;
  for (uint32_t i = 0; i < array.Length(); ++i) texts.push_back(get_string(env, array.Get(i), what));
  return texts;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> all;
  for (std::string& text : texts) all.push_back(text.data());
  all.push_back(nullptr);
  return all;
}

// Of a file that is open, as `fcntl` has them; -1 where it is none.
struct Flags {
  int fd, descriptor, status;
};

// The standard streams go over as this process was given them: they stay open, and calls on them wait. All else is
// closed; whatever lay open on a device is given back with it. What was changed, as it was.
std::vector<Flags> keep_standard_streams_alone() {
  std::vector<Flags> before;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", none)) {
    const std::string name = entry.path().filename();
    int fd = -1;
    std::from_chars(name.data(), name.data() + name.size(), fd);
    const int flags = fcntl(fd, F_GETFD);
    if (fd <= STDERR_FILENO || flags < 0 || (flags & FD_CLOEXEC)) continue;
    before.push_back({fd, flags, -1});
    fcntl(fd, F_SETFD, flags | FD_CLOEXEC);
  }
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    const Flags& flags = before.emplace_back(Flags{fd, fcntl(fd, F_GETFD), fcntl(fd, F_GETFL)});
    if (flags.descriptor >= 0) fcntl(fd, F_SETFD, 0);
    if (flags.status >= 0) fcntl(fd, F_SETFL, flags.status & ~O_NONBLOCK);
  }
  return before;
}

void put_back(const std::vector<Flags>& all) {
  for (const auto& [fd, descriptor, status] : all) {
    if (descriptor >= 0) fcntl(fd, F_SETFD, descriptor);
    if (status >= 0) fcntl(fd, F_SETFL, status);
  }
}

// Arguments: file, argv, "NAME=value" of the environment. Does not return where it succeeds.
void replace_process(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const std::string file = get_string(env, info[0], "file");
  auto words = get_strings(env, info[1], "argv"), variables = get_strings(env, info[2], "env");
  const auto argv = pointers(words), environment = pointers(variables);
  const std::vector<Flags> before = keep_standard_streams_alone();
  execve(file.c_str(), argv.data(), environment.data());
  const int why = errno;
  put_back(before);
  throw_status(env, error(Code::io, "%s: %s", file.c_str(), std::strerror(why)));
}

// `exit` would wait for the engine's threads, one of which may be with a GPU that does not answer.
void end_process(const Napi::CallbackInfo& info) {
  _exit(static_cast<int>(get_number(info.Env(), info[0], "exitCode", 0, 255)));
}

}  // namespace

void register_process(Napi::Env env, Napi::Object exports) {
  export_function(env, exports, "replaceProcess", replace_process);
  export_function(env, exports, "endProcess", end_process);
}

}  // namespace effnet::napi
