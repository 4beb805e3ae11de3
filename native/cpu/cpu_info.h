// What this process may use of the machine, container limits included.
#pragma once

#include <cstdint>
#include <string>

namespace effnet::cpu {

struct CpuInfo {
  std::string model;
  bool avx2, avx512, avx512_bf16, amx_bf16;
  int cpus;               // the smaller of the affinity mask and the cgroup quota (rounded up), at least 1
  uint64_t memory_bytes;  // the smaller of physical memory and the cgroup limit
};

CpuInfo cpu_info();

// Parsers of cgroup files, apart for tests. cpu.max is "quota period" or "max period"; returns 0 for no limit.
int parse_cpu_max(const std::string& text);
uint64_t parse_memory_max(const std::string& text);

}  // namespace effnet::cpu
