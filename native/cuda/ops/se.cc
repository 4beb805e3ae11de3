// Squeeze-and-excitation gates.
#include "cuda/kernels/se.h"

#include "cuda/ops/walk.h"

namespace effnet::cuda {
namespace {

using plan::Act;
using plan::DType;
using plan::Op;
using plan::Tensor;

double flops(const SeShape& s) { return 4.0 * static_cast<double>(s.n * s.c * s.r); }

}  // namespace

StatusOr<KernelPtr> make_se_gate(const Op& op) {
  using namespace op::se_gate;
  const Tensor *pooled = op.in(in_pooled), *weights0 = op.in(in_weights0), *bias0 = op.in(in_bias0),
               *weights1 = op.in(in_weights1), *bias1 = op.in(in_bias1), *gate = op.out(out_gate),
               *hidden = op.out(out_hidden);
  const SeShape s{pooled->dims[0], pooled->dims[1], weights0->dims[0]};
  const Act act = op.act(attr_act);
  const bool plain = s.c % 4 != 0;
  return make_kernel(
      form_name("se_gate", plain).c_str(), DType::f32,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        launches.push_back(make_launch(form_name("se_squeeze", plain),
                                       {blocks_of(s.r, kSeThreads / 32), blocks_of(s.n, kSeImages), 1}, kSeThreads, 0,
                                       SeSqueezeArgs{s, at.ptr<const float>(pooled), at.ptr<const float>(weights0),
                                                     at.ptr<const float>(bias0), at.ptr<float>(hidden)}));
        launches.push_back(make_launch("se_excite", {blocks_of(s.c, kSeTileC), blocks_of(s.n, kSeTileN), 1}, kSeThreads,
                                       kSeExciteShared,
                                       SeExciteArgs{s, at.ptr<const float>(hidden), at.ptr<const float>(weights1),
                                                    at.ptr<const float>(bias1), act, at.ptr<float>(gate)}));
      },
      0, flops(s));
}

StatusOr<KernelPtr> make_se_gate_bwd(const Op& op) {
  using namespace op::se_gate_bwd;
  const Tensor *diff_gate = op.in(in_diff_gate), *pooled = op.in(in_pooled), *hidden = op.in(in_hidden),
               *gate = op.in(in_gate), *weights0 = op.in(in_weights0), *weights1 = op.in(in_weights1);
  const Tensor *diff_pooled = op.out(out_diff_pooled), *diff_weights0 = op.out(out_diff_weights0),
               *diff_bias0 = op.out(out_diff_bias0), *diff_weights1 = op.out(out_diff_weights1),
               *diff_bias1 = op.out(out_diff_bias1);
  const SeShape s{pooled->dims[0], pooled->dims[1], weights0->dims[0]};
  const Act act = op.act(attr_act);
  // A counter for each block of images and squeezed channels whose channels are cut into parts.
  const bool cut = int64_t{blocks_of(s.n, kSeImages)} * blocks_of(s.r, 32) <= kBlockCounters;
  const int64_t parts_count = cut ? blocks_of(s.c, kSePart) : 1;
  ScratchLayout layout;
  const auto floats = [&](int64_t count) { return layout.add(static_cast<size_t>(count) * sizeof(float)); };
  const size_t d1_at = floats(s.n * s.c), activated_at = floats(s.n * s.r), d0_at = floats(s.n * s.r),
               parts_at = floats(s.n * s.r * parts_count);
  return make_kernel(
      "se_gate_bwd", DType::f32,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        const auto scratch = [&](size_t offset) { return reinterpret_cast<float*>(at.scratch + offset); };
        launches.push_back(make_launch(
            "se_bwd_squeeze", {blocks_of(s.n, kSeImages), blocks_of(s.r, 32), static_cast<uint32_t>(parts_count)},
            kSeThreads, kSeBwdSqueezeShared,
            SeBwdSqueezeArgs{s, at.ptr<const float>(diff_gate), at.ptr<const float>(gate), at.ptr<const float>(hidden),
                             at.ptr<const float>(weights1), act, scratch(d1_at), scratch(activated_at), scratch(d0_at),
                             parts_count, scratch(parts_at), at.state}));
        const int64_t weights_blocks = int64_t{blocks_of(s.c, kSeTileC)} * blocks_of(s.r, kSeTileR);
        const int64_t pooled_blocks = int64_t{blocks_of(s.c, kSeTileC)} * blocks_of(s.n, kSeTileN);
        launches.push_back(make_launch(
            "se_bwd", {static_cast<uint32_t>(2 * weights_blocks + pooled_blocks), 1, 1}, kSeThreads, kSeBwdShared,
            SeBwdArgs{s, scratch(d1_at), scratch(activated_at), scratch(d0_at), at.ptr<const float>(pooled),
                      at.ptr<const float>(weights0), at.ptr<float>(diff_weights1), at.ptr<float>(diff_bias1),
                      at.ptr<float>(diff_weights0), at.ptr<float>(diff_bias0), at.ptr<float>(diff_pooled),
                      weights_blocks}));
      },
      layout.bytes(), 2 * flops(s));
}

}  // namespace effnet::cuda
