#include "cuda/kernels/loss.h"

#include "cuda/ops/walk.h"

namespace effnet::cuda {

using plan::Op;
using plan::Tensor;

namespace {

// A block a row; rows of other lengths than vectors have are read value by value.
template <class Args>
Launch by_row(const char* kernel, int64_t rows, int64_t classes, const Args& args) {
  return make_launch(form_name(kernel, classes % 4 != 0), {static_cast<uint32_t>(rows), 1, 1}, kLossThreads,
                     kLossShared, args);
}

}  // namespace

StatusOr<KernelPtr> make_softmax_cross_entropy(const Op& op) {
  using namespace op::softmax_cross_entropy;
  const Tensor *logits = op.in(in_logits), *labels = op.in(in_labels), *loss = op.out(out_loss),
               *diff_logits = op.out(out_diff_logits), *rank = op.out(out_rank);
  const double smoothing = op.attr(attr_label_smoothing);
  const int64_t rows = logits->dims[0], classes = logits->dims[1];
  return make_kernel(
      form_name("softmax_cross_entropy", classes % 4 != 0).c_str(), plan::DType::f32,
      [=](const Addresses& at, std::vector<Launch>& launches) {
        launches.push_back(
            by_row("cross_entropy", rows, classes,
                   CrossEntropyArgs{at.ptr<const float>(logits), at.ptr<const int32_t>(labels), rows, classes,
                                    smoothing, at.ptr<float>(diff_logits), at.ptr<int32_t>(rank),
                                    reinterpret_cast<double*>(at.scratch), at.ptr<float>(loss), at.updates, at.state}));
      },
      static_cast<size_t>(rows) * sizeof(double));
}

StatusOr<KernelPtr> make_softmax(const Op& op) {
  using namespace op::softmax;
  const Tensor *logits = op.in(in_logits), *probs = op.out(out_probs);
  const std::string form = form_name("softmax", logits->dims[1] % 4 != 0);
  return make_kernel(form.c_str(), plan::DType::f32, [=](const Addresses& at, std::vector<Launch>& launches) {
    launches.push_back(by_row("softmax", logits->dims[0], logits->dims[1],
                              SoftmaxArgs{at.ptr<const float>(logits), at.ptr<float>(probs), logits->dims[1]}));
  });
}

}  // namespace effnet::cuda
