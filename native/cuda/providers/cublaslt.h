// Matrix products by cuBLASLt.
#pragma once

#include <memory>
#include <string>

#include "cuda/launch.h"
#include "cuda/providers/cublaslt_api.h"
#include "plan/format.h"

namespace effnet::cuda {

// The library with a handle of the context that was current. Any thread may use it.
class CublasLt {
 public:
  // Code::backend_missing where there is none, or where it does not start.
  static StatusOr<std::shared_ptr<const CublasLt>> create();
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  const lt::Functions& functions() const { return functions_; }
  lt::Handle handle() const { return handle_; }

 private:
  CublasLt() = default;
  lt::Functions functions_;
  lt::Handle handle_ = nullptr;
};

// d = op(a) op(b) + c + bias, of column-major matrices without gaps: a row-major [rows, columns] is a column-major
// columns x rows. All sums are FP32.
struct Product {
  struct Matrix {
    plan::DType dtype = plan::DType::f32;
    int64_t rows = 0, columns = 0;  // as stored
    bool transposed = false;        // op
    int alignment = 256;            // of its address, in bytes
    int64_t op_rows() const { return transposed ? columns : rows; }
    int64_t op_columns() const { return transposed ? rows : columns; }
  };
  Matrix a, b, d;
  bool bias = false;   // f32, one for each row of d
  bool add_c = false;  // of d's type, shape and alignment
  bool tf32 = false;   // f32 factors may be rounded to TF32
};

// A product that cuBLASLt has an algorithm for.
class Matmul {
 public:
  struct Operands {
    const void *a = nullptr, *b = nullptr, *bias = nullptr, *c = nullptr;
    void *d = nullptr, *workspace = nullptr;
  };

  // Code::plan_invalid where the library has no algorithm. `nth`: which of those it offers, its best guess first.
  static StatusOr<std::shared_ptr<const Matmul>> create(std::shared_ptr<const CublasLt> library, const Product& product,
                                                        int nth = 0);
  ~Matmul();
  Matmul(const Matmul&) = delete;
  Matmul& operator=(const Matmul&) = delete;

  size_t workspace_bytes() const { return best_.workspace_bytes; }
  Status queue(const Operands& operands, void* stream) const;

 private:
  Matmul() = default;
  Status start(const Product& product, int nth);
  Status choose(const Product& product, int nth);
  // Code::plan_invalid where the algorithm takes tensor cores.
  Status check_multiply_adds(int nth) const;

  std::shared_ptr<const CublasLt> library_;
  lt::MatmulDesc desc_ = nullptr;
  lt::Layout a_ = nullptr, b_ = nullptr, d_ = nullptr;
  lt::Heuristic best_ = {};
  bool bias_ = false, add_c_ = false;
};

}  // namespace effnet::cuda
