// Who runs an op: the package's own kernel, or a library that can. The choice shows in the kernel's name.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "cuda/kernel.h"
#include "cuda/providers/cublaslt.h"
#include "cuda/providers/cudnn.h"

namespace effnet::cuda {

enum class Provider { own, cublaslt, cudnn };

// One of a provider's kernels for an op. With the same GPU, driver and versions of libraries it means the same one.
struct KernelId {
  Provider provider = Provider::own;
  int algorithm = 0;   // cublaslt: of those it offers, its best guess first
  std::string engine;  // cudnn: by name, "" for the first that builds
  // "own", "cublaslt/1", "cudnn/eng7_k2=1"
  std::string text() const;
  static std::optional<KernelId> parse(const std::string& text);
};

// A kernel that an op may get. `id`: as of KernelId, of conv2d_bwd as of ConvBwdChoice (conv_bwd.h).
struct Candidate {
  std::string id;
  KernelPtr kernel;
};

struct Libraries;

// The libraries of a GPU, opened when an op first asks for one.
class Providers {
 public:
  // Of a GPU of that compute capability, e.g. 90. Its context is current whenever this is used.
  explicit Providers(int capability) : capability_(capability) {}
  Providers(const Providers&) = delete;
  Providers& operator=(const Providers&) = delete;

  // The kernel that a plan binds `op` to. EFFNET_CUDA_PROVIDER names one of own, cublaslt, cudnn for every op that it
  // can do; else a table decides. Code::backend_missing where the one named is not there.
  StatusOr<KernelPtr> bind(const plan::Op& op, KernelFactory own);

  // Those that are there start: without one that does not, choices would be others than on an equal machine.
  Status check_libraries();

  // Whether kernels other than the table's may be tried: not where EFFNET_CUDA_PROVIDER decides.
  bool has_choice(const plan::Op& op) const;
  // The kernels that there are for an op that has a choice, the table's first. What a library cannot do, or has not, is
  // left out.
  std::vector<Candidate> candidates(const plan::Op& op, KernelFactory own);
  // The one of that id. Code::plan_invalid where there is none here.
  StatusOr<KernelPtr> bind_to(const std::string& id, const plan::Op& op, KernelFactory own);

 private:
  StatusOr<std::shared_ptr<const CublasLt>> cublaslt();
  StatusOr<std::shared_ptr<const Cudnn>> cudnn();
  Libraries libraries();
  // nullptr where the library cannot do this op. Code::backend_missing where there is no such library.
  StatusOr<KernelPtr> by_library(Provider provider, const plan::Op& op);
  void add_products(const plan::Op& op, std::vector<Candidate>& candidates);
  void add_convolutions(const plan::Op& op, std::vector<Candidate>& candidates);

  const int capability_;
  std::mutex mutex_;
  std::optional<StatusOr<std::shared_ptr<const CublasLt>>> cublaslt_;
  std::optional<StatusOr<std::shared_ptr<const Cudnn>>> cudnn_;
};

// The op as a matrix product of cuBLASLt by that algorithm of those it offers; nullptr where it is none.
// Code::plan_invalid where the library cannot.
StatusOr<KernelPtr> make_matmul(std::shared_ptr<const CublasLt> library, const plan::Op& op, int algorithm = 0);

// The op as a convolution of cuDNN by that engine, "" for the first that builds; likewise.
StatusOr<KernelPtr> make_convolution(const Cudnn& library, const plan::Op& op, const std::string& engine = {});
Launch matmul_launch(std::shared_ptr<const Matmul> matmul, const Matmul::Operands& operands);
Launch convolution_launch(std::shared_ptr<const ConvolutionPlan> plan, const ConvolutionPlan::Operands& operands);

// Whether it is a product of matrices that the library knows the types of.
bool is_product(const plan::Op& op);
std::optional<Convolution> convolution_of(const plan::Op& op);

}  // namespace effnet::cuda
