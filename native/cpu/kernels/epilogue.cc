#include "cpu/kernels/epilogue.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kernels/epilogue.cc"
#include "cpu/kernels/dispatch.h"
#include "hwy/foreach_target.h"
#include "cpu/kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace effnet::cpu::HWY_NAMESPACE {

template <plan::Act act, class T>
void act_residual_typed(T* HWY_RESTRICT dst, const T* HWY_RESTRICT residual, size_t count) {
  size_t i = 0;
  if (residual) {
    for (; i + kLanes <= count; i += kLanes)
      store(hn::Add(activate<act, T>(load(dst + i)), load(residual + i)), dst + i);
    if (i < count) {
      const size_t n = count - i;
      store_n(hn::Add(activate<act, T>(load_n(dst + i, n)), load_n(residual + i, n)), dst + i, n);
    }
    return;
  }
  for (; i + kLanes <= count; i += kLanes) store(activate<act, T>(load(dst + i)), dst + i);
  if (i < count) store_n(activate<act, T>(load_n(dst + i, count - i)), dst + i, count - i);
}

template <class T>
void act_residual_of(plan::Act act, T* dst, const T* residual, size_t count) {
  switch (act) {
    case plan::Act::identity:
      if (residual) act_residual_typed<plan::Act::identity>(dst, residual, count);
      break;
    case plan::Act::silu:
      return act_residual_typed<plan::Act::silu>(dst, residual, count);
    case plan::Act::relu:
      return act_residual_typed<plan::Act::relu>(dst, residual, count);
    case plan::Act::relu6:
      return act_residual_typed<plan::Act::relu6>(dst, residual, count);
    case plan::Act::sigmoid:
      return act_residual_typed<plan::Act::sigmoid>(dst, residual, count);
  }
}

void act_residual_f32(plan::Act act, float* dst, const float* residual, size_t count) {
  act_residual_of(act, dst, residual, count);
}
void act_residual_bf16(plan::Act act, BFloat16* dst, const BFloat16* residual, size_t count) {
  act_residual_of(act, dst, residual, count);
}

template <class T>
void scale_rows(const T* HWY_RESTRICT src, const float* HWY_RESTRICT gate, T* HWY_RESTRICT dst, int64_t rows,
                int64_t channels) {
  const size_t width = static_cast<size_t>(channels);
  for (int64_t r = 0; r < rows; ++r, src += channels, dst += channels) {
    size_t c = 0;
    for (; c + kLanes <= width; c += kLanes) store(hn::Mul(load(src + c), load(gate + c)), dst + c);
    if (c < width) store_n(hn::Mul(load_n(src + c, width - c), load_n(gate + c, width - c)), dst + c, width - c);
  }
}
void scale_rows_f32(const float* src, const float* gate, float* dst, int64_t rows, int64_t channels) {
  scale_rows(src, gate, dst, rows, channels);
}
void scale_rows_bf16(const BFloat16* src, const float* gate, BFloat16* dst, int64_t rows, int64_t channels) {
  scale_rows(src, gate, dst, rows, channels);
}

void add_parts_impl(float* HWY_RESTRICT parts, size_t count, size_t stride, int part_count) {
  size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Vec sum = load(parts + i);
    for (int p = 1; p < part_count; ++p) sum = hn::Add(sum, load(parts + static_cast<size_t>(p) * stride + i));
    store(sum, parts + i);
  }
  for (; i < count; ++i)
    for (int p = 1; p < part_count; ++p) parts[i] += parts[static_cast<size_t>(p) * stride + i];
}

}  // namespace effnet::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace effnet::cpu {

HWY_EXPORT(act_residual_f32);
HWY_EXPORT(act_residual_bf16);
HWY_EXPORT(scale_rows_f32);
HWY_EXPORT(scale_rows_bf16);
HWY_EXPORT(add_parts_impl);

void act_residual(plan::Act act, void* dst, const void* residual, size_t count, plan::DType dtype) {
  if (dtype == plan::DType::bf16) EFF_DISPATCH(act_residual_bf16)
  (act, static_cast<BFloat16*>(dst), static_cast<const BFloat16*>(residual), count);
  else EFF_DISPATCH(act_residual_f32)(act, static_cast<float*>(dst), static_cast<const float*>(residual), count);
}

void scale_by_gate(const void* src, const float* gate, void* dst, int64_t first_row, int64_t rows, int64_t image_rows,
                   int64_t channels, plan::DType dtype) {
  for (int64_t done = 0; done < rows;) {
    const int64_t image = (first_row + done) / image_rows;
    const int64_t here = std::min(rows - done, (image + 1) * image_rows - (first_row + done));
    const float* image_gate = gate + image * channels;
    const int64_t at = done * channels;
    if (dtype == plan::DType::bf16) EFF_DISPATCH(scale_rows_bf16)
    (static_cast<const BFloat16*>(src) + at, image_gate, static_cast<BFloat16*>(dst) + at, here, channels);
    else EFF_DISPATCH(scale_rows_f32)(static_cast<const float*>(src) + at, image_gate, static_cast<float*>(dst) + at,
                                      here, channels);
    done += here;
  }
}

void add_parts(float* parts, size_t count, size_t stride, int part_count) {
  EFF_DISPATCH(add_parts_impl)(parts, count, stride, part_count);
}

}  // namespace effnet::cpu
#endif
