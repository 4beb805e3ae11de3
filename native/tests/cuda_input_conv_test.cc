// Convolutions that read uint8 images and normalise them on the way in, a form of ops that only passes for GPUs make:
// the same bits as from a normalised tensor that was stored, and against plain loops in double precision.
#include <functional>

#include "conv_reference.h"
#include "kernel_rig.h"
#include "reference.h"

namespace effnet::test {
namespace {

constexpr double kMean[] = {123.675, 116.28, 103.53}, kStd[] = {58.395, 57.12, 57.375};

const ConvCase kCases[] = {
    {2, 32, 32, 3, 32, 3, 2, 0, 0, 1, 1},    // TensorFlow's padding
    {1, 33, 31, 3, 24, 3, 2, 1, 1, 1, 1},    // PyTorch's, odd sides
    {3, 9, 7, 3, 40, 3, 1, 1, 1, 1, 1},      // columns of two blocks
    {2, 13, 9, 3, 8, 5, 2, 2, 2, 2, 2},      // 75 terms: several steps
    {1, 6, 11, 3, 16, 1, 1, 0, 0, 0, 0},     // no window
    {1, 1, 1, 3, 8, 3, 2, 1, 1, 1, 1},       // a pixel, and 8 places of padding
    {2, 5, 8, 3, 16, 2, 1, 0, 0, 0, 0},      // a row of a window has fewer values than 16 bytes of a 16-bit type
    {3, 9, 7, 3, 13, 3, 2, 1, 0, 1, 1},      // the plain kernels: no whole vectors of results,
    {1, 20, 18, 3, 8, 4, 3, 1, 1, 1, 1},     // or another stride
    {1, 260, 260, 3, 48, 3, 2, 1, 1, 1, 1},  // 64 columns
};

struct Type {
  DType dtype;
  bool tf32;
};
const Type kTypes[] = {{DType::f32, false}, {DType::f32, true}, {DType::bf16, false}, {DType::f16, false}};

// Of |result| + sqrt(terms), the size of a sum of so many products of values of about size 1 and of any sign.
// - FP32 sums in any order are off by chance by 2^-24 of the terms' size a step; 3e-6 has room for sqrt(2^11) of them.
//   Products of 16-bit values are exact there.
// - TF32 rounds both factors, each by up to 2^-11 of its size, evenly to either side: in the mean square a product is
//   off by 2^-11 sqrt(2/3) = 4e-4 of it, and a sum by that times sqrt(terms); 2e-3 is 5 such deviations.
double of_sums(const Type& t) { return t.tf32 ? 2e-3 : 3e-6; }
// A 16-bit result is off by half a unit in its last place besides.
double tolerance(const Type& t) {
  return of_sums(t) + (t.dtype == DType::bf16 ? 0x1p-8 : t.dtype == DType::f16 ? 0x1p-11 : 0);
}

Values pixels_of(const ConvCase& c) {
  Values pixels(static_cast<size_t>(c.n * c.h * c.w * c.ic));
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<double>(i * 7919 % 256);
  return pixels;
}

// What an op is made of, but for its source.
struct Form {
  backend::KernelFactory of_images, of_pixels;
  std::vector<double> attrs, attrs_of_images;                // the second: further ones, of images alone
  size_t absent = 0;                                         // inputs of images alone, behind the others
  std::function<std::vector<const Tensor*>(Rig&)> add_rest;  // further inputs, then results
};

class InputConv : public testing::TestWithParam<Type> {
 protected:
  DType dtype() const { return GetParam().dtype; }
  // ThreadSanitizer takes minutes for the last one, whose kernels are the same text in each 16-bit type and in TF32.
  bool left_out(const ConvCase& c) const {
    return kThreadSanitizer && c.h > 100 && (GetParam().tf32 || dtype() == DType::f16);
  }

  // The normalised tensor, as its own op stores it.
  Values images(const ConvCase& c) const {
    Rig rig(backend::make_input_normalize, with_pixels({}));
    rig.in(DType::u8, {c.n, c.h, c.w, c.ic}, pixels_of(c));
    const Tensor* made = rig.out(dtype(), {c.n, c.h, c.w, c.ic});
    rig.run();
    return rig.get(made);
  }
  // The same by itself.
  Values normalised(const ConvCase& c) const {
    Values values = pixels_of(c);
    for (size_t i = 0; i < values.size(); ++i) values[i] = round_to(dtype(), (values[i] - kMean[i % 3]) / kStd[i % 3]);
    return values;
  }

  // What is summed up forward, of normalised images, in double precision.
  Values sums_in_double(const ConvCase& c, const ConvData& d, size_t count) const {
    Values sums(count);
    const Values w = stored(dtype(), d.weights), x = normalised(c);
    for_each_product(c, [&](size_t s, size_t k, size_t t) { sums[t] += x[s] * w[k]; });
    return sums;
  }

  // Results from pixels, which are those from stored images to the bit; nothing where sanitizers have seen the form.
  std::vector<Values> same_bits(const ConvCase& c, const Form& form) const {
    std::vector<Values> results[2];
    std::string names[2];
    for (const bool from_pixels : {false, true}) {
      auto attrs = form.attrs;
      if (!from_pixels) attrs.insert(attrs.end(), form.attrs_of_images.begin(), form.attrs_of_images.end());
      Rig rig(from_pixels ? form.of_pixels : form.of_images, from_pixels ? with_pixels(attrs) : attrs);
      if (GetParam().tf32) rig.op().flags = plan::kOpTf32;
      const Tensor* src = rig.in(from_pixels ? DType::u8 : dtype(), {c.n, c.h, c.w, c.ic}, {});
      const auto outs = form.add_rest(rig);
      if (!from_pixels) rig.absent_inputs(form.absent);
      if (rig.covered()) return {};
      rig.set(src, from_pixels ? pixels_of(c) : images(c));
      rig.run();
      if (HasFatalFailure()) return {};
      for (const Tensor* t : outs) results[from_pixels].push_back(rig.get(t));
      names[from_pixels] = rig.name();
    }
    EXPECT_EQ(names[1], renamed(names[0]));
    EXPECT_TRUE(results[1] == results[0]) << c.name() << ": other bits by " << names[1];
    return results[1];
  }

 private:
  static std::vector<double> with_pixels(std::vector<double> attrs) {
    attrs.insert(attrs.end(), std::begin(kMean), std::end(kMean));
    attrs.insert(attrs.end(), std::begin(kStd), std::end(kStd));
    return attrs;
  }
  // "input_conv2d_stats_mma_pixels_128x32_bf16:cuda" of "conv2d_stats_mma_gather_128x32_bf16:cuda"
  static std::string renamed(std::string name) {
    const size_t gather = name.find("gather"), plain = name.find("plain");
    if (gather != std::string::npos) name.replace(gather, 6, "pixels");
    if (plain != std::string::npos) name.insert(plain + 5, "_pixels");
    return "input_" + name;
  }
};

TEST_P(InputConv, ForwardWithStatistics) {
  for (const ConvCase& c : kCases) {
    if (left_out(c)) continue;
    const ConvData d(c, dtype());
    const Values ones(static_cast<size_t>(c.oc), 1);
    Form form{backend::make_conv2d_stats, backend::make_input_conv2d_stats, c.attrs(), {0}, 5, [&](Rig& rig) {
                rig.add_in(rig.tensor(Arena::weights, DType::f32, {c.oc, c.k, c.k, c.ic}, d.weights));
                std::vector<const Tensor*> outs = {rig.out(dtype(), {c.n, c.oh(), c.ow(), c.oc}),
                                                   rig.out(DType::f32, {c.oc}), rig.out(DType::f32, {c.oc})};
                for (int i = 0; i < 2; ++i) {
                  outs.push_back(rig.tensor(Arena::weights, DType::f32, {c.oc}, ones));
                  rig.add_update(outs.back());
                }
                return outs;
              }};
    form.attrs.insert(form.attrs.end(), {1e-3, 0.1});
    const auto results = same_bits(c, form);
    if (HasFatalFailure()) FAIL() << c.name();
    if (results.empty()) continue;
    const Values want = sums_in_double(c, d, results[0].size());
    expect_near(results[0], want, tolerance(GetParam()), std::sqrt(static_cast<double>(c.k * c.k * c.ic)), c.name());
  }
}

TEST_P(InputConv, WithBiasAndActivation) {
  for (const ConvCase& c : kCases) {
    if (left_out(c)) continue;
    const ConvData d(c, dtype());
    const Values bias = stored(DType::f32, random_values(static_cast<size_t>(c.oc), 9));
    Form form{backend::make_conv2d_bias_act, backend::make_input_conv2d_bias_act, c.attrs(), {}, 2, [&](Rig& rig) {
                rig.add_in(rig.tensor(Arena::prepared, DType::f32, {c.oc, c.k, c.k, c.ic}, d.weights));
                rig.in(DType::f32, {c.oc}, bias);
                return std::vector<const Tensor*>{rig.out(dtype(), {c.n, c.oh(), c.ow(), c.oc})};
              }};
    form.attrs.push_back(static_cast<double>(plan::Act::silu));
    const auto results = same_bits(c, form);
    if (HasFatalFailure()) FAIL() << c.name();
    if (results.empty()) continue;
    Values want = sums_in_double(c, d, results[0].size());
    Values slack(want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      const double z = want[i] + bias[i % bias.size()];
      want[i] = act_value(plan::Act::silu, z);
      slack[i] = act_value_slack(dtype(), plan::Act::silu, z);
    }
    expect_near(results[0], want, tolerance(GetParam()), std::sqrt(static_cast<double>(c.k * c.k * c.ic)), c.name(),
                slack);
  }
}

TEST_P(InputConv, GradientOfWeights) {
  for (const ConvCase& c : kCases) {
    if (left_out(c)) continue;
    const ConvData d(c, dtype());
    const Form form{
        backend::make_conv2d_bwd_weights, backend::make_input_conv2d_bwd_weights, c.attrs(), {}, 0, [&](Rig& rig) {
          rig.in(dtype(), {c.n, c.oh(), c.ow(), c.oc}, d.diff_dst);
          return std::vector<const Tensor*>{rig.out(DType::f32, {c.oc, c.k, c.k, c.ic})};
        }};
    const auto results = same_bits(c, form);
    if (HasFatalFailure()) FAIL() << c.name();
    if (results.empty()) continue;
    Values want(results[0].size());
    const Values x = normalised(c);
    for_each_product(c, [&](size_t s, size_t k, size_t t) { want[k] += x[s] * d.diff_dst[t]; });
    const double terms = static_cast<double>(c.n * c.oh() * c.ow());
    expect_near(results[0], want, of_sums(GetParam()), std::sqrt(terms), c.name());
  }
}

TEST(InputConvShapes, OtherThanImagesAreRefused) {
  for (const auto& [dtype, channels] : {std::pair{DType::u8, int64_t{4}}, std::pair{DType::f32, int64_t{3}}}) {
    Rig rig(backend::make_input_conv2d_bwd_weights, {1, 0, 0, 0, 0, 1, 2, 3, 1, 1, 1});
    rig.in(dtype, {1, 4, 4, channels}, {});
    rig.in(DType::f32, {1, 4, 4, 8}, {});
    rig.out(DType::f32, {8, 1, 1, channels});
    EXPECT_NE(std::string(rig.make().message()).find("not an RGB image"), std::string::npos);
  }
}

std::string name_of(const testing::TestParamInfo<Type>& info) {
  return info.param.tf32 ? "tf32" : plan::dtype_name(info.param.dtype);
}
INSTANTIATE_TEST_SUITE_P(Types, InputConv, testing::ValuesIn(kTypes), name_of);

}  // namespace
}  // namespace effnet::test
