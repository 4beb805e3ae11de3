// Dense convolutions by cuDNN's graphs. cudnn-frontend stays behind this header: it is the slowest file to compile, and
// a build without its headers has no cuDNN.
#pragma once

#include <compare>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "plan/format.h"

namespace effnet::cuda {

// A graph of one convolution, NHWC and OHWI. `forward` may go on with a bias, SiLU and a residual, in this order.
struct Convolution {
  enum class Pass { forward, bwd_data, bwd_weights };
  Pass pass = Pass::forward;
  plan::DType dtype = plan::DType::f32;   // of images and weights
  plan::DType result = plan::DType::f32;  // of dst, diff_src, diff_weights
  bool tf32 = false;                      // f32 factors may be rounded to TF32
  int64_t n = 0, h = 0, w = 0, ic = 0, oh = 0, ow = 0, oc = 0, kh = 0, kw = 0;
  int64_t stride = 1, pad_t = 0, pad_l = 0, pad_b = 0, pad_r = 0;
  bool bias = false, silu = false, residual = false;  // the bias is f32
  auto operator<=>(const Convolution&) const = default;
};

class ConvolutionPlan {
 public:
  // forward: a = src, b = weights; bwd_data: a = diff_dst, b = weights; bwd_weights: a = diff_dst, b = src.
  struct Operands {
    const void *a = nullptr, *b = nullptr, *bias = nullptr, *residual = nullptr;
    void *result = nullptr, *workspace = nullptr;
  };
  virtual ~ConvolutionPlan() = default;
  virtual size_t workspace_bytes() const = 0;
  // cuDNN's name of the engine and its settings.
  virtual const std::string& engine() const = 0;
  // The plan must outlive the graph that this is captured into.
  virtual Status queue(const Operands& operands, void* stream) const = 0;
};

class Cudnn {
 public:
  // With a handle of the current context. Code::backend_missing where there is none, where it does not start, or where
  // this build is without.
  static StatusOr<std::shared_ptr<const Cudnn>> create();
  // For a GPU described as cuDNN's DeviceProperties, which need not be there: plans can be made, not queued.
  static StatusOr<std::shared_ptr<const Cudnn>> for_device(const std::string& properties);
  // A GPU that is there, described so; by its number as CUDA counts.
  static StatusOr<std::string> describe_device(int device);
  // Why this build has no cuDNN, with the mend; nullptr where it has.
  static const char* absent();

  virtual ~Cudnn() = default;
  // Of cuDNN's engines the first that builds a plan, which may take seconds, or the one of that name; made once for all
  // that are alike. Only deterministic ones, and in f32 without tf32 only those that do not round. Code::plan_invalid
  // where there is none.
  virtual StatusOr<std::shared_ptr<const ConvolutionPlan>> plan(const Convolution& convolution,
                                                                const std::string& engine = {}) const = 0;
  // The first `most` of them that build, each by another engine.
  virtual std::vector<std::shared_ptr<const ConvolutionPlan>> plans(const Convolution& convolution, int most) const = 0;
};

}  // namespace effnet::cuda
