// The pool: every shard exactly once, results visible after the barrier, clean shutdown with work queued.
#include "core/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <future>
#include <numeric>
#include <system_error>

namespace effnet {
namespace {

template <class F>
void in_task(ThreadPool& pool, F work) {
  std::promise<void> done;
  ASSERT_TRUE(pool.submit([&] {
    work();
    done.set_value();
  }));
  done.get_future().wait();
}

TEST(ThreadPool, RunsEveryShardOnceAndWaits) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    in_task(pool, [&] {
      for (int round = 0; round < 3000; ++round) {
        const int shards = round % 37;
        std::vector<int> runs(static_cast<size_t>(shards), 0);  // plain ints: the barrier must order the writes
        pool.parallel(shards, [&](int shard, int worker) {
          EXPECT_GE(worker, 0);
          EXPECT_LT(worker, threads);
          ++runs[static_cast<size_t>(shard)];
        });
        ASSERT_EQ(std::accumulate(runs.begin(), runs.end(), 0), shards);
        for (int r : runs) ASSERT_EQ(r, 1);
      }
    });
  }
}

// The others take the shards of a thread that is held up, whichever it is.
TEST(ThreadPool, AThreadThatIsHeldUpLosesItsShards) {
  for (const int threads : {2, 3}) {
    ThreadPool pool(threads);
    in_task(pool, [&] {
      for (const int held : {0, 1, 11, 12, 23}) {
        std::atomic<int> others{0};
        pool.parallel(24, [&](int shard, int) {
          if (shard != held) {
            ++others;
          } else {
            while (others.load() < 23) std::this_thread::yield();
          }
        });
        EXPECT_EQ(others, 23);
      }
    });
  }
}

TEST(ThreadPool, TasksRunInOrder) {
  ThreadPool pool(2);
  std::vector<int> order;
  std::promise<void> last;
  for (int i = 0; i < 50; ++i)
    ASSERT_TRUE(pool.submit([&order, &last, i] {
      order.push_back(i);
      if (i == 49) last.set_value();
    }));
  last.get_future().wait();
  for (int i = 0; i < 50; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
}

TEST(ThreadPool, ShutDownLetsQueuedTasksSeeTheStop) {
  std::atomic<int> stopped{0};
  {
    ThreadPool pool(3);
    std::promise<void> started;
    pool.submit([&] {
      started.set_value();
      while (!pool.stopping()) std::this_thread::yield();
      ++stopped;
    });
    for (int i = 0; i < 3; ++i)
      pool.submit([&] {
        if (pool.stopping()) ++stopped;
      });
    started.get_future().wait();
    pool.shut_down();
    EXPECT_FALSE(pool.submit([] {}));
  }
  EXPECT_EQ(stopped, 4);
}

TEST(ThreadPool, LastOwnerMayBeItsOwnThread) {
  std::promise<void> done;
  auto pool = make_pool(2);
  pool->submit([pool, &done] {
    pool->parallel(4, [](int, int) {});
    done.set_value();
  });
  pool.reset();
  done.get_future().wait();
}

TEST(ThreadPool, TwoPoolsAtOnce) {
  ThreadPool a(2), b(2);
  std::atomic<int64_t> sums[2] = {};
  std::promise<void> done[2];
  ThreadPool* pools[2] = {&a, &b};
  for (int p = 0; p < 2; ++p)
    pools[p]->submit([&, p] {
      for (int round = 0; round < 500; ++round) pools[p]->parallel(16, [&](int shard, int) { sums[p] += shard; });
      done[p].set_value();
    });
  for (auto& d : done) d.get_future().wait();
  EXPECT_EQ(sums[0], 500 * 120);
  EXPECT_EQ(sums[1], 500 * 120);
}

TEST(ThreadPool, TheLargestJobEnds) {
  ThreadPool pool(2);
  in_task(pool, [&] {
    std::atomic<int64_t> sum{0};
    pool.parallel(ThreadPool::kMaxShards, [&](int shard, int) { sum.fetch_add(shard, std::memory_order_relaxed); });
    const int64_t n = ThreadPool::kMaxShards;
    EXPECT_EQ(sum.load(), n * (n - 1) / 2);
  });
}

// In a child process: its address space is too small for the stacks of the threads.
TEST(ThreadPoolDeathTest, TooManyThreadsAreAnExceptionNotTheEnd) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's shadow memory is larger than the limit";
#else
  const auto attempt = [] {
    const rlimit limit{rlim_t{1} << 30, rlim_t{1} << 30};
    setrlimit(RLIMIT_AS, &limit);
    try {
      ThreadPool pool(256);
    } catch (const std::system_error&) {
      std::_Exit(0);
    }
    std::_Exit(1);
  };
  EXPECT_EXIT(attempt(), testing::ExitedWithCode(0), "");
#endif
}

}  // namespace
}  // namespace effnet
