// Which kernel an op gets where it may have several: the fastest by the clock of the driver without a GPU, which a test
// sets (FAKE_CUDA_TIMES).
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>

#include "cuda/executable.h"
#include "cuda/tuning.h"
#include "fuzz/plan_editor.h"
#include "plan/op_ports.h"

namespace effnet::test {
namespace {

using plan::Arena;

fuzz::Bytes corpus_plan(const std::string& name) {
  const auto folder = std::filesystem::path(__FILE__).parent_path() / "../fuzz/corpus/plan";
  std::ifstream file(folder / name, std::ios::binary);
  EXPECT_TRUE(file) << name;
  fuzz::Bytes bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  fuzz::set_op_table_hash(bytes);
  return bytes;
}

template <class F>
F* of_fake(const char* library, const char* name) {
  void* handle = dlopen((std::string(FAKE_NVIDIA_FOLDER "/") + library).c_str(), RTLD_NOW);
  return reinterpret_cast<F*>(dlsym(handle, name));
}
int live_objects() { return of_fake<int()>("libcuda.so.1", "fake_cuda_live")(); }
int calls(const char* name) { return of_fake<int(const char*)>("libcuda.so.1", "fake_cuda_calls")(name); }

// The libraries that stand in here, and what their functions for tests begin with.
constexpr std::pair<const char*, const char*> kLibraries[] = {
    {"libcublasLt.so.13", "fake_cublaslt"},
#ifdef EFFNET_TEST_CUDNN
    {"libcudnn.so.9", "fake_cudnn"},
#endif
};
template <class F>
F* of_library(const std::pair<const char*, const char*>& library, const char* function) {
  return of_fake<F>(library.first, (library.second + std::string(function)).c_str());
}
int live_of_libraries() {
  int live = 0;
  for (const auto& library : kLibraries) live += of_library<int()>(library, "_live")();
  return live;
}

constexpr const char* kSettings[] = {"FAKE_CUDA_FAIL",     "FAKE_CUDA_TIMES",      "FAKE_CUDA_CACHE",
                                     "FAKE_CUDA_MEMORY",   "FAKE_CUDNN_ENGINES",   "FAKE_CUDNN_FAIL",
                                     "FAKE_CUBLASLT_FAIL", "EFFNET_CUDA_PROVIDER", "FAKE_CUDA_ORDER"};

class CudaTuning : public testing::Test {
 protected:
  static void SetUpTestSuite() { setenv("EFFNET_LIB_DIR", FAKE_NVIDIA_FOLDER, 1); }
  void SetUp() override {
    auto opened = cuda::Device::open(0);
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    device_ = opened.value();
    reset();
  }
  void TearDown() override {
    for (const char* name : kSettings) unsetenv(name);
    reset();
    for (const auto& library : kLibraries) EXPECT_STREQ(of_library<const char*()>(library, "_misuse")(), "");
  }
  static void reset() {
    of_fake<void()>("libcuda.so.1", "fake_cuda_reset")();
    for (const auto& library : kLibraries) of_library<void()>(library, "_reset")();
  }

  // Arenas as large as the plan's, of numbers that every arena has others of.
  std::shared_ptr<cuda::DeviceMemory> memory_for(const fuzz::Bytes& bytes, uint64_t limit = Budget::kNoLimit) {
    const auto plan = plan::Plan::load(std::as_bytes(std::span(bytes)));
    EXPECT_TRUE(plan.ok()) << plan.status().message();
    auto memory = cuda::DeviceMemory::create(device_, limit).value();
    for (int a = 0; a <= static_cast<int>(Arena::activations); ++a) {
      const auto arena = static_cast<Arena>(a);
      std::vector<float> values(plan.value()->arena_bytes(arena) / sizeof(float));
      for (size_t i = 0; i < values.size(); ++i) values[i] = 0.25f + static_cast<float>((i * 7 + a * 13) % 97) / 128;
      EXPECT_TRUE(memory->ensure(arena, plan.value()->arena_bytes(arena)).ok());
      EXPECT_TRUE(memory->write(arena, 0, std::as_bytes(std::span(values))).ok());
    }
    return memory;
  }
  static StatusOr<std::shared_ptr<cuda::Executable>> bind(const std::shared_ptr<cuda::DeviceMemory>& memory,
                                                          const fuzz::Bytes& bytes, const Tuning& tuning) {
    return cuda::Executable::bind(std::make_shared<ThreadPool>(1), memory, std::as_bytes(std::span(bytes)), tuning);
  }
  static Status step_of(Executable& bound) {
    std::vector<std::byte> input(bound.plan().arena_bytes(Arena::input)),
        output(bound.plan().arena_bytes(Arena::output));
    StepScalars scalars;
    scalars.lr = 0.01;
    scalars.eps = 1e-3;
    scalars.alpha = 0.9;
    return bound.step(input.data(), scalars, output.data());
  }
  // The kernel of the plan's first op.
  std::string first_kernel(const fuzz::Bytes& bytes, const Tuning& tuning) {
    const auto bound = bind(memory_for(bytes), bytes, tuning);
    EXPECT_TRUE(bound.ok()) << bound.status().message();
    return bound.ok() ? bound.value()->report()[0].kernel : "";
  }
  static std::vector<std::vector<std::byte>> contents(const cuda::DeviceMemory& memory) {
    std::vector<std::vector<std::byte>> all;
    for (int a = 0; a < static_cast<int>(Arena::activations); ++a) {
      all.emplace_back(memory.bytes(static_cast<Arena>(a)));
      EXPECT_TRUE(memory.read(static_cast<Arena>(a), 0, all.back()).ok());
    }
    return all;
  }

  std::shared_ptr<cuda::Device> device_;
};

const Tuning kMeasure{true, {}};

const std::string kProduct = "linear-xxx.f32", kTraining = "gpu-train.bf16";

TEST_F(CudaTuning, TheFastestByTheClockIsTaken) {
  const auto product = corpus_plan(kProduct);
  const struct {
    const char *times, *kernel;
  } cases[] = {{"cublaslt/0=3,cublaslt/1=0.5", "linear_f32:cublaslt/1"},
               {"cublaslt/0=0.4,cublaslt/1=0.5", "linear_f32:cublaslt/0"},
               {"cublaslt/0=0.02,cublaslt/1=0.01", "linear_f32:cublaslt/1"},  // so short that they are repeated
               {"cublaslt/0=30,cublaslt/1=30", ":cuda"}};
  for (const auto& [times, kernel] : cases) {
    setenv("FAKE_CUDA_TIMES", times, 1);
    EXPECT_TRUE(first_kernel(product, kMeasure).ends_with(kernel)) << times;
  }
  unsetenv("FAKE_CUDA_TIMES");  // all take the same: what the table says
  EXPECT_EQ(first_kernel(product, kMeasure), "linear_f32:cublaslt/0");
  EXPECT_EQ(first_kernel(product, {}), "linear_f32:cublaslt");
}

#ifdef EFFNET_TEST_CUDNN
TEST_F(CudaTuning, EnginesOfCudnnAreMeasuredByName) {
  const auto training = corpus_plan(kTraining);
  setenv("FAKE_CUDNN_ENGINES", "3", 1);
  // Own kernels take 1 ms with the statistics, for which cuDNN's need passes.
  setenv("FAKE_CUDA_TIMES", "cudnn/eng7=0.5,cudnn/eng8=0.1,cudnn/eng9=0.5,bn_tiles_bf16=0.1,bn_tiles_plain_bf16=0.1",
         1);
  const auto bound = bind(memory_for(training), training, kMeasure).value();
  std::set<std::string> forward;
  for (const OpReport& row : bound->report())
    if (row.op == "conv2d_stats" && row.kernel.find("cudnn") != std::string::npos) forward.insert(row.kernel);
  EXPECT_EQ(forward, std::set<std::string>{"conv2d_stats_bf16:cudnn/eng8"});
}

// Both gradients of conv2d_bwd, each by whoever is the fastest; a sum with an addend is rounded once, which cuDNN's
// would not be.
TEST_F(CudaTuning, PartsOfAnOpAreMeasuredInAllCombinations) {
  const auto training = corpus_plan(kTraining);
  setenv("FAKE_CUDNN_ENGINES", "2", 1);
  const auto kernels = [&](const char* times) {
    setenv("FAKE_CUDA_TIMES", times, 1);
    std::set<std::string> names;
    const auto bound = bind(memory_for(training), training, kMeasure).value();
    for (const OpReport& row : bound->report())
      if (row.op == "conv2d_bwd") names.insert(row.kernel);
    return names;
  };
  const auto own = kernels("cudnn/eng7=9,cudnn/eng8=9,cublaslt/0=9,cublaslt/1=9");
  EXPECT_FALSE(own.empty());
  std::string slow =
      "conv2d_bwd_data_mma_128x32_bf16=50,conv2d_bwd_data_bn_mma_128x32_bf16=50,"
      "conv2d_bwd_data_end_mma_128x32_bf16=50,conv2d_bwd_weights_mma_64x64_bf16=50,"
      "conv2d_bwd_weights_mma_32x128_bf16=50,conv2d_bwd_weights_mma_128x32_bf16=50,";
  for (const std::string& name : own) {
    EXPECT_TRUE(name.ends_with("_bf16:cuda")) << name;
    slow += name.substr(0, name.rfind(':')) + "=50,";
  }
  EXPECT_EQ(kernels((slow + "cudnn/eng7=9,cudnn/eng8=5,cublaslt/0=8,cublaslt/1=7").c_str()),
            (std::set<std::string>{"conv2d_bwd_bf16:cublaslt/1+cudnn/eng8", "conv2d_bwd_bf16:cudnn/eng8+cudnn/eng8"}));
  EXPECT_EQ(kernels((slow + "cudnn/eng7=90,cudnn/eng8=90,cublaslt/0=8,cublaslt/1=7").c_str()),
            (std::set<std::string>{"conv2d_bwd_bf16:cublaslt/1+cublaslt/1"}));
}
#endif

// Own kernels have several forms of tiles; which was chosen is kept by name.
TEST_F(CudaTuning, FormsOfOwnKernelsAreMeasured) {
  const auto training = corpus_plan(kTraining);
  const auto names = [](const cuda::Executable& executable) {
    std::vector<std::string> all;
    for (const OpReport& row : executable.report())
      if (row.op == "conv2d_stats") all.push_back(row.kernel);
    return all;
  };
  const auto memory = memory_for(training);
  const auto of_table = names(*bind(memory, training, {}).value());
  setenv("FAKE_CUDA_TIMES", "conv2d_stats_mma_1x1_128x32_bf16=0.1,cudnn/eng7=9", 1);
  const auto bound = bind(memory, training, kMeasure).value();
  const auto measured = names(*bound);
  int others = 0;
  for (size_t i = 0; i < measured.size(); ++i) {
    others += measured[i] != of_table[i];
    EXPECT_TRUE(measured[i] == of_table[i] || measured[i] == "conv2d_stats_mma_1x1_128x32_bf16:cuda") << measured[i];
  }
  EXPECT_GT(others, 0);
  unsetenv("FAKE_CUDA_TIMES");
  auto kept = bound->tuning().choices;
  EXPECT_EQ(names(*bind(memory, training, {false, kept}).value()), measured);
  for (auto& [key, choice] : kept)
    if (choice == "own/mma_1x1_128x32") choice = "own/mma_1x1_8x8";
  const auto refused = bind(memory, training, {false, kept}).value();
  EXPECT_EQ(names(*refused), of_table);
  EXPECT_GT(refused->tuning().refused, 0);
}

TEST_F(CudaTuning, EqualOpsAreMeasuredOnce) {
  const auto training = corpus_plan(kTraining);
  const auto bound = bind(memory_for(training), training, kMeasure).value();
  const TuningReport report = bound->tuning();
  int with_choice = 0;
  for (const plan::Op& op : bound->plan().ops()) with_choice += device_->providers().has_choice(op);
  EXPECT_EQ(report.measured, static_cast<int>(report.choices.size()));
  EXPECT_GT(with_choice, report.measured);
  EXPECT_GE(report.measured, 3);
}

// With stochastic depth each block has a rate and a stream of its own.
TEST_F(CudaTuning, EqualLayersOfBlocksThatAreDroppedAreEqual) {
  namespace bwd = op::conv2d_bwd;
  const auto training = corpus_plan(kTraining);
  const auto bound = bind(memory_for(training), training, {}).value();
  int seen = 0;
  for (const plan::Op& op : bound->plan().ops()) {
    if (op.id != plan::OpId::conv2d_bwd) continue;
    const auto of = [&](double rate, double stream, double behind) {
      plan::Op block = op;
      block.attrs[bwd::attr_drop_rate] = rate;
      block.attrs[bwd::attr_rng_stream] = block.attrs[bwd::attr_end_rng_stream] = stream;
      block.attrs[bwd::attr_end_drop_rate] = behind;
      return cuda::signature(block);
    };
    EXPECT_EQ(of(0.1, 3, 0.2), of(0.2, 4, 0.3));
    EXPECT_NE(of(0.1, 3, 0.2), of(0, 3, 0.2));
    EXPECT_NE(of(0.1, 3, 0.2), of(0.1, 3, 0));
    ++seen;
  }
  EXPECT_GT(seen, 0);
}

// Own kernels instead would be a surprise, and be kept for a machine that has the library.
TEST_F(CudaTuning, ALibraryThatDoesNotStartIsAnError) {
  const auto training = corpus_plan(kTraining);
  for (const char* status : {"1", "3"}) {
    setenv("FAKE_CUBLASLT_FAIL", (std::string("cublasLtCreate:1:") + status).c_str(), 1);
    reset();
    device_ = cuda::Device::open(0).value();
    for (const Tuning& tuning : {Tuning{}, kMeasure}) {
      const auto bound = bind(memory_for(training), training, tuning);
      EXPECT_EQ(bound.status().code(), *status == '3' ? Code::oom : Code::backend_missing) << bound.status().message();
    }
  }
}

TEST_F(CudaTuning, WhatThePlanKeepsIsAsItWas) {
  setenv("FAKE_CUDNN_ENGINES", "2", 1);
  for (const std::string& name : {kTraining, std::string("gpu-train.f32")}) {
    const auto training = corpus_plan(name);
    const auto memory = memory_for(training);
    const auto before = contents(*memory);
    const auto bound = bind(memory, training, kMeasure);
    ASSERT_TRUE(bound.ok()) << bound.status().message();
    EXPECT_GT(bound.value()->tuning().measured, 0);
    EXPECT_TRUE(contents(*memory) == before);
  }
}

// A plan may be bound while the moving average is evaluated; its kernels read 16-bit copies that were made of it.
TEST_F(CudaTuning, KernelsAreMeasuredWhileWeightsAndAverageAreExchanged) {
  const auto training = corpus_plan(kTraining);
  const auto memory = memory_for(training);
  ASSERT_TRUE(memory->swap(Arena::weights, Arena::ema).ok());
  const auto before = contents(*memory);
  const auto bound = bind(memory, training, kMeasure);
  ASSERT_TRUE(bound.ok()) << bound.status().message();
  EXPECT_GT(bound.value()->tuning().measured, 0);
  EXPECT_TRUE(contents(*memory) == before);
}

TEST_F(CudaTuning, KeptChoicesAreTakenWithoutMeasuringAndGiveTheSameBits) {
  const auto training = corpus_plan(kTraining);
  setenv("FAKE_CUDNN_ENGINES", "3", 1);
  setenv("FAKE_CUDA_TIMES", "cudnn/eng9=0.1,cublaslt/1=0.2", 1);
  const auto step = [&](const Tuning& tuning, TuningReport* report) {
    const auto memory = memory_for(training);
    reset();
    auto bound = bind(memory, training, tuning).value();
    *report = bound->tuning();
    if (!tuning.kept.empty()) {
      EXPECT_EQ(calls("cuGraphLaunch") + calls("cuEventElapsedTime"), 0);
    }
    EXPECT_TRUE(step_of(*bound).ok());
    return contents(*memory);
  };
  TuningReport measured, kept;
  const auto want = step(kMeasure, &measured);
  unsetenv("FAKE_CUDA_TIMES");
  EXPECT_TRUE(step({true, measured.choices}, &kept) == want);
  EXPECT_EQ(kept.choices, measured.choices);
  EXPECT_EQ(kept.measured + kept.refused, 0);
}

// A library that a capture refuses at its first launch, when it loads its kernels.
TEST_F(CudaTuning, TheFirstLaunchOfALibraryMayBeWithoutAGraph) {
  const auto training = corpus_plan(kTraining);
  struct After {
    std::vector<std::vector<std::byte>> contents;
    int graphs;
    bool ended;
  };
  const auto steps = [&](const char* first, const char* second) {
    const auto memory = memory_for(training);
    const auto bound = bind(memory, training, {}).value();
    After after{};
    for (const char* fault : {first, second}) {
      reset();
      setenv("FAKE_CUBLASLT_FAIL", fault, 1);
      after.ended = step_of(*bound).ok();
    }
    unsetenv("FAKE_CUBLASLT_FAIL");
    after.graphs = calls("cuGraphLaunch");
    after.contents = contents(*memory);
    return after;
  };
  const After want = steps("", ""), once = steps("cublasLtMatmul:1:13", "");
  EXPECT_TRUE(once.ended && once.contents == want.contents);
  EXPECT_EQ(once.graphs, want.graphs);
  EXPECT_FALSE(steps("cublasLtMatmul:1:13", "cublasLtMatmul:1:13").ended);
}

TEST_F(CudaTuning, AKeptChoiceThatIsNotHereIsMeasuredAgain) {
  const auto product = corpus_plan(kProduct);
  const std::string key = bind(memory_for(product), product, kMeasure).value()->tuning().choices.begin()->first;
  for (const char* kept : {"cudnn/eng7", "cublaslt/3", "cublaslt/x", "another"}) {
    const auto again = bind(memory_for(product), product, {true, {{key, kept}}}).value();
    EXPECT_EQ(again->tuning().refused, 1) << kept;
    EXPECT_EQ(again->tuning().measured, 1) << kept;
    EXPECT_EQ(again->report()[0].kernel, "linear_f32:cublaslt/0") << kept;
    const auto table = bind(memory_for(product), product, {false, {{key, kept}}}).value();
    EXPECT_EQ(table->tuning().refused, 1) << kept;
    EXPECT_EQ(table->report()[0].kernel, "linear_f32:cublaslt") << kept;
  }
}

// Only the candidate is lost.
TEST_F(CudaTuning, ACandidateThatFailsIsLeftOut) {
  const auto product = corpus_plan(kProduct);
  setenv("FAKE_CUDA_TIMES", "cublaslt/0=0.1,cublaslt/1=0.2", 1);
  for (const auto& [name, fault] :
       {std::pair("FAKE_CUBLASLT_FAIL", "cublasLtMatmul:1:14"), std::pair("FAKE_CUDA_FAIL", "cuStreamBeginCapture:1:1"),
        std::pair("FAKE_CUDA_FAIL", "cuGraphInstantiateWithFlags:1:1"),
        std::pair("FAKE_CUDA_FAIL", "cuGraphLaunch:1:1"), std::pair("FAKE_CUDA_FAIL", "cuEventElapsedTime:1:1")}) {
    reset();
    setenv(name, fault, 1);
    EXPECT_EQ(first_kernel(product, kMeasure), "linear_f32:cublaslt/1") << fault;
    unsetenv(name);
  }
  // With memory it might be the fastest: another is in force, and nothing counts as measured.
  for (const int status : {1, 2}) {
    reset();
    setenv("FAKE_CUDA_FAIL", ("cuGraphInstantiateWithFlags:1:" + std::to_string(status)).c_str(), 1);
    const TuningReport report = bind(memory_for(product), product, kMeasure).value()->tuning();
    ASSERT_EQ(report.choices.size(), 1u);
    EXPECT_EQ(report.choices.begin()->second, "cublaslt/1");
    EXPECT_EQ(report.measured, status == 1 ? 1 : 0);
  }
}

TEST_F(CudaTuning, AFaultOfTheGpuIsAnError) {
  const auto product = corpus_plan(kProduct);
  const auto memory = memory_for(product);
  for (const char* call : {"cuGraphLaunch:2:719", "cuEventRecord:5:700", "cuMemsetD8Async:1:719"}) {
    reset();
    setenv("FAKE_CUDA_FAIL", call, 1);
    const auto bound = bind(memory, product, kMeasure);
    EXPECT_EQ(bound.status().code(), Code::gpu_fault) << call;
    EXPECT_NE(bound.status().message().find("GPU fault: "), std::string::npos) << bound.status().message();
    unsetenv("FAKE_CUDA_FAIL");
    reset();
  }
}

TEST_F(CudaTuning, MemoryForMeasuringIsGivenBack) {
  const auto training = corpus_plan(kTraining);
  const auto memory = memory_for(training);
  setenv("FAKE_CUDNN_ENGINES", "2", 1);
  int live = live_objects(), open = 0;
  {
    const auto table = bind(memory, training, {});
    open = live_objects();
  }
  EXPECT_EQ(live_objects(), ++live);  // the 16-bit copy of the weights stays: it is the model's
  int libraries = -1;
  for (int i = 0; i < 3; ++i) {
    {
      const auto tuned = bind(memory, training, kMeasure);
      ASSERT_TRUE(tuned.ok());
      EXPECT_EQ(live_objects(), open);
    }
    EXPECT_EQ(live_objects(), live);
    if (libraries < 0) libraries = live_of_libraries();
    EXPECT_EQ(live_of_libraries(), libraries);
  }
}

TEST_F(CudaTuning, WithoutMemoryForMeasuringTheTableDecides) {
  const auto training = corpus_plan(kTraining);
  const auto memory = memory_for(training);
  size_t free = 0, total = 0;
  {
    const auto table = bind(memory, training, {}).value();
    ASSERT_EQ(device_->driver().cuMemGetInfo(&free, &total), CUDA_SUCCESS);
  }
  setenv("FAKE_CUDA_TIMES", "cublaslt/1=0.1", 1);
  const auto choices = [&] {
    const auto bound = bind(memory, training, kMeasure);
    EXPECT_TRUE(bound.ok()) << bound.status().message();
    std::vector<std::string> of_weights;
    for (const auto& [key, choice] : bound.value()->tuning().choices)
      if (key.starts_with("linear_bwd_weights")) of_weights.push_back(choice);
    return of_weights;
  };
  const auto measured = choices();
  ASSERT_FALSE(measured.empty());
  EXPECT_EQ(measured, std::vector<std::string>(measured.size(), "cublaslt/1"));
  setenv("FAKE_CUDA_MEMORY", std::to_string(total - free).c_str(), 1);
  EXPECT_EQ(choices(), std::vector<std::string>(measured.size(), "cublaslt/0"));
}

// The GPU has more; measuring takes of what the model may have.
TEST_F(CudaTuning, ALimitHoldsForMeasuringToo) {
  const auto training = corpus_plan(kTraining);
  setenv("FAKE_CUDA_TIMES", "cublaslt/1=0.1", 1);
  const auto choices = [&](uint64_t limit) {
    const auto bound = bind(memory_for(training, limit), training, kMeasure);
    EXPECT_TRUE(bound.ok()) << bound.status().message();
    std::vector<std::string> of_weights;
    if (!bound.ok()) return of_weights;
    for (const auto& [key, choice] : bound.value()->tuning().choices)
      if (key.starts_with("linear_bwd_weights")) of_weights.push_back(choice);
    return of_weights;
  };
  uint64_t table = 0;
  {
    const auto memory = memory_for(training);
    const auto bound = bind(memory, training, {});
    table = memory->budget()->used();
  }
  EXPECT_EQ(choices(Budget::kNoLimit), std::vector<std::string>{"cublaslt/1"});
  EXPECT_EQ(choices(table), std::vector<std::string>{"cublaslt/0"});
}

TEST_F(CudaTuning, WhatDoesNotFitTheCacheIsMeasuredCold) {
  const auto product = corpus_plan(kProduct);
  const auto memsets = [&](const char* cache) {
    setenv("FAKE_CUDA_CACHE", cache, 1);
    // The device asks for it when it is opened.
    device_ = cuda::Device::open(0).value();
    const auto memory = memory_for(product);
    reset();
    EXPECT_TRUE(bind(memory, product, kMeasure).ok());
    return calls("cuMemsetD8Async");
  };
  EXPECT_GT(memsets("16"), memsets("50000000") + 20);
}

TEST_F(CudaTuning, AProviderThatWasAskedForIsTaken) {
  setenv("EFFNET_CUDA_PROVIDER", "own", 1);
  const auto product = corpus_plan(kProduct);
  const auto bound = bind(memory_for(product), product, {true, {{"any", "own"}}}).value();
  EXPECT_TRUE(bound->report()[0].kernel.ends_with(":cuda"));
  EXPECT_TRUE(bound->tuning().choices.empty());
  const auto training = corpus_plan(kTraining);
  std::vector<const char*> there = {"cublaslt"};
#ifdef EFFNET_TEST_CUDNN
  there.push_back("cudnn");
#endif
  for (const char* provider : there) {
    setenv("EFFNET_CUDA_PROVIDER", provider, 1);
    const auto by_library = bind(memory_for(training), training, kMeasure).value();
    // An own form is in the name where the source's gradient, which has an addend, stays an own kernel's.
    std::set<std::string> names;
    for (const OpReport& row : by_library->report())
      if (row.op == "conv2d_bwd") names.insert(row.kernel);
    std::set<std::string> wanted{std::string("conv2d_bwd_bf16:") + provider};
    if (provider == std::string("cudnn")) wanted.insert("conv2d_bwd_mma_128x32_bf16:cudnn");
    EXPECT_EQ(names, wanted);
  }
}

}  // namespace
}  // namespace effnet::test
