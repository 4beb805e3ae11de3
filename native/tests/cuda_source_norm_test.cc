// Convolutions that read their source, or the gradient of their result, through a normalisation: forms of ops that only
// passes for GPUs make. Against plain loops in double precision.
#include "conv_reference.h"
#include "kernel_rig.h"
#include "reference.h"

namespace effnet::test {
namespace {

using plan::Act;

// The vectors of a BN, and gates by image.
struct Bn {
  Values mean, inv_std, scale, shift;

  Bn(int64_t channels, uint32_t seed) {
    const auto c = static_cast<size_t>(channels);
    const auto vector = [&](uint32_t k, double mean) {
      return stored(DType::f32, random_values(c, seed + k, mean, 0.3));
    };
    mean = vector(0, 0);
    inv_std = vector(1, 1);
    scale = vector(2, 1);
    shift = vector(3, 0);
  }
  void add_to(Rig& rig) const {
    for (const Values* v : {&mean, &inv_std, &scale, &shift}) rig.in(DType::f32, {static_cast<int64_t>(v->size())}, *v);
  }
  double hat(double x, size_t c) const { return (x - mean[c]) * inv_std[c]; }
  double z(double x, size_t c) const { return hat(x, c) * scale[c] + shift[c]; }
};

Values gates(int64_t images, int64_t channels) {
  return stored(DType::f32, random_values(static_cast<size_t>(images * channels), 31, 0.6, 0.2));
}

// act(bn(src)) * gate, as it would be stored.
Values activated(const Values& src, const Bn& bn, Act act, const Values* gate, size_t image, DType dtype) {
  Values values(src.size());
  const size_t channels = bn.mean.size();
  for (size_t i = 0; i < src.size(); ++i) {
    const size_t c = i % channels;
    const double g = gate ? (*gate)[i / image * channels + c] : 1;
    values[i] = round_to(dtype, act_value(act, bn.z(src[i], c)) * g);
  }
  return values;
}

// How far that may be off (reference.h). A value that is off before it is rounded falls to a neighbour now and then.
double stored_slack(double slack, double value) { return slack == 0 ? 0 : slack + 0x1p-9 * std::abs(value); }
Values activated_slack(const Values& src, const Bn& bn, Act act, const Values& values, DType dtype) {
  Values slack(src.size());
  for (size_t i = 0; i < src.size(); ++i)
    slack[i] = stored_slack(act_value_slack(dtype, act, bn.z(src[i], i % bn.mean.size())), values[i]);
  return slack;
}
// Of sums of products: such errors are to either side, so they add up as their squares do; 6 deviations.
Values of_squares(Values squares) {
  for (double& v : squares) v = 6 * std::sqrt(v);
  return squares;
}
double square(double v) { return v * v; }

// The gradient of what a BN with batch statistics normalises, from that of what follows it, as it would be stored.
struct Behind {
  Bn bn;
  Act act;
  Values diff_scale, diff_shift, dst;

  Behind(int64_t channels, size_t elements, Act act, DType dtype)
      : bn(channels, 40),
        act(act),
        diff_scale(stored(DType::f32, random_values(static_cast<size_t>(channels), 51))),
        diff_shift(stored(DType::f32, random_values(static_cast<size_t>(channels), 52))),
        dst(stored(dtype, random_values(elements, 53))) {}
  double upstream(size_t i, const Values& diff_dst, const Values* gate, const Values* diff_pooled, size_t image) const {
    const size_t channels = bn.mean.size(), by_image = i / image * channels + i % channels;
    const double pixels = static_cast<double>(image / channels);
    return diff_dst[i] * (gate ? (*gate)[by_image] : 1) + (diff_pooled ? (*diff_pooled)[by_image] / pixels : 0);
  }
  Values slack(const Values& diff_dst, const Values* gate, const Values* diff_pooled, size_t image, const Values& dy,
               DType dtype) const {
    Values slack(dst.size());
    for (size_t i = 0; i < slack.size(); ++i) {
      const size_t c = i % bn.mean.size();
      const double g = upstream(i, diff_dst, gate, diff_pooled, image) * act_slope_slack(dtype, act, bn.z(dst[i], c));
      slack[i] = stored_slack(std::abs(bn.scale[c] * bn.inv_std[c] * g), dy[i]);
    }
    return slack;
  }
  Values diff(const Values& diff_dst, const Values* gate, const Values* diff_pooled, size_t image, DType dtype) const {
    const size_t channels = bn.mean.size();
    const double rows = static_cast<double>(dst.size() / channels);
    Values dy(dst.size());
    for (size_t i = 0; i < dy.size(); ++i) {
      const size_t c = i % channels;
      const double g = upstream(i, diff_dst, gate, diff_pooled, image) * act_slope(act, bn.z(dst[i], c));
      const double centred = g - (diff_shift[c] + bn.hat(dst[i], c) * diff_scale[c]) / rows;
      dy[i] = round_to(dtype, bn.scale[c] * bn.inv_std[c] * centred);
    }
    return dy;
  }
};

// Of a 16-bit result: its rounding, and that of what it is made from.
double tolerance(DType dtype) { return dtype == DType::f32 ? 3e-6 : 0x1p-7; }

ConvCase pointwise(int64_t n, int64_t h, int64_t w, int64_t ic, int64_t oc) {
  return {n, h, w, ic, oc, 1, 1, 0, 0, 0, 0};
}

const ConvCase kCases[] = {
    {2, 7, 7, 24, 40, 1, 1, 0, 0, 0, 0}, {3, 14, 14, 96, 16, 1, 1, 0, 0, 0, 0}, {5, 7, 5, 112, 20, 1, 1, 0, 0, 0, 0},
    {1, 1, 7, 3, 1, 1, 1, 0, 0, 0, 0},   {2, 28, 28, 32, 16, 1, 1, 0, 0, 0, 0},
};

class SourceNorm : public testing::TestWithParam<DType> {
 protected:
  DType dtype() const { return GetParam(); }
};

TEST_P(SourceNorm, ForwardWithStatistics) {
  struct Row {
    ConvCase c;
    const char* form = "";  // of 16-bit types
  };
  std::vector<Row> all;
  for (const ConvCase& c : kCases) all.push_back({c});
  all.push_back({pointwise(2, 7, 7, 296, 40)});          // sums that several blocks share
  all.push_back({{2, 9, 8, 16, 24, 3, 1, 1, 1, 1, 1}});  // what the window sees beyond the border is 0, not act(bn(0))
  // Enough pixels for tiles of 128.
  if (!kThreadSanitizer && dtype() == DType::bf16)
    all.insert(all.end(), {{pointwise(6, 53, 54, 32, 16), "mma_1x1_128x32_"},
                           {pointwise(6, 53, 54, 16, 40), "mma_1x1_128x64_"},
                           {pointwise(6, 53, 54, 40, 72), "mma_1x1_128x96_"},
                           {pointwise(6, 53, 54, 16, 128), "mma_1x1_128x128_"}});
  for (const auto& [c, form] : all) {
    for (const bool gated : {false, true}) {
      if (gated && c.k > 1) continue;
      const ConvData d(c, dtype());
      const Bn bn(c.ic, 20);
      const Values gate = gates(c.n, c.ic);
      auto attrs = c.attrs();
      attrs.insert(attrs.end(), {1e-3, 0.1, static_cast<double>(Act::silu)});
      Rig rig(backend::make_conv2d_stats, attrs);
      rig.in(dtype(), {c.n, c.h, c.w, c.ic}, d.src);
      rig.add_in(rig.tensor(Arena::weights, DType::f32, {c.oc, c.k, c.k, c.ic}, d.weights));
      gated ? void(rig.in(DType::f32, {c.n, c.ic}, gate)) : rig.absent_inputs(1);
      bn.add_to(rig);
      const Tensor* dst = rig.out(dtype(), {c.n, c.oh(), c.ow(), c.oc});
      const Tensor *mean = rig.out(DType::f32, {c.oc}), *inv_std = rig.out(DType::f32, {c.oc});
      const Values ones(static_cast<size_t>(c.oc), 1);
      for (int i = 0; i < 2; ++i) rig.add_update(rig.tensor(Arena::weights, DType::f32, {c.oc}, ones));
      if (rig.covered()) continue;
      rig.run();
      if (HasFatalFailure()) FAIL() << c.name();
      if (dtype() != DType::f32 && rig.name().ends_with(":cuda")) {
        EXPECT_NE(rig.name().find(form), std::string::npos) << rig.name();
      }
      const Values value =
          activated(d.src, bn, Act::silu, gated ? &gate : nullptr, static_cast<size_t>(c.h * c.w * c.ic), dtype());
      const Values w = stored(dtype(), d.weights), got = rig.get(dst);
      Values want(got.size()), want_mean(ones.size()), var(ones.size()), want_inv_std(ones.size());
      const Values off = activated_slack(d.src, bn, Act::silu, value, dtype());
      Values squares(got.size());
      for_each_product(c, [&](size_t s, size_t k, size_t t) {
        want[t] += value[s] * w[k];
        squares[t] += square(off[s] * w[k]);
      });
      const double terms = std::sqrt(static_cast<double>(c.k * c.k * c.ic));
      expect_near(got, want, tolerance(dtype()), terms, c.name(), of_squares(squares));
      const double rows = static_cast<double>(got.size() / ones.size());
      for (size_t i = 0; i < got.size(); ++i) want_mean[i % ones.size()] += got[i] / rows;
      for (size_t i = 0; i < got.size(); ++i)
        var[i % ones.size()] += std::pow(got[i] - want_mean[i % ones.size()], 2) / rows;
      for (size_t i = 0; i < ones.size(); ++i) want_inv_std[i] = 1 / std::sqrt(var[i] + 1e-3);
      expect_near(rig.get(mean), want_mean, 3e-7, terms, c.name() + " mean");
      expect_near(rig.get(inv_std), want_inv_std, 1e-6, 0, c.name() + " inv_std");
    }
  }
}

// linear: normed, and no activation. Stored ones that end a block: with an addend, with a BN in front, with both.
enum class Source { stored, added, summed, end, linear, normed, gated };
bool is_stored(Source source) { return source <= Source::end; }

// Without a gate diff_src is the gradient of bn(src) and has its sums; with one the gradient of the gated value. Of a
// block's end it has those of the BN in front, images being dropped.
TEST_P(SourceNorm, BothGradientsOfPointwise) {
  struct Row {
    ConvCase c;
    Source source;
    const char* form = "";  // of 16-bit types
  };
  std::vector<Row> rows;
  for (const ConvCase& c : kCases)
    for (const Source source :
         {Source::stored, Source::added, Source::summed, Source::end, Source::linear, Source::normed, Source::gated})
      rows.push_back({c, source});
  // What is read once: tiles with and without channels and pixels that they do not fill, several slices of channels.
  rows.insert(rows.end(), {{pointwise(2, 7, 7, 16, 96), Source::stored, "once_96x16_"},
                           {pointwise(3, 8, 8, 8, 40), Source::stored, "once_96x16_"},
                           {pointwise(3, 8, 8, 8, 40), Source::end, "once_96x16_"},
                           {pointwise(1, 14, 9, 24, 144), Source::stored, "once_144x32_"},
                           {pointwise(2, 14, 9, 24, 144), Source::end, "once_144x32_"},
                           {pointwise(1, 5, 9, 32, 192), Source::stored, "once_192x32_"},
                           {pointwise(3, 5, 9, 32, 192), Source::end, "once_192x32_"},
                           {pointwise(1, 9, 5, 40, 240), Source::stored, "once_240x48_"},
                           {pointwise(2, 9, 5, 40, 240), Source::summed, "once_240x48_"},
                           {pointwise(2, 9, 5, 48, 240), Source::end, "once_240x48_"},
                           {pointwise(5, 7, 9, 24, 256), Source::end, "_mma_128x32_"},
                           {pointwise(2, 7, 7, 144, 24), Source::normed, "once_bn_32x96_"},
                           {pointwise(2, 5, 8, 192, 48), Source::normed, "once_bn_48x96_"},
                           {pointwise(1, 7, 9, 256, 64), Source::normed, "once_bn_64x64_"},
                           {pointwise(2, 9, 8, 32, 16), Source::gated, "once_gate_16x32_"},
                           {pointwise(3, 7, 7, 144, 24), Source::gated, "once_gate_32x96_"},
                           {pointwise(2, 7, 7, 200, 40), Source::gated, "once_gate_48x96_"},
                           {pointwise(2, 6, 6, 240, 80), Source::gated, "once_gate_80x80_"},
                           {pointwise(2, 6, 6, 480, 112), Source::gated, "once_gate_112x64_"}});
  // Blocks of several tiles, and of several images.
  if (!kThreadSanitizer && dtype() == DType::bf16)
    rows.insert(rows.end(), {{pointwise(1, 130, 132, 8, 8), Source::stored, "once_96x16_"},
                             {pointwise(1, 130, 132, 8, 8), Source::end, "once_96x16_"},
                             {pointwise(529, 1, 3, 8, 8), Source::end, "once_96x16_"},
                             {pointwise(3, 54, 54, 8, 8), Source::normed, "once_bn_32x96_"},
                             {pointwise(1, 130, 132, 8, 8), Source::gated, "once_gate_16x32_"},
                             {pointwise(529, 1, 3, 8, 8), Source::gated, "once_gate_16x32_"}});
  constexpr uint64_t kSeed = 5'000'000'123, kStep = 77;
  constexpr uint32_t kStream = 9;
  for (const auto& [c, kind, form] : rows) {
    if (dtype() == DType::f32 && *form) continue;
    for (const double drop_rate : {0.0, 0.5}) {
      if (drop_rate > 0 && (c.n == 1 || kind == Source::stored || kind == Source::added)) continue;
      const bool gated = kind == Source::gated, added = kind == Source::added || kind == Source::end;
      const bool summed = kind == Source::summed || kind == Source::end;
      const Act act = kind == Source::normed || gated ? Act::silu : Act::identity;
      const ConvData d(c, dtype());
      const Bn bn(c.ic, 20);
      const Values gate = gates(c.n, c.ic);
      const Behind behind(c.oc, d.diff_dst.size(), Act::identity, dtype());
      auto attrs = c.attrs();
      const Values addend = stored(dtype(), random_values(d.src.size(), 61)),
                   end_src = stored(dtype(), random_values(d.src.size(), 62));
      attrs.insert(attrs.end(), {0, is_stored(kind) ? 0 : drop_rate, kStream, 1, static_cast<double>(act),
                                 summed ? drop_rate : 0, kStream});
      Rig rig(backend::make_conv2d_bwd, attrs);
      rig.scalars().seed = static_cast<double>(kSeed);
      rig.scalars().step = static_cast<double>(kStep);
      rig.in(dtype(), {c.n, c.h, c.w, c.ic}, d.src);
      rig.add_in(rig.tensor(Arena::weights, DType::f32, {c.oc, 1, 1, c.ic}, d.weights));
      rig.in(dtype(), {c.n, c.h, c.w, c.oc}, d.diff_dst);
      rig.in(dtype(), {c.n, c.h, c.w, c.oc}, behind.dst);
      behind.bn.add_to(rig);
      rig.in(DType::f32, {c.oc}, behind.diff_scale);
      rig.in(DType::f32, {c.oc}, behind.diff_shift);
      gated ? void(rig.in(DType::f32, {c.n, c.ic}, gate)) : rig.absent_inputs(1);
      is_stored(kind) ? rig.absent_inputs(4) : bn.add_to(rig);
      added ? void(rig.in(dtype(), {c.n, c.h, c.w, c.ic}, addend)) : rig.absent_inputs(1);
      if (summed) {
        rig.in(dtype(), {c.n, c.h, c.w, c.ic}, end_src);
        rig.in(DType::f32, {c.ic}, bn.mean);
        rig.in(DType::f32, {c.ic}, bn.inv_std);
      } else {
        rig.absent_inputs(3);
      }
      const Tensor* diff_src = rig.out(dtype(), {c.n, c.h, c.w, c.ic});
      const Tensor* diff_weights = rig.out(DType::f32, {c.oc, 1, 1, c.ic});
      const Tensor *diff_scale = nullptr, *diff_shift = nullptr, *diff_gate = nullptr, *sums = nullptr;
      if (gated) {
        rig.absent_outputs(2);
        diff_gate = rig.out(DType::f32, {c.n, c.ic});
        sums = rig.out(DType::f32, {c.n, 4, c.ic});
      } else if (is_stored(kind) && !summed) {
        rig.absent_outputs(4);
      } else {
        diff_scale = rig.out(DType::f32, {c.ic});
        diff_shift = rig.out(DType::f32, {c.ic});
        rig.absent_outputs(2);
      }
      if (rig.covered()) continue;
      rig.run();
      if (HasFatalFailure()) FAIL() << c.name();
      if (dtype() != DType::f32 && rig.name().ends_with(":cuda")) {
        EXPECT_NE(rig.name().find(form), std::string::npos) << rig.name();
      }

      const auto channels = static_cast<size_t>(c.ic), image = static_cast<size_t>(c.h * c.w) * channels;
      Values kept = d.diff_dst;
      for (size_t i = 0; i < kept.size() && !is_stored(kind); ++i)
        kept[i] *= survival(drop_rate, kSeed, kStep, kStream, i / static_cast<size_t>(c.h * c.w * c.oc));
      const Values dy = behind.diff(kept, nullptr, nullptr, static_cast<size_t>(c.h * c.w * c.oc), dtype());
      Values value = d.src, off(d.src.size());
      if (!is_stored(kind)) {
        value = activated(d.src, bn, act, gated ? &gate : nullptr, image, dtype());
        off = activated_slack(d.src, bn, act, value, dtype());
      }
      // Without an activation's error, too, a value between two 16-bit ones may be the other.
      for (size_t i = 0; i < off.size() && kind == Source::linear && dtype() != DType::f32; ++i)
        off[i] = 0x1p-8 * std::abs(value[i]);
      const Values w = stored(dtype(), d.weights), got = rig.get(diff_src);
      Values want = added ? addend : Values(got.size()), want_weights(w.size()), slack(got.size()), squares(w.size());
      for_each_product(c, [&](size_t s, size_t k, size_t t) {
        want[s] += dy[t] * w[k];
        want_weights[k] += value[s] * dy[t];
        squares[k] += square(off[s] * dy[t]);
      });
      for (size_t i = 0; i < want.size() && kind == Source::normed; ++i) {
        const double z = bn.z(d.src[i], i % channels);
        slack[i] = std::abs(want[i]) * act_slope_slack(dtype(), Act::silu, z);
        want[i] *= act_slope(Act::silu, z);
      }
      const double terms = std::sqrt(static_cast<double>(c.oc)), pixels = static_cast<double>(c.n * c.h * c.w);
      expect_near(got, want, tolerance(dtype()), terms, c.name() + " diff_src", slack);
      // dy may be the neighbouring 16-bit value where it lies between two.
      expect_near(rig.get(diff_weights), want_weights, dtype() == DType::f32 ? 3e-6 : 0x1p-10, std::sqrt(pixels) * 3,
                  c.name() + " diff_weights", of_squares(squares));
      if (is_stored(kind) && !summed) continue;
      if (!gated) {
        Values want_scale(channels), want_shift(channels);
        for (size_t i = 0; i < got.size(); ++i) {
          const double g = got[i] * (summed ? survival(drop_rate, kSeed, kStep, kStream, i / image) : 1);
          want_shift[i % channels] += g;
          want_scale[i % channels] += g * bn.hat(summed ? end_src[i] : d.src[i], i % channels);
        }
        expect_near(rig.get(diff_scale), want_scale, 1e-6, std::sqrt(pixels) * terms, c.name() + " src_diff_scale");
        expect_near(rig.get(diff_shift), want_shift, 1e-6, std::sqrt(pixels) * terms, c.name() + " src_diff_shift");
        continue;
      }
      const auto images = static_cast<size_t>(c.n);
      Values want_gate(images * channels), want_sums(images * 4 * channels), gate_slack(want_gate.size()),
          sums_slack(want_sums.size());
      for (size_t i = 0; i < got.size(); ++i) {
        const size_t n = i / image, k = i % channels;
        const double z = bn.z(d.src[i], k), slope = act_slope(Act::silu, z), hat = bn.hat(d.src[i], k);
        want_gate[n * channels + k] += got[i] * act_value(Act::silu, z);
        const double terms_of[] = {got[i] * slope, slope, got[i] * slope * hat, slope * hat};
        const double off_slope = act_slope_slack(dtype(), Act::silu, z), d_off = std::abs(got[i]) * off_slope;
        const double off_of[] = {d_off, off_slope, d_off * std::abs(hat), off_slope * std::abs(hat)};
        gate_slack[n * channels + k] += std::abs(got[i]) * act_value_slack(dtype(), Act::silu, z);
        for (size_t j = 0; j < 4; ++j) {
          want_sums[(n * 4 + j) * channels + k] += terms_of[j];
          sums_slack[(n * 4 + j) * channels + k] += off_of[j];
        }
      }
      const double size = std::sqrt(static_cast<double>(c.h * c.w)) * terms;
      const double exact = dtype() == DType::f32 ? 1e-6 : kBf16Activation;
      expect_near(rig.get(diff_gate), want_gate, exact, size, c.name() + " diff_gate", gate_slack);
      expect_near(rig.get(sums), want_sums, exact, size, c.name() + " sums", sums_slack);
    }
  }
}

// The names of an op's launches.
std::string launches_of(backend::KernelFactory factory, const plan::Op& op) {
  std::byte memory[1];
  cuda::Addresses at;
  for (auto& arena : at.arenas) arena = memory;
  at.scratch = memory;
  std::vector<cuda::Launch> launches;
  factory(op).value()->record(at, launches);
  std::string names;
  for (const cuda::Launch& launch : launches) names += launch.kernel + " ";
  return names;
}

// diff_dst is the gradient of what follows the BN behind the convolution: both gradients see that of its result.
TEST_P(SourceNorm, BothGradientsOfDepthwise) {
  struct Case {
    int64_t n, h, w, c, k, stride;
  };
  // The last but one: blocks that take several images in turn.
  for (const Case& s : {Case{2, 9, 8, 16, 3, 1}, Case{2, 11, 10, 24, 5, 1}, Case{2, 12, 13, 40, 3, 2},
                        Case{1, 14, 14, 32, 5, 2}, Case{2200, 3, 3, 8, 3, 1}, Case{3, 7, 7, 17, 5, 1}}) {
    for (const bool gated : {false, true}) {
      const int64_t pad = s.k / 2;
      const ConvCase one{s.n, s.h, s.w, 1, 1, s.k, s.stride, pad, pad, pad, pad};
      const std::string name = one.name() + " c" + std::to_string(s.c) + (gated ? " gated" : "");
      const auto channels = static_cast<size_t>(s.c);
      const size_t wide = static_cast<size_t>(s.n * s.h * s.w) * channels,
                   narrow = static_cast<size_t>(s.n * one.oh() * one.ow()) * channels,
                   image = static_cast<size_t>(one.oh() * one.ow()) * channels;
      const Values src = stored(dtype(), random_values(wide, 1)), diff_dst = stored(dtype(), random_values(narrow, 2)),
                   weights = stored(DType::f32, random_values(static_cast<size_t>(s.k * s.k) * channels, 3)),
                   gate = gates(s.n, s.c),
                   diff_pooled = stored(DType::f32, random_values(static_cast<size_t>(s.n) * channels, 4));
      const Bn bn(s.c, 20);
      const Behind behind(s.c, narrow, Act::silu, dtype());
      auto attrs = one.attrs();
      attrs.insert(attrs.end(), {static_cast<double>(Act::silu), static_cast<double>(Act::silu)});
      Rig rig(backend::make_depthwise_conv2d_bwd, attrs);
      rig.in(dtype(), {s.n, s.h, s.w, s.c}, src);
      rig.in(dtype(), {s.n, one.oh(), one.ow(), s.c}, diff_dst);
      rig.in(DType::f32, {s.k, s.k, s.c}, weights);
      bn.add_to(rig);
      rig.in(dtype(), {s.n, one.oh(), one.ow(), s.c}, behind.dst);
      behind.bn.add_to(rig);
      rig.in(DType::f32, {s.c}, behind.diff_scale);
      rig.in(DType::f32, {s.c}, behind.diff_shift);
      if (gated) {
        rig.in(DType::f32, {s.n, s.c}, gate);
        rig.in(DType::f32, {s.n, s.c}, diff_pooled);
      } else {
        rig.absent_inputs(2);
      }
      const Tensor* diff_src = rig.out(dtype(), {s.n, s.h, s.w, s.c});
      const Tensor* diff_weights = rig.out(DType::f32, {s.k, s.k, s.c});
      const Tensor *diff_scale = rig.out(DType::f32, {s.c}), *diff_shift = rig.out(DType::f32, {s.c});
      if (rig.covered()) continue;
      rig.run();
      if (HasFatalFailure()) FAIL() << name;
      // Of 16-bit types this is what a kernel of its own makes, but for one window.
      const bool whole = dtype() != DType::f32 && s.c % 8 == 0 && !(s.k == 5 && s.stride == 2);
      EXPECT_EQ(launches_of(backend::make_depthwise_conv2d_bwd, rig.op()).find("_whole_") != std::string::npos, whole)
          << name;

      const Values dy = behind.diff(diff_dst, gated ? &gate : nullptr, gated ? &diff_pooled : nullptr, image, dtype());
      const Values value = activated(src, bn, Act::silu, nullptr, static_cast<size_t>(s.h * s.w) * channels, dtype());
      const Values w = stored(dtype(), weights), got = rig.get(diff_src);
      const Values off = activated_slack(src, bn, Act::silu, value, dtype());
      const Values dy_off =
          behind.slack(diff_dst, gated ? &gate : nullptr, gated ? &diff_pooled : nullptr, image, dy, dtype());
      Values want(wide), want_weights(w.size()), want_scale(channels), want_shift(channels);
      Values src_squares(wide), squares(w.size());
      for_each_product(one, [&](size_t i, size_t k, size_t o) {
        for (size_t c = 0; c < channels; ++c) {
          want[i * channels + c] += dy[o * channels + c] * w[k * channels + c];
          want_weights[k * channels + c] += value[i * channels + c] * dy[o * channels + c];
          src_squares[i * channels + c] += square(dy_off[o * channels + c] * w[k * channels + c]);
          squares[k * channels + c] += square(off[i * channels + c] * dy[o * channels + c]) +
                                       square(value[i * channels + c] * dy_off[o * channels + c]);
        }
      });
      Values slack = of_squares(src_squares);
      for (size_t i = 0; i < wide; ++i) {
        const double z = bn.z(src[i], i % channels), slope = act_slope(Act::silu, z);
        slack[i] = slack[i] * std::abs(slope) + std::abs(want[i]) * act_slope_slack(dtype(), Act::silu, z);
        want[i] *= slope;
      }
      expect_near(got, want, tolerance(dtype()), static_cast<double>(s.k), name + " diff_src", slack);
      const double outputs = std::sqrt(static_cast<double>(narrow / channels));
      expect_near(rig.get(diff_weights), want_weights, dtype() == DType::f32 ? 3e-6 : 0x1p-10, outputs * 3,
                  name + " diff_weights", of_squares(squares));
      for (size_t i = 0; i < wide; ++i) {
        want_shift[i % channels] += got[i];
        want_scale[i % channels] += got[i] * bn.hat(src[i], i % channels);
      }
      const double size = std::sqrt(static_cast<double>(wide / channels)) * static_cast<double>(s.k);
      expect_near(rig.get(diff_scale), want_scale, 1e-6, size, name + " src_diff_scale");
      expect_near(rig.get(diff_shift), want_shift, 1e-6, size, name + " src_diff_shift");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, SourceNorm, testing::Values(DType::f32, DType::bf16, DType::f16),
                         [](const auto& info) { return std::string(plan::dtype_name(info.param)); });

}  // namespace
}  // namespace effnet::test
