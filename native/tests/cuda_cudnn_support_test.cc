// What the real libcudnn says of graphs for GPUs that it is only told about (native/tests/gpus): some rows of
// native/cuda/providers/cudnn_support.inc are asked again. EFFNET_CUDNN_ROWS=all asks all of them;
// EFFNET_CUDNN_WRITE=file writes them anew.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "cuda/providers/cudnn_support.h"
#include "cuda/providers/library.h"

namespace effnet::test {
namespace {

using cuda::Convolution;
using cuda::Cudnn;
using cuda::SupportRow;
using plan::DType;

constexpr int kAskedAgain = 20;

Convolution convolution_of(const SupportRow& row) {
  const std::string type = row.dtype, graph = row.graph;
  Convolution c;
  c.pass = graph == "bwd_data"                ? Convolution::Pass::bwd_data
           : graph.starts_with("bwd_weights") ? Convolution::Pass::bwd_weights
                                              : Convolution::Pass::forward;
  c.dtype = type == "f16" ? DType::f16 : type == "bf16" ? DType::bf16 : DType::f32;
  c.result = graph == "bwd_weights" ? DType::f32 : c.dtype;  // as plans have it
  c.tf32 = type == "tf32";
  c.n = 32;
  c.h = c.w = row.size;
  c.ic = row.ic;
  c.oc = row.oc;
  c.kh = c.kw = row.kernel;
  c.stride = row.stride;
  c.pad_t = c.pad_l = c.pad_b = c.pad_r = row.kernel / 2;
  c.oh = c.ow = (row.size + 2 * (row.kernel / 2) - row.kernel) / row.stride + 1;
  c.bias = graph.find("_bias") != std::string::npos;
  c.silu = graph.find("_silu") != std::string::npos;
  c.residual = graph.find("_residual") != std::string::npos;
  return c;
}

// The number behind "eng" in an engine's name; 0 where there is no plan.
int engine_for(const Cudnn& library, const SupportRow& row) {
  const auto plan = library.plan(convolution_of(row));
  return plan.ok() ? std::atoi(plan.value()->engine().c_str() + 3) : 0;
}

std::shared_ptr<const Cudnn> library_for(int capability) {
  std::ifstream file(std::string(GPUS_FOLDER) + (capability == 90 ? "/h200.json" : "/a100.json"));
  auto made = Cudnn::for_device({std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()});
  EXPECT_TRUE(made.ok()) << made.status().message();
  return made.ok() ? made.value() : nullptr;
}

std::string text(const SupportRow& row, int engine) {
  char line[160];
  std::snprintf(line, sizeof line, "X(%d, \"%s\", \"%s\", %d, %d, %d, %d, %d, %d)", row.capability, row.dtype,
                row.graph, row.kernel, row.stride, row.size, row.ic, row.oc, engine);
  return line;
}

// FP32 images have no other gradients than as wide as they are.
bool is_there(std::string_view dtype, std::string_view graph) {
  return graph != "bwd_weights_half" || dtype.ends_with("16");
}

// Every graph that an op can be, at layers of B0's stem and of V2-S.
std::vector<SupportRow> all_rows() {
  constexpr const char* kGraphs[] = {
      "forward",  "forward_bias", "forward_bias_residual", "forward_bias_silu", "forward_bias_silu_residual",
      "bwd_data", "bwd_weights",  "bwd_weights_half"};
  constexpr int kLayers[][3] = {{56, 24, 24}, {28, 48, 192}};
  std::vector<SupportRow> rows;
  for (const int capability : {80, 90})
    for (const char* dtype : {"bf16", "f16", "f32", "tf32"})
      for (const char* graph : kGraphs)
        for (const int kernel : {1, 3})
          for (const int stride : {1, 2})
            for (const auto& [size, ic, oc] : kLayers)
              if ((kernel > 1 || stride == 1) && is_there(dtype, graph))
                rows.push_back({capability, dtype, graph, kernel, stride, size, ic, oc, 0});
  return rows;
}

class CudnnSupport : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(CUDA_LIBRARIES_FOLDER "/libcudnn.so.9"))
      GTEST_SKIP() << "the real cuDNN is not there: npm run setup -- --cuda-libraries";
    setenv("EFFNET_LIB_DIR", CUDA_LIBRARIES_FOLDER, 1);
    // cuDNN asks for libcuda.so.1, which is there then.
    ASSERT_NE(dlopen(DEVICE_STUB, RTLD_NOW | RTLD_GLOBAL), nullptr) << dlerror();
    if (const auto found = cuda::find_library(cuda::kCudnn); found.ok() && found.value().version != 91900)
      GTEST_SKIP() << "the rows are of cuDNN 9.19.0, this is " << cuda::version_text(found.value().version);
  }
};

TEST_F(CudnnSupport, EnginesAreThoseOfTheFile) {
  if (std::getenv("EFFNET_CUDNN_WRITE")) GTEST_SKIP() << "the file is written anew";
  const auto rows = cuda::support_rows();
  const char* wanted = std::getenv("EFFNET_CUDNN_ROWS");
  const size_t step = wanted && std::string(wanted) == "all" ? 1 : std::max<size_t>(1, rows.size() / kAskedAgain);
  const auto ampere = library_for(80), hopper = library_for(90);
  ASSERT_TRUE(ampere && hopper);
  int asked = 0;
  for (size_t i = 0; i < rows.size(); i += step, ++asked)
    EXPECT_EQ(engine_for(rows[i].capability == 90 ? *hopper : *ampere, rows[i]), rows[i].engine)
        << text(rows[i], rows[i].engine);
  EXPECT_GE(asked, kAskedAgain);
}

TEST_F(CudnnSupport, WritesTheFile) {
  const char* path = std::getenv("EFFNET_CUDNN_WRITE");
  if (!path) GTEST_SKIP() << "EFFNET_CUDNN_WRITE=file writes it";
  const auto ampere = library_for(80), hopper = library_for(90);
  ASSERT_TRUE(ampere && hopper);
  std::ofstream file(path);
  for (const SupportRow& row : all_rows())
    file << text(row, engine_for(row.capability == 90 ? *hopper : *ampere, row)) << std::endl;
}

TEST_F(CudnnSupport, ThereIsNoHandleWithoutADevice) {
  const auto made = Cudnn::create();
  EXPECT_EQ(made.status().code(), Code::backend_missing);
  EXPECT_NE(made.status().message().find("does not start: cudnnCreate failed"), std::string::npos)
      << made.status().message();
}

}  // namespace
}  // namespace effnet::test
