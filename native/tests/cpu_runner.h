// Runs an op's CPU kernel: shards in order, shuffled, on three threads, and with results written past the caches.
#pragma once

#include <algorithm>
#include <atomic>
#include <deque>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/caches.h"
#include "cpu/kernel.h"
#include "tests/aligned.h"

extern "C" void omp_set_num_threads(int);  // as the engine's threads: oneDNN runs on the calling thread alone

namespace effnet::test {

namespace backend {
inline constexpr bool kIsCpu = true;
using cpu::KernelFactory;
#define EFF_OP(id, name, ...) using cpu::make_##name;
#include "plan/op_table.inc"
#undef EFF_OP

class Runner {
 public:
  static constexpr int kOrders = 4;
  static const char* order_name(int order) {
    constexpr const char* kNames[kOrders] = {"shards in order", "shards shuffled", "shards on threads",
                                             "shards that write past the caches"};
    return kNames[order];
  }

  explicit Runner(KernelFactory factory) : factory_(factory) {}
  Status make(const plan::Op& op) {
    auto made = factory_(op);
    if (!made.ok()) return made.status();
    kernel_ = std::move(made.value());
    return ok_status();
  }
  bool made() const { return kernel_ != nullptr; }
  std::string name() const { return kernel_->name(); }
  int parts() const { return kernel_->shards(0); }
  std::vector<std::string> forms() const { return {kernel_->name()}; }
  double flops() const { return kernel_->flops(); }

  void execute(int order, std::byte** arenas, const size_t*, const StepScalars& scalars) {
    const uint64_t bound = cpu::past_caches_bytes;
    if (order == 3) cpu::past_caches_bytes = 0;
    execute_shards(order, arenas, scalars);
    cpu::past_caches_bytes = bound;
  }

 private:
  void execute_shards(int order, std::byte** arenas, const StepScalars& scalars) {
    Aligned shared(kernel_->shared_scratch_bytes());
    cpu::ExecContext context{arenas, &scalars, nullptr, shared.data(), 0};
    omp_set_num_threads(1);
    kernel_->prepare(context);
    for (int phase = 0; phase < kernel_->phases(); ++phase) {
      std::vector<int> shards(static_cast<size_t>(kernel_->shards(phase)));
      std::iota(shards.begin(), shards.end(), 0);
      if (order == 1 || order == 2) std::shuffle(shards.begin(), shards.end(), std::mt19937(7));
      std::atomic<size_t> next{0};
      const auto work = [&](int worker) {
        omp_set_num_threads(1);
        Aligned scratch(kernel_->worker_scratch_bytes());
        cpu::ExecContext mine = context;
        mine.worker = worker;
        mine.worker_scratch = scratch.data();
        for (size_t i = next++; i < shards.size(); i = next++) {
          kernel_->run(phase, shards[i], mine);
          mine.first_shard = false;
        }
      };
      if (order == 2) {
        std::thread threads[3];
        for (int i = 0; i < 3; ++i) threads[i] = std::thread(work, i);
        for (auto& thread : threads) thread.join();
      } else {
        work(0);
      }
    }
  }

  KernelFactory factory_;
  cpu::KernelPtr kernel_;
};

}  // namespace backend
}  // namespace effnet::test
