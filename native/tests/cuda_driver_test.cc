// What the CUDA backend says of drivers and GPUs that it cannot use. The driver is opened once a process, so each case
// asks in a child of its own.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>
#include <string>

#include "cuda/device.h"

namespace effnet::test {
namespace {

using Settings = std::map<std::string, std::string>;

// "code message" of opening GPU `ordinal` where the environment is `settings`; empty when the child crashed.
std::string opening(const Settings& settings, int ordinal = 0) {
  int ends[2];
  if (pipe(ends) != 0) return "no pipe";
  const pid_t child = fork();
  if (child == 0) {
    for (const auto& [name, value] : settings) setenv(name.c_str(), value.c_str(), 1);
    const Status status = cuda::Device::open(ordinal).status();
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

const std::string kMissing = std::to_string(static_cast<int>(Code::backend_missing)) + " ";

testing::AssertionResult says(const std::string& text, const std::vector<std::string>& parts) {
  if (!text.starts_with(kMissing)) return testing::AssertionFailure() << "not backend_missing: " << text;
  for (const std::string& part : parts)
    if (text.find(part) == std::string::npos) return testing::AssertionFailure() << "no '" << part << "' in: " << text;
  return testing::AssertionSuccess();
}

TEST(CudaDriver, OpensAGpu) { EXPECT_EQ(opening(fake()), std::to_string(static_cast<int>(Code::ok)) + " "); }

TEST(CudaDriver, NoDriver) {
  if (access("/usr/lib/x86_64-linux-gnu/libcuda.so.1", F_OK) == 0) GTEST_SKIP() << "this machine has a driver";
  EXPECT_TRUE(says(opening({{"EFFNET_LIB_DIR", "/nonexistent"}}),
                   {"no NVIDIA driver", "/nonexistent/libcuda.so.1", "Install driver 580", "--gpus all"}));
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
  EXPECT_TRUE(says(opening(fake(), 3), {"no GPU 3", "sees 1"}));
  EXPECT_TRUE(says(opening(fake({{"FAKE_CUDA_DEVICES", "2"}}), 2), {"no GPU 2", "sees 2"}));
}

TEST(CudaDriver, ADriverThatDoesNotStart) {
  EXPECT_TRUE(says(opening(fake({{"FAKE_CUDA_FAIL", "cuInit:1:999"}})), {"does not start", "(999)"}));
}

TEST(CudaDriver, KernelsOfAnotherArchitecture) {
  EXPECT_TRUE(
      says(opening(fake({{"FAKE_CUDA_FAIL", "cuLibraryLoadData:1:209"}})), {"no kernels for Fake H200", "9.0"}));
}

}  // namespace
}  // namespace effnet::test
