// Whole plans on the CUDA backend under the fake driver (native/cuda/fake), beside the CPU backend.
#include <atomic>
#include <chrono>
#include <future>

#include "cuda_runtime_rig.h"

namespace effnet::test {
namespace {

TEST_F(CudaRuntime, PlansGiveWhatTheCpuGives) {
  int compared = 0, regions = 0;
  for (const Named& named : corpus()) {
    SCOPED_TRACE(named.name);
    auto plan = plan::Plan::load(named.span());
    if (!plan.ok()) continue;  // kept as refused
    const Start start(*plan.value());
    if (plan.value()->region().count > 0) {
      ++regions;
      EXPECT_EQ(on_cuda(named, start).status().code(), Code::plan_invalid);
      continue;
    }
    const auto want = on_cpu(named, start);
    if (!want.ok()) continue;  // bf16 where the CPU has none
    const auto got = on_cuda(named, start);
    ASSERT_TRUE(got.ok()) << got.status().message();
    const bool bf16 = named.name.find("bf16") != std::string::npos;
    const bool whole = plan.value()->ops().size() > 4;
    expect_alike(*plan.value(), got.value(), want.value(), bf16 ? (whole ? 0.1 : 0.01) : whole ? 1e-3 : 2e-5);
    ++compared;
  }
  EXPECT_GT(compared, 60);
  EXPECT_GT(regions, 0);
}

// CPUs have no FP16: beside the same ops in FP32, from values that FP16 has; ops for GPUs beside their FP32 kernels
// there.
TEST_F(CudaRuntime, PlansInFp16GiveWhatTheCpuGivesInFp32) {
  const auto plans = corpus();
  int compared = 0;
  for (const Named& named : plans) {
    if (!named.name.ends_with(".f16") || named.name == "gpu-train.f16") continue;  // that one is below
    SCOPED_TRACE(named.name);
    const std::string same = named.name.substr(0, named.name.size() - 3) + "f32", plain = same.substr(4);
    const auto wide = std::find_if(plans.begin(), plans.end(),
                                   [&](const Named& each) { return each.name == same || each.name == plain; });
    ASSERT_TRUE(wide != plans.end());
    const auto loaded = plan::Plan::load(named.span()), wide_loaded = plan::Plan::load(wide->span());
    if (!loaded.ok() || !wide_loaded.ok()) continue;  // kept as refused
    const auto &plan = loaded.value(), &wide_plan = wide_loaded.value();
    const auto same_shape = [](const plan::Tensor& a, const plan::Tensor& b) {
      return a.name == b.name && a.elements() == b.elements();
    };
    // The corpus keeps one op of a kind, not always of the same shapes.
    if (!std::equal(plan->tensors().begin(), plan->tensors().end(), wide_plan->tensors().begin(),
                    wide_plan->tensors().end(), same_shape))
      continue;
    Start start(*plan), wide_start(*wide_plan);
    for (size_t at = 0; at < plan->tensors().size(); ++at) {
      const plan::Tensor &t = plan->tensors()[at], &of_wide = wide_plan->tensors()[at];
      std::byte* data = wide_start.arenas[static_cast<int>(of_wide.arena)].data() + of_wide.offset;
      for (int64_t i = 0; t.dtype == DType::f16 && i < t.elements(); ++i) {
        const float value = value_at(t, start.arenas[static_cast<int>(t.arena)].data(), i);
        if (of_wide.dtype == DType::f32) std::memcpy(data + 4 * i, &value, 4);
      }
    }
    auto want = on_cpu(*wide, wide_start);
    if (want.status().code() == Code::plan_invalid) want = on_cuda(*wide, wide_start);  // an op for GPUs
    const auto got = on_cuda(named, start);
    ASSERT_TRUE(want.ok() && got.ok()) << want.status().message() << got.status().message();
    // The inverse deviation of sums far from 0 moves by some of their rounding.
    expect_alike(*plan, got.value(), *wide_plan, want.value(), 0.01);
    ++compared;
  }
  EXPECT_GT(compared, 12);
}

// The passes for GPUs make another plan of the same model; its parameters and inputs lie where the CPU's do.
TEST_F(CudaRuntime, AStepAsFusedForGpusGivesWhatTheCpuGives) {
  for (const std::string dtype : {"f32", "bf16", "f16"}) {
    SCOPED_TRACE(dtype);
    // CPUs have no f16: beside FP32.
    const Named fused = corpus_plan("gpu-train." + dtype),
                plain = corpus_plan("train." + (dtype == "f16" ? "f32" : dtype));
    const auto fused_plan = plan::Plan::load(fused.span()), plain_plan = plan::Plan::load(plain.span());
    ASSERT_TRUE(fused_plan.ok() && plain_plan.ok());
    const Start start(*plain_plan.value());
    const auto want = on_cpu(plain, start);
    if (!want.ok()) continue;  // bf16 where the CPU has none
    Start same = start;
    for (const Arena own : {Arena::activations, Arena::prepared, Arena::output, Arena::image})
      same.arenas[static_cast<int>(own)].resize(fused_plan.value()->arena_bytes(own));
    for (const Arena shared : {Arena::weights, Arena::grads, Arena::moment0, Arena::ema, Arena::input})
      ASSERT_EQ(fused_plan.value()->arena_bytes(shared), plain_plan.value()->arena_bytes(shared));
    const auto got = on_cuda(fused, same);
    ASSERT_TRUE(got.ok()) << got.status().message();
    expect_alike(*fused_plan.value(), got.value(), want.value(), dtype == "f32" ? 1e-3 : dtype == "f16" ? 0.02 : 0.1);
  }
}

TEST_F(CudaRuntime, EveryLegalOrderGivesTheSameBits) {
  for (const Named& named : corpus()) {
    auto plan = plan::Plan::load(named.span());
    if (!plan.ok() || plan.value()->region().count > 0 || plan.value()->ops().size() <= 4) continue;
    SCOPED_TRACE(named.name);
    const Start start(*plan.value());
    const auto first = on_cuda(named, start, 2);
    for (const char* order : {"3", "4", "7"}) {
      const Setting setting("FAKE_CUDA_ORDER", order);
      const auto again = on_cuda(named, start, 2);
      ASSERT_EQ(again.status().code(), first.status().code());
      if (first.ok()) EXPECT_TRUE(again.value() == first.value()) << "order " << order;
    }
  }
}

TEST_F(CudaRuntime, AStepIsOneGraphAndAllocatesNothing) {
  const Named named = corpus_plan("train.f32");
  const Start start(*plan::Plan::load(named.span()).value());
  reset_fake();
  ASSERT_TRUE(on_cuda(named, start, 1).ok());
  const int allocations = calls("cuMemAlloc"), launches = calls("cuLaunchKernelEx"),
            copies = calls("cuMemcpyHtoDAsync");
  EXPECT_GT(launches, 20);
  reset_fake();
  ASSERT_TRUE(on_cuda(named, start, 4).ok());
  EXPECT_EQ(calls("cuMemAlloc"), allocations);
  EXPECT_EQ(calls("cuLaunchKernelEx"), launches);
  EXPECT_EQ(calls("cuMemcpyHtoDAsync"), copies + 3);  // the inputs of three more
  EXPECT_EQ(calls("cuGraphLaunch"), 4);
}

// An arena that grows, or that is exchanged, has another address: launches and graph are made again.
TEST_F(CudaRuntime, StepsFollowArenasThatMove) {
  const Named named = corpus_plan("train.f32");
  const auto plan = plan::Plan::load(named.span()).value();
  const Start start(*plan);
  const std::byte* input = start.arenas[static_cast<int>(Arena::input)].data();
  std::vector<std::byte> output(start.arenas[static_cast<int>(Arena::output)].size());
  const auto steps = [&](const std::function<void(cuda::DeviceMemory&)>& between) {
    const auto memory = memory_with(start);
    const auto executable = bound_to(memory, named);
    for (int i = 0; i < 3; ++i) {
      EXPECT_TRUE(executable->step(input, start.scalars, output.data()).ok());
      between(*memory);
    }
    return weights_of(*memory);
  };
  const auto undisturbed = steps([](cuda::DeviceMemory&) {});
  uint64_t bytes = start.arenas[static_cast<int>(Arena::activations)].size();
  const auto grown = steps([&](cuda::DeviceMemory& memory) {
    bytes += 4096;
    EXPECT_TRUE(memory.ensure(Arena::activations, bytes).ok());
    EXPECT_TRUE(memory.ensure(Arena::grads, memory.bytes(Arena::grads) + 64).ok());
  });
  EXPECT_TRUE(grown == undisturbed);
  // What is exchanged by addresses is what is exchanged by values.
  const auto exchanged = [&](Arena a, Arena b, bool by_address) {
    return steps([&](cuda::DeviceMemory& memory) {
      const std::byte *before = memory.arena(a), *other = memory.arena(b);
      if (by_address) {
        EXPECT_TRUE(memory.swap(a, b).ok());
        EXPECT_TRUE(memory.arena(a) == other && memory.arena(b) == before);
        return;
      }
      std::vector<std::byte> of_a(memory.bytes(a)), of_b(memory.bytes(b));
      EXPECT_TRUE(memory.read(a, 0, of_a).ok() && memory.read(b, 0, of_b).ok());
      EXPECT_TRUE(memory.write(a, 0, of_b).ok() && memory.write(b, 0, of_a).ok());
      EXPECT_TRUE(memory.arena(a) == before && memory.arena(b) == other);
    });
  };
  for (const auto& [a, b] : {std::pair(Arena::moment0, Arena::ema), std::pair(Arena::weights, Arena::ema)}) {
    const auto want = exchanged(a, b, false);
    EXPECT_FALSE(want == undisturbed);
    EXPECT_TRUE(exchanged(a, b, true) == want) << static_cast<int>(a);
  }
}

// In every type: steps that are replayed, and those whose ops are launched one by one between events.
TEST_F(CudaRuntime, AProfiledStepGivesTheSameBits) {
  std::vector<std::byte> of_fp32;
  for (const char* name : {"train.f32", "gpu-train.f32", "gpu-train.tf32", "gpu-train.bf16", "gpu-train.f16"}) {
    SCOPED_TRACE(name);
    const Named named = corpus_plan(name);
    const Start start(*plan::Plan::load(named.span()).value());
    constexpr int steps = 3;
    const auto trained = [&](bool eager) {
      const auto memory = memory_with(start);
      const auto executable = bound_to(memory, named);
      executable->profiling = eager;
      reset_fake();
      Arenas after(plan::kArenaCount);
      auto& output = after[static_cast<int>(Arena::output)];
      output.resize(start.arenas[static_cast<int>(Arena::output)].size());
      for (int i = 0; i < steps; ++i) {
        StepScalars scalars = start.scalars;
        scalars.step += i;
        scalars.optimizer_step = i + 1;
        const Status status =
            executable->step(start.arenas[static_cast<int>(Arena::input)].data(), scalars, output.data());
        EXPECT_TRUE(status.ok()) << status.message();
      }
      double ms = 0, of_ends = 0;
      for (const OpReport& row : executable->report())
        (row.op == "begin_step" || row.op == "finish_step" ? of_ends : ms) += row.ms;
      EXPECT_EQ(ms > 0, eager);
      EXPECT_EQ(of_ends > 0, eager);
      // Beside steps there is the graph that makes 16-bit copies of weights.
      const int graphs = calls("cuGraphLaunch");
      EXPECT_TRUE(eager ? graphs <= 1 : graphs >= steps) << graphs;
      for (const Arena a : {Arena::weights, Arena::grads, Arena::moment0, Arena::moment1, Arena::ema}) {
        after[static_cast<size_t>(a)].resize(memory->bytes(a));
        EXPECT_TRUE(memory->read(a, 0, after[static_cast<size_t>(a)]).ok());
      }
      return after;
    };
    const Arenas replayed = trained(false), eager = trained(true);
    const auto weights = static_cast<size_t>(Arena::weights);
    for (const Arena a : {Arena::weights, Arena::grads, Arena::moment0, Arena::moment1, Arena::ema, Arena::output})
      EXPECT_TRUE(eager[static_cast<size_t>(a)] == replayed[static_cast<size_t>(a)]) << static_cast<int>(a);
    EXPECT_FALSE(replayed[weights] == start.arenas[weights]);
    if (named.name == "gpu-train.f32") of_fp32 = replayed[weights];
    EXPECT_TRUE(named.name != "gpu-train.tf32" || replayed[weights] != of_fp32);
  }
}

TEST_F(CudaRuntime, WhatIsLaunchedBesideTheOpsIsReported) {
  const auto beside = [](const std::string& name, uint32_t parts) {
    const Named named = corpus_plan(name);
    const auto plan = plan::Plan::load(named.span()).value();
    Start start(*plan);
    start.scalars.parts = parts;
    const auto executable = bound_to(memory_with(start), named);
    std::vector<std::byte> output(start.arenas[static_cast<int>(Arena::output)].size());
    const Status stepped =
        executable->step(start.arenas[static_cast<int>(Arena::input)].data(), start.scalars, output.data());
    EXPECT_TRUE(stepped.ok()) << stepped.message();
    std::vector<std::string> rows;
    const auto all = executable->report();
    for (size_t i = plan->ops().size(); i < all.size(); ++i) {
      const OpReport& row = all[i];
      rows.push_back(row.name + " " + row.kernel);
      const auto bytes = [&](Arena arena) { return static_cast<double>(plan->arena_bytes(arena)); };
      if (row.name == "weights") {
        EXPECT_EQ(row.bytes, 1.5 * bytes(Arena::weights));
      } else if (row.name == "accumulate") {
        EXPECT_EQ(row.bytes, 3 * bytes(Arena::grads));
      }
    }
    return rows;
  };
  using Rows = std::vector<std::string>;
  EXPECT_EQ(beside("train.f32", 1), (Rows{"begin_step begin_step:cuda", "finish_step finish_step:cuda"}));
  EXPECT_EQ(beside("gpu-train.bf16", 2), (Rows{"weights cast_weights_bf16:cuda", "begin_step begin_step:cuda",
                                               "accumulate accumulate:cuda", "finish_step finish_step:cuda"}));
  EXPECT_EQ(beside("gpu-conv2d_bias_act-xxx__.f16", 1), (Rows{"prepared cast_weights_f16:cuda"}));
  EXPECT_EQ(beside("add-xx.f32", 1), Rows{});
}

TEST_F(CudaRuntime, TheFirstTensorThatIsNotFiniteIsNamed) {
  const Named named = corpus_plan("train.f32");
  const auto plan = plan::Plan::load(named.span()).value();
  const Start start(*plan);
  const std::byte* input = start.arenas[static_cast<int>(Arena::input)].data();
  std::vector<std::byte> output(start.arenas[static_cast<int>(Arena::output)].size());
  for (const char* name : {"", "classifier.weight", "conv_stem.weight"}) {
    SCOPED_TRACE(name);
    const auto memory = memory_with(start);
    const auto executable = bound_to(memory, named);
    const plan::Tensor* poisoned = nullptr;
    for (const plan::Tensor& t : plan->tensors())
      if (t.name == name && t.arena == Arena::weights) poisoned = &t;
    ASSERT_EQ(poisoned == nullptr, *name == 0);
    const float infinite = INFINITY;
    if (poisoned)
      ASSERT_TRUE(memory->write(Arena::weights, poisoned->offset, std::as_bytes(std::span(&infinite, 1))).ok());
    const auto found = executable->find_nonfinite(input, start.scalars);
    ASSERT_TRUE(found.ok()) << found.status().message();
    ASSERT_EQ(found.value().has_value(), poisoned != nullptr);
    if (!poisoned) continue;
    EXPECT_EQ(found.value()->part, "weights");
    EXPECT_EQ(found.value()->tensor, name);
  }
}

// As on the CPU: nothing is updated by a loss that is not finite; running statistics that are not are an error.
TEST_F(CudaRuntime, ALossThatIsNotFiniteUpdatesNothing) {
  const Named named = corpus_plan("train.f32");
  const auto plan = plan::Plan::load(named.span()).value();
  Start start(*plan);
  for (const plan::Tensor& t : plan->tensors()) {
    if (t.name != "classifier.weight" || t.arena != Arena::weights) continue;
    const float infinite = INFINITY;
    std::memcpy(start.arenas[static_cast<int>(Arena::weights)].data() + t.offset, &infinite, 4);
  }
  const auto after = on_cuda(named, start);
  ASSERT_TRUE(after.ok()) << after.status().message();
  bool seen = false;
  for (const plan::Tensor& t : plan->tensors()) {
    if (t.arena == Arena::output && t.dtype == DType::f32)
      seen |= !std::isfinite(value_at(t, after.value()[static_cast<size_t>(Arena::output)].data(), 0));
    if (t.arena != Arena::weights) continue;
    const std::byte* now = after.value()[static_cast<size_t>(Arena::weights)].data() + t.offset;
    EXPECT_EQ(std::memcmp(now, start.arenas[static_cast<int>(Arena::weights)].data() + t.offset, t.bytes), 0) << t.name;
  }
  EXPECT_TRUE(seen);
}

// The flag is the memory's: a loss of a plan that updates nothing, between the batches of an update, leaves it alone.
TEST_F(CudaRuntime, AnEvaluationSkipsNoUpdate) {
  const auto skips = [](const char* name) {
    const Named named = corpus_plan(name);
    const auto plan = plan::Plan::load(named.span()).value();
    Start start(*plan);
    const plan::Tensor* logits = plan->ops().size() == 1 ? plan->ops()[0].inputs[0] : nullptr;
    for (const plan::Tensor& t : plan->tensors()) {
      if (&t != logits && (t.name != "classifier.weight" || t.arena != Arena::weights)) continue;
      const float infinite = INFINITY;
      std::memcpy(start.arenas[static_cast<int>(t.arena)].data() + t.offset, &infinite, 4);
    }
    const auto memory = memory_with(start);
    std::vector<std::byte> output(start.arenas[static_cast<int>(Arena::output)].size());
    const std::byte* input = start.arenas[static_cast<int>(Arena::input)].data();
    EXPECT_TRUE(bound_to(memory, named)->step(input, start.scalars, output.data()).ok());
    if (!output.empty()) {
      bool finite = true;
      for (const plan::Tensor& t : plan->tensors())
        if (t.arena == Arena::output && t.dtype == DType::f32) finite &= std::isfinite(value_at(t, output.data(), 0));
      EXPECT_FALSE(finite) << name;
    }
    cuda::StepReport report;
    const auto& driver = device()->driver();
    EXPECT_EQ(driver.cuMemcpyDtoHAsync(&report, reinterpret_cast<CUdeviceptr>(memory->state()), sizeof report,
                                       memory->stream()),
              CUDA_SUCCESS);
    EXPECT_EQ(driver.cuStreamSynchronize(memory->stream()), CUDA_SUCCESS);
    return report.skip;
  };
  EXPECT_EQ(skips("train.f32"), 1u);
  EXPECT_EQ(skips("softmax_cross_entropy-xx.f32"), 0u);
}

// ---- the loss scale ----------------------------------------------------------------------------------------------

// All arenas after `steps` steps that begin with this scale, and the scale they end with.
std::pair<Arenas, LossScale> scaled(const Named& named, const Start& start, const LossScale& scale, int steps = 1) {
  const auto memory = memory_with(start);
  EXPECT_TRUE(memory->set_loss_scale(scale).ok());
  const auto executable = bound_to(memory, named);
  std::vector<std::byte> output(start.arenas[static_cast<int>(Arena::output)].size());
  for (int i = 0; i < steps; ++i) {
    const Status status =
        executable->step(start.arenas[static_cast<int>(Arena::input)].data(), start.scalars, output.data());
    EXPECT_TRUE(status.ok()) << status.message();
  }
  Arenas after(plan::kArenaCount);
  for (const Arena a : {Arena::weights, Arena::grads, Arena::moment0, Arena::moment1, Arena::ema}) {
    after[static_cast<size_t>(a)].resize(memory->bytes(a));
    EXPECT_TRUE(memory->read(a, 0, after[static_cast<size_t>(a)]).ok());
  }
  after[static_cast<int>(Arena::output)] = output;
  return {after, memory->loss_scale()};
}

// A power of two changes exponents alone: gradients are so much larger, and all that is made from them is the same.
TEST_F(CudaRuntime, TheLossScaleComesOffBeforeTheUpdate) {
  const Named named = corpus_plan("train.f32");
  const Start start(*plan::Plan::load(named.span()).value());
  auto plain = scaled(named, start, {}).first, large = scaled(named, start, {4096}).first;
  auto& grads = plain[static_cast<int>(Arena::grads)];
  for (size_t at = 0; at < grads.size(); at += 4) {
    float value;
    std::memcpy(&value, grads.data() + at, 4);
    value *= 4096;
    std::memcpy(grads.data() + at, &value, 4);
  }
  // Padding between gradients is what it was.
  for (const plan::Tensor& t : plan::Plan::load(named.span()).value()->tensors()) {
    if (t.arena != Arena::grads) continue;
    const auto arena = static_cast<size_t>(Arena::grads);
    EXPECT_EQ(std::memcmp(large[arena].data() + t.offset, plain[arena].data() + t.offset, t.bytes), 0) << t.name;
  }
  for (const Arena a : {Arena::weights, Arena::moment0, Arena::moment1, Arena::ema, Arena::output})
    EXPECT_TRUE(large[static_cast<size_t>(a)] == plain[static_cast<size_t>(a)]) << static_cast<int>(a);
}

TEST_F(CudaRuntime, ASkippedStepChangesNothingButTheScale) {
  const Named named = corpus_plan("train.f32");
  Start start(*plan::Plan::load(named.span()).value());
  start.scalars.optimizer_step = 20;
  start.scalars.scale_interval = 3;
  const float largest = 3e38f;  // gradients of it are infinite
  const auto [after, scale] = scaled(named, start, {largest, 2, 5});
  for (const Arena a : {Arena::weights, Arena::moment0, Arena::moment1, Arena::ema}) {
    const auto& before = start.arenas[static_cast<int>(a)];
    EXPECT_TRUE(std::equal(before.begin(), before.end(), after[static_cast<size_t>(a)].begin())) << static_cast<int>(a);
  }
  EXPECT_EQ(scale.scale, largest / 2);
  EXPECT_EQ(scale.growth, 0u);
  EXPECT_EQ(scale.skipped, 6u);
}

TEST_F(CudaRuntime, TheScaleGrowsAfterGoodStepsAndStaysWhereNobodyAskedForMore) {
  const Named named = corpus_plan("train.f32");
  Start start(*plan::Plan::load(named.span()).value());
  start.scalars.optimizer_step = 20;
  EXPECT_EQ(scaled(named, start, {64, 1, 7}, 4).second.scale, 64);
  start.scalars.scale_interval = 3;
  const auto scale = scaled(named, start, {64, 1, 7}, 4).second;
  EXPECT_EQ(scale.scale, 128);
  EXPECT_EQ(scale.growth, 2u);
  EXPECT_EQ(scale.skipped, 7u);
  // As far as there are numbers.
  start.scalars.scale_growth = 1e38;
  EXPECT_EQ(scaled(named, start, {64, 2, 0}).second.scale, 64);
}

TEST_F(CudaRuntime, AdamCountsTheStepsThatWereMade) {
  Named named;
  for (const Named& each : corpus())
    if (each.name.starts_with("optimizer_adamw") && each.name.ends_with(".f32")) named = each;
  ASSERT_FALSE(named.name.empty());
  Start start(*plan::Plan::load(named.span()).value());
  const auto weights = [&](double step, uint32_t skipped) {
    start.scalars.optimizer_step = step;
    return scaled(named, start, {1, 0, skipped}).first[static_cast<int>(Arena::weights)];
  };
  EXPECT_TRUE(weights(5, 3) == weights(2, 0));
  EXPECT_FALSE(weights(5, 0) == weights(2, 0));
}

// ---- 16-bit copies of weights ------------------------------------------------------------------------------------

// The copies that an update writes are those that would be made of the weights anew, in every step that follows: also
// one behind a step that was skipped, or behind one of another plan over the same memory.
TEST_F(CudaRuntime, AnUpdateWritesThe16BitCopiesThatTheNextStepReads) {
  const Named named = corpus_plan("gpu-train.bf16");
  Start start(*plan::Plan::load(named.span()).value());
  start.scalars.optimizer_step = 20;
  start.scalars.scale_interval = 1000;
  const std::byte* input = start.arenas[static_cast<int>(Arena::input)].data();
  std::vector<std::byte> output(start.arenas[static_cast<int>(Arena::output)].size());
  const auto weights = [&](bool anew) {
    const auto memory = memory_with(start);
    const auto executable = bound_to(memory, named), other = bound_to(memory, named);
    for (const auto& each : {executable, executable, executable, other, executable}) {
      const bool skipped = each == executable && start.scalars.seed == 8;
      EXPECT_TRUE(memory->set_loss_scale({skipped ? 3e38f : 1.0f, 0, 0}).ok());
      if (anew) each->weights_changed = true;
      const auto before = weights_of(*memory);
      EXPECT_TRUE(each->step(input, start.scalars, output.data()).ok());
      EXPECT_EQ(weights_of(*memory) == before, skipped);
      ++start.scalars.seed;
    }
    start.scalars.seed = 7;
    return std::pair(weights_of(*memory), output);
  };
  reset_fake();
  const auto kept = weights(false);
  // Five steps; the copy, which the plans share, is made at the first of each.
  EXPECT_EQ(calls("cuGraphLaunch"), 5 + 2);
  const auto anew = weights(true);
  EXPECT_EQ(calls("cuGraphLaunch"), 5 + 2 + 5 + 5);
  EXPECT_TRUE(kept == anew);
}

TEST_F(CudaRuntime, WeightsThatAreWrittenBetweenStepsAreCopied) {
  const Named named = corpus_plan("gpu-train.bf16");
  const Start start(*plan::Plan::load(named.span()).value());
  const std::byte* input = start.arenas[static_cast<int>(Arena::input)].data();
  std::vector<std::byte> first(start.arenas[static_cast<int>(Arena::output)].size()), again = first;
  const auto memory = memory_with(start);
  const auto executable = bound_to(memory, named);
  EXPECT_TRUE(executable->step(input, start.scalars, first.data()).ok());
  for (int a = 0; a <= static_cast<int>(Arena::activations); ++a)
    EXPECT_TRUE(memory->write(static_cast<Arena>(a), 0, start.arenas[a]).ok());
  executable->weights_changed = true;
  EXPECT_TRUE(executable->step(input, start.scalars, again.data()).ok());
  EXPECT_TRUE(again == first);
}

// ---- updates from several batches --------------------------------------------------------------------------------

TEST_F(CudaRuntime, GradientsOfSeveralBatchesAreAveraged) {
  const Named named = corpus_plan("train.f32");
  const auto plan = plan::Plan::load(named.span()).value();
  Start start(*plan);
  start.scalars.weight_decay = 0;
  start.scalars.optimizer_step = 20;
  const size_t count = start.arenas[static_cast<int>(Arena::grads)].size() / sizeof(float);
  // Of each batch by itself, the weights as they are, or of one update.
  const auto gradients = [&](bool together) {
    const auto memory = memory_with(start);
    const auto executable = bound_to(memory, named);
    std::vector<std::vector<float>> seen;
    std::vector<std::byte> input = start.arenas[static_cast<int>(Arena::input)];
    std::vector<std::byte> output(start.arenas[static_cast<int>(Arena::output)].size());
    for (int part = 0; part < 3; ++part) {
      StepScalars scalars = start.scalars;
      scalars.step = part;
      if (together) {
        scalars.part = part;
        scalars.parts = 3;
      } else {
        scalars.lr = 0;
      }
      for (const plan::Tensor& t : plan->tensors())
        if (t.arena == Arena::input) fill(t, input.data(), static_cast<uint32_t>(31 + part));
      const auto before = weights_of(*memory);
      const Status status = executable->step(input.data(), scalars, output.data());
      EXPECT_TRUE(status.ok()) << status.message();
      if (together && part == 2) EXPECT_FALSE(weights_of(*memory) == before);
      seen.emplace_back(count);
      EXPECT_TRUE(memory->read(Arena::grads, 0, std::as_writable_bytes(std::span(seen.back()))).ok());
    }
    return seen;
  };
  const auto apart = gradients(false);
  reset_fake();
  const auto together = gradients(true);
  // One graph for each batch, one for the update.
  EXPECT_EQ(calls("cuGraphInstantiateWithFlags"), 2);
  EXPECT_EQ(calls("cuGraphLaunch"), 4);
  for (const plan::Tensor& t : plan->tensors()) {
    if (t.arena != Arena::grads) continue;
    for (int64_t i = 0; i < t.elements(); ++i) {
      const size_t at = t.offset / sizeof(float) + static_cast<size_t>(i);
      const double mean = (double{apart[0][at]} + apart[1][at] + apart[2][at]) / 3;
      const double size = std::abs(apart[0][at]) + std::abs(apart[1][at]) + std::abs(apart[2][at]);
      ASSERT_NEAR(together[2][at], mean, 1e-6 * size) << t.name;
    }
  }
}

// ---- inputs ahead ------------------------------------------------------------------------------------------------

// Steps on three inputs in turn, each with another learning rate. `ahead`: as a pipeline, two steps queued and the next
// input on its way; the caller's memory, page-locked or not, is used again at once. The bytes of the weights, or what
// went wrong.
StatusOr<std::vector<std::byte>> trained(const Named& named, Start start, bool ahead, bool page_locked = false) {
  constexpr int steps = 6;
  const auto memory = memory_with(start);
  const auto executable = bound_to(memory, named);
  const auto plan = plan::Plan::load(named.span()).value();
  std::vector<std::byte> output(start.arenas[static_cast<int>(Arena::output)].size());
  std::vector<std::byte> any(start.arenas[static_cast<int>(Arena::input)].size());
  const auto locked = cuda::HostBlock::allocate(device(), any.size());
  EFF_RETURN_IF_ERROR(locked.status());
  const std::span<std::byte> shared(page_locked ? locked.value().data() : any.data(), any.size());
  const auto input_of = [&](int step) {
    for (const plan::Tensor& t : plan->tensors())
      if (t.arena == Arena::input) fill(t, shared.data(), static_cast<uint32_t>(77 + step % 3));
    return shared.data();
  };
  const auto scalars_of = [&](int step) {
    StepScalars scalars = start.scalars;
    scalars.lr = 1e-4 / (step + 1);
    scalars.step = step;
    return scalars;
  };
  if (!ahead) {
    for (int i = 0; i < steps; ++i) EFF_RETURN_IF_ERROR(executable->step(input_of(i), scalars_of(i), output.data()));
  } else {
    cuda::Slot* queued = nullptr;
    for (int i = 0; i < steps; ++i) {
      const auto taken = executable->prefetch(input_of(i));
      if (!taken.ok()) return taken.status();
      EXPECT_GT(taken.value(), 0u);
      std::fill(shared.begin(), shared.end(), std::byte{0x55});
      cuda::Slot* before = std::exchange(queued, nullptr);
      const auto next = executable->queue_step(nullptr, scalars_of(i));
      if (!next.ok()) return next.status();
      queued = next.value();
      if (before) EFF_RETURN_IF_ERROR(executable->finish_step(*before, output.data()));
    }
    EFF_RETURN_IF_ERROR(executable->finish_step(*queued, output.data()));
  }
  return weights_of(*memory);
}

TEST_F(CudaRuntime, InputsThatAreStagedAheadGiveTheSameBits) {
  const Named named = corpus_plan("train.f32");
  const Start start(*plan::Plan::load(named.span()).value());
  const auto want = trained(named, start, false);
  ASSERT_TRUE(want.ok()) << want.status().message();
  for (const char* order : {"0", "3", "4", "7"}) {
    const Setting setting("FAKE_CUDA_ORDER", order);
    for (const bool ahead : {true, false})
      for (const bool page_locked : {true, false}) {
        const auto got = trained(named, start, ahead, page_locked);
        ASSERT_TRUE(got.ok()) << got.status().message();
        EXPECT_TRUE(got.value() == want.value()) << "order " << order << (page_locked ? ", page-locked" : "");
      }
  }
}

TEST_F(CudaRuntime, InputsOfAHostWithoutPageLockedMemoryGiveTheSameBits) {
  const Named named = corpus_plan("train.f32");
  const Start start(*plan::Plan::load(named.span()).value());
  const auto want = trained(named, start, false);
  ASSERT_TRUE(want.ok()) << want.status().message();
  const Setting none("FAKE_CUDA_LOCKABLE", "0");
  for (const char* order : {"0", "4"}) {
    const Setting setting("FAKE_CUDA_ORDER", order);
    for (const bool ahead : {true, false}) {
      const auto got = trained(named, start, ahead);
      ASSERT_TRUE(got.ok()) << got.status().message();
      EXPECT_TRUE(got.value() == want.value()) << "order " << order;
    }
  }
}

// What lies in page-locked memory is read there: the ring takes none of its own for it.
TEST_F(CudaRuntime, PageLockedInputsAreReadWhereTheyLie) {
  const auto memory = cuda::DeviceMemory::create(device()).value();
  const auto locked = cuda::HostBlock::allocate(device(), 1024);
  ASSERT_TRUE(locked.ok());
  cuda::InputRing ring;
  ASSERT_TRUE(ring.create(*memory, 512, 16).ok());
  EXPECT_GT(ring.stage_ahead(*memory, locked.value().data() + 512).value(), 0u);
  EXPECT_EQ(ring.slots()[1]->input.bytes(), 0u);
  // Half of it lies elsewhere.
  EXPECT_FALSE(device()->page_locked(locked.value().data() + 768, 512));
  EXPECT_FALSE(device()->page_locked(locked.value().data() - 1, 16));
  const cuda::Slot* const first = ring.take();
  ASSERT_EQ(first, ring.slots()[1].get());
  EXPECT_TRUE(ring.release(*ring.slots()[1], device()->driver(), memory->stream()).ok());
  const std::vector<std::byte> any(512);
  for (int i = 0; i < 2; ++i) EXPECT_GT(ring.stage_ahead(*memory, any.data()).value(), 0u);
  EXPECT_EQ(ring.slots()[1]->input.bytes(), 512u);
  ring.destroy(device()->driver());
}

// A ticket is good until another input takes its place; whoever brings the input along loses nothing.
TEST_F(CudaRuntime, AnInputThatWasStagedAheadIsThereOrItIsNot) {
  const Named named = corpus_plan("train.f32");
  const Start start(*plan::Plan::load(named.span()).value());
  const auto& one = start.arenas[static_cast<int>(Arena::input)];
  std::vector<std::byte> two = one, output(start.arenas[static_cast<int>(Arena::output)].size());
  for (std::byte& pixel : std::span(two).first(64)) pixel ^= std::byte{0x2a};
  const auto trained = [&](const std::function<void(cuda::Executable&)>& steps) {
    const auto memory = memory_with(start);
    const auto executable = bound_to(memory, named);
    steps(*executable);
    return weights_of(*memory);
  };
  const auto step = [&](cuda::Executable& executable, const std::byte* input) {
    const Status status = executable.step(input, start.scalars, output.data());
    EXPECT_TRUE(status.ok()) << status.message();
  };
  const auto want = trained([&](cuda::Executable& executable) {
    step(executable, one.data());
    step(executable, two.data());
  });
  EXPECT_TRUE(want == trained([&](cuda::Executable& executable) {
                const uint64_t ticket = executable.prefetch(two.data()).value();
                step(executable, one.data());  // in its place
                EXPECT_FALSE(executable.claim(ticket));
                EXPECT_EQ(executable.step(nullptr, start.scalars, output.data()).code(), Code::invalid_argument);
                step(executable, two.data());
              }));
  EXPECT_TRUE(want == trained([&](cuda::Executable& executable) {
                const uint64_t dropped = executable.prefetch(two.data()).value();
                const uint64_t first = executable.prefetch(one.data()).value();
                EXPECT_EQ(executable.prefetch(one.data()).value(), 0u);  // all slots wait
                EXPECT_TRUE(executable.claim(first));
                EXPECT_FALSE(executable.claim(dropped));  // it was in front
                const uint64_t second = executable.prefetch(two.data()).value();
                EXPECT_TRUE(executable.claim(first));
                step(executable, nullptr);
                EXPECT_FALSE(executable.claim(first));
                EXPECT_TRUE(executable.claim(second));
                step(executable, nullptr);
              }));
}

// A step has its slot from when it takes it until its end is marked, also while it is captured: what is staged on
// another thread meanwhile waits for that.
TEST_F(CudaRuntime, NoInputComesWhereAStepIsAboutToReadAnother) {
  const auto memory = cuda::DeviceMemory::create(device()).value();
  const cuda::Driver& driver = device()->driver();
  std::vector<std::byte> input(512, std::byte{1});
  cuda::InputRing ring;
  ASSERT_TRUE(ring.create(*memory, input.size(), 16).ok());
  EXPECT_GT(ring.stage_ahead(*memory, input.data()).value(), 0u);
  cuda::Slot* const taken = ring.take();
  ASSERT_NE(taken, nullptr);
  EXPECT_GT(ring.stage_ahead(*memory, input.data()).value(), 0u);
  std::atomic<bool> released = false;
  auto third = std::async(std::launch::async, [&] {
    EXPECT_TRUE(device()->enter().ok());
    const auto ticket = ring.stage_ahead(*memory, input.data());
    EXPECT_TRUE(released);
    return ticket.ok() ? ticket.value() : 0;
  });
  third.wait_for(std::chrono::milliseconds(50));  // a thread that does not wait is seen by then
  released = true;
  EXPECT_TRUE(ring.release(*taken, driver, memory->stream()).ok());
  EXPECT_GT(third.get(), 0u);
  EXPECT_NE(ring.take(), taken);
  EXPECT_EQ(ring.take(), taken);
  ring.destroy(driver);
}

// Planted: streams that do not wait for each other.
TEST_F(CudaRuntime, AMissingWaitShows) {
  const Named named = corpus_plan("train.f32");
  const Start start(*plan::Plan::load(named.span()).value());
  const auto want = trained(named, start, false);
  int shown = 0;
  for (const char* order : {"0", "3", "4", "7"}) {
    reset_fake();
    const Setting seed("FAKE_CUDA_ORDER", order), planted("FAKE_CUDA_IGNORE", "cuStreamWaitEvent");
    const auto got = trained(named, start, true);
    shown += !got.ok() || got.value() != want.value();
  }
  reset_fake();
  EXPECT_EQ(shown, 4);
}

// Planted: the host does not wait for a slot's copy. One of the two blocks changes, the other is written with the same.
TEST_F(CudaRuntime, AHostBlockOrAnInputThatIsWrittenTooEarlyShows) {
  const Named named = corpus_plan("train.f32");
  const Start start(*plan::Plan::load(named.span()).value());
  enum class Changes { scalars, input, page_locked_input };
  for (const Changes changes : {Changes::scalars, Changes::input, Changes::page_locked_input}) {
    SCOPED_TRACE(static_cast<int>(changes));
    for (const bool waits : {true, false}) {
      const auto memory = memory_with(start);
      const auto executable = bound_to(memory, named);
      std::vector<std::byte> any = start.arenas[static_cast<int>(Arena::input)];
      const auto locked = cuda::HostBlock::allocate(device(), any.size());
      ASSERT_TRUE(locked.ok());
      std::memcpy(locked.value().data(), any.data(), any.size());
      std::byte* const input = changes == Changes::page_locked_input ? locked.value().data() : any.data();
      std::vector<std::byte> output(start.arenas[static_cast<int>(Arena::output)].size());
      StepScalars scalars = start.scalars;
      scalars.lr = 1e-4;
      Status status;
      {
        const Setting planted("FAKE_CUDA_IGNORE", waits ? "nothing" : "cuEventSynchronize");
        for (int i = 0; i < 3; ++i) {
          if (changes == Changes::scalars)
            scalars.step += 1;
          else
            input[0] ^= std::byte{1};
          // Without waiting it tells of results that are not there yet.
          const Status now = executable->step(input, scalars, output.data());
          EXPECT_TRUE(now.ok() || !waits) << now.message();
        }
      }
      std::vector<std::byte> weights(memory->bytes(Arena::weights));
      status = memory->read(Arena::weights, 0, weights);
      EXPECT_EQ(status.ok(), waits) << status.message();
      if (!waits) EXPECT_NE(status.message().find("(719)"), std::string::npos) << status.message();
      reset_fake();
    }
  }
}

// ---- the moving average ------------------------------------------------------------------------------------------

TEST_F(CudaRuntime, NothingIsCapturedAgainToEvaluateTheAverage) {
  const Named named = corpus_plan("train.f32");
  const Start start(*plan::Plan::load(named.span()).value());
  const std::byte* input = start.arenas[static_cast<int>(Arena::input)].data();
  std::vector<std::byte> output(start.arenas[static_cast<int>(Arena::output)].size());
  using Exchange = std::function<void(cuda::DeviceMemory&)>;
  const auto results = [&](const Exchange& exchange) {
    const auto memory = memory_with(start);
    const auto executable = bound_to(memory, named);
    std::vector<std::vector<std::byte>> weights;
    for (int i = 0; i < 5; ++i) {
      EXPECT_TRUE(executable->step(input, start.scalars, output.data()).ok());
      weights.push_back(weights_of(*memory));
      exchange(*memory);
    }
    return weights;
  };
  reset_fake();
  const auto by_address = results([](auto& memory) { EXPECT_TRUE(memory.swap(Arena::weights, Arena::ema).ok()); });
  EXPECT_EQ(calls("cuGraphInstantiateWithFlags"), 2);
  const auto by_value = results([](auto& memory) {
    std::vector<std::byte> weights = weights_of(memory), average(memory.bytes(Arena::ema));
    EXPECT_TRUE(memory.read(Arena::ema, 0, average).ok());
    EXPECT_TRUE(memory.write(Arena::weights, 0, average).ok());
    EXPECT_TRUE(memory.write(Arena::ema, 0, weights).ok());
  });
  EXPECT_TRUE(by_address == by_value);
}

}  // namespace
}  // namespace effnet::test