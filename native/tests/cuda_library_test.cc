// How NVIDIA's libraries are found, and what is said of those that will not do.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "cuda/providers/library.h"

namespace effnet::test {
namespace {

namespace fs = std::filesystem;
using cuda::find_library;
using cuda::kCublasLt;
using cuda::kCudnn;
using cuda::kNvJpeg;
using cuda::LibraryKind;

constexpr const char* kSettings[] = {"EFFNET_LIB_DIR", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX",
                                     "FAKE_LIBRARY_VERSION"};

class CudaLibrary : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : kSettings) unsetenv(name);
    char name[] = "/tmp/effnet-library-XXXXXX";
    folder_ = mkdtemp(name);
  }
  void TearDown() override {
    for (const char* name : kSettings) unsetenv(name);
    fs::remove_all(folder_);
  }

  // `library` as `soname` in a folder below the test's; the folder's path.
  std::string put(const std::string& library, const std::string& at, const LibraryKind& kind) {
    const fs::path folder = folder_ / at;
    fs::create_directories(folder);
    fs::create_symlink(library, folder / kind.soname);
    return folder;
  }
  static void set(const char* name, const std::string& value) { setenv(name, value.c_str(), 1); }

  fs::path folder_;
};

// Whether the loader finds one by itself, so that there is always one.
bool installed(const LibraryKind& kind) {
  void* library = dlopen(kind.soname, RTLD_LAZY | RTLD_LOCAL);
  if (library) dlclose(library);
  return library != nullptr;
}
#define SKIP_IF_INSTALLED(kind) \
  if (installed(kind)) GTEST_SKIP() << "this machine has " << (kind).soname

TEST_F(CudaLibrary, EveryPlaceThatItIsLookedForIn) {
  for (const LibraryKind* kind : cuda::library_kinds()) {
    SCOPED_TRACE(kind->name);
    SetUp();
    const std::string python = "lib/python3.11/site-packages/nvidia/cu13/lib";
    const std::string own = put(FAKE_LIBRARY, "own", *kind), home = put(FAKE_LIBRARY, "toolkit/lib64", *kind),
                      active = put(FAKE_LIBRARY, "venv/" + python, *kind),
                      conda = put(FAKE_LIBRARY, "conda/" + python, *kind);
    const auto path = [&] {
      const auto found = find_library(*kind);
      EXPECT_TRUE(found.ok()) << found.status().message();
      if (!found.ok()) return std::string();
      EXPECT_EQ(found.value().version, 999999);
      return fs::path(found.value().path).parent_path().string();
    };
    if (!installed(*kind)) {
      set("CONDA_PREFIX", folder_ / "conda");
      EXPECT_EQ(path(), conda);
      set("VIRTUAL_ENV", folder_ / "venv");
      EXPECT_EQ(path(), active);
    }
    set("CUDA_HOME", folder_ / "toolkit");
    EXPECT_EQ(path(), home);
    set("EFFNET_LIB_DIR", own);
    EXPECT_EQ(path(), own);
    TearDown();
  }
}

TEST_F(CudaLibrary, NoneAtAll) {
  SKIP_IF_INSTALLED(kCudnn);
  set("EFFNET_LIB_DIR", folder_);
  const auto found = find_library(kCudnn);
  EXPECT_EQ(found.status().code(), Code::backend_missing);
  EXPECT_EQ(found.status().message(), "libcudnn.so.9 was not found");
}

TEST_F(CudaLibrary, AnOldOneIsPassedOverForALaterOne) {
  SKIP_IF_INSTALLED(kCudnn);
  set("FAKE_LIBRARY_VERSION", "91002");
  set("EFFNET_LIB_DIR", put(FAKE_LIBRARY, "old", kCudnn));
  EXPECT_EQ(find_library(kCudnn).status().message(),
            (folder_ / "old/libcudnn.so.9 is 9.10.2, 9.19.0 or later is needed").string());
  set("FAKE_LIBRARY_VERSION", "91900");
  EXPECT_EQ(cuda::version_text(find_library(kCudnn).value().version), "9.19.0");
}

TEST_F(CudaLibrary, OnesThatAreNoSuchLibrary) {
  SKIP_IF_INSTALLED(kNvJpeg);
  const auto said = [](const LibraryKind& kind) { return find_library(kind).status().message(); };
  set("EFFNET_LIB_DIR", put(NO_LIBRARY, "none", kNvJpeg));
  EXPECT_EQ(said(kNvJpeg), (folder_ / "none/libnvjpeg.so.13 lacks nvjpegCreateExV2").string());
  set("EFFNET_LIB_DIR", put(FAKE_LIBRARY, "silent", kCublasLt));
  set("FAKE_LIBRARY_VERSION", "0");
  EXPECT_EQ(said(kCublasLt), (folder_ / "silent/libcublasLt.so.13 does not say its version").string());
  unsetenv("FAKE_LIBRARY_VERSION");
  // A file that is no library stands before one that is.
  std::ofstream(folder_ / "silent/libnvjpeg.so.13") << "text";
  EXPECT_NE(said(kNvJpeg).find("silent/libnvjpeg.so.13 does not load: "), std::string::npos) << said(kNvJpeg);
  // So does one that a copy was broken off of, which the loader would die of.
  fs::create_directories(folder_ / "cut");
  set("EFFNET_LIB_DIR", folder_ / "cut");
  for (const size_t bytes : {size_t{10}, size_t{64}, size_t{500}, size_t{8000}}) {
    std::string text(bytes, '\0');
    std::ifstream(FAKE_LIBRARY, std::ios::binary).read(text.data(), static_cast<std::streamsize>(bytes));
    std::ofstream(folder_ / "cut/libnvjpeg.so.13", std::ios::binary) << text;
    EXPECT_NE(said(kNvJpeg).find("cut/libnvjpeg.so.13 does not load: "), std::string::npos) << said(kNvJpeg);
    const std::string cut = "cut short, " + std::to_string(bytes) + " of at least ";
    EXPECT_EQ(said(kNvJpeg).find(cut) != std::string::npos, bytes >= 64) << said(kNvJpeg);
  }
  set("CUDA_HOME", folder_ / "toolkit");
  const std::string good = put(FAKE_LIBRARY, "toolkit/lib", kNvJpeg);
  ASSERT_TRUE(find_library(kNvJpeg).ok());
  EXPECT_EQ(find_library(kNvJpeg).value().path, good + "/libnvjpeg.so.13");
}

TEST_F(CudaLibrary, WhatIsSaidOfThem) {
  SKIP_IF_INSTALLED(kNvJpeg);
  // Asked for once a process: other tests use find_library.
  const cuda::LibraryFacts missing = cuda::library_facts(kNvJpeg);
  EXPECT_EQ(missing.name, "nvJPEG");
  EXPECT_EQ(missing.path, "");
  EXPECT_EQ(missing.problem, "libnvjpeg.so.13 was not found");
  EXPECT_EQ(missing.without, "JPEG files are decoded on the CPU (no --data-backend gpu)");
  EXPECT_NE(missing.mend.find("nvidia-nvjpeg"), std::string::npos);
  EXPECT_NE(missing.mend.find("EFFNET_LIB_DIR"), std::string::npos);
  set("EFFNET_LIB_DIR", put(FAKE_LIBRARY, "own", kCublasLt));
  set("FAKE_LIBRARY_VERSION", "130002");
  const cuda::LibraryFacts there = cuda::library_facts(kCublasLt);
  EXPECT_EQ(there.path, (folder_ / "own/libcublasLt.so.13").string());
  EXPECT_EQ(there.version, "13.0.2");
  EXPECT_EQ(there.problem + there.without + there.mend, "");
}

}  // namespace
}  // namespace effnet::test
