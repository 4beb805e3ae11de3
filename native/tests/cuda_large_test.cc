// Tensors of more than 2^31 elements: the blocks that make the end of the result, on memory of which hardly a page is
// there. Beside the same op on the last image alone.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <deque>
#include <random>

#include "plan/op_ports.h"
#include "tests/cuda_runner.h"

namespace effnet::test {
namespace {

using plan::Act;
using plan::Arena;
using plan::DType;
using plan::Tensor;

constexpr int64_t kSide = 28, kChannels = 160, kImages = 17408;
static_assert(kImages * kSide * kSide * kChannels > int64_t{1} << 31);

// Address space, zero until it is written.
class Sparse {
 public:
  explicit Sparse(size_t bytes) : bytes_(bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    data_ = p == MAP_FAILED ? nullptr : static_cast<std::byte*>(p);
  }
  ~Sparse() { munmap(data_, bytes_); }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_;
};

struct Operand {
  std::vector<int64_t> dims;  // of one image, or of what all share
  DType dtype;
  bool batched;
};

// An op and that of its results which is of each image by itself.
struct Case {
  const char* name;
  backend::KernelFactory factory;
  std::vector<double> attrs;
  std::vector<Operand> inputs;
  std::vector<Operand> outputs;
  size_t looked_at = 0;
  std::vector<Operand> updates = {};
};

Operand images(int64_t channels) { return {{kSide, kSide, channels}, DType::bf16, true}; }
Operand matrix(int64_t out, int64_t in) { return {{out, 1, 1, in}, DType::f32, false}; }
Operand vector(int64_t channels) { return {{channels}, DType::f32, false}; }

const Operand kImage = images(kChannels), kVector = vector(kChannels), kMatrix = matrix(kChannels, kChannels),
              kNone{{}, DType::f32, false}, kTaps{{3, 3, kChannels}, DType::f32, false},
              kOfImage{{kChannels}, DType::f32, true};
constexpr double kSilu = static_cast<double>(Act::silu);

std::vector<Case> cases() {
  using namespace backend;
  const std::vector<Operand> norm(4, kVector);
  const auto with = [](std::vector<Operand> first, const std::vector<Operand>& then) {
    first.insert(first.end(), then.begin(), then.end());
    return first;
  };
  const std::vector<double> padded = {1, 1, 1, 1, 1}, unpadded = {1, 0, 0, 0, 0};
  const auto and_attrs = [](std::vector<double> first, const std::vector<double>& then) {
    first.insert(first.end(), then.begin(), then.end());
    return first;
  };
  const std::vector<Operand> statistics = {kImage, kVector, kVector}, running = {kVector, kVector};
  const std::vector<double> eps_momentum_silu = {1e-3, 0.1, kSilu};
  return {
      {"activation", make_activation, {kSilu}, {kImage}, {kImage}},
      {"add", make_add, {}, {kImage, kImage}, {kImage}},
      {"global_avg_pool", make_global_avg_pool, {}, {kImage}, {kOfImage}},
      {"bn_act", make_bn_act, {kSilu, 0, 0, 1}, with(with({kImage}, norm), {kNone, kImage}), {kImage}},
      {"bn_act_pool", make_bn_act_pool, {kSilu, 1}, with({kImage}, norm), {kOfImage, kNone}},
      {"bn_bwd_apply", make_bn_bwd_apply, {0}, {kImage, kImage, kVector, kVector, kVector, kNone, kNone}, {kImage}},
      {"conv2d", make_conv2d, unpadded, {kImage, kMatrix}, {kImage}},
      {"conv2d_stats", make_conv2d_stats, and_attrs(unpadded, eps_momentum_silu),
       with({kImage, kMatrix, kOfImage}, norm), statistics, 0, running},
      {"conv2d_bwd_data", make_conv2d_bwd_data, unpadded, {kImage, kMatrix}, {kImage}},
      {"conv2d_bias_act",
       make_conv2d_bias_act,
       and_attrs(unpadded, {kSilu}),
       {kImage, kMatrix, kVector, kNone, kImage},
       {kImage}},
      {"input_conv2d_bias_act",
       make_input_conv2d_bias_act,
       {2, 0, 0, 1, 1, kSilu, 120, 120, 120, 60, 60, 60},
       {{{2 * kSide, 2 * kSide, 3}, DType::u8, true}, {{kChannels, 3, 3, 3}, DType::f32, false}, kVector},
       {kImage}},
      {"depthwise_conv2d", make_depthwise_conv2d, padded, {kImage, kTaps}, {kImage}},
      {"depthwise_conv2d_bias_act",
       make_depthwise_conv2d_bias_act,
       and_attrs(padded, {kSilu}),
       {kImage, kTaps, kVector},
       {kImage, kNone}},
      {"depthwise_conv2d_stats", make_depthwise_conv2d_stats, and_attrs(padded, eps_momentum_silu),
       with({kImage, kTaps}, norm), statistics, 0, running},
      {"depthwise_conv2d_bwd",
       make_depthwise_conv2d_bwd,
       and_attrs(padded, {kSilu, static_cast<double>(Act::identity)}),
       with(with({kImage, kImage, kTaps}, norm), std::vector<Operand>(9, kNone)),
       {kImage, kTaps, kVector, kVector}},
  };
}

int64_t elements(const Operand& o) {
  int64_t count = 1;
  for (const int64_t d : o.dims) count *= d;
  return count;
}
size_t bytes(const Operand& o) { return static_cast<size_t>(elements(o)) * plan::dtype_bytes(o.dtype); }

// Values in [1/4, 1) of f32 or bf16, pixels of any.
void fill(std::byte* data, const Operand& o, uint32_t seed) {
  std::mt19937 random(seed);
  for (int64_t i = 0; i < elements(o); ++i) {
    if (o.dtype == DType::u8) {
      data[i] = static_cast<std::byte>(random() >> 24);
      continue;
    }
    const float value = 0.25f + static_cast<float>(random() >> 8) / static_cast<float>(1 << 24) * 0.75f;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (o.dtype == DType::f32) {
      std::memcpy(data + 4 * i, &bits, 4);
    } else {
      const auto half = static_cast<uint16_t>(bits >> 16);
      std::memcpy(data + 2 * i, &half, 2);
    }
  }
}

class Bound : public backend::Binding {
 public:
  using Binding::Binding, Binding::cast, Binding::kernel, Binding::working_arenas;
};

struct Result {
  std::string kernel;
  std::vector<double> values;  // of the last image, or of what all share
};

// The op on `images` images, all zero but for the last one.
Result run(const Case& c, int64_t images, size_t last_blocks) {
  std::deque<Tensor> tensors;
  std::deque<Sparse> memory;
  size_t at[plan::kArenaCount] = {};
  plan::Op op{};
  op.name = "op";
  op.attrs = c.attrs;
  const auto place = [&](const Operand& o) -> const Tensor* {
    if (o.dims.empty()) return nullptr;
    Tensor t{};
    t.name = "t";
    t.dtype = o.dtype;
    t.arena = !o.batched && o.dims.size() > 1 ? Arena::weights : Arena::activations;
    std::vector<int64_t> dims = o.dims;
    if (o.batched) dims.insert(dims.begin(), images);
    t.rank = static_cast<int>(dims.size());
    for (size_t i = 0; i < 4; ++i) t.dims[i] = i < dims.size() ? dims[i] : 1;
    t.bytes = bytes(o) * static_cast<size_t>(o.batched ? images : 1);
    size_t& end = at[static_cast<int>(t.arena)];
    t.offset = end;
    end += (t.bytes + 255) / 256 * 256;
    return &tensors.emplace_back(t);
  };
  for (const Operand& o : c.inputs) op.inputs.push_back(place(o));
  for (const Operand& o : c.outputs) op.outputs.push_back(place(o));
  for (const Operand& o : c.updates) op.updates.push_back(place(o));
  cuda::Addresses addresses;
  for (int a = 0; a < plan::kArenaCount; ++a)
    if (at[a]) addresses.arenas[a] = memory.emplace_back(at[a]).data();
  for (size_t i = 0; i < c.inputs.size(); ++i) {
    const Tensor* t = op.inputs[i];
    if (!t) continue;
    const size_t image = bytes(c.inputs[i]), behind = c.inputs[i].batched ? t->bytes - image : 0;
    fill(addresses.ptr<std::byte>(t) + behind, c.inputs[i], static_cast<uint32_t>(i) + 1);
  }
  Bound binding(c.factory);
  const Status made = binding.make(op);
  EXPECT_TRUE(made.ok()) << made.message();
  if (!made.ok()) return {};
  Sparse scratch(binding.kernel().scratch_bytes + 256);
  StepScalars scalars;
  cuda::StepState state{};
  addresses.scalars = &scalars;
  addresses.scratch = scratch.data();
  addresses.state = &state;
  std::vector<cuda::Launch> launches;
  for (const int a : binding.working_arenas()) {
    addresses.working_arenas[a] = memory.emplace_back(at[a] / 2 + 256).data();
    launches.push_back(binding.cast(addresses.arenas[a], addresses.working_arenas[a], at[a]));
  }
  const size_t casts = launches.size();
  binding.kernel().record(addresses, launches);
  for (size_t i = 0; i < launches.size(); ++i) {
    cuda::emulation::machine().last_blocks = i < casts ? 0 : last_blocks;
    const char* problem = emulate(launches[i], 0);
    EXPECT_EQ(problem, nullptr) << problem;
  }
  cuda::emulation::machine().last_blocks = 0;
  const Operand& looked_at = c.outputs[c.looked_at];
  const Tensor* t = op.outputs[c.looked_at];
  const std::byte* data = addresses.ptr<std::byte>(t) + t->bytes - bytes(looked_at);
  Result result{binding.name(), {}};
  for (int64_t i = 0; i < elements(looked_at); ++i) {
    uint32_t bits = 0;
    if (looked_at.dtype == DType::f32)
      std::memcpy(&bits, data + 4 * i, 4);
    else
      std::memcpy(reinterpret_cast<std::byte*>(&bits) + 2, data + 2 * i, 2);
    result.values.push_back(std::bit_cast<float>(bits));
  }
  return result;
}

TEST(Large, TheEndOfAResultIsThatOfTheLastImageAlone) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.name);
    const Result large = run(c, kImages, 4), want = run(c, 1, 0);
    ASSERT_EQ(large.values.size(), want.values.size());
    EXPECT_NE(want.values.back(), 0);
    size_t made = 0, wrong = 0;
    for (size_t i = 0; i < want.values.size(); ++i) {
      if (large.values[i] == 0) continue;
      ++made;
      wrong += large.values[i] != want.values[i];
    }
    EXPECT_NE(large.values.back(), 0) << large.kernel;
    EXPECT_GE(made, std::min<size_t>(want.values.size() / 4, 1000)) << large.kernel;
    EXPECT_EQ(wrong, 0u) << large.kernel << " of " << made;
  }
}

}  // namespace
}  // namespace effnet::test
