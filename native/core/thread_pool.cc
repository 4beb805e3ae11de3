#include "core/thread_pool.h"

#include <immintrin.h>
#include <pthread.h>

#include <cstdio>
#include <cstdlib>
#include <system_error>

extern "C" void omp_set_num_threads(int);

namespace effnet {
namespace {

// About 50 us of polling before a helper sleeps inside a task: operations follow each other faster than a wake-up.
constexpr int kSpins = 2000;

constexpr uint64_t kNextStep = uint64_t{1} << 32;
uint32_t range_next(uint64_t range) { return static_cast<uint32_t>(range >> 32); }
uint32_t range_end(uint64_t range) { return static_cast<uint32_t>(range); }

// Results must not depend on the thread: every engine thread flushes denormals and keeps oneDNN to itself.
void enter_engine_thread(int worker) {
  omp_set_num_threads(1);
  _mm_setcsr(_mm_getcsr() | 0x8040);  // flush-to-zero, denormals-are-zero
  char name[16];
  std::snprintf(name, sizeof name, "effnet-%d", worker);
  pthread_setname_np(pthread_self(), name);
}

}  // namespace

ThreadPool::ThreadPool(int threads)
    : threads_(threads < 1 ? 1 : threads), ranges_(new Range[static_cast<size_t>(threads_)]) {
  try {
    workers_.emplace_back([this] { coordinator_loop(); });
    for (int i = 1; i < threads_; ++i) workers_.emplace_back([this, i] { helper_loop(i); });
  } catch (...) {
    join();  // a thread that is destroyed while it runs ends the process
    throw;
  }
}

ThreadPool::~ThreadPool() { join(); }

void ThreadPool::join() {
  shut_down();
  std::lock_guard lock(join_mutex_);
  for (auto& worker : workers_)
    if (worker.joinable()) worker.join();
}

namespace {

// Never destroyed: used while the process exits.
struct LivePools {
  std::mutex mutex;
  std::vector<std::weak_ptr<ThreadPool>> pools;
};
LivePools& live_pools() {
  static LivePools* pools = [] {
    std::atexit([] {
      std::vector<std::weak_ptr<ThreadPool>> all;
      {
        std::lock_guard lock(live_pools().mutex);
        all = live_pools().pools;
      }
      for (auto& weak : all)
        if (auto pool = weak.lock()) pool->join();
    });
    return new LivePools;
  }();
  return *pools;
}

}  // namespace

std::shared_ptr<ThreadPool> make_pool(int threads) {
  std::shared_ptr<ThreadPool> pool(new ThreadPool(threads), [](ThreadPool* p) {
    try {
      std::thread([p] { delete p; }).detach();
    } catch (const std::system_error&) {
      p->shut_down();  // its threads end by themselves; only the object is lost
    }
  });
  std::lock_guard lock(live_pools().mutex);
  std::erase_if(live_pools().pools, [](const auto& weak) { return weak.expired(); });
  live_pools().pools.push_back(pool);
  return pool;
}

void ThreadPool::shut_down() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  stopping_ = true;
  queued_.notify_all();
  wake_.fetch_add(1);
  wake_.notify_all();
}

bool ThreadPool::submit(std::function<void()> task) {
  {
    std::lock_guard lock(mutex_);
    if (closed_) return false;
    tasks_.push_back(std::move(task));
  }
  queued_.notify_one();
  return true;
}

void ThreadPool::coordinator_loop() {
  enter_engine_thread(0);
  for (;;) {
    std::function<void()> task;
    {
      std::unique_lock lock(mutex_);
      queued_.wait(lock, [this] { return closed_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task_running_ = true;
    task();
    task_running_ = false;
  }
}

void ThreadPool::run(int shards, Call call, void* context) {
  call_ = call;
  context_ = context;
  done_.store(0, std::memory_order_relaxed);
  // Rounded up: the first thread, which is already awake, has the odd one.
  const auto begin = [&](int worker) {
    return (static_cast<uint64_t>(shards) * static_cast<uint64_t>(worker) + static_cast<uint64_t>(threads_) - 1) /
           static_cast<uint64_t>(threads_);
  };
  for (int worker = 0; worker < threads_; ++worker)
    ranges_[static_cast<size_t>(worker)].word.store(begin(worker) * kNextStep + begin(worker + 1));
  if (sleepers_.load() > 0) {
    wake_.fetch_add(1);
    wake_.notify_all();
  }
  while (take_shard(0)) {
  }
  for (int spins = 0; done_.load(std::memory_order_acquire) < shards; ++spins) {
    if (spins < kSpins)
      _mm_pause();
    else
      std::this_thread::yield();
  }
}

bool ThreadPool::shards_left() const {
  for (int i = 0; i < threads_; ++i) {
    const uint64_t range = ranges_[static_cast<size_t>(i)].word.load();
    if (range_next(range) < range_end(range)) return true;
  }
  return false;
}

bool ThreadPool::take_shard(int worker) {
  for (int i = 0; i < threads_; ++i) {
    const bool own = i == 0;
    std::atomic<uint64_t>& word = ranges_[static_cast<size_t>((worker + i) % threads_)].word;
    uint64_t range = word.load(std::memory_order_relaxed);
    while (range_next(range) < range_end(range)) {
      if (!word.compare_exchange_weak(range, own ? range + kNextStep : range - 1, std::memory_order_acquire,
                                      std::memory_order_relaxed))
        continue;
      call_(context_, static_cast<int>(own ? range_next(range) : range_end(range) - 1), worker);
      done_.fetch_add(1, std::memory_order_release);
      return true;
    }
  }
  return false;
}

void ThreadPool::helper_loop(int worker) {
  enter_engine_thread(worker);
  int idle = 0;
  while (!stopping_.load(std::memory_order_relaxed) || task_running_.load(std::memory_order_relaxed)) {
    if (take_shard(worker)) {
      idle = 0;
      continue;
    }
    if (++idle < kSpins && task_running_.load(std::memory_order_relaxed)) {
      _mm_pause();
      continue;
    }
    // Sleepers are counted before the last look at the job, and the coordinator looks at the count after publishing
    // one: either this thread sees the job or the coordinator sees this thread.
    const uint32_t ticket = wake_.load();
    sleepers_.fetch_add(1);
    if (!shards_left() && !stopping_.load()) wake_.wait(ticket);
    sleepers_.fetch_sub(1);
    idle = 0;
    if (stopping_.load()) std::this_thread::yield();
  }
}

}  // namespace effnet
