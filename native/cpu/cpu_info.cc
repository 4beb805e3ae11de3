#include "cpu/cpu_info.h"

#include <cpuid.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

namespace effnet::cpu {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string brand() {
  unsigned regs[12] = {};
  if (__get_cpuid_max(0x80000000, nullptr) < 0x80000004) return "unknown";
  for (unsigned i = 0; i < 3; ++i)
    __get_cpuid(0x80000002 + i, &regs[4 * i], &regs[4 * i + 1], &regs[4 * i + 2], &regs[4 * i + 3]);
  std::string name(reinterpret_cast<const char*>(regs), sizeof regs);
  name.resize(std::strlen(name.c_str()));
  const auto first = name.find_first_not_of(' ');
  return first == std::string::npos ? "unknown" : name.substr(first, name.find_last_not_of(' ') - first + 1);
}

// The folder of this process's control group under a mount point: cgroup v2 has one line "0::/path".
std::string cgroup_path(const char* controller) {
  std::istringstream lines(read_file("/proc/self/cgroup"));
  std::string line;
  while (std::getline(lines, line)) {
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (controllers.empty() && !*controller) return line.substr(second + 1);
    if (*controller && ("," + controllers + ",").find("," + std::string(controller) + ",") != std::string::npos)
      return line.substr(second + 1);
  }
  return "/";
}

int cpu_quota() {
  // Limits of parent groups hold too; the mount in a container shows the container's own group as its root.
  int least = 0;
  const auto take = [&least](int limit) {
    if (limit > 0 && (least == 0 || limit < least)) least = limit;
  };
  for (std::string path = cgroup_path("");; path = path.substr(0, path.find_last_of('/'))) {
    take(parse_cpu_max(read_file("/sys/fs/cgroup" + path + "/cpu.max")));
    if (path.empty() || path == "/") break;
  }
  for (const std::string& folder : {std::string("/sys/fs/cgroup/cpu"), "/sys/fs/cgroup/cpu" + cgroup_path("cpu")}) {
    const std::string quota = read_file(folder + "/cpu.cfs_quota_us"),
                      period = read_file(folder + "/cpu.cfs_period_us");
    if (!quota.empty() && quota[0] != '-') take(parse_cpu_max(quota + " " + period));
  }
  return least;
}

uint64_t memory_limit() {
  uint64_t least = 0;
  const auto take = [&least](uint64_t limit) {
    if (limit > 0 && (least == 0 || limit < least)) least = limit;
  };
  for (std::string path = cgroup_path("");; path = path.substr(0, path.find_last_of('/'))) {
    take(parse_memory_max(read_file("/sys/fs/cgroup" + path + "/memory.max")));
    if (path.empty() || path == "/") break;
  }
  take(parse_memory_max(read_file("/sys/fs/cgroup/memory/memory.limit_in_bytes")));
  return least;
}

}  // namespace

int parse_cpu_max(const std::string& text) {
  std::istringstream words(text);
  double quota = 0, period = 0;
  if (!(words >> quota >> period) || quota <= 0 || period <= 0) return 0;
  const double cpus = quota / period;
  return std::max(1, static_cast<int>(cpus) + (cpus > static_cast<int>(cpus) ? 1 : 0));
}

uint64_t parse_memory_max(const std::string& text) {
  char* end = nullptr;
  const unsigned long long bytes = std::strtoull(text.c_str(), &end, 10);
  return end == text.c_str() ? 0 : bytes;
}

CpuInfo cpu_info() {
  CpuInfo info{};
  info.model = brand();
  unsigned a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) info.amx_bf16 = d >> 22 & 1;
  info.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  info.avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (info.avx512 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) info.avx512_bf16 = a >> 5 & 1;
  cpu_set_t set;
  CPU_ZERO(&set);
  info.cpus =
      sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  if (const int quota = cpu_quota()) info.cpus = std::min(info.cpus, quota);
  info.cpus = std::max(info.cpus, 1);
  info.memory_bytes = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  if (const uint64_t limit = memory_limit()) info.memory_bytes = std::min(info.memory_bytes, limit);
  return info;
}

}  // namespace effnet::cpu
