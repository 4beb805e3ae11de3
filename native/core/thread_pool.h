// The engine's threads: one coordinator, which runs tasks (steps, binds) in order, and helpers that join it inside a
// task for the shards of an operation. Never libuv's threads, no OpenMP team. Nothing spins unless a task runs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace effnet {

class ThreadPool {
 public:
  // Most shards of one parallel().
  static constexpr int kMaxShards = (1 << 20) - 1024;

  // At most 256 threads. Throws std::system_error when the system gives no thread.
  explicit ThreadPool(int threads);
  ~ThreadPool();  // joins
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }
  // Queues a task for the coordinator. False when the pool is closing: the task will not run.
  bool submit(std::function<void()> task);
  // Refuses new tasks and asks the running one to end; returns at once. Idempotent. Tasks already queued still run, so
  // that whoever waits for them hears; they see stopping() and end.
  void shut_down();
  // shut_down(), then waits for the threads (at most about one operation). Not from a thread of the pool.
  void join();
  // Polled by tasks between operations.
  bool stopping() const { return stopping_.load(std::memory_order_relaxed); }

  // Runs work(shard, worker) for every shard in [0, shards), at most kMaxShards. Only from inside a task. The order in
  // which shards run, and on which thread, is not defined; results must not depend on it. As far as all threads keep
  // step each takes the same part of [0, shards) every time: an operation whose shards are cut like those of the one
  // before finds its operands in the caches of its own core.
  template <class F>
  void parallel(int shards, F&& work) {
    if (shards <= 0) return;
    if (shards == 1 || threads_ == 1) {
      for (int i = 0; i < shards; ++i) work(i, 0);
      return;
    }
    auto call = [](void* context, int shard, int worker) {
      (*static_cast<std::remove_reference_t<F>*>(context))(shard, worker);
    };
    run(shards, call, &work);
  }

 private:
  using Call = void (*)(void* context, int shard, int worker);
  void run(int shards, Call call, void* context);
  bool take_shard(int worker);
  void helper_loop(int worker);
  void coordinator_loop();

  const int threads_;
  std::atomic<bool> stopping_{false};

  // The shards [next, end) of the job that a thread has still to do, next << 32 | end. It takes them from the front;
  // who has done his own takes from the end of others'. While a claimed shard is not done the job cannot end, hence
  // call_ and context_ are those of the job that the claim was made in.
  struct alignas(64) Range {
    std::atomic<uint64_t> word{0};
  };
  bool shards_left() const;
  const std::unique_ptr<Range[]> ranges_;
  alignas(64) std::atomic<int> done_{0};
  Call call_ = nullptr;
  void* context_ = nullptr;
  std::atomic<bool> task_running_{false};
  std::atomic<uint32_t> wake_{0};
  std::atomic<int> sleepers_{0};

  std::mutex mutex_;
  std::condition_variable queued_;
  std::deque<std::function<void()>> tasks_;
  bool closed_ = false;
  std::mutex join_mutex_;
  std::vector<std::thread> workers_;
};

// A pool whose last owner may be one of its own threads (a task holds what it works on): destruction is handed to a
// thread of its own. Pools alive when the process exits are joined before static objects go.
std::shared_ptr<ThreadPool> make_pool(int threads);

}  // namespace effnet
