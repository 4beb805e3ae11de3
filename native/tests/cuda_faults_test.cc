// What the driver may do to whole plans: no memory, failing calls, device faults. And what a plan may take of it.
#include <array>
#include <functional>
#include <map>
#include <thread>

#include "cuda/kernels/weights.h"
#include "cuda_runtime_rig.h"

namespace effnet::test {
namespace {

class CudaFaults : public CudaRuntime {};

// The driver's own cleanup calls are left out: nobody can do anything about their failing.
TEST_F(CudaFaults, EveryFailingCallIsAnErrorAndLosesNothing) {
  const Named named = corpus_plan("train.f32");
  const Start start(*plan::Plan::load(named.span()).value());
  const auto want = on_cuda(named, start);
  ASSERT_TRUE(want.ok());
  const int live = live_objects();
  int failed = 0;
  for (const char* call :
       {"cuCtxSetCurrent", "cuMemAlloc", "cuMemHostAlloc", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemsetD8Async",
        "cuStreamCreateWithPriority", "cuStreamSynchronize", "cuEventCreate", "cuEventRecord", "cuLaunchKernelEx",
        "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphLaunch"}) {
    reset_fake();
    ASSERT_TRUE(on_cuda(named, start).ok());
    const int times = calls(call);
    EXPECT_GT(times, 0) << call;
    for (int nth = 1; nth <= std::min(times, 12); ++nth) {
      SCOPED_TRACE(testing::Message() << call << " " << nth);
      reset_fake();
      Status status;
      {
        const Setting setting("FAKE_CUDA_FAIL", std::string(call) + ":" + std::to_string(nth) + ":1");
        status = on_cuda(named, start).status();
      }
      // A context that cannot be entered on the way out leaves its objects; every other failure leaves nothing.
      if (std::string(call) == "cuCtxSetCurrent") continue;
      EXPECT_EQ(live_objects(), live);
      if (status.ok()) continue;  // the call was one of the cleanup
      ++failed;
      EXPECT_EQ(status.code(), Code::internal);
      EXPECT_NE(status.message().find("CUDA_ERROR_FAKE (1)"), std::string::npos) << status.message();
      const auto again = on_cuda(named, start);
      ASSERT_TRUE(again.ok());
      ASSERT_TRUE(again.value() == want.value());
    }
  }
  EXPECT_GT(failed, 40);
}

// The second slot, which comes with the first input that is staged ahead: there whole, or not at all.
TEST_F(CudaFaults, ASlotWithoutItsEventsIsNotKept) {
  const Named named = corpus_plan("train.f32");
  const Start start(*plan::Plan::load(named.span()).value());
  const std::byte* input = start.arenas[static_cast<int>(Arena::input)].data();
  std::vector<std::byte> output(start.arenas[static_cast<int>(Arena::output)].size());
  const auto memory = memory_with(start);
  const auto executable = bound_to(memory, named);
  const int live = live_objects();
  for (const char* fault : {"cuEventCreate:1:1", "cuEventCreate:2:1"}) {
    reset_fake();
    const Setting setting("FAKE_CUDA_FAIL", fault);
    EXPECT_EQ(executable->prefetch(input).status().code(), Code::internal) << fault;
    EXPECT_EQ(live_objects(), live) << fault;
  }
  reset_fake();
  const auto ticket = executable->prefetch(input);
  ASSERT_TRUE(ticket.ok()) << ticket.status().message();
  ASSERT_TRUE(executable->claim(ticket.value()));
  const Status status = executable->step(nullptr, start.scalars, output.data());
  EXPECT_TRUE(status.ok()) << status.message();
}

// What the limit of a model leaves no room for, or the GPU has none for. An input that is not taken ahead comes with
// its step.
TEST_F(CudaFaults, WithoutRoomForASecondSlotStepsBringTheirInputs) {
  const Named named = corpus_plan("train.f32");
  const auto plan = plan::Plan::load(named.span()).value();
  const Start start(*plan);
  const std::byte* input = start.arenas[static_cast<int>(Arena::input)].data();
  const uint64_t slot = cuda::Slot::kInputAt + plan->arena_bytes(Arena::input);
  struct Outcome {
    std::vector<bool> taken;
    std::vector<std::byte> weights;
    uint64_t used = 0;  // of the limit, once the plan was bound
  };
  const auto run = [&](uint64_t limit, const std::string& memory_of_gpu) {
    Outcome outcome;
    const auto memory = cuda::DeviceMemory::create(device(), limit).value();
    for (int a = 0; a <= static_cast<int>(Arena::activations); ++a) {
      EXPECT_TRUE(memory->ensure(static_cast<Arena>(a), start.arenas[a].size()).ok());
      EXPECT_TRUE(memory->write(static_cast<Arena>(a), 0, start.arenas[a]).ok());
    }
    const auto executable = bound_to(memory, named);
    outcome.used = memory->budget()->used();
    std::vector<std::byte> output(start.arenas[static_cast<int>(Arena::output)].size());
    const Setting setting("FAKE_CUDA_MEMORY",
                          memory_of_gpu.empty() ? std::to_string(device_bytes() + slot) : memory_of_gpu);
    const int asked_before = calls("cuMemAlloc");
    for (int i = 0; i < 3; ++i) {
      const auto ticket = executable->prefetch(input);
      EXPECT_TRUE(ticket.ok()) << ticket.status().message();
      const bool taken = ticket.ok() && executable->claim(ticket.value());
      EXPECT_EQ(taken, ticket.ok() && ticket.value() > 0);
      const Status status = executable->step(taken ? nullptr : input, start.scalars, output.data());
      EXPECT_TRUE(status.ok()) << status.message();
      outcome.taken.push_back(taken);
    }
    EXPECT_LE(calls("cuMemAlloc"), asked_before + 1);
    outcome.weights = weights_of(*memory);
    return outcome;
  };
  const std::vector<bool> always(3, true), never(3, false);
  const Outcome roomy = run(Budget::kNoLimit, "");
  EXPECT_EQ(roomy.taken, always);
  // To the byte: the last limit that it does not fit, and the first that it does.
  for (const uint64_t missing : {uint64_t{1}, uint64_t{0}}) {
    const Outcome limited = run(roomy.used + slot - missing, "");
    EXPECT_EQ(limited.taken, missing ? never : always);
    EXPECT_TRUE(limited.weights == roomy.weights);
  }
  const Outcome full = run(Budget::kNoLimit, std::to_string(device_bytes() + roomy.used));
  EXPECT_EQ(full.taken, never);
  EXPECT_TRUE(full.weights == roomy.weights);
}

// A host that has no memory to lock, or not for all: ordinary memory gives the same bits, and the device counts it.
TEST_F(CudaFaults, WithoutPageLockedMemoryStepsAreTheSame) {
  const Named named = corpus_plan("train.f32");
  const Start start(*plan::Plan::load(named.span()).value());
  reset_fake();
  const auto want = on_cuda(named, start, 3);
  ASSERT_TRUE(want.ok());
  const int live = live_objects();
  for (const char* order : {"0", "3"})
    for (const char* lockable : {"0", "200", "1000000000"}) {
      SCOPED_TRACE(std::string(lockable) + " bytes, order " + order);
      const uint64_t before = device()->unlocked_bytes();
      reset_fake();
      const Setting legal("FAKE_CUDA_ORDER", order), some("FAKE_CUDA_LOCKABLE", lockable);
      const auto got = on_cuda(named, start, 3);
      ASSERT_TRUE(got.ok()) << got.status().message();
      EXPECT_TRUE(got.value() == want.value());
      EXPECT_EQ(device()->unlocked_bytes() > before, std::string(lockable) != "1000000000");
      EXPECT_EQ(live_objects(), live);
    }
  // What fails otherwise is an error.
  reset_fake();
  const Setting setting("FAKE_CUDA_FAIL", "cuMemHostAlloc:2:1");
  EXPECT_EQ(on_cuda(named, start).status().code(), Code::internal);
}

TEST_F(CudaFaults, ACaptureTakesNoCopyOfOrdinaryMemory) {
  const cuda::Driver& driver = device()->driver();
  CUstream stream = nullptr;
  ASSERT_EQ(driver.cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, 0), CUDA_SUCCESS);
  CUdeviceptr there = 0;
  ASSERT_EQ(driver.cuMemAlloc(&there, 64), CUDA_SUCCESS);
  std::byte here[64] = {};
  for (const bool down : {false, true}) {
    CUgraph graph = nullptr;
    ASSERT_EQ(driver.cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_RELAXED), CUDA_SUCCESS);
    EXPECT_EQ(
        down ? driver.cuMemcpyDtoHAsync(here, there, 64, stream) : driver.cuMemcpyHtoDAsync(there, here, 64, stream),
        CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    EXPECT_EQ(driver.cuStreamEndCapture(stream, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  }
  EXPECT_EQ(driver.cuMemFree(there), CUDA_SUCCESS);
  EXPECT_EQ(driver.cuStreamDestroy(stream), CUDA_SUCCESS);
}

TEST_F(CudaFaults, MemoryThatIsNotThereIsSaidInNumbers) {
  const Named named = corpus_plan("train.f32");
  const Start start(*plan::Plan::load(named.span()).value());
  const int live = live_objects();
  {
    const Setting setting("FAKE_CUDA_MEMORY", "20000");
    const Status status = on_cuda(named, start).status();
    EXPECT_EQ(status.code(), Code::oom);
    EXPECT_NE(status.message().find("KiB of GPU memory could not be allocated"), std::string::npos) << status.message();
    EXPECT_EQ(status.message().find("0.0 "), std::string::npos) << status.message();
    EXPECT_NE(status.message().find("are free"), std::string::npos) << status.message();
  }
  EXPECT_EQ(live_objects(), live);
}

// Everything that a model has on the device counts: arenas, what executables have, and nothing when they are gone.
TEST_F(CudaFaults, ALimitHoldsForArenasAndExecutablesTogether) {
  const Named named = corpus_plan("train.f32");
  const Start start(*plan::Plan::load(named.span()).value());
  const uint64_t before = device_bytes();
  const auto run = [&](uint64_t limit) -> StatusOr<std::shared_ptr<Budget>> {
    auto memory = cuda::DeviceMemory::create(device(), limit);
    if (!memory.ok()) return memory.status();
    for (int a = 0; a <= static_cast<int>(Arena::activations); ++a) {
      EFF_RETURN_IF_ERROR(memory.value()->ensure(static_cast<Arena>(a), start.arenas[a].size()));
      EFF_RETURN_IF_ERROR(memory.value()->write(static_cast<Arena>(a), 0, start.arenas[a]));
    }
    const auto bound = cuda::Executable::bind(std::make_shared<ThreadPool>(1), memory.value(), named.span());
    if (!bound.ok()) return bound.status();
    std::vector<std::byte> output(start.arenas[static_cast<int>(Arena::output)].size());
    EFF_RETURN_IF_ERROR(
        bound.value()->step(start.arenas[static_cast<int>(Arena::input)].data(), start.scalars, output.data()));
    EXPECT_EQ(before + memory.value()->budget()->used(), device_bytes());
    return memory.value()->budget();
  };
  const auto whole = run(Budget::kNoLimit);
  ASSERT_TRUE(whole.ok()) << whole.status().message();
  EXPECT_EQ(whole.value()->used(), 0u);
  uint64_t most = 0;
  for (int a = 0; a <= static_cast<int>(Arena::activations); ++a) most += start.arenas[a].size();
  // Enough for the arenas, and not for what the plan has beside them.
  const Status refused = run(most + 2048).status();
  EXPECT_EQ(refused.code(), Code::oom);
  EXPECT_NE(refused.message().find("the limit of"), std::string::npos) << refused.message();
  EXPECT_EQ(device_bytes(), before);
}

// As a GPU that has fallen off: from then on every call fails, the ones of the cleanup too.
TEST_F(CudaFaults, ADeviceFaultEndsInAnError) {
  const Named named = corpus_plan("train.f32");
  const Start start(*plan::Plan::load(named.span()).value());
  for (const char* call : {"cuLaunchKernelEx", "cuGraphLaunch", "cuStreamSynchronize", "cuMemcpyDtoHAsync"}) {
    reset_fake();
    const Setting setting("FAKE_CUDA_FAIL", std::string(call) + ":2:719");
    const Status status = on_cuda(named, start, 2).status();
    EXPECT_EQ(status.code(), Code::gpu_fault) << call;
    EXPECT_NE(status.message().find("(719)"), std::string::npos) << status.message();
    EXPECT_NE(status.message().find("GPU fault: "), std::string::npos) << status.message();
  }
  reset_fake();
}

// A GPU that is gone often has no other name for it than CUDA_ERROR_UNKNOWN, which need not be the end.
TEST_F(CudaFaults, AnUnknownErrorIsAFaultWhereEveryCallHasIt) {
  const Named named = corpus_plan("train.f32");
  const Start start(*plan::Plan::load(named.span()).value());
  reset_fake();
  const auto want = on_cuda(named, start, 2);
  ASSERT_TRUE(want.ok());
  const int live = live_objects();
  for (const char* call : {"cuLaunchKernelEx", "cuGraphLaunch", "cuStreamSynchronize", "cuEventSynchronize"}) {
    SCOPED_TRACE(call);
    reset_fake();
    {
      const Setting setting("FAKE_CUDA_FAIL", std::string(call) + ":2:999:once");
      const Status status = on_cuda(named, start, 2).status();
      EXPECT_EQ(status.code(), Code::internal);
      EXPECT_NE(status.message().find("(999)"), std::string::npos) << status.message();
      EXPECT_EQ(status.message().find("GPU fault"), std::string::npos) << status.message();
    }
    EXPECT_EQ(live_objects(), live);
    const auto again = on_cuda(named, start, 2);
    ASSERT_TRUE(again.ok()) << again.status().message();
    EXPECT_TRUE(again.value() == want.value());
  }
  for (const char* call : {"cuLaunchKernelEx", "cuGraphLaunch", "cuStreamSynchronize", "cuEventSynchronize"}) {
    reset_fake();
    const Setting setting("FAKE_CUDA_FAIL", std::string(call) + ":2:999");
    const Status status = on_cuda(named, start, 2).status();
    EXPECT_EQ(status.code(), Code::gpu_fault) << call;
    EXPECT_NE(status.message().find("GPU fault: "), std::string::npos) << status.message();
    EXPECT_NE(status.message().find("(999)"), std::string::npos) << status.message();
  }
  reset_fake();
}

TEST_F(CudaFaults, AFaultThatALibraryMeetsIsAFault) {
  const cuda::Launch call{"library/1", {}, 0, 0, {}, [](void*) { return error(Code::plan_invalid, "status 15"); }};
  const cuda::Driver& driver = device()->driver();
  CUstream stream = nullptr;
  ASSERT_EQ(driver.cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, 0), CUDA_SUCCESS);
  const auto launched = [&](const char* fault) {
    reset_fake();
    const Setting setting("FAKE_CUDA_FAIL", fault);
    return device()->launch(call, nullptr, stream);
  };
  EXPECT_EQ(launched("").code(), Code::plan_invalid);
  EXPECT_EQ(launched("").message(), "status 15");
  // Of the context, or of what the stream had yet to do, which nobody has asked about before.
  for (const char* fault : {"cuStreamIsCapturing:1:700", "cuStreamSynchronize:1:719", "cuStreamSynchronize:1:999"}) {
    const Status status = launched(fault);
    EXPECT_EQ(status.code(), Code::gpu_fault) << fault;
    EXPECT_TRUE(status.message().starts_with("at or before library/1: status 15: GPU fault: ")) << status.message();
  }
  // Where all before it was waited for, it is the library's.
  reset_fake();
  {
    const Setting setting("FAKE_CUDA_FAIL", "cuStreamIsCapturing:1:700");
    EXPECT_TRUE(
        device()->launch(call, nullptr, stream, true).message().starts_with("library/1: status 15: GPU fault: "));
  }
  // A call that fails otherwise is no fault.
  EXPECT_EQ(launched("cuStreamSynchronize:1:1").code(), Code::plan_invalid);
  EXPECT_EQ(launched("cuStreamSynchronize:1:999:once").code(), Code::plan_invalid);
  // In a capture the stream is not waited for, which would end that.
  reset_fake();
  CUgraph graph = nullptr;
  ASSERT_EQ(driver.cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_SUCCESS);
  EXPECT_EQ(device()->launch(call, nullptr, stream).code(), Code::plan_invalid);
  EXPECT_EQ(driver.cuStreamEndCapture(stream, &graph), CUDA_SUCCESS);
  driver.cuGraphDestroy(graph);
  EXPECT_EQ(calls("cuStreamSynchronize"), 0);
  EXPECT_EQ(driver.cuStreamDestroy(stream), CUDA_SUCCESS);
}

// What the driver without a GPU holds a launch to, as a real one would.
TEST_F(CudaFaults, ALaunchKeepsToWhatItsKernelIsCompiledFor) {
  std::vector<float> values(16);
  const cuda::CastWeightsArgs args{values.data(), values.data(), 0};
  const auto function = device()->function("cast_weights_bf16");
  ASSERT_TRUE(function.ok());
  const auto launched = [&](uint32_t threads, size_t shared) {
    CUstream stream = nullptr;
    EXPECT_EQ(device()->driver().cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, 0), CUDA_SUCCESS);
    const Status status = device()->launch(cuda::make_launch("cast_weights_bf16", {1, 1, 1}, threads, shared, args),
                                           function.value(), stream);
    EXPECT_EQ(device()->driver().cuStreamDestroy(stream), CUDA_SUCCESS);
    return status;
  };
  EXPECT_TRUE(launched(cuda::kCastThreads, 0).ok());
  EXPECT_NE(launched(2 * cuda::kCastThreads, 0).message().find("cast_weights_bf16: cuLaunchKernelEx failed"),
            std::string::npos);
  EXPECT_FALSE(launched(cuda::kCastThreads, 228 << 10).ok());
}

// At the call, where a step is captured too, not once the work runs. Grids and blocks have the limits of the
// programming guide's table of compute capabilities, which are the same for all GPUs.
TEST_F(CudaFaults, ALaunchThatNoGpuTakesIsRefusedAtItsCall) {
  const cuda::Driver& driver = device()->driver();
  const auto function = device()->function("cast_weights_bf16");
  ASSERT_TRUE(function.ok());
  CUstream stream = nullptr;
  ASSERT_EQ(driver.cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, 0), CUDA_SUCCESS);
  const auto launched = [&](std::array<unsigned, 3> grid, std::array<unsigned, 3> block, unsigned shared = 0) {
    cuda::CastWeightsArgs args{nullptr, nullptr, 0};
    void* parameters[] = {&args};
    const CUlaunchConfig config{grid[0], grid[1], grid[2], block[0], block[1], block[2], shared, stream, nullptr, 0};
    return driver.cuLaunchKernelEx(&config, function.value(), parameters, nullptr);
  };
  for (const bool captured : {false, true}) {
    SCOPED_TRACE(captured);
    if (captured) {
      ASSERT_EQ(driver.cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_RELAXED), CUDA_SUCCESS);
    }
    EXPECT_EQ(launched({1, 1, 1}, {32, 1, 1}), CUDA_SUCCESS);
    const std::array<unsigned, 3> grids[] = {{0, 1, 1},           {1, 0, 1},     {1, 1, 0},
                                             {0x80000000u, 1, 1}, {1, 65536, 1}, {1, 1, 65536}};
    for (const auto& grid : grids)
      EXPECT_EQ(launched(grid, {32, 1, 1}), CUDA_ERROR_INVALID_VALUE) << grid[0] << " " << grid[1] << " " << grid[2];
    const std::array<unsigned, 3> blocks[] = {{0, 1, 1}, {32, 0, 1}, {32, 1, 0}, {1025, 1, 1}, {1, 1, 65}, {32, 33, 1}};
    for (const auto& block : blocks)
      EXPECT_EQ(launched({1, 1, 1}, block), CUDA_ERROR_INVALID_VALUE) << block[0] << " " << block[1] << " " << block[2];
    EXPECT_EQ(launched({1, 1, 1}, {32, 1, 1}, (227 << 10) + 1), CUDA_ERROR_INVALID_VALUE);
    if (captured) {
      CUgraph graph = nullptr;
      EXPECT_EQ(driver.cuStreamEndCapture(stream, &graph), CUDA_SUCCESS);
      EXPECT_EQ(driver.cuGraphDestroy(graph), CUDA_SUCCESS);
    }
  }
  EXPECT_EQ(driver.cuStreamDestroy(stream), CUDA_SUCCESS);
}

// cuEventElapsedTime in cuda.h; and no stream of ours may wait for what libraries put on the default one.
TEST_F(CudaFaults, FlagsOfEventsAndStreamsHold) {
  const cuda::Driver& driver = device()->driver();
  CUstream stream = nullptr;
  EXPECT_EQ(driver.cuStreamCreateWithPriority(&stream, CU_STREAM_DEFAULT, 0), CUDA_ERROR_INVALID_VALUE);
  ASSERT_EQ(driver.cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, 0), CUDA_SUCCESS);
  CUevent timed[2] = {}, untimed = nullptr;
  for (CUevent& event : timed) ASSERT_EQ(driver.cuEventCreate(&event, CU_EVENT_BLOCKING_SYNC), CUDA_SUCCESS);
  ASSERT_EQ(driver.cuEventCreate(&untimed, CU_EVENT_DISABLE_TIMING | CU_EVENT_BLOCKING_SYNC), CUDA_SUCCESS);
  for (const CUevent event : {timed[0], timed[1], untimed})
    ASSERT_EQ(driver.cuEventRecord(event, stream), CUDA_SUCCESS);
  ASSERT_EQ(driver.cuStreamSynchronize(stream), CUDA_SUCCESS);
  float ms = 0;
  EXPECT_EQ(driver.cuEventElapsedTime(&ms, timed[0], timed[1]), CUDA_SUCCESS);
  EXPECT_EQ(driver.cuEventElapsedTime(&ms, timed[0], untimed), CUDA_ERROR_INVALID_HANDLE);
  EXPECT_EQ(driver.cuEventElapsedTime(&ms, untimed, timed[1]), CUDA_ERROR_INVALID_HANDLE);
  for (const CUevent event : {timed[0], timed[1], untimed}) EXPECT_EQ(driver.cuEventDestroy(event), CUDA_SUCCESS);
  EXPECT_EQ(driver.cuStreamDestroy(stream), CUDA_SUCCESS);
}

// What comes of `call` on a thread that has never had a context.
template <class Call>
auto on_a_new_thread(const Call& call) {
  decltype(call()) result{};
  std::thread([&] { result = call(); }).join();
  return result;
}

// Those that cuda.h has CUDA_ERROR_INVALID_CONTEXT for; it has none for what is done with libraries of kernels.
TEST_F(CudaFaults, CallsWantAContextThatIsCurrentOnTheirThread) {
  const cuda::Driver& driver = device()->driver();
  CUstream stream = nullptr;
  CUevent event = nullptr;
  ASSERT_EQ(driver.cuStreamCreateWithPriority(&stream, CU_STREAM_NON_BLOCKING, 0), CUDA_SUCCESS);
  ASSERT_EQ(driver.cuEventCreate(&event, CU_EVENT_DEFAULT), CUDA_SUCCESS);
  ASSERT_EQ(driver.cuEventRecord(event, stream), CUDA_SUCCESS);
  size_t bytes[2] = {};
  CUdeviceptr address = 0;
  void* locked = nullptr;
  std::byte here[16] = {};
  ASSERT_EQ(driver.cuMemAlloc(&address, 16), CUDA_SUCCESS);
  const std::pair<const char*, std::function<CUresult()>> calls[] = {
      {"cuMemGetInfo", [&] { return driver.cuMemGetInfo(&bytes[0], &bytes[1]); }},
      {"cuMemAlloc", [&] { return driver.cuMemAlloc(&address, 16); }},
      {"cuMemFree", [&] { return driver.cuMemFree(address); }},
      {"cuMemHostAlloc", [&] { return driver.cuMemHostAlloc(&locked, 16, 0); }},
      {"cuMemcpyHtoDAsync", [&] { return driver.cuMemcpyHtoDAsync(address, here, 16, stream); }},
      {"cuMemcpyDtoHAsync", [&] { return driver.cuMemcpyDtoHAsync(here, address, 16, stream); }},
      {"cuMemcpyDtoDAsync", [&] { return driver.cuMemcpyDtoDAsync(address, address, 16, stream); }},
      {"cuMemsetD8Async", [&] { return driver.cuMemsetD8Async(address, 0, 16, stream); }},
      {"cuStreamSynchronize", [&] { return driver.cuStreamSynchronize(stream); }},
      {"cuStreamWaitEvent", [&] { return driver.cuStreamWaitEvent(stream, event, 0); }},
      {"cuEventRecord", [&] { return driver.cuEventRecord(event, stream); }},
      {"cuEventSynchronize", [&] { return driver.cuEventSynchronize(event); }},
      {"cuStreamBeginCapture", [&] { return driver.cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_RELAXED); }},
      {"cuStreamDestroy", [&] { return driver.cuStreamDestroy(stream); }},
      {"cuEventDestroy", [&] { return driver.cuEventDestroy(event); }}};
  for (const auto& [name, call] : calls) EXPECT_EQ(on_a_new_thread(call), CUDA_ERROR_INVALID_CONTEXT) << name;
  EXPECT_EQ(on_a_new_thread([&] { return device()->enter().ok() ? driver.cuMemFree(address) : CUDA_ERROR_UNKNOWN; }),
            CUDA_SUCCESS);
  EXPECT_EQ(on_a_new_thread([&] { return driver.cuCtxSetCurrent(reinterpret_cast<CUcontext>(here)); }),
            CUDA_ERROR_INVALID_CONTEXT);
  EXPECT_EQ(driver.cuEventDestroy(event), CUDA_SUCCESS);
  EXPECT_EQ(driver.cuStreamDestroy(stream), CUDA_SUCCESS);
}

// A pool of threads calls them, each of which may be the first call of its thread. Without their entering the context,
// which is planted here, each of them fails.
TEST_F(CudaFaults, WhatTheEngineCallsIsForAnyThread) {
  const Named named = corpus_plan("train.bf16");
  const auto plan = plan::Plan::load(named.span()).value();
  const Start start(*plan);
  const std::byte* input = start.arenas[static_cast<int>(Arena::input)].data();
  std::vector<std::byte> output(start.arenas[static_cast<int>(Arena::output)].size()), weights(64), tensor(64);
  const plan::Tensor& weight = *std::find_if(plan->tensors().begin(), plan->tensors().end(),
                                             [](const plan::Tensor& t) { return t.arena == Arena::weights; });
  const Setting small("FAKE_CUDA_MEMORY", "64000000");  // which measure_peaks takes half of
  const int live = live_objects();
  reset_fake();
  {
    auto memory = memory_with(start);
    auto executable = bound_to(memory, named);
    auto batch = std::move(
        cuda::DeviceBatch::create(device(), plan->arena_bytes(Arena::input), memory->stream(), nullptr).value());
    ASSERT_TRUE(batch->end().ok());
    const auto stepped = [&](const std::byte* from) { return executable->step(from, start.scalars, output.data()); };
    const std::pair<const char*, std::function<Status()>> calls[] = {
        {"create", [] { return cuda::DeviceMemory::create(device()).status(); }},
        {"ensure", [&] { return memory->ensure(Arena::activations, 2 * memory->bytes(Arena::activations)); }},
        {"clear", [&] { return memory->clear(Arena::grads); }},
        {"copy", [&] { return memory->copy(Arena::weights, Arena::ema); }},
        {"read", [&] { return memory->read(Arena::weights, 0, weights); }},
        {"write", [&] { return memory->write(Arena::weights, 0, weights); }},
        {"set_loss_scale", [&] { return memory->set_loss_scale({}); }},
        {"bind", [&] { return cuda::Executable::bind(executable->pool(), memory, named.span()).status(); }},
        {"step", [&] { return stepped(input); }},
        {"prefetch", [&] { return executable->prefetch(input).status(); }},
        {"prefetch of a batch", [&] { return executable->prefetch(*batch).status(); }},
        {"take, and step",
         [&] {
           const Status taken = executable->take(*batch);
           return taken.ok() ? stepped(nullptr) : taken;
         }},
        {"find_nonfinite", [&] { return executable->find_nonfinite(input, start.scalars).status(); }},
        {"read a tensor", [&] { return executable->read(weight, tensor); }},
        {"read a batch", [&] { return batch->read(tensor); }},
        {"page-locked", [] { return cuda::HostBlock::allocate_locked(device(), 64).status(); }},
        {"measure_peaks", [] { return device()->measure_peaks().status(); }}};
    for (const auto& [name, call] : calls) {
      {
        const Setting planted("FAKE_CUDA_IGNORE", "cuCtxSetCurrent");
        const Status status = on_a_new_thread(call);
        EXPECT_NE(status.message().find("(201)"), std::string::npos) << name << ": " << status.message();
      }
      const Status status = on_a_new_thread(call);
      EXPECT_TRUE(status.ok()) << name << ": " << status.message();
    }
    // What gives back, likewise.
    std::thread([&] { batch.reset(); }).join();
    std::thread([&] { executable.reset(); }).join();
    std::thread([&] { memory.reset(); }).join();
  }
  EXPECT_EQ(live_objects(), live);
}

// By the table of compute capabilities in NVIDIA's CUDA C++ programming guide, in KiB.
TEST_F(CudaFaults, AGpuHasTheSharedMemoryOfItsKind) {
  for (const auto& [capability, kib] : std::map<int, int>{
           {80, 163}, {86, 99}, {87, 163}, {89, 99}, {90, 227}, {100, 227}, {103, 227}, {120, 99}, {121, 99}}) {
    const Setting setting("FAKE_CUDA_CAPABILITY", std::to_string(capability));
    EXPECT_EQ(cuda::Device::properties(device()->driver(), 0).value().shared_bytes, kib * 1024) << capability;
  }
}

// cuStreamBeginCapture and cuThreadExchangeStreamCaptureMode say what each mode forbids to whom.
class CudaCaptures : public CudaFaults {
 protected:
  void SetUp() override {
    CudaFaults::SetUp();
    reset_fake();
    ASSERT_EQ(driver().cuStreamCreateWithPriority(&stream_, CU_STREAM_NON_BLOCKING, 0), CUDA_SUCCESS);
    ASSERT_EQ(driver().cuStreamCreateWithPriority(&other_, CU_STREAM_NON_BLOCKING, 0), CUDA_SUCCESS);
    ASSERT_EQ(driver().cuEventCreate(&event_, CU_EVENT_DISABLE_TIMING), CUDA_SUCCESS);
  }
  void TearDown() override {
    EXPECT_EQ(driver().cuEventDestroy(event_), CUDA_SUCCESS);
    for (const CUstream stream : {stream_, other_}) EXPECT_EQ(driver().cuStreamDestroy(stream), CUDA_SUCCESS);
  }
  static const cuda::Driver& driver() { return device()->driver(); }

  struct Outcome {
    CUresult call, end;
    bool operator==(const Outcome&) const = default;
  };
  // What a call gives while `stream_` is captured, and what then becomes of the capture.
  template <class Call>
  Outcome during(CUstreamCaptureMode mode, const Call& call, bool on_another_thread = false) {
    EXPECT_EQ(driver().cuStreamBeginCapture(stream_, mode), CUDA_SUCCESS);
    Outcome outcome{};
    if (on_another_thread)
      std::thread([&] { outcome.call = device()->enter().ok() ? call() : CUDA_ERROR_INVALID_CONTEXT; }).join();
    else
      outcome.call = call();
    CUgraph graph = nullptr;
    outcome.end = driver().cuStreamEndCapture(stream_, &graph);
    if (graph) driver().cuGraphDestroy(graph);
    return outcome;
  }
  static CUresult allocate() {
    CUdeviceptr address = 0;
    const CUresult result = driver().cuMemAlloc(&address, 256);
    return result == CUDA_SUCCESS ? driver().cuMemFree(address) : result;
  }

  static constexpr auto kGlobal = CU_STREAM_CAPTURE_MODE_GLOBAL, kOfThread = CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
                        kRelaxed = CU_STREAM_CAPTURE_MODE_RELAXED;
  static constexpr Outcome kFine{CUDA_SUCCESS, CUDA_SUCCESS},
      kBroken{CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED};
  CUstream stream_ = nullptr, other_ = nullptr;
  CUevent event_ = nullptr;
};

TEST_F(CudaCaptures, MemoryAndWaitingAreForTheRelaxed) {
  const auto wait = [&] { return driver().cuStreamSynchronize(other_); };
  for (const bool another_thread : {false, true}) {
    SCOPED_TRACE(another_thread);
    EXPECT_EQ(during(kGlobal, allocate, another_thread), kBroken);
    EXPECT_EQ(during(kGlobal, wait, another_thread), kBroken);
    EXPECT_EQ(during(kOfThread, allocate, another_thread), another_thread ? kFine : kBroken);
    EXPECT_EQ(during(kOfThread, wait, another_thread), another_thread ? kFine : kBroken);
    EXPECT_EQ(during(kRelaxed, allocate, another_thread), kFine);
    EXPECT_EQ(during(kRelaxed, wait, another_thread), kFine);
  }
}

TEST_F(CudaCaptures, WhatIsCapturedIsWaitedForInNoMode) {
  for (const auto mode : {kGlobal, kOfThread, kRelaxed}) {
    EXPECT_EQ(during(mode, [&] { return driver().cuStreamSynchronize(stream_); }), kBroken) << mode;
    const auto record_and_wait = [&] {
      EXPECT_EQ(driver().cuEventRecord(event_, stream_), CUDA_SUCCESS);
      return driver().cuEventSynchronize(event_);
    };
    const Outcome outcome = during(mode, record_and_wait);
    EXPECT_NE(outcome.call, CUDA_SUCCESS) << mode;
    EXPECT_EQ(outcome.end, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED) << mode;
    // Nor once the capture has ended, until it is recorded anew.
    EXPECT_EQ(driver().cuEventSynchronize(event_), CUDA_ERROR_CAPTURED_EVENT);
    EXPECT_EQ(driver().cuEventRecord(event_, other_), CUDA_SUCCESS);
    EXPECT_EQ(driver().cuEventSynchronize(event_), CUDA_SUCCESS);
  }
}

TEST_F(CudaCaptures, AreEndedByTheThreadThatBeganThemUnlessTheyAreRelaxed) {
  for (const auto mode : {kGlobal, kOfThread, kRelaxed}) {
    CUgraph graph = nullptr;
    const auto end = [&] { return driver().cuStreamEndCapture(stream_, &graph); };
    const Outcome outcome = during(mode, end, true);
    EXPECT_EQ(outcome.call, mode == kRelaxed ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD) << mode;
    EXPECT_EQ(outcome.end, mode == kRelaxed ? CUDA_ERROR_ILLEGAL_STATE : CUDA_ERROR_STREAM_CAPTURE_INVALIDATED) << mode;
    if (graph) driver().cuGraphDestroy(graph);
  }
}

// What a capture or a profile launches is told of by calls that may hear of any kernel before.
TEST_F(CudaFaults, AFaultThatNobodyWaitedForIsAtOrBeforeAKernel) {
  const Named named = corpus_plan("train.f32");
  const Start start(*plan::Plan::load(named.span()).value());
  reset_fake();
  const Setting fault("FAKE_CUDA_FAIL", "cuLaunchKernelEx:20:719");
  const Status status = on_cuda(named, start, 2).status();
  EXPECT_EQ(status.code(), Code::gpu_fault);
  EXPECT_TRUE(status.message().starts_with("at or before ")) << status.message();
  EXPECT_EQ(status.message().find("op "), std::string::npos) << status.message();
  reset_fake();
}

// Without graphs, and every launch waited for: a fault is that of the op in work, and of its kernel.
TEST_F(CudaFaults, ASynchronousRunNamesTheOpAtFault) {
  const Named named = corpus_plan("train.f32");
  const auto plan = plan::Plan::load(named.span()).value();
  const Start start(*plan);
  const auto want = on_cuda(named, start, 2);
  const Setting synchronous("EFFNET_CUDA_SYNC", "1");
  reset_fake();
  const auto got = on_cuda(named, start, 2);
  ASSERT_TRUE(got.ok() && want.ok());
  EXPECT_TRUE(got.value() == want.value());
  EXPECT_EQ(calls("cuGraphLaunch"), 0);
  const int waits = calls("cuStreamSynchronize");
  EXPECT_GT(waits, static_cast<int>(plan->ops().size()));
  reset_fake();
  const Setting fault("FAKE_CUDA_FAIL", "cuStreamSynchronize:" + std::to_string(waits / 2) + ":700");
  const Status status = on_cuda(named, start, 2).status();
  EXPECT_TRUE(status.message().starts_with("op ")) << status.message();
  const size_t kernel = status.message().find(":cuda): "), why = status.message().find(": GPU fault: ");
  EXPECT_NE(kernel, std::string::npos) << status.message();
  EXPECT_GT(why, kernel + 8) << status.message();
  reset_fake();
}

}  // namespace
}  // namespace effnet::test
