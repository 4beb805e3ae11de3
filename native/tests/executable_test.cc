// Whole plans on pools of several threads: equal bits whatever their number, snapshots between steps, a pool that
// stops. Under ThreadSanitizer this is where the executor meets more than one thread.
#include "cpu/executable.h"

#include <gtest/gtest.h>

#include <cstring>
#include <future>
#include <map>
#include <random>
#include <thread>

#include "io/transfer.h"
#include "tests/isa.h"
#include "tests/plan_seeds.h"

namespace effnet {
namespace {

using plan::Arena;
using ArenaMemory = HostMemory;

constexpr int kMostThreads = 3;

// What `work` returns, run as a task of the pool.
template <class F>
auto in_task(ThreadPool& pool, F work) {
  const auto answer = std::make_shared<std::promise<decltype(work())>>();  // as long as the task, which answers last
  EXPECT_TRUE(pool.submit([answer, &work] { answer->set_value(work()); }));
  return answer->get_future().get();
}

// A plan over memory of its own, filled as a model is at its start: the same for every number of threads.
class Bound {
 public:
  Bound(const std::string& seed, int threads) : pool(make_pool(threads)) {
    const std::vector<std::byte> bytes = test::plan_seed(seed);
    const auto loaded = plan::Plan::load(bytes);
    if (!loaded.ok()) {
      ADD_FAILURE() << loaded.status().message();
      return;
    }
    const plan::Plan& plan = *loaded.value();
    uint64_t sizes[plan::kArenaCount] = {};
    for (int a = 0; a <= static_cast<int>(Arena::activations); ++a) sizes[a] = plan.arena_bytes(static_cast<Arena>(a));
    // A region keeps its results of one image a thread behind the activations (cpu/executable.h).
    sizes[static_cast<int>(Arena::activations)] += kMostThreads * plan.arena_bytes(Arena::image);
    memory = ArenaMemory::create(sizes).value();
    fill(plan, Arena::weights, memory->arena(Arena::weights));
    std::memset(memory->arena(Arena::activations), 0xff, memory->bytes(Arena::activations));
    input = std::move(Block::allocate(plan.arena_bytes(Arena::input), Block::Kind::batch).value());
    output = std::move(Block::allocate(plan.arena_bytes(Arena::output), Block::Kind::batch).value());
    fill(plan, Arena::input, input.data());
    auto bound = in_task(*pool, [&] { return cpu::Executable::bind(pool, memory, bytes); });
    EXPECT_TRUE(bound.ok()) << bound.status().message();
    if (bound.ok()) executable = bound.value();
  }

  ~Bound() { pool->join(); }

  // Inside a task.
  Status step(int number) {
    StepScalars scalars{.lr = 0.01, .seed = 7, .weight_decay = 1e-4, .momentum = 0.9, .alpha = 0.99};
    scalars.step = number;
    scalars.optimizer_step = number + 1;
    scalars.eps = 1e-3;
    scalars.clip_norm = 1;
    scalars.ema_decay = 0.9;
    return executable->step(input.data(), scalars, output.data());
  }
  Status run(int steps) {
    for (int i = 0; i < steps; ++i) {
      const Status status = in_task(*pool, [&] { return step(i); });
      if (!status.ok()) return status;
    }
    return ok_status();
  }

  // All that outlives a step.
  std::map<int, std::string> contents() const {
    std::map<int, std::string> all;
    for (int a = 0; a < static_cast<int>(Arena::activations); ++a)
      all[a] = {reinterpret_cast<const char*>(memory->arena(static_cast<Arena>(a))),
                memory->bytes(static_cast<Arena>(a))};
    all[static_cast<int>(Arena::output)] = {reinterpret_cast<const char*>(output.data()), output.bytes()};
    return all;
  }

  std::shared_ptr<ThreadPool> pool;
  std::shared_ptr<ArenaMemory> memory;
  Block input, output;
  std::shared_ptr<cpu::Executable> executable;

 private:
  static void fill(const plan::Plan& plan, Arena arena, std::byte* data) {
    std::mt19937 random(11);
    for (const plan::Tensor& t : plan.tensors()) {
      if (t.arena != arena || t.image_stride) continue;
      const bool positive = t.name.find("var") != std::string_view::npos;
      for (uint64_t at = 0; at < t.bytes; at += 4) {
        const auto number = static_cast<float>(random() % 255) / 127.0f - (positive ? -0.5f : 1.0f);
        const auto word = static_cast<uint32_t>(random());
        const auto label = static_cast<int32_t>(random() % 2);
        const void* from = t.dtype == plan::DType::f32   ? static_cast<const void*>(&number)
                           : t.dtype == plan::DType::i32 ? static_cast<const void*>(&label)
                                                         : &word;
        std::memcpy(data + t.offset + at, from, std::min<uint64_t>(4, t.bytes - at));
      }
    }
  }
};

TEST(Executable, EveryNumberOfThreadsGivesTheSameBits) {
  for (const std::string seed : {"train.f32", "train.bf16", "eval.f32", "eval.bf16"}) {
    if (seed.ends_with(".bf16") && !test::supports_bf16()) continue;
    std::map<int, std::string> expected;
    for (int threads = 1; threads <= kMostThreads; ++threads) {
      Bound bound(seed, threads);
      ASSERT_TRUE(bound.executable) << seed;
      const Status status = bound.run(4);
      ASSERT_TRUE(status.ok()) << seed << ": " << status.message();
      if (expected.empty()) expected = bound.contents();
      EXPECT_TRUE(bound.contents() == expected) << seed << " on " << threads << " threads";
    }
  }
}

TEST(Executable, StepsOfOnePlanReachTheOtherPlansOfAMemory) {
  // Both seeds are of one model: evaluation packs the weights again that training has changed.
  Bound training("train.f32", 2), evaluating("eval.f32", 2), fresh("eval.f32", 1);
  ASSERT_TRUE(training.executable && evaluating.executable && fresh.executable);
  ASSERT_TRUE(evaluating.run(1).ok());
  ASSERT_TRUE(training.run(2).ok());
  const uint64_t bytes = training.memory->bytes(Arena::weights);
  ASSERT_EQ(bytes, evaluating.memory->bytes(Arena::weights));
  for (Bound* bound : {&evaluating, &fresh})
    std::memcpy(bound->memory->arena(Arena::weights), training.memory->arena(Arena::weights), bytes);
  constexpr int kOutput = static_cast<int>(Arena::output);
  const std::string before = evaluating.contents()[kOutput];
  ++evaluating.memory->weights_version;
  ASSERT_TRUE(evaluating.run(1).ok() && fresh.run(1).ok());
  EXPECT_TRUE(evaluating.contents()[kOutput] == fresh.contents()[kOutput]);
  EXPECT_FALSE(evaluating.contents()[kOutput] == before);
}

// As a checkpoint is taken while the host has queued the next steps: each snapshot is of one moment between two steps.
TEST(Executable, SnapshotsSeeTheWeightsBetweenSteps) {
  constexpr int kSteps = 24, kSnapshots = 8;
  std::vector<std::string> moments;
  {
    Bound alone("train.f32", 1);
    ASSERT_TRUE(alone.executable);
    moments.push_back(alone.contents()[0]);
    for (int i = 0; i < kSteps; ++i) {
      ASSERT_TRUE(in_task(*alone.pool, [&] { return alone.step(i); }).ok());
      moments.push_back(alone.contents()[0]);
      ASSERT_FALSE(moments[moments.size() - 2] == moments.back());
    }
  }
  Bound bound("train.f32", kMostThreads);
  ASSERT_TRUE(bound.executable);
  const uint64_t bytes = bound.memory->bytes(Arena::weights);
  const io::FileSpec spec{
      "", {}, bytes, {{Arena::weights, 0, 0, io::FileDType::f32, io::Permute::none, static_cast<uint32_t>(bytes / 4)}}};
  size_t at_least = 0;
  for (int round = 0; round < kSnapshots; ++round) {
    // The host's thread pins while nothing runs, queues steps, and another thread copies meanwhile.
    bound.memory->pin();
    std::vector<std::future<Status>> steps;
    for (int i = 0; i < kSteps / kSnapshots; ++i) {
      auto answer = std::make_shared<std::promise<Status>>();
      steps.push_back(answer->get_future());
      const int number = round * (kSteps / kSnapshots) + i;
      ASSERT_TRUE(bound.pool->submit([&bound, answer, number] { answer->set_value(bound.step(number)); }));
    }
    std::string seen;
    std::thread([&] {
      const auto snapshot = io::take_snapshot(*bound.memory, {spec});
      bound.memory->unpin();
      if (snapshot.ok()) seen.assign(reinterpret_cast<const char*>(snapshot.value()->files[0].data.data()), bytes);
    }).join();
    for (auto& step : steps) ASSERT_TRUE(step.get().ok());
    EXPECT_TRUE(seen == moments[at_least]) << "snapshot " << round;
    at_least += steps.size();
  }
  EXPECT_TRUE(bound.contents()[0] == moments.back());
}

// Even rounds: the pool stops between two tasks, so that all behind it must end; odd ones: somewhere in the middle.
TEST(Executable, AStoppedPoolEndsItsStepsAndAnswersTheRest) {
  constexpr size_t kSteps = 40;
  for (const char* seed : {"train.f32", "eval.f32"}) {
    for (size_t round = 0; round < 10; ++round) {
      Bound bound(seed, kMostThreads);
      ASSERT_TRUE(bound.executable);
      std::vector<std::future<Status>> steps;
      for (size_t i = 0; i < kSteps; ++i) {
        if (i == round && round % 2 == 0) ASSERT_TRUE(bound.pool->submit([&bound] { bound.pool->shut_down(); }));
        auto answer = std::make_shared<std::promise<Status>>();
        steps.push_back(answer->get_future());
        const bool queued =
            bound.pool->submit([&bound, answer, i] { answer->set_value(bound.step(static_cast<int>(i))); });
        // The pool may have come to the task that stops it.
        if (!queued) answer->set_value(error(Code::aborted, "not queued"));
        ASSERT_TRUE(queued || (round % 2 == 0 && i >= round));
      }
      if (round % 2) {
        ASSERT_TRUE(steps[round].get().ok());
        bound.pool->shut_down();
      }
      bool stopped = false;
      for (size_t i = round % 2 ? round + 1 : 0; i < kSteps; ++i) {
        const Status status = steps[i].get();
        EXPECT_TRUE(status.ok() || status.code() == Code::aborted) << status.message();
        EXPECT_FALSE(stopped && status.ok()) << "a step ran to its end after one that was stopped";
        if (round % 2 == 0) EXPECT_EQ(status.ok(), i < round);
        stopped |= !status.ok();
      }
      bound.pool->join();
      EXPECT_FALSE(bound.pool->submit([] {}));
    }
  }
}

}  // namespace
}  // namespace effnet
