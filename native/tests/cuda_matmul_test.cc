// Products by cuBLASLt on a library without a GPU (native/cuda/fake/fake_cublaslt.cc), which computes them in double
// and refuses what the real one would not survive. The ops made of them are tested in linear_test.cc and conv_test.cc,
// which run with EFFNET_CUDA_PROVIDER=cublaslt too.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "cuda/device.h"
#include "cuda/providers/library.h"
#include "plan/op_ports.h"
#include "tests/half.h"
#include "tests/kernel_rig.h"

namespace effnet::test {
namespace {

using cuda::CublasLt;
using cuda::Matmul;
using cuda::Product;
using plan::DType;

template <class F>
F* of_fake(const char* name) {
  void* library = dlopen(FAKE_NVIDIA_FOLDER "/libcublasLt.so.13", RTLD_NOW);
  return reinterpret_cast<F*>(dlsym(library, name));
}
int live_objects() { return of_fake<int()>("fake_cublaslt_live")(); }
int calls(const char* name) { return of_fake<int(const char*)>("fake_cublaslt_calls")(name); }
std::string misuse() { return of_fake<const char*()>("fake_cublaslt_misuse")(); }

class CudaMatmul : public testing::Test {
 protected:
  static void SetUpTestSuite() { setenv("EFFNET_LIB_DIR", FAKE_NVIDIA_FOLDER, 1); }
  void SetUp() override {
    of_fake<void()>("fake_cublaslt_reset")();
    before_ = live_objects();
  }
  void TearDown() override {
    unsetenv("FAKE_CUBLASLT_FAIL");
    unsetenv("EFFNET_CUDA_PROVIDER");
    EXPECT_EQ(live_objects(), before_) << "objects are left";
    EXPECT_EQ(misuse(), "");
  }
  static std::shared_ptr<const CublasLt> library() {
    auto made = CublasLt::create();
    EXPECT_TRUE(made.ok()) << made.status().message();
    return made.ok() ? made.value() : nullptr;
  }
  int before_ = 0;
};

// Memory at multiples of 256, of values of a type.
class Buffer {
 public:
  Buffer(DType dtype, size_t count, uint32_t seed) : dtype_(dtype), count_(count), bytes_(count * 4 + 512) {
    for (size_t i = 0; i < count; ++i) {
      uint32_t word = (static_cast<uint32_t>(i) + 7919 * seed) * 2654435761u;
      word ^= word >> 15;
      set(i, seed ? static_cast<float>(word % 4096) / 2048.0f - 1.0f : NAN);
    }
  }
  uint8_t* data() { return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(bytes_.data()) + 255) / 256 * 256); }
  double at(size_t i) {
    if (dtype_ == DType::f32) {
      float v;
      std::memcpy(&v, data() + 4 * i, 4);
      return v;
    }
    uint16_t bits;
    std::memcpy(&bits, data() + 2 * i, 2);
    return from_bits16(dtype_, bits);
  }
  size_t count() const { return count_; }

 private:
  void set(size_t i, float v) {
    const uint16_t bits = dtype_ == DType::f32 ? uint16_t{0} : to_bits16(dtype_, v);
    if (dtype_ == DType::f32)
      std::memcpy(data() + 4 * i, &v, 4);
    else
      std::memcpy(data() + 2 * i, &bits, 2);
  }
  DType dtype_;
  size_t count_;
  std::vector<uint8_t> bytes_;
};

Product product_of(DType dtype, DType result, int64_t m, int64_t n, int64_t k, bool a_transposed, bool b_transposed) {
  Product p;
  p.a = {dtype, a_transposed ? k : m, a_transposed ? m : k, a_transposed, 256};
  p.b = {dtype, b_transposed ? n : k, b_transposed ? k : n, b_transposed, 256};
  p.d = {result, m, n, false, 256};
  return p;
}

void expect_product(const Product& p, std::shared_ptr<const CublasLt> library, int nth = 0) {
  const int64_t m = p.d.rows, n = p.d.columns, k = p.a.op_columns();
  const auto size = [](const Product::Matrix& x) { return static_cast<size_t>(x.rows * x.columns); };
  Buffer a(p.a.dtype, size(p.a), 1), b(p.b.dtype, size(p.b), 2), c(p.d.dtype, size(p.d), 3), d(p.d.dtype, size(p.d), 0),
      bias(DType::f32, static_cast<size_t>(m), 4);
  const auto matmul = Matmul::create(std::move(library), p, nth);
  ASSERT_TRUE(matmul.ok()) << matmul.status().message();
  Buffer workspace(DType::f32, matmul.value()->workspace_bytes() / 4 + 1, 0);
  const Status queued =
      matmul.value()->queue({a.data(), b.data(), bias.data(), c.data(), d.data(), workspace.data()}, nullptr);
  ASSERT_TRUE(queued.ok()) << queued.message() << " " << misuse();
  const double unit = p.tf32 ? 1e-3 : 1e-6, stored = p.d.dtype == DType::f32    ? 1e-7
                                                     : p.d.dtype == DType::bf16 ? 1.0 / 256
                                                                                : 1.0 / 2048;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = p.bias ? bias.at(static_cast<size_t>(i)) : 0, terms = std::abs(sum);
      if (p.add_c) sum += c.at(static_cast<size_t>(j * m + i));
      for (int64_t x = 0; x < k; ++x) {
        const double term = a.at(static_cast<size_t>(p.a.transposed ? i * k + x : x * m + i)) *
                            b.at(static_cast<size_t>(p.b.transposed ? x * n + j : j * k + x));
        sum += term;
        terms += std::abs(term);
      }
      const double got = d.at(static_cast<size_t>(j * m + i));
      ASSERT_LE(std::abs(got - sum), unit * terms + stored * std::abs(sum) + 1e-7) << i << ", " << j;
    }
}

TEST_F(CudaMatmul, ProductsOfAllTypes) {
  const struct { int64_t m, n, k; } sizes[] = {{1, 1, 1}, {5, 3, 8}, {24, 33, 17}, {10, 1, 100}, {70, 130, 65}};
  const auto lt = library();
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16})
    for (const auto& s : sizes)
      for (int form = 0; form < 4; ++form) {
        SCOPED_TRACE(testing::Message() << plan::dtype_name(dtype) << " " << s.m << "x" << s.n << "x" << s.k << " form "
                                        << form);
        Product p = product_of(dtype, dtype, s.m, s.n, s.k, form & 1, form & 2);
        expect_product(p, lt);
        p.add_c = true;
        expect_product(p, lt);
        p.d.dtype = DType::f32;
        p.bias = true;
        expect_product(p, lt);
        p.tf32 = dtype == DType::f32;
        expect_product(p, lt, 1);
        if (HasFatalFailure()) return;
      }
}

TEST_F(CudaMatmul, WhatTheLibraryHasNoAlgorithmFor) {
  const auto lt = library();
  Product p = product_of(DType::f16, DType::bf16, 8, 8, 8, false, false);
  EXPECT_EQ(Matmul::create(lt, p).status().code(), Code::plan_invalid);
  p.d.dtype = DType::f16;
  EXPECT_TRUE(Matmul::create(lt, p).ok());
  EXPECT_EQ(Matmul::create(lt, p, 7).status().code(), Code::plan_invalid);
  p.bias = true;  // FP32, on 16-bit results
  EXPECT_EQ(Matmul::create(lt, p).status().code(), Code::plan_invalid);
}

// FP32 is FP32: what is made of products in another type is refused, though the library offers it.
TEST_F(CudaMatmul, Fp32IsNotEmulated) {
  const auto lt = library();
  Product p = product_of(DType::f32, DType::f32, 8, 8, 64, true, false);
  setenv("FAKE_CUBLASLT_EMULATE", "1", 1);
  const Status emulated = Matmul::create(lt, p).status();
  p.tf32 = true;
  const Status tf32 = Matmul::create(lt, p).status();
  const Status half = Matmul::create(lt, product_of(DType::f16, DType::f16, 8, 8, 64, true, false)).status();
  unsetenv("FAKE_CUBLASLT_EMULATE");
  EXPECT_EQ(emulated.code(), Code::plan_invalid);
  EXPECT_EQ(emulated.message(), "cuBLASLt's algorithm 0 emulates FP32");
  EXPECT_TRUE(tf32.ok()) << tf32.message();
  EXPECT_TRUE(half.ok()) << half.message();
}

TEST_F(CudaMatmul, MatricesThatDoNotFitAndAddressesThatAreNotAligned) {
  const auto lt = library();
  Product p = product_of(DType::f32, DType::f32, 4, 4, 4, false, false);
  p.b.rows = 5;
  EXPECT_EQ(Matmul::create(lt, p).status().code(), Code::internal);
  EXPECT_EQ(misuse(), "layouts that do not fit each other");
  p.b.rows = 4;
  p.b.alignment = 64;
  const auto matmul = Matmul::create(lt, p);
  ASSERT_TRUE(matmul.ok());
  Buffer a(DType::f32, 64, 1), d(DType::f32, 64, 0);
  const auto status = [&](size_t a_at, size_t b_at) {
    return matmul.value()->queue({a.data() + a_at, a.data() + b_at, nullptr, nullptr, d.data(), nullptr}, nullptr);
  };
  EXPECT_TRUE(status(0, 64).ok());
  EXPECT_EQ(status(64, 0).code(), Code::internal);
  EXPECT_EQ(misuse(), "an address that is not aligned as promised");
  EXPECT_EQ(status(0, 32).code(), Code::internal);
  of_fake<void()>("fake_cublaslt_reset")();
}

TEST_F(CudaMatmul, EveryFailingCallIsAnErrorAndLeavesNothing) {
  const auto make = [] {
    const auto lt = CublasLt::create();
    if (!lt.ok()) return lt.status();
    Product p = product_of(DType::f32, DType::f32, 8, 8, 64, true, false);
    p.bias = true;
    const auto matmul = Matmul::create(lt.value(), p);
    if (!matmul.ok()) return matmul.status();
    Buffer a(DType::f32, 512, 1), d(DType::f32, 64, 0), workspace(DType::f32, 1024, 0);
    return matmul.value()->queue({a.data(), a.data(), a.data(), nullptr, d.data(), workspace.data()}, nullptr);
  };
  ASSERT_TRUE(make().ok());
  int failures = 0;
#define EFF_NAME(name, ...) #name,
  for (const char* name : {EFF_CUBLASLT(EFF_NAME)}) {
    if (std::strstr(name, "Destroy")) continue;
    of_fake<void()>("fake_cublaslt_reset")();
    ASSERT_TRUE(make().ok());
    for (int nth = calls(name); nth > 0; --nth) {
      of_fake<void()>("fake_cublaslt_reset")();
      setenv("FAKE_CUBLASLT_FAIL", (std::string(name) + ":" + std::to_string(nth) + ":3").c_str(), 1);
      const Status status = make();
      EXPECT_EQ(status.code(), Code::oom) << name;
      EXPECT_NE(status.message().find(name), std::string::npos) << status.message();
      EXPECT_EQ(live_objects(), before_) << name;
      unsetenv("FAKE_CUBLASLT_FAIL");
      ++failures;
    }
  }
#undef EFF_NAME
  EXPECT_GT(failures, 15);
}

// By cuBLAS's own words for its statuses: 8 and 15 are what it cannot, on this GPU or at all; 1 not initialised, 3 no
// memory, 7 a wrong parameter, 11 memory it cannot reach, 13 a GPU that failed, 14 itself.
TEST_F(CudaMatmul, WhatIsNotOfferedIsNoErrorAndAFailureIs) {
  const Product p = product_of(DType::f32, DType::f32, 8, 8, 64, true, false);
  const auto code = [&](int status) {
    of_fake<void()>("fake_cublaslt_reset")();
    setenv("FAKE_CUBLASLT_FAIL", ("cublasLtMatmulAlgoGetHeuristic:1:" + std::to_string(status)).c_str(), 1);
    return Matmul::create(library(), p).status().code();
  };
  for (const int status : {8, 15}) EXPECT_EQ(code(status), Code::plan_invalid) << status;
  for (const int status : {1, 7, 11, 13, 14}) EXPECT_EQ(code(status), Code::internal) << status;
  EXPECT_EQ(code(3), Code::oom);
  unsetenv("FAKE_CUBLASLT_FAIL");
  setenv("FAKE_CUBLASLT_STATE", "15", 1);
  const Status unusable = Matmul::create(library(), p).status();
  unsetenv("FAKE_CUBLASLT_STATE");
  EXPECT_EQ(unusable.code(), Code::plan_invalid);
  EXPECT_NE(unusable.message().find("not for this product: status 15"), std::string::npos) << unusable.message();
}

// ---- 1x1 convolutions --------------------------------------------------------------------------------------------

struct Pixels {
  int64_t n, h, w, ic, oc;
  size_t rows() const { return static_cast<size_t>(n * h * w); }
};
constexpr Pixels kPixels[] = {{1, 1, 1, 1, 1}, {2, 5, 3, 8, 24}, {1, 7, 7, 17, 5}, {3, 4, 4, 48, 16}};
const std::vector<double> kNoPadding = {1, 0, 0, 0, 0};

double worst(const Values& got, const Values& want) {
  double scale = 1e-3, error = 0;
  for (const double v : want) scale = std::max(scale, std::abs(v));
  for (size_t i = 0; i < want.size(); ++i) error = std::max(error, difference(got[i], want[i]));
  return error / scale;
}
double allowed(DType dtype, bool tf32) {
  return dtype == DType::bf16 ? 5e-3 : dtype == DType::f16 ? 6e-4 : tf32 ? 1e-3 : 1e-6;
}

TEST_F(CudaMatmul, ConvolutionsOfOnePixel) {
  setenv("EFFNET_CUDA_PROVIDER", "cublaslt", 1);
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
    for (const bool tf32 : {false, true})
      for (const Pixels& p : kPixels) {
        if (tf32 && dtype != DType::f32) continue;
        const std::string type = tf32 ? "tf32" : plan::dtype_name(dtype);
        SCOPED_TRACE(type + " of " + std::to_string(p.ic) + " to " + std::to_string(p.oc));
        const size_t ic = static_cast<size_t>(p.ic), oc = static_cast<size_t>(p.oc);
        const Values src = stored(dtype, random_values(p.rows() * ic, 1)),
                     weights = stored(DType::f32, random_values(oc * ic, 2)),
                     bias = stored(DType::f32, random_values(oc, 3)),
                     diff_dst = stored(dtype, random_values(p.rows() * oc, 4)), w = stored(dtype, weights);
        Values dst(p.rows() * oc), diff_src(p.rows() * ic), diff_weights(oc * ic);
        for (size_t r = 0; r < p.rows(); ++r)
          for (size_t o = 0; o < oc; ++o)
            for (size_t i = 0; i < ic; ++i) {
              dst[r * oc + o] += src[r * ic + i] * w[o * ic + i];
              diff_src[r * ic + i] += diff_dst[r * oc + o] * w[o * ic + i];
              diff_weights[o * ic + i] += diff_dst[r * oc + o] * src[r * ic + i];
            }
        const auto run = [&](Rig& rig, const char* name, const Tensor* out, const Values& want, double tolerance) {
          rig.op().flags = tf32 ? plan::kOpTf32 : 0;
          rig.run();
          EXPECT_EQ(rig.name(), name + type + ":cublaslt");
          EXPECT_LE(worst(rig.get(out), want), tolerance) << name;
        };
        const auto add_weights = [&](Rig& rig) {
          rig.add_in(rig.tensor(Arena::weights, DType::f32, {p.oc, 1, 1, p.ic}, weights));
        };
        Rig forward(backend::make_conv2d, kNoPadding);
        forward.in(dtype, {p.n, p.h, p.w, p.ic}, src);
        add_weights(forward);
        run(forward, "conv2d_", forward.out(dtype, {p.n, p.h, p.w, p.oc}), dst, allowed(dtype, tf32));
        Rig data(backend::make_conv2d_bwd_data, kNoPadding);
        data.in(dtype, {p.n, p.h, p.w, p.oc}, diff_dst);
        add_weights(data);
        run(data, "conv2d_bwd_data_", data.out(dtype, {p.n, p.h, p.w, p.ic}), diff_src, allowed(dtype, tf32));
        Rig of_weights(backend::make_conv2d_bwd_weights, kNoPadding);
        of_weights.in(dtype, {p.n, p.h, p.w, p.ic}, src);
        of_weights.in(dtype, {p.n, p.h, p.w, p.oc}, diff_dst);
        run(of_weights, "conv2d_bwd_weights_", of_weights.out(DType::f32, {p.oc, 1, 1, p.ic}), diff_weights,
            allowed(DType::f32, tf32));
        if (dtype != DType::f32) continue;  // FP32 biases, which no 16-bit product takes
        std::vector<double> attrs = kNoPadding;
        attrs.push_back(static_cast<double>(plan::Act::identity));
        Rig biased(backend::make_conv2d_bias_act, attrs);
        biased.in(dtype, {p.n, p.h, p.w, p.ic}, src);
        add_weights(biased);
        biased.in(DType::f32, {p.oc}, bias);
        biased.absent_inputs(1);
        biased.in(dtype, {p.n, p.h, p.w, p.oc}, diff_dst);
        Values sum = dst;
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += bias[i % oc] + diff_dst[i];
        run(biased, "conv2d_bias_act_", biased.out(dtype, {p.n, p.h, p.w, p.oc}), sum, allowed(dtype, tf32));
        if (HasFatalFailure()) return;
      }
  EXPECT_EQ(misuse(), "");
  before_ = live_objects();  // the library's handle stays open with the GPU
}

// ---- who runs an op ----------------------------------------------------------------------------------------------

struct LinearOp {
  plan::Tensor src = matrix(4, 8, 0), weights = matrix(6, 8, 256), bias = matrix(1, 6, 512), dst = matrix(4, 6, 768);
  plan::Op op{plan::OpId::linear, 0, "fc", {&src, &weights, &bias}, {&dst}, {}, {}};

  static plan::Tensor matrix(int64_t rows, int64_t columns, uint64_t offset) {
    plan::Tensor t{};
    t.dtype = DType::f32;
    t.arena = plan::Arena::activations;
    t.rank = 2;
    t.dims[0] = rows;
    t.dims[1] = columns;
    t.dims[2] = t.dims[3] = 1;
    t.offset = offset;
    t.bytes = static_cast<uint64_t>(4 * rows * columns);
    return t;
  }
};

std::string kernel_name(cuda::Providers& providers, const plan::Op& op) {
  const auto kernel = providers.bind(op, cuda::make_linear);
  return kernel.ok() ? kernel.value()->name : kernel.status().message();
}

TEST_F(CudaMatmul, WhoRunsAnOp) {
  LinearOp linear;
  cuda::Providers providers(90);
  EXPECT_EQ(kernel_name(providers, linear.op), "linear_f32:cublaslt");
  linear.op.flags = plan::kOpTf32;
  EXPECT_EQ(kernel_name(providers, linear.op), "linear_tf32:cublaslt");
  linear.op.flags = 0;
  setenv("EFFNET_CUDA_PROVIDER", "own", 1);
  EXPECT_TRUE(kernel_name(providers, linear.op).ends_with("_f32:cuda"));
  setenv("EFFNET_CUDA_PROVIDER", "cublaslt", 1);
  EXPECT_EQ(kernel_name(providers, linear.op), "linear_f32:cublaslt");
  setenv("EFFNET_CUDA_PROVIDER", "mkl", 1);
  EXPECT_EQ(kernel_name(providers, linear.op), "EFFNET_CUDA_PROVIDER=mkl: there are own, cublaslt and cudnn");
}

// An own kernel does what the library cannot; what fails there is told, and not done by another in silence.
TEST_F(CudaMatmul, WhoRunsWhatTheLibraryRefuses) {
  LinearOp linear;
  cuda::Providers providers(90);
  EXPECT_EQ(kernel_name(providers, linear.op), "linear_f32:cublaslt");
  const auto with = [&](int status) {
    of_fake<void()>("fake_cublaslt_reset")();
    setenv("FAKE_CUBLASLT_FAIL", ("cublasLtMatmulAlgoGetHeuristic:1:" + std::to_string(status)).c_str(), 1);
    return kernel_name(providers, linear.op);
  };
  EXPECT_TRUE(with(15).ends_with("_f32:cuda"));
  EXPECT_TRUE(with(8).ends_with("_f32:cuda"));
  EXPECT_EQ(with(13), "cublasLtMatmulAlgoGetHeuristic failed with status 13");
}

TEST_F(CudaMatmul, OneThatDoesNotStart) {
  LinearOp linear;
  setenv("FAKE_CUBLASLT_FAIL", "cublasLtCreate:1:1", 1);
  cuda::Providers providers(90);
  const std::string why = FAKE_NVIDIA_FOLDER "/libcublasLt.so.13 does not start: cublasLtCreate failed with status 1";
  EXPECT_EQ(kernel_name(providers, linear.op), why);  // it is there: own kernels instead would be a surprise
  setenv("EFFNET_CUDA_PROVIDER", "cublaslt", 1);
  EXPECT_EQ(kernel_name(providers, linear.op), "EFFNET_CUDA_PROVIDER=cublaslt: " + why);
  setenv("EFFNET_CUDA_PROVIDER", "own", 1);
  EXPECT_TRUE(kernel_name(providers, linear.op).ends_with("_f32:cuda"));
}

}  // namespace
}  // namespace effnet::test
