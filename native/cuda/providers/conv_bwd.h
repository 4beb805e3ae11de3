// conv2d_bwd in parts: what lies between its own launches is two convolutions, or matrix products, which a library may
// do. Its gradient of the source only where nothing but sums follows it: a slope to multiply with would be a pass over
// the tensor more than the own kernel makes.
#pragma once

#include "cuda/providers/providers.h"

namespace effnet::cuda {

struct Libraries {
  std::shared_ptr<const CublasLt> cublaslt;  // nullptr: there is none
  std::shared_ptr<const Cudnn> cudnn;
};

// The parts as products; none where the convolution does not take every pixel as it is.
struct ConvBwdProducts {
  Product data, weights;
};
std::optional<ConvBwdProducts> bwd_products_of(const plan::Op& op);
// A part as a convolution of types and channels that cuDNN takes.
std::optional<Convolution> bwd_convolution_of(const plan::Op& op, Convolution::Pass pass);

// Who makes which gradient.
struct ConvBwdChoice {
  KernelId data, weights;
  // "cublaslt/0+own": the source's, then the weights'. "own+own" is not the op's own kernel where that makes both at
  // once.
  std::string text() const;
  bool by_library() const { return data.provider != Provider::own || weights.provider != Provider::own; }
  static std::optional<ConvBwdChoice> parse(const std::string& text);
};
// All that there are, the own kernels first.
std::vector<ConvBwdChoice> conv_bwd_choices(const plan::Op& op, const Libraries& libraries, int most_of_library);
// Whatever of it that library does, by its own first guess.
ConvBwdChoice conv_bwd_by(Provider library, const plan::Op& op, const Libraries& libraries);
// Code::plan_invalid where there is no such kernel here.
StatusOr<KernelPtr> make_conv2d_bwd_by(const plan::Op& op, const ConvBwdChoice& choice, const Libraries& libraries);

}  // namespace effnet::cuda
