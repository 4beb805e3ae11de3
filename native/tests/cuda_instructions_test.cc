// Each instruction that kernels have a word for (instructions.cu) against its definition in plain loops: on the
// emulation, and on a GPU, where gpu-check runs it first.
#include <bit>
#include <vector>

#include "tests/device/instructions.h"
#include "tests/kernel_rig.h"

namespace effnet::test {
namespace {

using cuda::Dim;

// Runs a kernel in each order; the bits are the same.
template <class Out, class In>
std::vector<Out> run(const char* kernel, const std::vector<In>& in, size_t results, Dim grid, uint32_t threads,
                     size_t shared = 0, int64_t count = 0) {
  std::vector<Out> first(results);
  for (int order = 0; order < backend::Runner::kOrders; ++order) {
    std::vector<Out> out(results);
    std::vector<In> given = in;
    const backend::Mirror from(given.data(), given.size() * sizeof(In)), into(out.data(), out.size() * sizeof(Out));
    const InstructionArgs args{from.data(), into.data(), count ? count : static_cast<int64_t>(results)};
    for (const Status& status :
         {from.upload(given.data()), into.upload(out.data()),
          backend::run(cuda::make_launch(kernel, grid, threads, shared, args), order), into.download(out.data())})
      EXPECT_TRUE(status.ok()) << kernel << ": " << status.message();
    if (testing::Test::HasFailure()) return out;
    if (order == 0)
      first = out;
    else
      EXPECT_EQ(std::memcmp(first.data(), out.data(), results * sizeof(Out)), 0) << kernel << ": other bits";
  }
  return first;
}
Dim blocks(size_t threads) { return {static_cast<uint32_t>((threads + 255) / 256), 1, 1}; }

// Both NaN, or the same value with the same sign.
template <class T>
bool same(T a, T b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof a) == 0;
}
bool same_bits16(uint32_t got, uint16_t want, DType dtype) {
  return got == want || (got <= 0xffff && std::isnan(from_bits16(dtype, static_cast<uint16_t>(got))) &&
                         std::isnan(from_bits16(dtype, want)));
}

// Every binade with both signs; values between two of a 16-bit type, of TF32, and what lies beside such ties.
std::vector<float> floats() {
  std::vector<float> all{0.0f, INFINITY, NAN, 65504.0f, 65519.9f, 65520.0f, 0x1.fffffep127f, 0x1.feffffp127f};
  for (int exponent = -126; exponent <= 127; ++exponent)
    for (const uint32_t bits :
         {0u, 0x1000u, 0xfffu, 0x1001u, 0x3000u, 0x8000u, 0x7fffu, 0x8001u, 0x18000u, 0x7fffffu, 0x2aaaaau, 0x555555u})
      all.push_back(std::ldexp(1.0f + static_cast<float>(bits) * 0x1p-23f, exponent));
  for (const float subnormal : {0x1p-149f, 0x1.8p-140f, 0x1p-127f}) all.push_back(subnormal);
  const size_t count = all.size();
  for (size_t i = 0; i < count; ++i) all.push_back(-all[i]);
  for (const double v : random_values(20'000, 3, 0, 20)) all.push_back(static_cast<float>(v));
  return all;
}

// To 10 bits behind the leading one, ties away from 0.
float tf32(float v) {
  if (!std::isfinite(v) || v == 0) return v;
  const double unit = std::ldexp(1.0, std::ilogb(v) - 10);
  return static_cast<float>(std::copysign(std::floor(std::abs(double{v}) / unit + 0.5) * unit, double{v}));
}

TEST(Instructions, OfFloats) {
  const std::vector<float> in = floats();
  const auto got = run<OfFloat>("check_floats", in, in.size(), blocks(in.size()), 256);
  for (size_t i = 0; i < in.size(); ++i) {
    const float v = in[i];
    const OfFloat& of = got[i];
    SCOPED_TRACE(testing::Message() << std::hexfloat << v);
    // Of what rounds to infinity nothing is said.
    const bool overflows = std::isinf(tf32(v)) && !std::isinf(v);
    if (!std::isnan(v) && !overflows && (v == 0 || std::abs(v) >= 0x1p-126f)) {
      // The unit that reads it does not look at the bits that TF32 has no room for.
      EXPECT_TRUE(same(std::bit_cast<float>(of.tf32 & 0xffffe000u), tf32(v)));
    }
    EXPECT_TRUE(same_bits16(of.bf16, float_to_bf16(v), DType::bf16)) << of.bf16;
    EXPECT_TRUE(same_bits16(of.f16, float_to_f16(v), DType::f16)) << of.f16;
    for (const auto& [word, dtype] : {std::pair{of.pair_bf16, DType::bf16}, std::pair{of.pair_f16, DType::f16}}) {
      EXPECT_TRUE(same_bits16(word & 0xffff, to_bits16(dtype, v), dtype)) << word;
      EXPECT_TRUE(same_bits16(word >> 16, to_bits16(dtype, -v), dtype)) << word;
    }
    if (std::abs(v) <= 80) {
      EXPECT_NEAR(of.exp / std::exp(double{v}), 1, 0x1p-22);
    }
    EXPECT_TRUE(same(of.sqrt, std::sqrt(v))) << of.sqrt;
    EXPECT_TRUE(same(of.greater, std::fmax(v, kOther))) << of.greater;
    EXPECT_TRUE(same(of.smaller, std::fmin(v, kOther))) << of.smaller;
    EXPECT_TRUE(same(of.fma, std::fma(v, v, kOther))) << of.fma;
    EXPECT_EQ(of.is_nan, std::isnan(v));
    EXPECT_EQ(of.is_finite, std::isfinite(v));
    if (HasFailure()) return;
  }
}

// How far tanh_fast is off, as a share of the value.
struct Worst {
  double off = 0;
  float at = 0;
  int above = 0;  // values that are off by more than they may
};

// All there are, so that the bound of tanh_fast is a fact for every 16-bit tensor.
TEST(Instructions, OfSixteenBits) {
  const auto got = run<OfBits>("check_sixteen_bits", std::vector<char>(1), 65536, blocks(65536), 256);
  Worst worst_bf16, worst_f16;
  for (uint32_t i = 0; i < 65536; ++i) {
    const auto bits = static_cast<uint16_t>(i), complement = static_cast<uint16_t>(~i);
    const OfBits& of = got[i];
    SCOPED_TRACE(testing::Message() << "bits " << i);
    EXPECT_TRUE(same(of.bf16, bf16_to_float(bits)) && same(of.first_bf16, of.bf16));
    EXPECT_TRUE(same(of.f16, f16_to_float(bits)) && same(of.first_f16, of.f16));
    EXPECT_TRUE(same(of.second_bf16, bf16_to_float(complement)));
    EXPECT_TRUE(same(of.second_f16, f16_to_float(complement)));
    for (const auto& [x, y, worst] :
         {std::tuple{of.bf16, of.tanh_bf16, &worst_bf16}, {of.f16, of.tanh_f16, &worst_f16}}) {
      EXPECT_EQ(std::isnan(y), std::isnan(x));
      if (std::isnan(x)) continue;
      const double want = std::tanh(double{x}), off = std::abs(y - want), share = off / std::abs(want);
      if (!(off <= 0x1.01p-11 * std::abs(want) + 0x1p-126)) ++worst->above;
      if (std::abs(want) > 0x1p-120 && !(share <= worst->off)) *worst = {share, x, worst->above};
    }
    if (HasFailure()) return;
  }
  for (const auto& [type, worst] : {std::pair{"bf16", worst_bf16}, {"fp16", worst_f16}}) {
    std::printf("tanh_fast is off by up to 2^%.3f of its value for %s, at %.9g\n", std::log2(worst.off), type,
                worst.at);
    EXPECT_EQ(worst.above, 0) << "values of " << type << " at which tanh_fast is off by more than 2^-11 of its value, "
                              << "which is what PTX's description of tanh.approx.f32 allows, and 1/256 of that. By a "
                              << "little: the tests' limits are to follow; by much: it is another instruction";
  }
}

TEST(Instructions, OfDoubles) {
  std::vector<double> in;
  for (const double v : random_values(2000, 5, 0, 3)) in.insert(in.end(), {std::exp(v), v / 7});
  const auto got = run<OfDoubles>("check_doubles", in, in.size() / 2, blocks(in.size() / 2), 256);
  for (size_t i = 0; i < got.size(); ++i) {
    const double x = in[2 * i], y = in[2 * i + 1];
    EXPECT_EQ(got[i].fma, std::fma(x, y, 1.0));
    EXPECT_NEAR(got[i].log, std::log(x), 1e-15 * std::abs(std::log(x))) << x;
    EXPECT_EQ(got[i].sqrt, std::sqrt(x));
    EXPECT_NEAR(got[i].power, std::pow(x, y), 2e-15 * std::pow(x, y)) << x << " " << y;
    if (HasFailure()) return;
  }
}

struct Product {
  const char* kernel;
  DType dtype;  // f32: TF32
  int depth;
};

void expect_product(const Product& p, const std::vector<float>& a, const std::vector<float>& b,
                    const std::vector<float>& c, double tolerance) {
  std::vector<char> in;
  for (const auto* matrix : {&a, &b})
    for (const float v : *matrix) {
      const uint16_t half = to_bits16(p.dtype, v);
      const char* from =
          p.dtype == DType::f32 ? reinterpret_cast<const char*>(&v) : reinterpret_cast<const char*>(&half);
      in.insert(in.end(), from, from + bytes_of(p.dtype));
    }
  const auto* from = reinterpret_cast<const char*>(c.data());
  in.insert(in.end(), from, from + c.size() * sizeof(float));
  const auto got = run<float>(p.kernel, in, 16 * 8, {1, 1, 1}, 32);
  const auto read = [&](float v) {
    if (p.dtype == DType::f32) return double{std::bit_cast<float>(std::bit_cast<uint32_t>(v) & 0xffffe000u)};
    return round_to(p.dtype, v);
  };
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 8; ++n) {
      const auto i = static_cast<size_t>(m * 8 + n);
      double want = c[i], size = std::abs(want);
      for (int k = 0; k < p.depth; ++k) {
        const double term = read(a[static_cast<size_t>(m * p.depth + k)]) * read(b[static_cast<size_t>(k * 8 + n)]);
        want += term;
        size += std::abs(term);
      }
      ASSERT_LE(std::abs(got[i] - want), tolerance * size) << p.kernel << " row " << m << ", column " << n;
    }
}

TEST(Instructions, Products) {
  for (const Product& p : {Product{"check_mma_tf32", DType::f32, 8},
                           {"check_mma_bf16", DType::bf16, 16},
                           {"check_mma_f16", DType::f16, 16}}) {
    const auto depth = static_cast<size_t>(p.depth);
    std::vector<float> a(16 * depth), b(depth * 8), c(16 * 8);
    const auto integers = [](std::vector<float>& v, int step, int modulus) {
      for (size_t i = 0; i < v.size(); ++i)
        v[i] = static_cast<float>(static_cast<int>(i) * step % modulus - modulus / 2);
    };
    integers(a, 7, 61);
    integers(b, 11, 53);
    integers(c, 13, 101);
    expect_product(p, a, b, c, 0);
    if (p.dtype == DType::f32) {  // the bits below those of TF32 count for nothing
      for (auto* v : {&a, &b})
        for (float& x : *v) x = std::bit_cast<float>(std::bit_cast<uint32_t>(x) | (x == 0 ? 0u : 0x1fffu));
      expect_product(p, a, b, c, 0);
    }
    const auto randoms = [](std::vector<float>& v, uint32_t seed) {
      const Values values = random_values(v.size(), seed);
      std::transform(values.begin(), values.end(), v.begin(), [](double x) { return static_cast<float>(x); });
    };
    randoms(a, 1);
    randoms(b, 2);
    randoms(c, 3);
    // Sums in FP32 or a little more; what is below the largest term's last place may be cut off.
    expect_product(p, a, b, c, 0x1p-21);
  }
}

TEST(Instructions, MatricesOutOfSharedMemory) {
  std::vector<uint16_t> in(kMatrixBytes / 2);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint16_t>(i * 257 + 3);
  const auto got = run<OfMatrices>("check_matrices", in, 32, {1, 1, 1}, 32, kMatrixBytes);
  for (size_t lane = 0; lane < 32; ++lane)
    for (size_t matrix = 0; matrix < 4; ++matrix) {
      const size_t g = lane / 4, q = lane % 4;
      const auto element = [&](size_t row, size_t column) { return uint32_t{in[(matrix * 8 + row) * 8 + column]}; };
      EXPECT_EQ(got[lane].straight[matrix], element(g, 2 * q) | element(g, 2 * q + 1) << 16) << lane;
      EXPECT_EQ(got[lane].transposed[matrix], element(2 * q, g) | element(2 * q + 1, g) << 16) << lane;
    }
}

TEST(Instructions, CopiesIntoSharedMemory) {
  constexpr size_t kWords = size_t{kCopyThreads} * kCopyGroups * 4;
  std::vector<uint32_t> in(kWords);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint32_t>(i * 2654435761u);
  const auto got = run<uint32_t>("check_copies", in, kWords, {1, 1, 1}, kCopyThreads, kWords * 4);
  for (size_t i = 0; i < kWords; ++i) EXPECT_EQ(got[i], i / 4 % kCopyThreads % 2 ? 0 : in[i]) << i;
}

TEST(Instructions, ValuesOfOtherLanes) {
  std::vector<float> in(64);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i * i);
  const auto got = run<OfLane>("check_lanes", in, in.size(), {1, 1, 1}, 64);
  for (size_t i = 0; i < in.size(); ++i) {
    float sum = 0;
    for (size_t j = i / 32 * 32; j < i / 32 * 32 + 32; ++j) sum += in[j];
    EXPECT_EQ(got[i].single_sum, sum);
    EXPECT_EQ(got[i].precise_sum, sum + 16.0);
    for (size_t mask = 0; mask < kMasks; ++mask) {
      EXPECT_EQ(got[i].single[mask], in[i ^ size_t{1} << mask]) << i;
      EXPECT_EQ(got[i].precise[mask], in[i ^ size_t{1} << mask] + 0.5) << i;
    }
  }
}

TEST(Instructions, Vectors) {
  constexpr size_t kThreads = 300;
  // Values that every type keeps as they are: their bits come out again.
  std::vector<uint16_t> in(16 * kThreads);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint16_t>(0x2000 + i * 5 % 0x5000 + (i % 3 ? 0x8000 : 0));
  const auto got = run<uint16_t>("check_vectors", in, 64 * kThreads, blocks(kThreads), 256, 0, kThreads);
  for (size_t t = 0; t < kThreads; ++t) {
    const uint16_t *from = &in[16 * t], *into = &got[64 * t];
    EXPECT_EQ(std::memcmp(into, from, 32), 0) << t;
    for (const size_t at : {16, 24, 32}) EXPECT_EQ(std::memcmp(into + at, from, 16), 0) << t << " at " << at;
    EXPECT_EQ(std::memcmp(into + 40, from, 32), 0) << t;
  }
}

TEST(Instructions, WhatBlocksLeaveForTheLastOne) {
  std::vector<uint32_t> in(kCountingBlocks);
  uint32_t sum = 0;
  for (size_t i = 0; i < in.size(); ++i) sum += in[i] = static_cast<uint32_t>(i * i + 7);
  const auto got = run<OfBlocks>("check_blocks", in, 1, {kCountingBlocks, 1, 1}, 64, 16);
  EXPECT_EQ(got[0].sum, sum);
  EXPECT_EQ(got[0].last_blocks, 1u);
  EXPECT_EQ(got[0].flag, 1u);
  EXPECT_EQ(got[0].counter, 0u);
}

}  // namespace
}  // namespace effnet::test
