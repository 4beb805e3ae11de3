#include "io/resize_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "io/resize_kernels.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace effnet::io::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Two neighbouring taps lie in one 32-bit word of `weights`.
HWY_INLINE int32_t pair_at(const int16_t* weights, int tap) {
  int32_t pair;
  hwy::CopyBytes<4>(weights + tap, &pair);
  return pair;
}

// kRows rows at once: they share the weights.
template <int kRows>
void columns(const uint8_t* const* rows, uint8_t* const* out, int count, const int* first, const int16_t* high,
             const int16_t* low, int taps, bool mirror) {
  const hn::FixedTag<uint8_t, 16> d8;
  const hn::FixedTag<int16_t, 8> d16;
  const hn::FixedTag<int32_t, 4> d32;
  const hn::FixedTag<int16_t, 4> d16_half;
  const hn::FixedTag<uint8_t, 4> d8_quarter;
  // Pixels 0, 1 (then 2, 3) of 16 loaded bytes as 16-bit pairs r r, g g, b b.
  alignas(16) static constexpr uint8_t kPairs[2][16] = {
      {0, 0x80, 3, 0x80, 1, 0x80, 4, 0x80, 2, 0x80, 5, 0x80, 0x80, 0x80, 0x80, 0x80},
      {6, 0x80, 9, 0x80, 7, 0x80, 10, 0x80, 8, 0x80, 11, 0x80, 0x80, 0x80, 0x80, 0x80}};
  const auto pairs0 = hn::Load(d8, kPairs[0]), pairs1 = hn::Load(d8, kPairs[1]);
  const auto half = hn::Set(d32, 1 << (kPrecisionBits - 1));
  for (int i = 0; i < count; ++i) {
    const int from = mirror ? count - 1 - i : i;
    const int16_t* h = high + static_cast<size_t>(from) * taps;
    const int16_t* l = low + static_cast<size_t>(from) * taps;
    const size_t offset = static_cast<size_t>(first[from]) * 3;
    hn::Vec<decltype(d32)> sum_high[kRows], sum_low[kRows];
    for (int r = 0; r < kRows; ++r) {
      sum_high[r] = hn::Zero(d32);
      sum_low[r] = half;
    }
    for (int t = 0; t < taps; t += 4) {
      const auto h0 = hn::BitCast(d16, hn::Set(d32, pair_at(h, t)));
      const auto h1 = hn::BitCast(d16, hn::Set(d32, pair_at(h, t + 2)));
      const auto l0 = hn::BitCast(d16, hn::Set(d32, pair_at(l, t)));
      const auto l1 = hn::BitCast(d16, hn::Set(d32, pair_at(l, t + 2)));
      for (int r = 0; r < kRows; ++r) {
        const auto bytes = hn::LoadU(d8, rows[r] + offset + static_cast<size_t>(t) * 3);
        const auto p0 = hn::BitCast(d16, hn::TableLookupBytesOr0(bytes, pairs0));
        const auto p1 = hn::BitCast(d16, hn::TableLookupBytesOr0(bytes, pairs1));
        auto unused = hn::Zero(d32);
        sum_high[r] = hn::ReorderWidenMulAccumulate(d32, p0, h0, sum_high[r], unused);
        sum_high[r] = hn::ReorderWidenMulAccumulate(d32, p1, h1, sum_high[r], unused);
        sum_low[r] = hn::ReorderWidenMulAccumulate(d32, p0, l0, sum_low[r], unused);
        sum_low[r] = hn::ReorderWidenMulAccumulate(d32, p1, l1, sum_low[r], unused);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const auto sum = hn::Add(hn::ShiftLeft<kLowBits>(sum_high[r]), sum_low[r]);
      const auto value = hn::ShiftRight<kPrecisionBits>(sum);
      hn::StoreU(hn::DemoteTo(d8_quarter, hn::DemoteTo(d16_half, value)), d8_quarter,
                 out[r] + static_cast<size_t>(i) * 3);
    }
  }
}

void ColumnsImpl(const uint8_t* const* rows, uint8_t* const* out, int row_count, int count, const int* first,
                 const int16_t* high, const int16_t* low, int taps, bool mirror) {
  if (row_count == 4) return columns<4>(rows, out, count, first, high, low, taps, mirror);
  for (int r = 0; r < row_count; ++r) columns<1>(rows + r, out + r, count, first, high, low, taps, mirror);
}

// One vector of the row, starting at byte `at`.
template <class D8>
HWY_INLINE void row_vector(D8 d8, const uint8_t* const* rows, uint8_t* out, size_t at, const int16_t* high,
                           const int16_t* low, int taps) {
  const hn::Repartition<int16_t, D8> d16;
  const hn::Repartition<int32_t, D8> d32;
  const auto zero = hn::Zero(d8);
  const auto half = hn::Set(d32, 1 << (kPrecisionBits - 1));
  hn::Vec<decltype(d32)> sum_high[4], sum_low[4];
  for (int q = 0; q < 4; ++q) {
    sum_high[q] = hn::Zero(d32);
    sum_low[q] = half;
  }
  for (int t = 0; t < taps; t += 2) {
    const auto a = hn::LoadU(d8, rows[t] + at), b = hn::LoadU(d8, rows[t + 1] + at);
    const auto lower = hn::InterleaveLower(d8, a, b), upper = hn::InterleaveUpper(d8, a, b);
    const auto h = hn::BitCast(d16, hn::Set(d32, pair_at(high, t)));
    const auto l = hn::BitCast(d16, hn::Set(d32, pair_at(low, t)));
    const hn::Vec<decltype(d16)> pixels[4] = {
        hn::BitCast(d16, hn::InterleaveLower(d8, lower, zero)), hn::BitCast(d16, hn::InterleaveUpper(d8, lower, zero)),
        hn::BitCast(d16, hn::InterleaveLower(d8, upper, zero)), hn::BitCast(d16, hn::InterleaveUpper(d8, upper, zero))};
    for (int q = 0; q < 4; ++q) {
      auto unused = hn::Zero(d32);
      sum_high[q] = hn::ReorderWidenMulAccumulate(d32, pixels[q], h, sum_high[q], unused);
      sum_low[q] = hn::ReorderWidenMulAccumulate(d32, pixels[q], l, sum_low[q], unused);
    }
  }
  hn::Vec<decltype(d32)> value[4];
  for (int q = 0; q < 4; ++q)
    value[q] = hn::ShiftRight<kPrecisionBits>(hn::Add(hn::ShiftLeft<kLowBits>(sum_high[q]), sum_low[q]));
  // Per 128-bit block: bytes 0-3 are the lanes of value[0], 4-7 of value[1], and so on.
  alignas(16) static constexpr uint8_t kLowHalf[16] = {0,    2,    4,    6,    8,    10,   12,   14,
                                                       0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80};
  alignas(16) static constexpr uint8_t kHighHalf[16] = {0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80,
                                                        0,    2,    4,    6,    8,    10,   12,   14};
  const auto least = hn::Zero(d16), most = hn::Set(d16, 255);
  const auto first = hn::Min(hn::Max(hn::ReorderDemote2To(d16, value[0], value[1]), least), most);
  const auto second = hn::Min(hn::Max(hn::ReorderDemote2To(d16, value[2], value[3]), least), most);
  const auto packed = hn::Or(hn::TableLookupBytesOr0(hn::BitCast(d8, first), hn::LoadDup128(d8, kLowHalf)),
                             hn::TableLookupBytesOr0(hn::BitCast(d8, second), hn::LoadDup128(d8, kHighHalf)));
  hn::StoreU(packed, d8, out + at);
}

void RowsImpl(const uint8_t* const* rows, uint8_t* out, size_t bytes, const int16_t* high, const int16_t* low,
              int taps) {
  const hn::ScalableTag<uint8_t> d8;
  const size_t lanes = hn::Lanes(d8);
  size_t at = 0;
  for (; at + lanes <= bytes; at += lanes) row_vector(d8, rows, out, at, high, low, taps);
  if (at == bytes) return;
  if (bytes >= lanes) return row_vector(d8, rows, out, bytes - lanes, high, low, taps);  // overlaps what is done
  for (; at < bytes; ++at) {
    uint32_t sum = 1u << (kPrecisionBits - 1);
    for (int t = 0; t < taps; ++t)
      sum += static_cast<uint32_t>((high[t] * (1 << kLowBits) + low[t]) * static_cast<int32_t>(rows[t][at]));
    const int32_t value = static_cast<int32_t>(sum) >> kPrecisionBits;
    out[at] = static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
  }
}

}  // namespace effnet::io::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::io {

HWY_EXPORT(ColumnsImpl);
HWY_EXPORT(RowsImpl);

void resample_columns(const uint8_t* const* rows, uint8_t* const* out, int row_count, int count, const int* first,
                      const int16_t* high, const int16_t* low, int taps, bool mirror) {
  EFF_DISPATCH(ColumnsImpl)(rows, out, row_count, count, first, high, low, taps, mirror);
}

void resample_rows(const uint8_t* const* rows, uint8_t* out, size_t bytes, const int16_t* high, const int16_t* low,
                   int taps) {
  EFF_DISPATCH(RowsImpl)(rows, out, bytes, high, low, taps);
}

}  // namespace effnet::io
#endif
