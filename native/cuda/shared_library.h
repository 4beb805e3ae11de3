// Opening NVIDIA's shared libraries, which are no part of the package.
#pragma once

#include <string>

namespace effnet::cuda {

// The folder that EFFNET_LIB_DIR names, looked into before all others; nullptr where it is not set or empty.
const char* library_folder();

// dlopen() with `flags`; nullptr with the reason in `problem`. A file that ends before what its headers say, as a copy
// that was broken off leaves it, is refused: the loader would map it, and the process die where the rest is touched.
// Of a soname alone, which the loader looks for, that is not known.
void* open_shared_library(const std::string& place, int flags, std::string& problem);

}  // namespace effnet::cuda
