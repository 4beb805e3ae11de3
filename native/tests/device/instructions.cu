// Every word of device.h, vector.h and tensor_core.h that is an instruction on a GPU, by itself: what a whole kernel's
// test would only show as a wrong number somewhere.
#include "tests/device/instructions.h"

#include "cuda/device/device.h"
#include "cuda/device/tensor_core.h"
#include "cuda/device/vector.h"

namespace effnet::test {

using namespace cuda;  // NOLINT(google-build-using-namespace): the words of kernels

EFF_KERNEL(check_floats, InstructionArgs, 256) {
  const int64_t i = global_id();
  if (i >= a.count) return;
  const float v = static_cast<const float*>(a.in)[i];
  OfFloat of;
  of.tf32 = to_tf32(v);
  of.bf16 = from_float<Bf16>(v).bits;
  of.f16 = from_float<F16>(v).bits;
  of.pair_bf16 = pack<Bf16>(v, -v);
  of.pair_f16 = pack<F16>(v, -v);
  of.exp = exp_of(v);
  of.sqrt = sqrt_of(v);
  of.greater = max_of(v, kOther);
  of.smaller = min_of(v, kOther);
  of.fma = fma(v, v, kOther);
  of.is_nan = is_nan(v);
  of.is_finite = is_finite(v);
  static_cast<OfFloat*>(a.out)[i] = of;
}

EFF_KERNEL(check_sixteen_bits, InstructionArgs, 256) {
  const int64_t i = global_id();
  if (i >= a.count) return;
  const auto bits = static_cast<uint16_t>(i);
  const uint32_t word = bits | (~uint32_t{bits} & 0xffffu) << 16;
  OfBits of;
  of.bf16 = to_float(Bf16{bits});
  of.f16 = to_float(F16{bits});
  of.tanh_bf16 = tanh_fast(of.bf16);
  of.tanh_f16 = tanh_fast(of.f16);
  unpack<Bf16>(word, of.first_bf16, of.second_bf16);
  unpack<F16>(word, of.first_f16, of.second_f16);
  static_cast<OfBits*>(a.out)[i] = of;
}

EFF_KERNEL(check_doubles, InstructionArgs, 256) {
  const int64_t i = global_id();
  if (i >= a.count) return;
  const double *in = static_cast<const double*>(a.in), x = in[2 * i], y = in[2 * i + 1];
  static_cast<OfDoubles*>(a.out)[i] = {fma(x, y, 1.0), log_of(x), sqrt_of(x), power(x, y)};
}

// d [16][8] = c + a * b, of a [16][depth], b [depth][8] and c, which lie behind each other; the fragments as
// tensor_core.h describes them.
template <class T>
EFF_DEVICE void multiply(const InstructionArgs& args) {
  constexpr int kPerWord = 4 / static_cast<int>(sizeof(T)), kDepth = 8 * kPerWord;
  const T *a = static_cast<const T*>(args.in), *b = a + 16 * kDepth;
  const float* c = reinterpret_cast<const float*>(b + kDepth * 8);
  const int lane = static_cast<int>(thread_id()), g = lane / 4, q = lane % 4;
  const auto word = [](T first, T second) {
    if constexpr (sizeof(T) == 4)
      return float_to_bits(first);
    else
      return uint32_t{first.bits} | uint32_t{second.bits} << 16;
  };
  uint32_t fa[4], fb[2];
  float d[4];
  EFF_UNROLL
  for (int r = 0; r < 4; ++r) {
    const T* row = a + (g + r % 2 * 8) * kDepth + r / 2 * (kDepth / 2) + q * kPerWord;
    fa[r] = word(row[0], row[kPerWord - 1]);
    d[r] = c[(g + r / 2 * 8) * 8 + 2 * q + r % 2];
  }
  EFF_UNROLL
  for (int r = 0; r < 2; ++r) {
    const T* column = b + (r * (kDepth / 2) + q * kPerWord) * 8 + g;
    fb[r] = word(column[0], column[(kPerWord - 1) * 8]);
  }
  mma<T>(d, fa, fb);
  EFF_UNROLL
  for (int r = 0; r < 4; ++r) static_cast<float*>(args.out)[(g + r / 2 * 8) * 8 + 2 * q + r % 2] = d[r];
}
EFF_KERNEL(check_mma_tf32, InstructionArgs, 32) { multiply<float>(a); }
EFF_KERNEL(check_mma_bf16, InstructionArgs, 32) { multiply<Bf16>(a); }
EFF_KERNEL(check_mma_f16, InstructionArgs, 32) { multiply<F16>(a); }

EFF_KERNEL(check_matrices, InstructionArgs, 32) {
  Shared shared;
  auto* rows = shared.take<Bits128>(32);
  const uint32_t lane = thread_id();
  rows[lane] = static_cast<const Bits128*>(a.in)[lane];
  sync_warp();
  uint32_t straight[4], transposed[4];
  load_matrices(straight, rows + lane);
  load_matrices_transposed(transposed, rows + lane);
  OfMatrices& of = static_cast<OfMatrices*>(a.out)[lane];
  EFF_UNROLL
  for (int i = 0; i < 4; ++i) {
    of.straight[i] = straight[i];
    of.transposed[i] = transposed[i];
  }
}

// Each thread writes what it finds after it waited for all groups but the newest two, one and none: as far as it has
// waited its own copies are there. Those of odd threads are not valid.
EFF_KERNEL(check_copies, InstructionArgs, kCopyThreads) {
  Shared shared;
  auto* landed = shared.take<Bits128>(kCopyThreads * kCopyGroups);
  const uint32_t t = thread_id();
  const auto* in = static_cast<const Bits128*>(a.in);
  auto* out = static_cast<Bits128*>(a.out);
  EFF_UNROLL
  for (uint32_t group = 0; group < kCopyGroups; ++group) {
    const uint32_t at = group * kCopyThreads + t;
    copy_async(landed + at, in + at, t % 2 == 0);
    copies_commit();
  }
  copies_wait<2>();
  store_bits(out + t, landed[t]);
  copies_wait<1>();
  store_bits(out + kCopyThreads + t, landed[kCopyThreads + t]);
  copies_wait<0>();
  EFF_SYNC_BLOCK();
  // Another thread's, behind the barrier.
  const uint32_t other = kCopyThreads - 1 - t;
  store_bits(out + 2 * kCopyThreads + other, landed[2 * kCopyThreads + other]);
}

EFF_KERNEL(check_lanes, InstructionArgs, 64) {
  const uint32_t t = thread_id();
  const float single = static_cast<const float*>(a.in)[t];
  const double precise = 0.5 + single;
  OfLane of;
  EFF_UNROLL
  for (int i = 0; i < kMasks; ++i) {
    of.single[i] = EFF_SHUFFLE_XOR(single, 1u << i);
    of.precise[i] = EFF_SHUFFLE_XOR(precise, 1u << i);
  }
  of.single_sum = warp_sum(single);
  of.precise_sum = warp_sum(precise);
  static_cast<OfLane*>(a.out)[t] = of;
}

// 32 bytes for each thread, through every access of vector.h.
EFF_KERNEL(check_vectors, InstructionArgs, 256) {
  const int64_t i = global_id();
  if (i >= a.count) return;
  const auto* in = static_cast<const char*>(a.in) + 32 * i;
  auto* out = static_cast<char*>(a.out) + 128 * i;
  store_bits(reinterpret_cast<Bits128*>(out), load_bits(reinterpret_cast<const Bits128*>(in)));
  store_bits(reinterpret_cast<Bits64*>(out + 16), load_bits(reinterpret_cast<const Bits64*>(in + 16)));
  store_bits(reinterpret_cast<Bits64*>(out + 24), load_bits(reinterpret_cast<const Bits64*>(in + 24)));
  float bf16[kVec<Bf16>], f16[kVec<F16>], f32[kVec<float>], eight[8];
  load_vec(reinterpret_cast<const Bf16*>(in), bf16);
  load_vec(reinterpret_cast<const F16*>(in), f16);
  load_vec(reinterpret_cast<const float*>(in), f32);
  load_floats(reinterpret_cast<const float*>(in), eight);
  store_vec(reinterpret_cast<Bf16*>(out + 32), bf16);
  store_vec(reinterpret_cast<F16*>(out + 48), f16);
  store_vec(reinterpret_cast<float*>(out + 64), f32);
  store_floats(reinterpret_cast<float*>(out + 80), eight);
}

EFF_KERNEL(check_blocks, InstructionArgs, 64) {
  Shared shared;
  auto* flag = shared.take<uint32_t>(1);
  OfBlocks& of = *static_cast<OfBlocks*>(a.out);
  if (thread_id() == 0) {
    of.of_block[block_x()] = static_cast<const uint32_t*>(a.in)[block_x()];
    store_relaxed(&of.flag, 1u);
  }
  if (!comes_last(&of.counter, grid_x(), flag) || thread_id() != 0) return;
  count_up(&of.last_blocks);
  uint32_t sum = 0;
  for (uint32_t i = 0; i < grid_x(); ++i) sum += load_shared_by_blocks(&of.of_block[i]);
  of.sum = sum;
}

}  // namespace effnet::test
