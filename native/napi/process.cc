// This process's place for another program.
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

// The standard streams go over as this process was given them: they stay open, and calls on them wait. All else is
// closed; whatever lay open on a device is given back with it.
void keep_standard_streams_alone() {
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", none)) {
    const std::string name = entry.path().filename();
    int fd = -1;
    std::from_chars(name.data(), name.data() + name.size(), fd);
    if (fd > STDERR_FILENO) fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    fcntl(fd, F_SETFD, 0);
    if (const int flags = fcntl(fd, F_GETFL); flags >= 0) fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
  }
}

// Arguments: file, argv, "NAME=value" of the environment. Does not return where it succeeds.
Napi::Value replace_process(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const std::string file = get_string(env, info[0], "file");
  auto words = get_strings(env, info[1], "argv"), variables = get_strings(env, info[2], "env");
  // Asked before the streams are changed, which a process that goes on needs as they are.
  if (access(file.c_str(), X_OK) != 0) throw_status(env, error(Code::io, "%s: %s", file.c_str(), std::strerror(errno)));
  keep_standard_streams_alone();
  execve(file.c_str(), pointers(words).data(), pointers(variables).data());
  throw_status(env, error(Code::io, "%s: %s", file.c_str(), std::strerror(errno)));
}

}  // namespace

void register_process(Napi::Env env, Napi::Object exports) {
  export_function(env, exports, "replaceProcess", replace_process);
}

}  // namespace effnet::napi
