// Convolution launches that several ops are made of.
#pragma once

#include <functional>
#include <optional>

#include "cuda/ops/batch_norm.h"
#include "cuda/ops/conv_form.h"

namespace effnet::cuda {

// `first_attr`: where the op's stride and paddings are.
ConvGeometry conv_geometry(const plan::Op& op, int first_attr, const plan::Tensor* src, const plan::Tensor* dst,
                           int64_t kh, int64_t kw);
double conv_flops(const ConvGeometry& g);
ConvSource conv_source(const SourceNorm& source, const Addresses& at);

// A matrix product as a convolution: src [rows, in], dst [rows, out], weights [out, in].
ConvGeometry matrix_geometry(int64_t rows, int64_t in, int64_t out);

// `stats`: args.stats is filled, of form.merge_tiles(oc, 3).
Launch conv_launch(ConvArgs args, const ConvForm& form, ConvType type, bool stats = false);
// With args.end: by the kernel for such a source. With args.sums: by one that makes them, of form.merge_tiles(ic).
Launch conv_bwd_data_launch(ConvBwdDataArgs args, const ConvForm& form, ConvType type);

// Names the form, and asks for the weights that it reads.
KernelPtr conv_kernel(const std::string& base, const ConvForm& form, ConvType type, Kernel::Record record,
                      size_t scratch_bytes, double flops);

// A forward convolution's forms by name, but for the table's; none of other ops. And its kernel of such a form:
// Code::plan_invalid where there is none of that name.
std::vector<std::string> other_forms(const plan::Op& op);
StatusOr<KernelPtr> make_in_form(const plan::Op& op, const std::string& form);

// The form, or the plain one where it would read a 16-bit copy of weights that lie where no copy is made.
ConvForm over_weights(const plan::Tensor* weights, ConvType type, ConvForm form);

const void* weights_at(const Addresses& at, const plan::Tensor* weights, const ConvForm& form, ConvType type);

size_t conv_bwd_weights_scratch(const ConvGeometry& g, const ConvForm& form);
// `args.parts` is the scratch.
void record_conv_bwd_weights(ConvBwdWeightsArgs args, const ConvForm& form, ConvType type, float* diff_weights,
                             std::vector<Launch>& launches);

// Which of its forms a forward convolution gets; `edited`: its source is changed on the way in.
using FormOf = std::function<ConvForm(const ConvGeometry& g, ConvType type, bool edited)>;

// What a convolution multiplies, forward or for the gradient of its weights (then `weights` and `dst` are gradients).
struct ConvOperands {
  ConvGeometry g;
  ConvType type;
  SourceNorm source;
  const plan::Tensor *weights, *dst;
  std::optional<PixelNorm> pixels;  // the source is uint8 images

  ConvOperands(const plan::Op& op, int first_attr, const SourceNorm& source, const plan::Tensor* weights,
               const plan::Tensor* dst, const std::optional<PixelNorm>& pixels = {});
  ConvForm forward_form(const FormOf& form_of = conv_forward_form) const;
  ConvForm bwd_weights_form() const;
  ConvSource source_at(const Addresses& at) const;
  // Without what follows the sums.
  ConvArgs forward_args(const ConvForm& form, const Addresses& at) const;
};
struct ConvBiasAct {
  const plan::Tensor *bias = nullptr, *residual = nullptr;
  plan::Act act = plan::Act::identity;
};
// Of the ops with the same endings, `base` being the op's name.
KernelPtr conv_bias_act_kernel(const std::string& base, const ConvOperands& operands, const ConvForm& form,
                               const ConvBiasAct& epilogue);
KernelPtr conv_stats_kernel(const std::string& base, const ConvOperands& operands, const ConvForm& form,
                            const BnStats& stats);
KernelPtr conv_bwd_weights_kernel(const std::string& base, const ConvOperands& operands, const plan::Tensor* diff_dst,
                                  const plan::Tensor* diff_weights, bool half);
// "conv2d_bwd_weights_bf16:cuda" to "conv2d_bwd_weights_bf16_half:cuda"
void name_half_gradient(Kernel& kernel);

// What of conv2d_bwd others do than the own kernels: `record` appends launches that make `result` of the gradient of
// dst and of the weights, or of what was convolved. Absent: the own kernel does it.
struct ConvBwdParts {
  using Record = std::function<void(const Addresses& at, const void* diff_dst, const void* other, void* result,
                                    std::byte* workspace, std::vector<Launch>& launches)>;
  Record data, weights;
  bool data_adds = false;  // the addend, too, to the gradient of the source
  size_t workspace_bytes = 0;
};
// Whether its gradient of the source is what a convolution makes, with nothing but sums to follow.
bool has_plain_bwd_data(const plan::Op& conv2d_bwd);
// By a gradient of dst that is stored. With a source that the op normalises, activates or gates, `others.weights` gets
// it as stored for it.
StatusOr<KernelPtr> make_conv2d_bwd_in_parts(const plan::Op& op, const ConvBwdParts& others);

}  // namespace effnet::cuda
