// What a profiler injects, for tests: writes each range into the file that FAKE_NVTX_LOG names, as "push NAME" and
// "pop".
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

using Function = void (*)();

struct Callbacks {
  size_t struct_size;
  int (*get_module_function_table)(unsigned module, Function*** table, unsigned* size);
};

FILE* file() {
  static FILE* const one = std::fopen(std::getenv("FAKE_NVTX_LOG"), "a");
  return one;
}

int push(const char* name) {
  std::fprintf(file(), "push %s\n", name);
  return std::fflush(file());
}

int pop() {
  std::fprintf(file(), "pop\n");
  return std::fflush(file());
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int InitializeInjectionNvtx2(const void* (*export_table)(uint32_t)) {
  const auto* callbacks = static_cast<const Callbacks*>(export_table(1));
  Function** core = nullptr;
  unsigned size = 0;
  if (!callbacks || !callbacks->get_module_function_table(1, &core, &size) || size != 16) return 0;
  *core[9] = reinterpret_cast<Function>(push);
  *core[11] = reinterpret_cast<Function>(pop);
  return 1;
}
