// What the CUDA backend says of drivers and GPUs that it cannot use. The driver is opened once a process, so each case
// asks in a child of its own.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>

#include "cuda/device.h"
#include "cuda/driver_release.h"

namespace effnet::test {
namespace {

using Settings = std::map<std::string, std::string>;

// "code message" of opening GPU `ordinal` where the environment is `settings`, and of what is done `with` it; empty
// when the child crashed.
std::string opening(const Settings& settings, int ordinal = 0,
                    const std::function<Status(cuda::Device&)>& with = nullptr) {
  int ends[2];
  if (pipe(ends) != 0) return "no pipe";
  const pid_t child = fork();
  if (child == 0) {
    for (const auto& [name, value] : settings) setenv(name.c_str(), value.c_str(), 1);
    const auto opened = cuda::Device::open(ordinal);
    const Status status = opened.ok() && with ? with(*opened.value()) : opened.status();
    const std::string text = std::to_string(static_cast<int>(status.code())) + " " + status.message();
    const bool written = write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size());
    _exit(written ? 0 : 1);
  }
  close(ends[1]);
  std::string text(2048, '\0');
  const ssize_t bytes = read(ends[0], text.data(), text.size());
  close(ends[0]);
  int state = 0;
  waitpid(child, &state, 0);
  text.resize(WIFEXITED(state) && WEXITSTATUS(state) == 0 && bytes > 0 ? static_cast<size_t>(bytes) : 0);
  return text;
}

Settings fake(Settings more = {}) {
  more["EFFNET_LIB_DIR"] = FAKE_CUDA_FOLDER;
  return more;
}

const std::string kOk = std::to_string(static_cast<int>(Code::ok)) + " ";
const std::string kMissing = std::to_string(static_cast<int>(Code::backend_missing)) + " ";

testing::AssertionResult says(const std::string& text, const std::vector<std::string>& parts) {
  if (!text.starts_with(kMissing)) return testing::AssertionFailure() << "not backend_missing: " << text;
  for (const std::string& part : parts)
    if (text.find(part) == std::string::npos) return testing::AssertionFailure() << "no '" << part << "' in: " << text;
  return testing::AssertionSuccess();
}

TEST(CudaDriver, OpensAGpu) { EXPECT_EQ(opening(fake()), kOk); }

TEST(CudaDriver, NoDriver) {
  if (access("/usr/lib/x86_64-linux-gnu/libcuda.so.1", F_OK) == 0) GTEST_SKIP() << "this machine has a driver";
  EXPECT_TRUE(says(opening({{"EFFNET_LIB_DIR", "/nonexistent"}}),
                   {"no NVIDIA driver", "/nonexistent/libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1", "driver 580"}));
}

TEST(CudaDriver, WhatBringsADriver) {
  namespace fs = std::filesystem;
  char name[] = "/tmp/effnet-driver-XXXXXX";
  const fs::path root = mkdtemp(name);
  const auto mend = [&](const char* file) {
    if (*file) {
      fs::create_directories((root / file).parent_path());
      std::ofstream(root / file) << "";
    }
    return cuda::missing_driver_mend(root.string());
  };
  EXPECT_TRUE(mend("").starts_with("Install driver 580 or later; in a container")) << mend("");
  EXPECT_TRUE(mend("run/.containerenv").starts_with("This is a container: ")) << mend("");
  EXPECT_NE(mend("").find("--gpus all"), std::string::npos);
  EXPECT_NE(mend("dev/dxg").find("/usr/lib/wsl/lib"), std::string::npos) << mend("");
  EXPECT_NE(mend("").find("Windows"), std::string::npos);
  fs::remove_all(root);
}

TEST(CudaDriver, WhichReleaseItIs) {
  namespace fs = std::filesystem;
  char name[] = "/tmp/effnet-driver-XXXXXX";
  const fs::path root = mkdtemp(name);
  fs::create_directories(root / "proc/driver/nvidia");
  const auto release = [&](const char* line) {
    std::ofstream(root / "proc/driver/nvidia/version")
        << line << "\nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n";
    return cuda::driver_release(root.string());
  };
  const std::string mine = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed Feb 26 02:46:56 UTC 2025";
  setenv("EFFNET_LIB_DIR", NO_DRIVER_FOLDER, 1);
  EXPECT_EQ(release(mine.c_str()), "570.124.06");
  EXPECT_EQ(release("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (a@b)"),
            "580.65.06");
  EXPECT_EQ(release("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95  Release Build"), "580.95");
  if (access("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", F_OK) != 0) {
    EXPECT_EQ(release("another 1.2 file"), "");
    EXPECT_EQ(release("NVRM version: none"), "");
  }
  setenv("EFFNET_LIB_DIR", FAKE_CUDA_FOLDER, 1);
  setenv("FAKE_NVML_RELEASE", "581.0.1", 1);
  EXPECT_EQ(release(mine.c_str()), "581.0.1");
  setenv("FAKE_NVML_RELEASE", "", 1);  // it does not start
  EXPECT_EQ(release(mine.c_str()), "570.124.06");
  unsetenv("FAKE_NVML_RELEASE");
  unsetenv("EFFNET_LIB_DIR");
  fs::remove_all(root);
}

TEST(CudaDriver, ADriverThatIsTooOld) {
  EXPECT_TRUE(says(opening(fake({{"FAKE_CUDA_VERSION", "12080"}})), {"CUDA 12.8", "CUDA 13.0 is needed", "580"}));
}

TEST(CudaDriver, ALibraryThatIsNoDriver) {
  // Anything that loads and lacks the entry points.
  EXPECT_TRUE(says(opening({{"EFFNET_LIB_DIR", NO_DRIVER_FOLDER}}), {"lacks cuInit", "Install 580"}));
}

TEST(CudaDriver, NoGpu) {
  EXPECT_TRUE(says(opening(fake({{"FAKE_CUDA_DEVICES", "0"}})), {"no GPU", "CUDA_VISIBLE_DEVICES", "--gpus all"}));
}

TEST(CudaDriver, AGpuThatIsTooOld) {
  EXPECT_TRUE(says(opening(fake({{"FAKE_CUDA_CAPABILITY", "75"}})), {"compute capability 7.5", "8.0"}));
}

TEST(CudaDriver, AGpuThatIsNotThere) {
  EXPECT_TRUE(says(opening(fake(), 3), {"no GPU 3", "sees 1, counted from 0: cuda:0 (Fake H200)"}));
  EXPECT_TRUE(says(opening(fake({{"FAKE_CUDA_DEVICES", "2"}}), 2),
                   {"no GPU 2", "sees 2, counted from 0: cuda:0 (Fake H200), cuda:1 (Fake H200)"}));
  EXPECT_TRUE(says(opening(fake({{"CUDA_VISIBLE_DEVICES", "5"}}), 5), {"no GPU 5", "CUDA_VISIBLE_DEVICES is 5"}));
}

TEST(CudaDriver, ADriverThatDoesNotStart) {
  const auto starting = [](const char* code) {
    return opening(fake({{"FAKE_CUDA_FAIL", std::string("cuInit:1:") + code}}));
  };
  EXPECT_TRUE(says(starting("999"), {"does not start", "(999)", "nvidia-smi", "modprobe nvidia_uvm", "reboot"}));
  EXPECT_EQ(starting("999").find("GPU fault"), std::string::npos);
  EXPECT_TRUE(says(starting("802"), {"does not start", "(802)", "nvidia-fabricmanager", "nvidia-smi"}));
  EXPECT_TRUE(says(starting("803"), {"does not start", "(803)", "another release", "reboot", "modprobe nvidia"}));
  EXPECT_TRUE(says(starting("804"), {"does not start", "(804)", "cuda-compat", "LD_LIBRARY_PATH"}));
}

TEST(CudaDriver, AGpuThatOthersHave) {
  EXPECT_TRUE(says(opening(fake({{"FAKE_CUDA_FAIL", "cuDevicePrimaryCtxRetain:1:46"}})),
                   {"GPU 0 (Fake H200)", "another process has the GPU exclusively", "nvidia-smi"}));
  for (const char* call : {"cuDevicePrimaryCtxRetain", "cuLibraryLoadData", "cuLibraryEnumerateKernels"}) {
    const std::string text = opening(fake({{"FAKE_CUDA_FAIL", std::string(call) + ":1:2"}}));
    EXPECT_TRUE(text.starts_with(std::to_string(static_cast<int>(Code::oom)) + " Fake H200: others hold")) << text;
    EXPECT_NE(text.find("nvidia-smi names those processes"), std::string::npos) << text;
  }
}

TEST(CudaDriver, GpusThatABuildHasKernelsFor) {
  const auto runs = [](int capability, const char* architectures) {
    return cuda::unusable_gpu("GPU", capability, architectures).empty();
  };
  const char* release = "80;86;89;90a;100;120;80-ptx";
  for (const int capability : {80, 86, 87, 89, 90, 100, 103, 120, 121})
    EXPECT_TRUE(runs(capability, release)) << capability;
  EXPECT_FALSE(runs(75, release));
  EXPECT_TRUE(runs(90, "90a"));
  EXPECT_FALSE(runs(80, "90a"));
  EXPECT_FALSE(runs(100, "90a"));
  EXPECT_FALSE(runs(86, "89;90a"));
  EXPECT_TRUE(runs(120, "80-ptx"));
  EXPECT_EQ(cuda::unusable_gpu("T4", 75, release), "T4 has compute capability 7.5; 8.0 (Ampere) or later is needed");
  EXPECT_EQ(cuda::unusable_gpu("A100", 80, "90a"), "this build has no kernels for A100 (compute capability 8.0)");
}

TEST(CudaDriver, KernelsOfAnotherArchitecture) {
  const auto kernel = [](cuda::Device& device) { return device.function("cast_weights_bf16").status(); };
  for (const char* call : {"cuLibraryLoadData", "cuLibraryGetKernelCount", "cuKernelGetFunction", "cuFuncSetAttribute"})
    EXPECT_TRUE(says(opening(fake({{"FAKE_CUDA_FAIL", std::string(call) + ":1:209"}}), 0, kernel),
                     {"no kernels for Fake H200", "9.0"}))
        << call;
}

// The driver without a GPU reads of the images that the package carries what they are compiled for, and says so when it
// is asked for a kernel.
TEST(CudaDriver, AGpuIsOpenedWhereTheImagesRunOnIt) {
  for (const int capability : {80, 86, 87, 89, 90, 100, 103, 120, 121}) {
    SCOPED_TRACE(capability);
    const std::string text = opening(fake({{"FAKE_CUDA_CAPABILITY", std::to_string(capability)}}));
    const std::string asked_for_a_kernel = opening(fake(), 0, [capability](cuda::Device& device) {
      setenv("FAKE_CUDA_CAPABILITY", std::to_string(capability).c_str(), 1);
      return device.function("cast_weights_bf16").status();
    });
    if (text != kOk) {
      EXPECT_TRUE(says(text, {"this build has no kernels for Fake H200 (compute capability "}));
      EXPECT_TRUE(says(asked_for_a_kernel, {"this build has no kernels for Fake H200"}));
    } else {
      EXPECT_EQ(asked_for_a_kernel, kOk);
    }
  }
}

// Codes after which every call of the process fails, and some that are near them and do not.
TEST(CudaDriver, Faults) {
  for (const int code : {214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911})
    EXPECT_TRUE(cuda::is_fault(static_cast<CUresult>(code))) << code;
  for (const int code : {0, 1, 2, 100, 209, 400, 600, 701, 704, 705, 708, 712, 713, 720, 800, 900, 901, 910, 999})
    EXPECT_FALSE(cuda::is_fault(static_cast<CUresult>(code))) << code;
}

}  // namespace
}  // namespace effnet::test
