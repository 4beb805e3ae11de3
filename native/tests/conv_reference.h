// A dense convolution's shape, its products in plain loops, and operands for it.
#pragma once

#include "kernel_rig.h"

namespace effnet::test {

struct ConvCase {
  int64_t n, h, w, ic, oc, k, stride, top, left, bottom, right;
  int64_t oh() const { return (h + top + bottom - k) / stride + 1; }
  int64_t ow() const { return (w + left + right - k) / stride + 1; }
  std::string name() const {
    return std::to_string(n) + "x" + std::to_string(h) + "x" + std::to_string(w) + "x" + std::to_string(ic) + "->" +
           std::to_string(oc) + " k" + std::to_string(k) + " s" + std::to_string(stride) + " p" + std::to_string(top) +
           std::to_string(bottom);
  }
  std::vector<double> attrs() const {
    return {double(stride), double(top), double(left), double(bottom), double(right)};
  }
};

// The five loops; calls visit(src index, weight index, dst index) for every product.
template <class F>
void for_each_product(const ConvCase& c, F visit) {
  for (int64_t n = 0; n < c.n; ++n)
    for (int64_t y = 0; y < c.oh(); ++y)
      for (int64_t x = 0; x < c.ow(); ++x)
        for (int64_t ky = 0; ky < c.k; ++ky)
          for (int64_t kx = 0; kx < c.k; ++kx) {
            const int64_t iy = y * c.stride + ky - c.top, ix = x * c.stride + kx - c.left;
            if (iy < 0 || ix < 0 || iy >= c.h || ix >= c.w) continue;
            for (int64_t o = 0; o < c.oc; ++o)
              for (int64_t i = 0; i < c.ic; ++i)
                visit(static_cast<size_t>(((n * c.h + iy) * c.w + ix) * c.ic + i),
                      static_cast<size_t>(((o * c.k + ky) * c.k + kx) * c.ic + i),
                      static_cast<size_t>(((n * c.oh() + y) * c.ow() + x) * c.oc + o));
          }
}

struct ConvData {
  Values src, weights, diff_dst;
  ConvData(const ConvCase& c, DType dtype)
      : src(stored(dtype, random_values(static_cast<size_t>(c.n * c.h * c.w * c.ic), 1))),
        weights(stored(DType::f32, random_values(static_cast<size_t>(c.oc * c.k * c.k * c.ic), 2))),
        diff_dst(stored(dtype, random_values(static_cast<size_t>(c.n * c.oh() * c.ow() * c.oc), 3))) {}
};

enum class Direction { forward, backward_data, backward_weights };

struct ConvResult {
  Values got, want;
  std::string kernel;
  bool covered = false;  // Rig::covered: not run
};

// Runs the op that `factory` makes of a direction, beside the loops. Weights' gradients are FP32 in every type.
inline ConvResult run_conv(Direction direction, const ConvCase& c, const ConvData& d, DType dtype,
                           backend::KernelFactory factory, uint16_t flags = 0) {
  Rig rig(factory, c.attrs());
  rig.op().flags = flags;
  const std::vector<int64_t> src = {c.n, c.h, c.w, c.ic}, dst = {c.n, c.oh(), c.ow(), c.oc};
  const std::vector<int64_t> weights = {c.oc, c.k, c.k, c.ic};
  if (direction == Direction::backward_data)
    rig.in(dtype, dst, d.diff_dst);
  else
    rig.in(dtype, src, d.src);
  if (direction == Direction::backward_weights)
    rig.in(dtype, dst, d.diff_dst);
  else
    rig.add_in(rig.tensor(Arena::weights, DType::f32, weights, d.weights));
  const Tensor* out = direction == Direction::forward         ? rig.out(dtype, dst)
                      : direction == Direction::backward_data ? rig.out(dtype, src)
                                                              : rig.out(DType::f32, weights);
  ConvResult result{{}, Values(static_cast<size_t>(out->elements())), ""};
  if ((result.covered = rig.covered())) return result;
  rig.run();
  if (testing::Test::HasFatalFailure()) return result;
  result.got = rig.get(out);
  result.kernel = rig.name();
  const Values w = stored(dtype, d.weights);
  for_each_product(c, [&](size_t s, size_t k, size_t t) {
    if (direction == Direction::forward) result.want[t] += d.src[s] * w[k];
    if (direction == Direction::backward_data) result.want[s] += d.diff_dst[t] * w[k];
    if (direction == Direction::backward_weights) result.want[k] += d.src[s] * d.diff_dst[t];
  });
  return result;
}

}  // namespace effnet::test
