#include "cpu/probe.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "core/math.h"
#include "cpu/caches.h"
#include "cpu/cpu_info.h"
#include "cpu/onednn/adapter.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/probe.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

// Independent sums: more than latency times units of any core.
constexpr int kSums = 12;

// Multiply-adds alone, on registers; returns the FLOPs done. Values that neither overflow nor become subnormal.
double FmaImpl(int64_t rounds, float* sink) {
  Vec sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = splat(static_cast<float>(i) + 1);
  const Vec a = splat(0.5f), b = splat(1.0f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sums[i] = hn::MulAdd(sums[i], a, b);
  }
  for (int i = 1; i < kSums; ++i) sums[0] = hn::Add(sums[0], sums[i]);
  hn::StoreU(sums[0], F32(), sink);
  return static_cast<double>(rounds) * kSums * static_cast<double>(kLanes) * 2;
}

// The same for AVX512_BF16; as assembly, since the target is AVX-512 without it. Zero elsewhere.
double DotImpl(int64_t rounds, float* sink) {
#if HWY_TARGET == HWY_AVX3
  Vec sums[kSums];
  for (int i = 0; i < kSums; ++i) sums[i] = zero();
  const Vec a = zero(), b = zero();
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) {
      auto sum = sums[i].raw;  // a copy: the array itself would be kept in memory
      asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a.raw), "v"(b.raw));
      sums[i].raw = sum;
    }
  }
  for (int i = 1; i < kSums; ++i) sums[0] = hn::Add(sums[0], sums[i]);
  hn::StoreU(sums[0], F32(), sink);
  return static_cast<double>(rounds) * kSums * static_cast<double>(kLanes) * 4;
#else
  return 0;
#endif
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {

HWY_EXPORT(FmaImpl);
HWY_EXPORT(DotImpl);

namespace {

constexpr int kRounds = 40;
constexpr double kRoundSeconds = 2e-3;
constexpr int kCopyRounds = 8;

double seconds_of(ThreadPool& pool, auto&& work) {
  const auto start = std::chrono::steady_clock::now();
  pool.parallel(pool.threads(), work);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Best rate of rounds in which every thread does work(amount, sink, thread) -> FLOPs.
double best_flops(ThreadPool& pool, const auto& work) {
  const auto threads = static_cast<size_t>(pool.threads());
  std::vector<float> sinks(threads * 64);
  std::vector<double> flops(threads);
  const auto round = [&](int64_t amount) {
    const double seconds = seconds_of(pool, [&](int shard, int) {
      const auto i = static_cast<size_t>(shard);
      flops[i] = work(amount, sinks.data() + i * 64, i);
    });
    double sum = 0;
    for (const double f : flops) sum += f;
    return std::pair{sum, seconds};
  };
  int64_t amount = 1;
  while (round(amount).second < kRoundSeconds) amount *= 2;
  double best = 0;
  for (int i = 0; i < kRounds; ++i) {
    const auto [sum, seconds] = round(amount);
    best = std::max(best, sum / seconds);
  }
  return best;
}

double best_copy(ThreadPool& pool) {
  const auto threads = static_cast<size_t>(pool.threads());
  // Ones, so that every page is there and none is the kernel's page of zeros.
  std::vector<char> src(threads * kFarPastCachesBytes, 1), dst(threads * kFarPastCachesBytes, 1);
  double best = 0;
  for (int i = 0; i < kCopyRounds; ++i) {
    const double seconds = seconds_of(pool, [&](int shard, int) {
      const size_t at = static_cast<size_t>(shard) * kFarPastCachesBytes;
      std::memcpy(dst.data() + at, src.data() + at, kFarPastCachesBytes);
    });
    best = std::max(best, 2.0 * static_cast<double>(threads * kFarPastCachesBytes) / seconds);
  }
  return best;
}

// AMX has no such loop of its own here: the largest product that oneDNN does from the cache, a 1x1 convolution.
double best_amx(ThreadPool& pool) {
  onednn::ConvShape shape{};
  shape.pass = onednn::Pass::forward;
  shape.dtype = plan::DType::bf16;
  shape.n = shape.kh = shape.kw = shape.stride = 1;
  shape.ih = shape.iw = shape.oh = shape.ow = 16;
  shape.ic = shape.oc = 512;
  const auto made = onednn::Conv::create(shape);
  if (!made.ok()) return 0;
  const onednn::Conv& conv = *made.value();
  const size_t pixels = 16 * 16 * 512 * 2;
  const auto aligned = [](size_t bytes) { return align64(bytes + 64); };
  const size_t each = 2 * aligned(pixels) + aligned(conv.weights_bytes()) + aligned(conv.scratch_bytes());
  std::vector<char> memory(each * static_cast<size_t>(pool.threads()) + 64);
  char* const base = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  const double flops = 2.0 * 16 * 16 * 512 * 512;
  return best_flops(pool, [&](int64_t amount, float*, size_t thread) {
    char* const src = base + thread * each;
    char* const dst = src + aligned(pixels);
    char* const weights = dst + aligned(pixels);
    char* const scratch = weights + aligned(conv.weights_bytes());
    for (int64_t i = 0; i < amount; ++i) conv.execute(src, weights, nullptr, dst, scratch);
    return flops * static_cast<double>(amount);
  });
}

}  // namespace

Peaks measure_peaks(ThreadPool& pool) {
  Peaks peaks;
  const CpuInfo info = cpu_info();
  const auto fma = EFF_DISPATCH(FmaImpl), dot = EFF_DISPATCH(DotImpl);
  const auto alone = [](auto function) {
    return [function](int64_t amount, float* sink, size_t) { return function(amount, sink); };
  };
  peaks.fp32_flops = best_flops(pool, alone(fma));
  if (kHasBf16Convert) peaks.bf16_flops = best_flops(pool, alone(dot));
  if (info.amx_bf16) peaks.bf16_flops = std::max(peaks.bf16_flops, best_amx(pool));
  peaks.bytes = best_copy(pool);
  return peaks;
}

}  // namespace effnet::cpu
#endif
