#include "cpu/kernels/common.h"

#include "cpu/kernels/dispatch.h"

namespace effnet::cpu {

std::string kernel_name(const char* base, plan::DType dtype) {
  init_dispatch();
  return std::string(base) + "_" + plan::dtype_name(dtype) + ":" + isa_name();
}

}  // namespace effnet::cpu
