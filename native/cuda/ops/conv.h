// Convolution launches that several ops are made of.
#pragma once

#include "cuda/kernels/gemm.h"
#include "cuda/ops/common.h"

namespace effnet::cuda {

// `first_attr`: where the op's stride and paddings are.
ConvGeometry conv_geometry(const plan::Op& op, int first_attr, const plan::Tensor* src, const plan::Tensor* dst,
                           int64_t kh, int64_t kw);
double conv_flops(const ConvGeometry& g);

// A matrix product as a convolution: src [rows, in], dst [rows, out], weights [out, in].
ConvGeometry matrix_geometry(int64_t rows, int64_t in, int64_t out);

Launch conv_launch(const ConvArgs& args, plan::DType dtype);
Launch conv_bwd_data_launch(const ConvBwdDataArgs& args, plan::DType dtype);

size_t conv_bwd_weights_scratch(const ConvGeometry& g);
// `args.parts` is the scratch.
void record_conv_bwd_weights(ConvBwdWeightsArgs args, plan::DType dtype, float* diff_weights,
                             std::vector<Launch>& launches);

}  // namespace effnet::cuda
