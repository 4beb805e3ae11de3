#include "cpu/fill_random.h"

#include <algorithm>
#include <bit>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/fill_random.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F64 = hn::ScalableTag<double>;
using U64 = hn::RebindToUnsigned<F64>;
using F32 = hn::Rebind<float, F64>;
using Real = hn::Vec<F64>;
using Word = hn::Vec<U64>;  // 32 bits in each lane's lower half; what the upper holds is said where it matters

constexpr uint64_t kInitStep = uint64_t{1} << 48;
constexpr size_t kLanes = HWY_MAX_BYTES / sizeof(double);
constexpr size_t kGroup = 4 * kLanes;  // values of one vector of blocks

HWY_INLINE Real real(double v) { return hn::Set(F64(), v); }
HWY_INLINE Word word(uint64_t v) { return hn::Set(U64(), v); }

// Only additions, products, fused multiply-adds, quotients and square roots, each rounded correctly by every CPU: so
// the values are the same everywhere, which neither libm nor another version of Highway's functions would promise.

// Exact for integers below 2^52; minus `less`, which must leave the result exact.
HWY_INLINE Real to_real(Word v, double less = 0) {
  constexpr double kTwo52 = 0x1p52;
  return hn::Sub(hn::BitCast(F64(), hn::Or(v, word(std::bit_cast<uint64_t>(kTwo52)))), real(kTwo52 + less));
}

// -2 log((w + 1/2) / 2^32). As 2w + 1 = 2^k m with m from sqrt(1/2) to sqrt(2), it is (33 - k) 2 log 2 - 2 log m, and
// log m = 2 atanh((m - 1) / (m + 1)): nothing cancels, also where the result is small. Relative error below 2^-40.
HWY_INLINE Real minus_two_log(Word w) {
  constexpr double kSqrtHalf = 0x1.6a09e667f3bcdp-1, kLog2 = 0x1.62e42fefa39efp-1;
  const auto bits = hn::BitCast(U64(), to_real(hn::Or(hn::ShiftLeft<1>(w), word(1))));
  const auto k = hn::ShiftRight<52>(hn::Sub(bits, word(std::bit_cast<uint64_t>(kSqrtHalf))));
  const Real m = hn::BitCast(F64(), hn::Sub(bits, hn::ShiftLeft<52>(k)));
  const Real s = hn::Div(hn::Sub(m, real(1)), hn::Add(m, real(1)));
  const Real z = hn::Mul(s, s);
  Real series = real(1.0 / 17);
  for (int n = 15; n >= 1; n -= 2) series = hn::MulAdd(series, z, real(1.0 / n));
  return hn::NegMulAdd(to_real(k, 33), real(2 * kLog2), hn::Mul(hn::Mul(s, real(-4)), series));
}

struct Turn {
  Real cosine, sine;
};

// Of w / 2^32 of a turn. Quadrant and remainder (at most an eighth of a turn) are taken from the integer, so they are
// exact, and Taylor's series of the remainder has a relative error below 2^-40.
HWY_INLINE Turn turn(Word w) {
  constexpr double kHalfPi = 0x1.921fb54442d18p0;
  const auto quadrant = hn::ShiftRight<30>(hn::Add(w, word(1u << 29)));
  // Four times the remainder, as a signed 32-bit integer plus 2^31.
  const auto shifted = hn::And(hn::Xor(hn::ShiftLeft<2>(w), word(0x80000000u)), word(0xffffffffu));
  const Real x = hn::Mul(to_real(shifted, 0x1p31), real(kHalfPi * 0x1p-32));
  const Real z = hn::Mul(x, x);
  Real sine = real(1.0 / 6227020800), cosine = real(-1.0 / 87178291200);
  for (double c : {-1.0 / 39916800, 1.0 / 362880, -1.0 / 5040, 1.0 / 120, -1.0 / 6, 1.0})
    sine = hn::MulAdd(sine, z, real(c));
  for (double c : {1.0 / 479001600, -1.0 / 3628800, 1.0 / 40320, -1.0 / 720, 1.0 / 24, -1.0 / 2, 1.0})
    cosine = hn::MulAdd(cosine, z, real(c));
  sine = hn::Mul(sine, x);
  const auto odd = hn::RebindMask(F64(), hn::TestBit(quadrant, word(1)));
  const auto sign = [](Word two) HWY_ATTR { return hn::BitCast(F64(), hn::ShiftLeft<62>(hn::And(two, word(2)))); };
  return {hn::Xor(hn::IfThenElse(odd, sine, cosine), sign(hn::Add(quadrant, word(1)))),
          hn::Xor(hn::IfThenElse(odd, cosine, sine), sign(quadrant))};
}

struct Block {
  Word words[4];
};

// philox4x32 of core/philox.h, one block a lane. Only the lower half of `block` is read; those of the result are clean.
HWY_INLINE Block philox(Word block, uint64_t step, const RandomKey& key) {
  const hn::Repartition<uint32_t, F64> d32;
  const auto product = [&](Word a, uint32_t b) HWY_ATTR {
    return hn::MulEven(hn::BitCast(d32, a), hn::BitCast(d32, word(b)));  // of the lower halves, all 64 bits
  };
  // Upper halves may hold anything between rounds: an xor keeps halves apart, and products read the lower ones.
  Word c0 = block, c1 = word(key.stream), c2 = word(static_cast<uint32_t>(step)), c3 = word(step >> 32);
  uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Word p0 = product(c0, 0xD2511F53u), p1 = product(c2, 0xCD9E8D57u);
    c0 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p1), c1), word(k0));
    c2 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p0), c3), word(k1));
    c1 = p1;
    c3 = p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const Word low = word(0xffffffffu);
  return {{hn::And(c0, low), hn::And(c1, low), hn::And(c2, low), hn::And(c3, low)}};
}

HWY_INLINE auto beyond_two(Real z) { return hn::Gt(hn::Abs(z), real(2)); }

// Draws the listed elements again until they are within two deviations. `elements` has room for kLanes more, and is
// used up.
void draw_again(float* into, double scale, const RandomKey& key, uint64_t* elements, size_t count) {
  for (uint64_t attempt = 1; count > 0; ++attempt) {
    size_t left = 0;
    for (size_t i = 0; i < count; i += kLanes) {
      const Word element = hn::LoadU(U64(), elements + i);
      const Block block = philox(hn::ShiftRight<1>(element), kInitStep + attempt, key);
      const auto odd = hn::TestBit(element, word(1));
      const Real radius = hn::Sqrt(minus_two_log(hn::IfThenElse(odd, block.words[2], block.words[0])));
      const Real z = hn::Mul(radius, turn(hn::IfThenElse(odd, block.words[3], block.words[1])).cosine);
      float values[kLanes];
      hn::StoreU(hn::DemoteTo(F32(), hn::Mul(z, real(scale))), F32(), values);
      uint8_t beyond[8];
      hn::StoreMaskBits(F64(), beyond_two(z), beyond);
      for (size_t lane = 0; lane < std::min(kLanes, count - i); ++lane) {
        const uint64_t e = elements[i + lane];
        if (beyond[0] >> lane & 1)
          elements[left++] = e;
        else
          into[e] = values[lane];
      }
    }
    count = left;
  }
}

// The values of kLanes blocks, before scaling: values[j] holds elements 4 * lane + j.
template <Draw kDraw>
HWY_INLINE void draw_blocks(const Block& block, Real (&values)[4]) {
  for (int j = 0; j < 4; j += 2) {
    if constexpr (kDraw == Draw::uniform) {
      for (int i = j; i < j + 2; ++i)
        values[i] = hn::MulAdd(to_real(block.words[i]), real(0x1p-31), real(-1));  // exact
    } else {
      const Real radius = hn::Sqrt(minus_two_log(block.words[j]));
      const Turn angle = turn(block.words[j + 1]);
      values[j] = hn::Mul(radius, angle.cosine);
      values[j + 1] = hn::Mul(radius, angle.sine);
    }
  }
}

template <Draw kDraw>
void fill(float* into, double scale, const RandomKey& key, size_t begin, size_t end) {
  constexpr size_t kPart = 1024;
  static_assert(kPart % kGroup == 0);
  uint64_t again[kPart + kLanes] = {};
  while (begin < end) {
    const size_t part_end = std::min(end, begin + kPart);
    size_t again_count = 0;
    for (size_t at = begin; at < part_end; at += kGroup) {
      Real values[4];
      draw_blocks<kDraw>(philox(hn::Iota(U64(), at / 4), kInitStep, key), values);
      if constexpr (kDraw == Draw::truncated) {
        for (size_t j = 0; j < 4; ++j) {
          uint8_t bits[8];
          hn::StoreMaskBits(F64(), beyond_two(values[j]), bits);
          for (unsigned left = bits[0]; left; left &= left - 1) {
            const size_t element = at + 4 * static_cast<size_t>(std::countr_zero(left)) + j;
            if (element < part_end) again[again_count++] = element;
          }
        }
      }
      hn::Vec<F32> scaled[4];
      for (int j = 0; j < 4; ++j) scaled[j] = hn::DemoteTo(F32(), hn::Mul(values[j], real(scale)));
      const auto store = [&](float* to)
                             HWY_ATTR { hn::StoreInterleaved4(scaled[0], scaled[1], scaled[2], scaled[3], F32(), to); };
      if (at + kGroup <= part_end) {
        store(into + at);
      } else {
        float last[kGroup];
        store(last);
        std::copy_n(last, part_end - at, into + at);
      }
    }
    if constexpr (kDraw == Draw::truncated) draw_again(into, scale, key, again, again_count);
    begin = part_end;
  }
}

void FillImpl(float* into, Draw draw, double scale, const RandomKey& key, size_t begin, size_t end) {
  switch (draw) {
    case Draw::normal:
      return fill<Draw::normal>(into, scale, key, begin, end);
    case Draw::truncated:
      return fill<Draw::truncated>(into, scale, key, begin, end);
    case Draw::uniform:
      return fill<Draw::uniform>(into, scale, key, begin, end);
  }
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {

HWY_EXPORT(FillImpl);

void fill_random(float* into, Draw draw, double scale, const RandomKey& key, size_t begin, size_t end) {
  EFF_DISPATCH(FillImpl)(into, draw, scale, key, begin, end);
}

}  // namespace effnet::cpu
#endif
