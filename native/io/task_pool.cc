#include "io/task_pool.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>

namespace effnet::io {
namespace {

class TaskPool {
 public:
  void run(std::function<void()> job) {
    bool queued;
    {
      std::lock_guard lock(mutex_);
      if (idle_ <= static_cast<int>(jobs_.size()) && threads_ < limit_) add_thread();
      queued = threads_ > 0;
      if (queued) jobs_.push_back(std::move(job));
    }
    if (!queued) return job();
    wake_.notify_one();
  }

 private:
  void add_thread() {
    try {
      std::thread([this] { loop(); }).detach();
      ++threads_;
    } catch (const std::system_error&) {
      // The threads there are do the work.
    }
  }

  void loop() {
    std::unique_lock lock(mutex_);
    for (;;) {
      ++idle_;
      wake_.wait(lock, [this] { return !jobs_.empty(); });
      --idle_;
      std::function<void()> job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
      job = nullptr;  // what it holds is freed outside the lock
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> jobs_;
  const int limit_ = std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 4, 32);
  int threads_ = 0, idle_ = 0;
};

}  // namespace

void run_task(std::function<void()> job) {
  // Never destroyed: its threads may outlive every static destructor of the process.
  static TaskPool* const pool = new TaskPool;
  pool->run(std::move(job));
}

}  // namespace effnet::io
