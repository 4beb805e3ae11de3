// Convolutions by cuDNN on a library without a GPU (native/cuda/fake/fake_cudnn.cc), which computes them in double and
// refuses what the real one would not survive.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include "cuda/device.h"
#include "cuda/providers/cudnn_support.h"
#include "tests/conv_reference.h"
#include "tests/reference.h"

namespace effnet::test {
namespace {

using cuda::Convolution;
using cuda::ConvolutionPlan;
using cuda::Cudnn;

template <class F>
F* of_fake(const char* name) {
  void* library = dlopen(FAKE_NVIDIA_FOLDER "/libcudnn.so.9", RTLD_NOW);
  return reinterpret_cast<F*>(dlsym(library, name));
}
int live_objects() { return of_fake<int()>("fake_cudnn_live")(); }
int calls(const char* name) { return of_fake<int(const char*)>("fake_cudnn_calls")(name); }
std::string misuse() { return of_fake<const char*()>("fake_cudnn_misuse")(); }
void reset() { of_fake<void()>("fake_cudnn_reset")(); }

constexpr const char* kSettings[] = {"FAKE_CUDNN_FAIL", "FAKE_CUDNN_NO_PLAN", "EFFNET_CUDA_PROVIDER"};

class CudaCudnn : public testing::Test {
 protected:
  static void SetUpTestSuite() { setenv("EFFNET_LIB_DIR", FAKE_NVIDIA_FOLDER, 1); }
  void SetUp() override { reset(); }
  void TearDown() override {
    for (const char* name : kSettings) unsetenv(name);
    EXPECT_EQ(misuse(), "");
  }
};

const ConvCase kCases[] = {
    {2, 6, 5, 8, 16, 3, 1, 1, 1, 1, 1},
    {1, 9, 8, 16, 8, 3, 2, 0, 0, 1, 1},  // padded as TensorFlow does
    {1, 7, 7, 8, 8, 3, 2, 1, 1, 1, 1},
    {3, 4, 4, 24, 8, 1, 1, 0, 0, 0, 0},
};

double worst(const Values& got, const Values& want) {
  double scale = 1e-3, error = 0;
  for (const double v : want) scale = std::max(scale, std::abs(v));
  for (size_t i = 0; i < want.size(); ++i) error = std::max(error, difference(got[i], want[i]));
  return error / scale;
}
double allowed(DType dtype) { return dtype == DType::bf16 ? 5e-3 : dtype == DType::f16 ? 6e-4 : 1e-6; }

TEST_F(CudaCudnn, ConvolutionsInAllDirections) {
  setenv("EFFNET_CUDA_PROVIDER", "cudnn", 1);
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (const ConvCase& c : kCases) {
      const ConvData d(c, dtype);
      const struct {
        Direction direction;
        backend::KernelFactory factory;
        const char* name;
        double tolerance;
      } ops[] = {{Direction::forward, backend::make_conv2d, "conv2d_", allowed(dtype)},
                 {Direction::backward_data, backend::make_conv2d_bwd_data, "conv2d_bwd_data_", allowed(dtype)},
                 {Direction::backward_weights, backend::make_conv2d_bwd_weights, "conv2d_bwd_weights_", 1e-6}};
      for (const auto& op : ops) {
        const std::string name = op.name + std::string(plan::dtype_name(dtype)) + ":cudnn";
        const ConvResult result = run_conv(op.direction, c, d, dtype, op.factory);
        if (HasFatalFailure()) FAIL() << name << " " << c.name();
        EXPECT_EQ(result.kernel, name);
        EXPECT_LE(worst(result.got, result.want), op.tolerance) << name << " " << c.name();
      }
    }
}

// A choice of the plan: the gradient is rounded once, to the images' type, whoever makes it. Sums here are far from
// where two roundings meet, so that the float64 one falls on the same number but for few values.
TEST_F(CudaCudnn, HalfGradientsOfWeights) {
  for (const char* provider : {"own", "cudnn"})
    for (const DType dtype : {DType::bf16, DType::f16})
      for (const ConvCase& c : kCases) {
        setenv("EFFNET_CUDA_PROVIDER", provider, 1);
        const ConvData d(c, dtype);
        const ConvResult result =
            run_conv(Direction::backward_weights, c, d, dtype, backend::make_conv2d_bwd_weights, plan::kOpHalfGradient);
        const std::string what = provider + (" " + c.name()) + " " + result.kernel;
        if (HasFatalFailure()) FAIL() << what;
        const std::string by = provider == std::string("own") ? ":cuda" : ":cudnn";
        EXPECT_TRUE(result.kernel.ends_with(plan::dtype_name(dtype) + ("_half" + by))) << what;
        EXPECT_EQ(stored(dtype, result.got), result.got) << what << ": wider than the images";
        const Values want = stored(dtype, result.want);
        int64_t others = 0;
        for (size_t i = 0; i < want.size(); ++i) others += result.got[i] != want[i];
        // One unit in the last place where the sum lies between two numbers.
        EXPECT_LE(worst(result.got, want), 2 * allowed(dtype)) << what;
        EXPECT_LE(others, static_cast<int64_t>(want.size()) / 100) << what;
        EXPECT_GT(worst(result.got, result.want), 1e-5) << what << ": not rounded";
      }
}

TEST_F(CudaCudnn, BiasActivationAndResidual) {
  setenv("EFFNET_CUDA_PROVIDER", "cudnn", 1);
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const ConvCase& c : kCases)
      for (const plan::Act act : {plan::Act::identity, plan::Act::silu})
        for (const bool residual : {false, true}) {
          const ConvData d(c, dtype);
          const auto channels = static_cast<size_t>(c.oc);
          const Values bias = stored(DType::f32, random_values(channels, 5)), w = stored(dtype, d.weights);
          std::vector<double> attrs = c.attrs();
          attrs.push_back(static_cast<double>(act));
          Rig rig(backend::make_conv2d_bias_act, attrs);
          rig.in(dtype, {c.n, c.h, c.w, c.ic}, d.src);
          rig.add_in(rig.tensor(Arena::weights, DType::f32, {c.oc, c.k, c.k, c.ic}, d.weights));
          rig.in(DType::f32, {c.oc}, bias);
          rig.absent_inputs(1);
          if (residual)
            rig.in(dtype, {c.n, c.oh(), c.ow(), c.oc}, d.diff_dst);
          else
            rig.absent_inputs(1);
          const Tensor* dst = rig.out(dtype, {c.n, c.oh(), c.ow(), c.oc});
          rig.run();
          if (HasFatalFailure()) FAIL() << c.name();
          EXPECT_EQ(rig.name(), "conv2d_bias_act_" + std::string(plan::dtype_name(dtype)) + ":cudnn");
          Values want(static_cast<size_t>(dst->elements()));
          for_each_product(c, [&](size_t s, size_t k, size_t t) { want[t] += d.src[s] * w[k]; });
          for (size_t i = 0; i < want.size(); ++i)
            want[i] = act_value(act, want[i] + bias[i % channels]) + (residual ? d.diff_dst[i] : 0);
          EXPECT_LE(worst(rig.get(dst), want), allowed(dtype)) << c.name();
        }
}

// The statistics are launches of the package's own kernels, behind the library's call.
TEST_F(CudaCudnn, Statistics) {
  setenv("EFFNET_CUDA_PROVIDER", "cudnn", 1);
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const ConvCase& c : kCases) {
      const ConvData d(c, dtype);
      const auto channels = static_cast<size_t>(c.oc);
      std::vector<double> attrs = c.attrs();
      attrs.insert(attrs.end(), {1e-3, 0.1, 0});
      Rig rig(backend::make_conv2d_stats, attrs);
      rig.in(dtype, {c.n, c.h, c.w, c.ic}, d.src);
      rig.add_in(rig.tensor(Arena::weights, DType::f32, {c.oc, c.k, c.k, c.ic}, d.weights));
      rig.absent_inputs(5);
      const Tensor *dst = rig.out(dtype, {c.n, c.oh(), c.ow(), c.oc}), *mean = rig.out(DType::f32, {c.oc});
      rig.out(DType::f32, {c.oc});
      rig.add_update(rig.tensor(Arena::weights, DType::f32, {c.oc}, Values(channels)));
      rig.add_update(rig.tensor(Arena::weights, DType::f32, {c.oc}, Values(channels, 1)));
      rig.run();
      if (HasFatalFailure()) FAIL() << c.name();
      EXPECT_EQ(rig.name(), "conv2d_stats_" + std::string(plan::dtype_name(dtype)) + ":cudnn");
      const Values w = stored(dtype, d.weights), got = rig.get(dst);
      Values want(got.size()), want_mean(channels);
      for_each_product(c, [&](size_t s, size_t k, size_t t) { want[t] += d.src[s] * w[k]; });
      EXPECT_LE(worst(got, want), allowed(dtype)) << c.name();
      for (size_t i = 0; i < got.size(); ++i)
        want_mean[i % channels] += got[i] * static_cast<double>(channels) / static_cast<double>(got.size());
      EXPECT_LE(worst(rig.get(mean), want_mean), 1e-5) << c.name();
    }
}

// What cuDNN does not do, or has no engine for, stays with the own kernels.
TEST_F(CudaCudnn, WhatKeepsItsOwnKernel) {
  setenv("EFFNET_CUDA_PROVIDER", "cudnn", 1);
  const auto name = [](const ConvCase& c) {
    const ConvResult result =
        run_conv(Direction::forward, c, ConvData(c, DType::f16), DType::f16, backend::make_conv2d);
    return result.kernel.substr(result.kernel.rfind(':'));
  };
  EXPECT_EQ(name(kCases[0]), ":cudnn");
  EXPECT_EQ(name({1, 6, 5, 3, 16, 3, 1, 1, 1, 1, 1}), ":cuda");  // channels that are no multiple of 8
  EXPECT_EQ(name({1, 6, 5, 16, 12, 3, 1, 1, 1, 1, 1}), ":cuda");
  setenv("FAKE_CUDNN_NO_PLAN", "1", 1);
  EXPECT_EQ(name({1, 6, 5, 16, 8, 3, 1, 1, 1, 1, 1}), ":cuda");
  unsetenv("FAKE_CUDNN_NO_PLAN");
  unsetenv("EFFNET_CUDA_PROVIDER");
  // By the table: where the real one builds plans on tensor cores, and no matrix products.
  EXPECT_EQ(name(kCases[0]), ":cudnn");
  EXPECT_EQ(name(kCases[3]), ":cuda");
  const auto exact =
      run_conv(Direction::forward, kCases[0], ConvData(kCases[0], DType::f32), DType::f32, backend::make_conv2d);
  EXPECT_EQ(exact.kernel.substr(exact.kernel.rfind(':')), ":cuda");
  const auto weights = run_conv(Direction::backward_weights, kCases[0], ConvData(kCases[0], DType::f16), DType::f16,
                                backend::make_conv2d_bwd_weights);
  EXPECT_EQ(weights.kernel.substr(weights.kernel.rfind(':')), ":cuda");
  const auto half = run_conv(Direction::backward_weights, kCases[0], ConvData(kCases[0], DType::f16), DType::f16,
                             backend::make_conv2d_bwd_weights, plan::kOpHalfGradient);
  EXPECT_EQ(half.kernel, "conv2d_bwd_weights_f16_half:cudnn");
}

TEST_F(CudaCudnn, TheRealOnesAnswersChooseIt) {
  Convolution c;
  c.dtype = c.result = DType::f16;
  c.kh = c.kw = 3;
  EXPECT_TRUE(cuda::is_supported(90, c));
  EXPECT_TRUE(cuda::is_supported(80, c));
  EXPECT_TRUE(cuda::is_supported(120, c));
  c.bias = c.silu = c.residual = true;
  EXPECT_TRUE(cuda::is_supported(90, c));
  c.bias = c.silu = c.residual = false;
  c.pass = Convolution::Pass::bwd_weights;
  EXPECT_TRUE(cuda::is_supported(90, c));
  c.result = DType::f32;
  EXPECT_FALSE(cuda::is_supported(90, c)) << "FP32 gradients of 16-bit images";
  c.pass = Convolution::Pass::forward;
  c.kh = c.kw = 5;
  EXPECT_FALSE(cuda::is_supported(90, c)) << "never asked";
}

// ---- sequence, lifetimes, failures -------------------------------------------------------------------------------

Convolution small() {
  Convolution c;
  c.n = 1;
  c.h = c.w = c.oh = c.ow = 4;
  c.ic = c.oc = 8;
  c.kh = c.kw = 3;
  c.pad_t = c.pad_l = c.pad_b = c.pad_r = 1;
  return c;
}

struct Buffers {
  Aligned a{4096}, b{4096}, result{4096}, workspace{4096};
  ConvolutionPlan::Operands operands() {
    return {a.data(), b.data(), nullptr, nullptr, result.data(), workspace.data()};
  }
};

TEST_F(CudaCudnn, PlansThatAreAlikeAreMadeOnce) {
  const int before = live_objects();
  {
    const auto library = Cudnn::create();
    ASSERT_TRUE(library.ok()) << library.status().message();
    const auto one = library.value()->plan(small()), other = library.value()->plan(small());
    ASSERT_TRUE(one.ok() && other.ok()) << one.status().message();
    EXPECT_EQ(one.value(), other.value());
    Convolution wider = small();
    wider.n = 2;
    EXPECT_NE(library.value()->plan(wider).value(), one.value());
    EXPECT_EQ(one.value()->workspace_bytes(), 4096u);
    EXPECT_EQ(one.value()->engine().substr(0, 4), "eng7");
  }
  EXPECT_EQ(live_objects(), before);
}

TEST_F(CudaCudnn, EnginesAreTriedUntilOneBuilds) {
  const auto engine = [](std::initializer_list<std::pair<const char*, const char*>> settings) {
    for (const auto& [name, value] : settings) setenv(name, value, 1);
    const auto library = Cudnn::create();
    const auto plan = library.value()->plan(small());
    for (const auto& [name, value] : settings) unsetenv(name);
    return plan.ok() ? std::atoi(plan.value()->engine().c_str() + 3) : 0;
  };
  EXPECT_EQ(engine({}), 7);
  // However many of cuDNN's first choice do not build, its fallback is asked.
  EXPECT_EQ(engine({{"FAKE_CUDNN_ENGINES", "20"}, {"FAKE_CUDNN_NO_PLAN", "A"}, {"FAKE_CUDNN_FALLBACK", "1"}}), 107);
  EXPECT_EQ(engine({{"FAKE_CUDNN_ENGINES", "20"}, {"FAKE_CUDNN_NO_PLAN", "A"}}), 0);
  // Of candidates for measuring 24 are tried, and none behind them.
  setenv("FAKE_CUDNN_FALLBACK", "1", 1);
  setenv("FAKE_CUDNN_NO_PLAN", "A", 1);
  for (const char* engines : {"23", "24"}) {
    setenv("FAKE_CUDNN_ENGINES", engines, 1);
    EXPECT_EQ(Cudnn::create().value()->plans(small(), 4).size(), engines == std::string("23") ? 1u : 0u);
  }
  for (const char* name : {"FAKE_CUDNN_FALLBACK", "FAKE_CUDNN_NO_PLAN", "FAKE_CUDNN_ENGINES"}) unsetenv(name);
  // An engine that wants more than 256 MiB is none.
  EXPECT_EQ(engine({{"FAKE_CUDNN_WORKSPACE", "268435456"}}), 7);
  EXPECT_EQ(engine({{"FAKE_CUDNN_ENGINES", "2"}, {"FAKE_CUDNN_WORKSPACE", "268435457"}}), 8);
  EXPECT_EQ(engine({{"FAKE_CUDNN_WORKSPACE", "268435457"}}), 0);
}

TEST_F(CudaCudnn, AddressesThatAreNotAligned) {
  const auto library = Cudnn::create();
  const auto plan = library.value()->plan(small());
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  Buffers buffers;
  ConvolutionPlan::Operands at = buffers.operands();
  at.result = buffers.result.data() + 8;
  EXPECT_EQ(plan.value()->queue(at, nullptr).code(), Code::internal);
  EXPECT_EQ(misuse(), "an address that is not aligned as promised");
  at = buffers.operands();
  at.workspace = nullptr;
  EXPECT_EQ(plan.value()->queue(at, nullptr).code(), Code::internal);
  reset();
}

// A graph replays what it was captured of, so a plan that goes first is a mistake: here is one, found.
TEST_F(CudaCudnn, APlanThatGoesBeforeItsWorkRuns) {
  ASSERT_TRUE(backend::gpu().status.ok()) << backend::gpu().status.message();
  const cuda::Driver& driver = backend::gpu().device->driver();
  const auto library = Cudnn::create();
  Buffers buffers;
  for (const bool early : {false, true}) {
    auto plan = library.value()->plan(small());
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    const Status queued = plan.value()->queue(buffers.operands(), backend::gpu().stream);
    ASSERT_TRUE(queued.ok()) << queued.message();
    if (early) plan = Status(Code::closed, "");
    ASSERT_EQ(driver.cuStreamSynchronize(backend::gpu().stream), CUDA_SUCCESS);
    EXPECT_EQ(misuse(), early ? "a plan is gone whose work has not run" : "");
  }
  reset();
}

TEST_F(CudaCudnn, EveryFailingCallIsAnErrorAndLeavesNothing) {
  ASSERT_TRUE(backend::gpu().status.ok()) << backend::gpu().status.message();
  const int before = live_objects();
  const auto run = [] {
    const auto library = Cudnn::create();
    if (!library.ok()) return library.status();
    const auto plan = library.value()->plan(small());
    if (!plan.ok()) return plan.status();
    Buffers buffers;
    const Status queued = plan.value()->queue(buffers.operands(), backend::gpu().stream);
    backend::gpu().device->driver().cuStreamSynchronize(backend::gpu().stream);
    return queued;
  };
  ASSERT_TRUE(run().ok());
  for (const char* name : {"cudnnCreate", "cudnnSetStream", "cudnnBackendCreateDescriptor", "cudnnBackendFinalize",
                           "cudnnBackendSetAttribute", "cudnnBackendExecute"}) {
    reset();
    ASSERT_TRUE(run().ok()) << name;
    const int count = calls(name);
    EXPECT_GT(count, 0) << name;
    int failures = 0;
    for (int nth = 1; nth <= count; ++nth) {
      reset();
      setenv("FAKE_CUDNN_FAIL", (std::string(name) + ":" + std::to_string(nth) + ":5000").c_str(), 1);
      failures += !run().ok();  // where one way to a plan fails, another may not
      EXPECT_EQ(live_objects(), before) << name << " " << nth;
      unsetenv("FAKE_CUDNN_FAIL");
    }
    EXPECT_GT(failures, 0) << name;
  }
  reset();
}

TEST_F(CudaCudnn, AGpuIsDescribedAsPlansForItTakeIt) {
  const auto text = Cudnn::describe_device(0);
  ASSERT_TRUE(text.ok()) << text.status().message();
  EXPECT_EQ(text.value(), R"({"cudaDeviceId": 0, "deviceName": "no GPU"})");
  EXPECT_TRUE(Cudnn::for_device(text.value()).ok());
}

TEST_F(CudaCudnn, OneThatDoesNotStart) {
  setenv("FAKE_CUDNN_FAIL", "cudnnCreate:1:1001", 1);
  const Status status = Cudnn::create().status();
  EXPECT_EQ(status.message(), FAKE_NVIDIA_FOLDER "/libcudnn.so.9 does not start: cudnnCreate failed with status 1001");
  EXPECT_EQ(status.code(), Code::backend_missing);
  reset();
  setenv("FAKE_CUDNN_FAIL", "cudnnCreate:1:4004", 1);
  EXPECT_EQ(Cudnn::create().status().code(), Code::oom);
}

}  // namespace
}  // namespace effnet::test
