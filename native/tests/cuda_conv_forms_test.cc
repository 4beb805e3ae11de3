// Which kernel computes which convolution, and what only these kernels have: TF32, and blocks that make several tiles
// one below the other.
#include <bit>
#include <cstring>
#include <functional>
#include <set>

#include "conv_reference.h"
#include "cuda/kernels/gemm_tile.h"
#include "cuda/ops/conv.h"
#include "cuda/ops/conv_once.h"
#include "cuda/ops/drop.h"
#include "host_operands.h"
#include "reference.h"

namespace effnet::test {
namespace {

using cuda::ConvForm;
using cuda::ConvGeometry;
using cuda::ConvType;

ConvGeometry geometry(int64_t n, int64_t side, int64_t ic, int64_t oc, int64_t k = 1, int64_t stride = 1) {
  const int64_t out = (side + stride - 1) / stride;
  return {n, side, side, ic, out, out, oc, k, k, stride, k / 2, k / 2};
}

const ConvType kF32{DType::f32, false}, kTf32{DType::f32, true}, kBf16{DType::bf16, true}, kF16{DType::f16, false};

TEST(ConvForms, FollowFromShapesAndTypes) {
  struct Row {
    ConvGeometry g;
    ConvType type;
    const char *forward, *data, *weights;
  };
  const Row rows[] = {
      // B0 at 224, batch 64: its narrow layers, then wide ones.
      {geometry(64, 112, 32, 16), kBf16, "mma_1x1_128x32", "mma_128x32", "mma_64x64"},
      {geometry(64, 112, 16, 96), kBf16, "mma_1x1_128x96", "mma_128x32", "mma_128x32"},
      {geometry(64, 56, 24, 144), kF16, "mma_1x1_128x96", "mma_128x32", "mma_128x32"},
      {geometry(64, 28, 240, 40), kBf16, "mma_1x1_128x64", "mma_128x128", "mma_64x64"},
      {geometry(64, 14, 480, 112), kBf16, "mma_1x1_128x64", "mma_128x128", "mma_128x128"},
      {geometry(64, 7, 1152, 320), kBf16, "mma_1x1_128x32", "mma_128x128", "mma_128x128"},
      // V2-S: dense 3 x 3.
      {geometry(8, 75, 48, 192, 3), kBf16, "mma_128x96", "mma_128x64", "mma_128x128"},
      {geometry(8, 150, 24, 96, 3, 2), kF16, "mma_128x96", "mma_128x32", "mma_128x128"},
      // FP32, with and without tensor cores.
      {geometry(64, 56, 24, 144), kF32, "fma_128x128", "fma_128x32", "fma_128x32"},
      {geometry(64, 56, 24, 144), kTf32, "mma_128x96", "mma_128x32", "mma_128x32"},
      {{256, 1, 1, 1280, 1, 1, 1000, 1, 1, 1, 0, 0}, kF32, "fma_64x32", "fma_128x32", "fma_128x128"},
      // Few rows: small or narrow tiles, so that there are more blocks.
      {geometry(1, 7, 1152, 320), kBf16, "mma_64x32", "mma_128x32", "mma_128x128"},
      // Chunks of 16 bytes would not fit rows: of the source, or of the result.
      {geometry(64, 224, 3, 32, 3, 2), kBf16, "mma_gather_128x32", "plain", "mma_gather_128x32"},
      {geometry(64, 380, 3, 48, 3, 2), kF32, "fma_gather_128x64", "plain", "fma_gather_128x32"},
      {geometry(4, 7, 20, 64), kBf16, "mma_gather_128x32", "plain", "mma_gather_128x32"},
      {geometry(4, 7, 3, 64, 2), kF16, "plain", "plain", "plain"},  // a window's row has no 8 values
      {geometry(4, 7, 3, 64, 2), kF32, "fma_gather_128x32", "plain", "fma_gather_128x32"},
      {geometry(4, 7, 20, 64), kF32, "fma_64x32", "fma_128x32", "fma_64x64"},
      {geometry(4, 7, 64, 18), kF32, "plain", "plain", "plain"},
      {geometry(2, 16, 32, 32, 3, 3), kBf16, "plain", "plain", "plain"},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(testing::Message() << row.g.h << "x" << row.g.ic << "->" << row.g.oc << row.type.suffix());
    EXPECT_EQ(cuda::conv_forward_form(row.g, row.type).name(), row.forward);
    EXPECT_EQ(cuda::conv_backward_data_form(row.g, row.type).name(), row.data);
    EXPECT_EQ(cuda::conv_backward_weights_form(row.g, row.type).name(), row.weights);
  }
}

TEST(ConvForms, NarrowLayersAreReadOnceBackward) {
  using cuda::OnceSource;
  struct Row {
    ConvGeometry g;
    OnceSource source;
    const char* form;  // "": by a gradient of the result that is stored
    int64_t slices, blocks;
  };
  const Row rows[] = {
      // B0 at 224, batch 256: a block an image, or as many as fill a GPU.
      {geometry(256, 112, 32, 16), OnceSource::gated, "once_gate_16x32", 1, 256},
      {geometry(256, 112, 16, 96), OnceSource::stored, "once_96x16", 1, 263},
      {geometry(256, 56, 144, 24), OnceSource::gated, "once_gate_32x96", 2, 256},
      {geometry(256, 28, 40, 240), OnceSource::stored, "once_240x48", 1, 251},
      {geometry(256, 14, 672, 112), OnceSource::gated, "once_gate_112x64", 11, 26},
      {geometry(4, 56, 144, 24), OnceSource::gated, "once_gate_32x96", 2, 132},
      {geometry(256, 14, 80, 480), OnceSource::stored, "", 0, 0},
      {geometry(256, 7, 1152, 192), OnceSource::gated, "", 0, 0},
      // B4, V2-S.
      {geometry(128, 95, 32, 192), OnceSource::stored, "once_192x32", 1, 264},
      {geometry(256, 75, 192, 48), OnceSource::normed, "once_bn_48x96", 2, 132},
      {geometry(256, 38, 256, 64), OnceSource::normed, "once_bn_64x64", 4, 66},
      // So many slices of the source's channels would read the result too often.
      {geometry(256, 14, 2688, 112), OnceSource::gated, "once_gate_112x64", 42, 7},
      {geometry(256, 28, 36, 240), OnceSource::stored, "", 0, 0},
      {geometry(256, 28, 40, 240, 3), OnceSource::stored, "", 0, 0},
      // As many slices as have counters, and more.
      {geometry(1, 2, 4096 * 96, 32), OnceSource::normed, "once_bn_32x96", 4096, 1},
      {geometry(1, 2, 4097 * 96, 32), OnceSource::normed, "", 0, 0},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(testing::Message() << row.g.h << "x" << row.g.ic << "->" << row.g.oc);
    EXPECT_FALSE(cuda::conv_once_form(row.g, kF32, row.source, false));
    const auto form = cuda::conv_once_form(row.g, kBf16, row.source, false);
    EXPECT_EQ(form ? form->name() : "", row.form);
    if (!form) continue;
    EXPECT_EQ(form->slices, row.slices);
    EXPECT_EQ(form->blocks(), row.blocks);
    EXPECT_LE(form->shared_bytes, size_t{99} << 10);
  }
}

// Of every dense convolution of a network the pixels at a batch, by (stage, expansion, kernel, stride, channels,
// blocks).
struct Stage {
  bool fused;
  int64_t expand, kernel, stride, channels, blocks;
};
struct Network {
  const char* name;
  int64_t side, stem, head;
  std::vector<Stage> stages;
};
std::vector<ConvGeometry> convolutions(const Network& net, int64_t batch) {
  int64_t side = (net.side + 1) / 2, channels = net.stem;
  std::vector<ConvGeometry> all;
  for (const Stage& s : net.stages) {
    for (int64_t block = 0; block < s.blocks; ++block) {
      const int64_t stride = block == 0 ? s.stride : 1, wide = channels * s.expand;
      if (s.fused)
        all.push_back(geometry(batch, side, channels, s.expand == 1 ? s.channels : wide, 3, stride));
      else if (s.expand > 1)
        all.push_back(geometry(batch, side, channels, wide));
      side = (side + stride - 1) / stride;
      if (!s.fused || s.expand > 1) all.push_back(geometry(batch, side, wide, s.channels));
      channels = s.channels;
    }
  }
  all.push_back(geometry(batch, side, channels, net.head));
  all.push_back({batch, 1, 1, net.head, 1, 1, 1000, 1, 1, 1, 0, 0});
  return all;
}

// 132 multiprocessors have a block each, or there is no more to share out: smaller tiles do not exist, and a sum is
// not cut into less than four steps.
TEST(ConvForms, FillAGpuAtEveryBatch) {
  const Network networks[] = {{"B0",
                               224,
                               32,
                               1280,
                               {{false, 1, 3, 1, 16, 1},
                                {false, 6, 3, 2, 24, 2},
                                {false, 6, 5, 2, 40, 2},
                                {false, 6, 3, 2, 80, 3},
                                {false, 6, 5, 1, 112, 3},
                                {false, 6, 5, 2, 192, 4},
                                {false, 6, 3, 1, 320, 1}}},
                              {"B4",
                               380,
                               48,
                               1792,
                               {{false, 1, 3, 1, 24, 2},
                                {false, 6, 3, 2, 32, 4},
                                {false, 6, 5, 2, 56, 4},
                                {false, 6, 3, 2, 112, 6},
                                {false, 6, 5, 1, 160, 6},
                                {false, 6, 5, 2, 272, 8},
                                {false, 6, 3, 1, 448, 2}}},
                              {"V2-S",
                               300,
                               24,
                               1280,
                               {{true, 1, 3, 1, 24, 2},
                                {true, 4, 3, 2, 48, 4},
                                {true, 4, 3, 2, 64, 4},
                                {false, 4, 3, 2, 128, 6},
                                {false, 6, 3, 1, 160, 9},
                                {false, 6, 3, 2, 256, 15}}}};
  // Layers whose tiles are small, of them those whose sums are cut, and the fewest blocks of a layer, by batch.
  struct Count {
    int small = 0, cut = 0;
    int64_t fewest = int64_t{1} << 40;
  };
  const int64_t batches[] = {1, 8, 32, 256};
  const Count want[][4] = {{{32, 14, 24}, {14, 12, 140}, {6, 1, 147}, {1, 1, 196}},
                           {{46, 26, 72}, {11, 1, 144}, {1, 1, 144}, {1, 1, 256}},
                           {{74, 49, 46}, {31, 16, 138}, {1, 1, 160}, {1, 1, 256}}};
  for (size_t net = 0; net < std::size(networks); ++net) {
    for (size_t i = 0; i < std::size(batches); ++i) {
      Count got{};
      for (const ConvGeometry& g : convolutions(networks[net], batches[i])) {
        SCOPED_TRACE(testing::Message() << networks[net].name << " batch " << batches[i] << ": " << g.oh << "x" << g.ic
                                        << "->" << g.oc << " k" << g.kh);
        const ConvForm form = cuda::conv_forward_form(g, kBf16);
        const auto grid = form.grid(g.oc);
        const int64_t blocks = static_cast<int64_t>(grid.x) * grid.y * grid.z, steps = g.kh * g.kw * ((g.ic + 31) / 32);
        const bool small = form.tile_m == 64;
        got.small += small;
        got.cut += form.splits > 1;
        EXPECT_TRUE(blocks >= 132 || (small && (form.split_steps < 8 || blocks >= 66))) << blocks << " blocks";
        got.fewest = std::min(got.fewest, blocks);
        if (!small) continue;
        EXPECT_EQ((steps + form.split_steps - 1) / form.split_steps, form.splits);
        EXPECT_LE(static_cast<int64_t>(grid.x) * grid.y, cuda::kBlockCounters);
      }
      EXPECT_EQ(got.small, want[net][i].small) << networks[net].name << " batch " << batches[i];
      EXPECT_EQ(got.cut, want[net][i].cut) << networks[net].name << " batch " << batches[i];
      EXPECT_EQ(got.fewest, want[net][i].fewest) << networks[net].name << " batch " << batches[i];
    }
  }
}

// Sums that several blocks share, with all that is done to them on the way out, in all types.
TEST(ConvForms, SumsAreCut) {
  const ConvCase all[] = {{1, 7, 7, 320, 72, 1, 1, 0, 0, 0, 0},
                          {2, 9, 10, 264, 32, 1, 1, 0, 0, 0, 0},
                          {1, 9, 9, 40, 24, 3, 2, 1, 1, 1, 1},
                          {3, 1, 1, 1000, 40, 1, 1, 0, 0, 0, 0}};
  struct Way {
    DType dtype;
    uint16_t flags;
    double tolerance;
  };
  for (const ConvCase& c : all) {
    for (const auto& [dtype, flags, tolerance] : {Way{DType::f32, 0, 3e-6}, Way{DType::f32, plan::kOpTf32, 2e-3},
                                                  Way{DType::bf16, 0, 0x1p-8}, Way{DType::f16, 0, 0x1p-11}}) {
      const ConvResult r = run_conv(Direction::forward, c, ConvData(c, dtype), dtype, backend::make_conv2d, flags);
      ASSERT_FALSE(HasFatalFailure()) << c.name();
      if (r.covered) continue;
      EXPECT_NE(r.kernel.find("_64x32_by"), std::string::npos) << r.kernel;
      expect_near(r.got, r.want, tolerance, std::sqrt(static_cast<double>(c.k * c.k * c.ic)), c.name());
    }
  }
}

// What every supported GPU has for a block.
TEST(ConvForms, FitTheSharedMemoryOfAllGpus) {
  constexpr size_t kMost = 99 << 10;
  for (const ConvType& type : {kF32, kTf32, kBf16})
    for (int64_t ic = 8; ic <= 512; ic += 8)
      for (const int64_t oc : {8, 40, 96, 128, 320}) {
        const ConvGeometry g = geometry(64, 56, ic, oc);
        const ConvForm data = cuda::conv_backward_data_form(g, type);
        EXPECT_LE(cuda::conv_forward_form(g, type).shared_bytes, kMost);
        EXPECT_LE(cuda::conv_backward_data_bn_shared(data, type.dtype), kMost);
        EXPECT_LE(cuda::conv_backward_data_end_shared(data, type.dtype), kMost);
        EXPECT_LE(cuda::conv_backward_weights_form(g, type).shared_bytes, kMost);
      }
  // What a block keeps of a source's normalisation grows with the channels.
  for (const int64_t ic : {512, 1152, 1536})
    for (const ConvForm& form : cuda::conv_forward_forms(geometry(64, 56, ic, 320), kBf16, true)) {
      EXPECT_LE(form.shared_bytes, kMost) << form.name() << " " << ic;
      EXPECT_TRUE(form.point) << form.name();
    }
}

// Rounded as the instruction rounds: to 10 bits behind the leading one, ties away from zero.
double tf32(double v) {
  const uint32_t bits = (std::bit_cast<uint32_t>(static_cast<float>(v)) + 0x1000u) & 0xffffe000u;
  return std::bit_cast<float>(bits);
}

TEST(ConvForms, Tf32RoundsOperandsOnly) {
  const ConvCase all[] = {{2, 7, 7, 24, 40, 1, 1, 0, 0, 0, 0},
                          {3, 13, 11, 36, 100, 1, 1, 0, 0, 0, 0},
                          {1, 14, 14, 16, 132, 3, 1, 1, 1, 1, 1},
                          {2, 15, 16, 8, 12, 3, 2, 0, 0, 1, 1},
                          {1, 9, 9, 132, 64, 1, 1, 0, 0, 0, 0}};
  for (const ConvCase& c : all) {
    ConvData d(c, DType::f32);
    ConvData rounded = d;
    for (Values* v : {&rounded.src, &rounded.weights, &rounded.diff_dst})
      for (double& x : *v) x = tf32(x);
    struct Way {
      Direction direction;
      backend::KernelFactory factory;
      int64_t terms;
    };
    for (const auto& [direction, factory, terms] :
         {Way{Direction::forward, backend::make_conv2d, c.k * c.k * c.ic},
          Way{Direction::backward_data, backend::make_conv2d_bwd_data, c.k * c.k * c.oc},
          Way{Direction::backward_weights, backend::make_conv2d_bwd_weights, c.n * c.oh() * c.ow()}}) {
      const ConvResult exact = run_conv(direction, c, rounded, DType::f32, factory, plan::kOpTf32);
      const ConvResult got = run_conv(direction, c, d, DType::f32, factory, plan::kOpTf32);
      if (exact.covered || got.covered) continue;
      ASSERT_FALSE(HasFatalFailure()) << c.name();
      EXPECT_NE(got.kernel.find("_mma_"), std::string::npos) << got.kernel;
      EXPECT_EQ(got.got, exact.got) << c.name();
      expect_near(exact.got, exact.want, 3e-6, std::sqrt(static_cast<double>(terms)) * 3, c.name());
    }
  }
}

void expect_ran(const Status& status) { EXPECT_TRUE(status.ok()) << status.message(); }

// Where a launch by itself leaves its tiles of statistics or sums, and what it merges of them.
class Merged {
 public:
  Merged(HostOperands& operands, const ConvForm& form, int64_t columns, int64_t values)
      : tiles_(form.merge_tiles(columns, values)),
        count_(static_cast<size_t>(form.row_blocks() * values * columns)),
        scratch_(tiles_.bytes() / sizeof(float), NAN),
        results_(static_cast<size_t>(4 * columns), 1.0f),
        at_scratch_(reinterpret_cast<std::byte*>(operands.of(scratch_))),
        at_results_(operands.of(results_)) {
    at_.state = operands.of_one(state_);
  }
  cuda::StatsMergeArgs stats(const ConvForm& form, int64_t rows, int64_t columns) const {
    float* of = at_results_;
    return {tiles_.tiles(at_scratch_),
            tiles_.rests(at_scratch_),
            rows,
            columns,
            form.tiles_a_block * form.tile_m,
            nullptr,
            1 / static_cast<double>(rows),
            1,
            0,
            0.5,
            of,
            of + columns,
            of + 2 * columns,
            of + 3 * columns,
            tiles_.tree(at_, at_scratch_)};
  }
  cuda::SumsMergeArgs sums(int64_t columns) const {
    float* of = at_results_;
    return {tiles_.tiles(at_scratch_), columns, of, of + columns, of + 2 * columns, tiles_.tree(at_, at_scratch_)};
  }
  // What blocks left: of [tile][2][columns], then the rests.
  std::vector<float> left() const {
    EXPECT_TRUE(backend::counters_are_zero(state_));
    return {scratch_.begin(), scratch_.begin() + static_cast<std::ptrdiff_t>(count_)};
  }
  std::vector<float> left_and_results() const {
    std::vector<float> all = left();
    all.insert(all.end(), results_.begin(), results_.end());
    return all;
  }

 private:
  cuda::MergeTiles tiles_;
  size_t count_;
  std::vector<float> scratch_, results_;
  cuda::StepState state_{};
  std::byte* at_scratch_;
  float* at_results_;
  cuda::Addresses at_;
};

// A block's tiles go through one ring of stages; the results must be those of a block a tile, and the statistics those
// of all rows of the block.
TEST(ConvForms, ABlockMakesSeveralTiles) {
  const ConvGeometry g{3, 9, 19, 40, 9, 19, 24, 1, 1, 1, 0, 0};  // five tiles, the last one of one row
  const auto rows = static_cast<size_t>(g.dst_pixels()), ic = static_cast<size_t>(g.ic), oc = static_cast<size_t>(g.oc);
  const auto bits = [](size_t count, uint32_t seed, double mean) {
    std::vector<uint16_t> all;
    for (const double v : random_values(count, seed, mean))
      all.push_back(to_bits16(DType::bf16, static_cast<float>(v)));
    return all;
  };
  const auto src = bits(rows * ic, 1, 1), weights = bits(oc * ic, 2, 0);
  const auto run = [&](int64_t tiles_a_block, int order, std::vector<float>& stats) {
    std::vector<uint16_t> dst(rows * oc);
    ConvForm form = cuda::conv_forward_form(geometry(64, 28, g.ic, g.oc), kBf16);
    form.tiles = (g.dst_pixels() + form.tile_m - 1) / form.tile_m;
    form.tiles_a_block = tiles_a_block;
    HostOperands operands;
    const Merged merged(operands, form, g.oc, 3);
    cuda::ConvArgs args{};
    args.g = g;
    args.src.data = operands.of(src);
    args.weights = operands.of(weights);
    args.dst = operands.of(dst);
    args.stats = merged.stats(form, g.dst_pixels(), g.oc);
    expect_ran(operands.run(cuda::conv_launch(args, form, kBf16, true), order));
    stats = merged.left();
    return dst;
  };
  std::vector<float> stats, again;
  const auto want = run(1, 0, stats);
  for (int order = 0; order < backend::Runner::kOrders; ++order) EXPECT_EQ(run(2, order, stats), want) << order;
  run(2, 0, again);
  EXPECT_EQ(again, stats);
  for (size_t block = 0; block < 3; ++block) {
    const size_t first = block * 256, last = std::min(rows, first + 256);
    for (size_t c = 0; c < oc; ++c) {
      double mean = 0, squares = 0;
      const auto value = [&](size_t row) { return from_bits16(DType::bf16, want[row * oc + c]); };
      for (size_t row = first; row < last; ++row) mean += value(row) / static_cast<double>(last - first);
      for (size_t row = first; row < last; ++row) squares += std::pow(value(row) - mean, 2);
      // The mean, and what FP32 has no room for.
      const double rest = stats[(6 + block) * oc + c], whole = stats[block * 2 * oc + c] + rest;
      EXPECT_LE(std::abs(rest), std::abs(mean) * 0x1p-24);
      EXPECT_NEAR(whole, mean, 1e-7 * (8 + std::sqrt(squares / 256)));
      EXPECT_NEAR(stats[(block * 2 + 1) * oc + c], squares, 3e-6 * squares + 1e-9);
    }
  }
}

// Small layers get narrow tiles; the wide ones, which a training step has, must give their bits: a value's products
// come in the same order. Of statistics the order is a tile's own, the same under every schedule. Columns that do not
// fill the last tile, rows that do not fill the last one below.
struct Widths {
  ConvType type;
  bool tensor_cores;
  std::vector<int> of;
};
const Widths kWidths[] = {
    {kBf16, true, {128, 96, 64}}, {kF16, true, {128, 96, 64}}, {kTf32, true, {128, 96, 64}}, {kF32, false, {128, 64}}};

template <int kElement, cuda::Layout kB, int... kN>
size_t shared_of(int columns) {
  size_t bytes = 0;
  ((columns == kN ? void(bytes = cuda::TileShape<kElement, 128, kN, cuda::Layout::by_rows, kB>::kShared) : void()),
   ...);
  return bytes;
}
template <cuda::Layout kB>
size_t tile_bytes(DType dtype, int columns) {
  return dtype == DType::f32 ? shared_of<4, kB, 128, 96, 64, 32>(columns) : shared_of<2, kB, 128, 96, 64, 32>(columns);
}

// Of values of about size 1 in 128 rows.
void expect_sums(const std::vector<float>& got, const std::vector<float>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-5 * (10 + std::abs(want[i]))) << i;
}

// A 1x1 convolution in float64: result [rows, columns] of [rows, terms] and weights, whose next term and next column
// are so many values on.
struct Product64 {
  int64_t rows, terms, columns, next_term, next_column;
};
// What is made of a sum: how far it then may be off on its own account, and by what share of the sum's error.
struct Finished {
  double value, off = 0, slope = 1;
};
using Finish = std::function<Finished(double sum, int64_t row, int64_t column)>;
double value_of(DType dtype, const std::vector<uint8_t>& bytes, int64_t i) {
  if (dtype != DType::f32) {
    uint16_t bits;
    std::memcpy(&bits, bytes.data() + 2 * i, 2);
    return from_bits16(dtype, bits);
  }
  float value;
  std::memcpy(&value, bytes.data() + 4 * i, 4);
  return value;
}
void expect_product(
    DType dtype, const std::vector<uint8_t>& got, const std::vector<uint8_t>& src, const std::vector<uint8_t>& weights,
    const Product64& p, double tolerance,
    const Finish& finish = [](double sum, int64_t, int64_t) { return Finished{sum}; }) {
  for (int64_t row = 0; row < p.rows; ++row)
    for (int64_t column = 0; column < p.columns; ++column) {
      double want = 0, size = 0;
      for (int64_t term = 0; term < p.terms; ++term) {
        const double product = value_of(dtype, src, row * p.terms + term) *
                               value_of(dtype, weights, term * p.next_term + column * p.next_column);
        want += product;
        size += std::abs(product);
      }
      const Finished finished = finish(want, row, column);
      ASSERT_NEAR(value_of(dtype, got, row * p.columns + column), finished.value,
                  tolerance * size * finished.slope + finished.off)
          << row << ", " << column;
    }
}
// Of the sum of the products' sizes: the rounding of results, or of TF32's factors, and of FP32 sums.
double tolerance_of(ConvType type) {
  return type.tf32 ? 1e-3 : type.dtype == DType::bf16 ? 0x1p-8 : type.dtype == DType::f16 ? 0x1p-11 : 1e-6;
}

// `form` in tiles of 128 rows and so many columns, of `rows` in all.
ConvForm widened(ConvForm form, const Widths& w, int64_t rows, int columns, size_t shared_bytes) {
  form = form.whole();
  form.tile_m = 128;
  form.tiles = (rows + 127) / 128;
  form.tiles_a_block = 1;
  form.tensor_cores = w.tensor_cores;
  form.tile_n = columns;
  form.shared_bytes = shared_bytes;
  return form;
}

// Operands as they are stored, in memory of exactly their size.
std::vector<uint8_t> operand(DType dtype, int64_t count, uint32_t seed) {
  std::vector<uint8_t> bytes(static_cast<size_t>(count) * bytes_of(dtype));
  const Values values = random_values(static_cast<size_t>(count), seed);
  for (size_t i = 0; i < values.size(); ++i) {
    const auto f = static_cast<float>(values[i]);
    const uint16_t half = dtype == DType::f32 ? uint16_t{0} : to_bits16(dtype, f);
    std::memcpy(bytes.data() + i * bytes_of(dtype), dtype == DType::f32 ? static_cast<const void*>(&f) : &half,
                bytes_of(dtype));
  }
  return bytes;
}

TEST(ConvForms, WideTilesGiveTheBitsOfNarrowOnes) {
  enum class Loader { windows, gather, points };
  for (const Widths& w : kWidths) {
    for (const Loader loader : {Loader::windows, Loader::gather, Loader::points}) {
      const DType dtype = w.type.dtype;
      const bool gathered = loader == Loader::gather, points = loader == Loader::points;
      if (points && dtype == DType::f32) continue;
      // Two rows of tiles, the second one of a few rows.
      const ConvGeometry g{1, 9, 19, gathered ? 3 : 40, 9, 19, 136, 1, 1, 1, 0, 0};
      const auto src = operand(dtype, g.src_pixels() * g.ic, 1), weights = operand(dtype, g.oc * g.ic, 2);
      const auto run = [&](int columns, bool point, bool stats, int order) {
        ConvForm form = cuda::conv_forward_form(g, w.type);
        EXPECT_EQ(form.gathered, gathered);
        form = widened(form, w, g.dst_pixels(), columns, tile_bytes<cuda::Layout::by_rows>(dtype, columns));
        form.point = point;
        std::vector<uint8_t> dst(static_cast<size_t>(g.dst_pixels() * g.oc) * bytes_of(dtype));
        HostOperands operands;
        const Merged merged(operands, form, g.oc, 3);
        cuda::ConvArgs args{};
        args.g = g;
        args.src.data = operands.of(src);
        args.weights = operands.of(weights);
        args.dst = operands.of(dst);
        if (stats) args.stats = merged.stats(form, g.dst_pixels(), g.oc);
        expect_ran(operands.run(cuda::conv_launch(args, form, w.type, stats), order));
        return std::pair(dst, stats ? merged.left_and_results() : std::vector<float>());
      };
      const auto want = run(32, false, true, 0);
      expect_product(dtype, want.first, src, weights, {g.dst_pixels(), g.ic, g.oc, 1, g.ic}, tolerance_of(w.type));
      std::vector<int> widths = w.of;
      if (points) widths.push_back(32);
      for (const int columns : widths) {
        if (gathered && columns != 64) continue;
        for (int order = 0; order < backend::Runner::kOrders; ++order) {
          SCOPED_TRACE(testing::Message() << w.type.suffix() << (points ? " 1x1 " : " ") << columns << " columns, "
                                          << backend::Runner::order_name(order));
          EXPECT_TRUE(run(columns, points, false, order).first == want.first);
          const auto [dst, sums] = run(columns, points, true, order);
          EXPECT_TRUE(dst == want.first);
          expect_sums(sums, want.second);
          if (order > 0 && !kThreadSanitizer) {
            EXPECT_TRUE(sums == run(columns, points, true, 0).second);
          }
        }
      }
    }
  }
}

// What is tried where kernels are measured.
TEST(ConvForms, EveryFormGivesTheProductWithBiasAndActivation) {
  const ConvGeometry g{1, 9, 19, 264, 9, 19, 136, 1, 1, 1, 0, 0};
  for (const Widths& w : kWidths) {
    const DType dtype = w.type.dtype;
    const auto src = operand(dtype, g.src_pixels() * g.ic, 1), weights = operand(dtype, g.oc * g.ic, 2);
    std::vector<float> bias;
    for (const double v : random_values(static_cast<size_t>(g.oc), 3)) bias.push_back(static_cast<float>(v));
    // SiLU's slope is at most 1.1.
    const Finish finish = [&](double sum, int64_t, int64_t column) -> Finished {
      const double z = sum + bias[static_cast<size_t>(column)];
      return {act_value(plan::Act::silu, z),
              act_value_slack(dtype, plan::Act::silu, z) + tolerance_of(w.type) * std::abs(z), 1.1};
    };
    const std::vector<ConvForm> forms = cuda::conv_forward_forms(g, w.type);
    EXPECT_EQ(forms[0].full_name(), cuda::conv_forward_form(g, w.type).full_name());
    std::set<std::string> names;
    for (const ConvForm& form : forms) {
      SCOPED_TRACE(form.full_name() + w.type.suffix());
      EXPECT_TRUE(names.insert(form.full_name()).second);
      EXPECT_LE(form.shared_bytes, size_t{99} << 10);
      std::vector<uint8_t> first;
      for (int order = 0; order < backend::Runner::kOrders; ++order) {
        std::vector<uint8_t> dst(static_cast<size_t>(g.dst_pixels() * g.oc) * bytes_of(dtype));
        cuda::StepState state{};
        HostOperands operands;
        cuda::ConvArgs args{};
        args.g = g;
        args.src.data = operands.of(src);
        args.weights = operands.of(weights);
        args.bias = operands.of(bias);
        args.act = plan::Act::silu;
        args.dst = operands.of(dst);
        args.parts = reinterpret_cast<float*>(operands.scratch(form.parts_bytes(g.oc)));
        args.state = operands.of_one(state);
        expect_ran(operands.run(cuda::conv_launch(args, form, w.type), order));
        if (order == 0) {
          first = dst;
          expect_product(dtype, dst, src, weights, {g.dst_pixels(), g.ic, g.oc, 1, g.ic}, tolerance_of(w.type), finish);
        }
        EXPECT_TRUE(dst == first) << backend::Runner::order_name(order);
        if (kThreadSanitizer) break;
      }
    }
    const char* tiles = dtype != DType::f32 ? "mma_1x1_128x" : w.tensor_cores ? "mma_128x" : "fma_128x";
    for (const int columns : w.of) EXPECT_TRUE(names.contains(tiles + std::to_string(columns)));
    for (const char* small : {"64x32", "64x32_by2"})
      EXPECT_TRUE(names.contains((w.tensor_cores ? "mma_" : "fma_") + std::string(small)));
  }
  // Large layers have no use for small tiles, narrow ones none for wide.
  std::vector<std::string> large;
  for (const ConvForm& form : cuda::conv_forward_forms(geometry(64, 56, 64, 24), kBf16))
    large.push_back(form.full_name());
  EXPECT_EQ(large, std::vector<std::string>{"mma_1x1_128x32"});
}

std::vector<float> floats_about(double middle, int64_t count, uint32_t seed) {
  std::vector<float> made;
  for (const double v : random_values(static_cast<size_t>(count), seed))
    made.push_back(static_cast<float>(middle + v / 4));
  return made;
}
struct SourceChange {
  bool normed, gated;
  plan::Act act;
};
// A 1x1 convolution of act(bn(src)) * gate in float64.
struct PointReference {
  ConvGeometry g;
  ConvType type;
  std::vector<uint8_t> src = operand(type.dtype, g.src_pixels() * g.ic, 1), weights = operand(type.dtype, g.oc*g.ic, 2);
  std::vector<float> mean = floats_about(0.25, g.ic, 3), inv_std = floats_about(1.5, g.ic, 4),
                     scale = floats_about(1, g.ic, 5), shift = floats_about(0, g.ic, 6),
                     gate = floats_about(0.5, g.n*g.ic, 7);
  Values want = {}, allowed = {};  // and how far off a result may be

  void compute(const SourceChange& change) {
    Values value, off;  // of what is multiplied: its rounding and its tanh
    for (int64_t i = 0; i < g.src_pixels() * g.ic; ++i) {
      const auto c = static_cast<size_t>(i % g.ic);
      const double x = value_of(type.dtype, src, i);
      const double z = change.normed ? (x - mean[c]) * inv_std[c] * scale[c] + shift[c] : x;
      const double factor = change.gated ? gate[static_cast<size_t>(i / (g.ic * g.h * g.w) * g.ic) + c] : 1;
      value.push_back(factor * act_value(change.act, z));
      off.push_back(std::abs(value.back()) * tolerance_of(type) +
                    std::abs(factor) * act_value_slack(type.dtype, change.act, z));
    }
    want.clear();
    allowed.clear();
    for (int64_t pixel = 0; pixel < g.dst_pixels(); ++pixel)
      for (int64_t o = 0; o < g.oc; ++o) {
        double sum = 0, far = 0, size = 0;
        for (int64_t k = 0; k < g.ic; ++k) {
          const double w = value_of(type.dtype, weights, o * g.ic + k);
          const auto i = static_cast<size_t>(pixel * g.ic + k);
          sum += value[i] * w;
          size += std::abs(value[i] * w);
          far += off[i] * std::abs(w);
        }
        want.push_back(sum);
        allowed.push_back(far + std::abs(sum) * tolerance_of(type) + 1e-6 * size);
      }
  }
  cuda::ConvArgs args(HostOperands& operands, const SourceChange& change, std::vector<uint8_t>& dst) const {
    cuda::ConvArgs args{};
    args.g = g;
    args.src.data = operands.of(src);
    args.src.act = change.act;
    if (change.normed)
      args.src.norm = {operands.of(mean), operands.of(inv_std), operands.of(scale), operands.of(shift)};
    if (change.gated) args.src.gate = operands.of(gate);
    args.weights = operands.of(weights);
    args.dst = operands.of(dst);
    return args;
  }
};

// Windows of one pixel in tiles of every width, where a tile has pixels of several images, of two, and of one.
TEST(ConvForms, PointsTakeNormalisationActivationAndGate) {
  struct Case {
    int64_t n, h, w, ic, oc, tiles_a_block;
  };
  const Case all[] = {{6, 7, 7, 24, 16, 2}, {3, 12, 13, 40, 200, 4}, {1, 16, 17, 72, 136, 1}, {300, 1, 1, 16, 24, 3}};
  const SourceChange changes[] = {{true, true, plan::Act::silu},
                                  {true, false, plan::Act::silu},
                                  {true, true, plan::Act::relu6},
                                  {true, false, plan::Act::identity},
                                  {false, true, plan::Act::identity}};
  for (const Case& c : all)
    for (const ConvType& type : {kBf16, kF16}) {
      PointReference reference{{c.n, c.h, c.w, c.ic, c.h, c.w, c.oc, 1, 1, 1, 0, 0}, type};
      for (const SourceChange& change : changes) {
        if (kThreadSanitizer && &change > &changes[1]) break;  // as below
        reference.compute(change);
        int forms = 0;
        for (ConvForm form : cuda::conv_forward_forms(reference.g, type, true)) {
          if (!form.point) continue;
          ++forms;
          form.tiles_a_block = c.tiles_a_block;
          std::vector<uint8_t> first;
          for (int order = 0; order < backend::Runner::kOrders; ++order) {
            SCOPED_TRACE(testing::Message() << form.full_name() << type.suffix() << " " << c.n << "x" << c.h << "x"
                                            << c.w << ", " << backend::Runner::order_name(order));
            std::vector<uint8_t> dst(reference.want.size() * bytes_of(type.dtype));
            HostOperands operands;
            expect_ran(operands.run(cuda::conv_launch(reference.args(operands, change, dst), form, type), order));
            if (order == 0) {
              first = dst;
              for (size_t i = 0; i < reference.want.size(); ++i)
                ASSERT_NEAR(value_of(type.dtype, dst, static_cast<int64_t>(i)), reference.want[i], reference.allowed[i])
                    << i;
            }
            EXPECT_TRUE(dst == first);
            if (kThreadSanitizer || &change != changes) break;  // the others differ by a thread's own values only
          }
        }
        EXPECT_GT(forms, 0);
      }
    }
  // Where what a block keeps of the source would not fit beside its tiles, windows are looked for.
  EXPECT_EQ(cuda::conv_forward_form(geometry(256, 14, 1544, 64), kBf16, true).name(), "mma_128x64");
  EXPECT_EQ(cuda::conv_forward_form(geometry(256, 14, 1544, 64), kBf16).name(), "mma_1x1_128x64");
}

TEST(ConvForms, WideTilesOfGradientsGiveTheBitsOfNarrowOnesBehindNormalisation) {
  for (const Widths& w : kWidths) {
    const DType dtype = w.type.dtype;
    const ConvGeometry g{3, 3, 19, 136, 3, 19, 40, 1, 1, 1, 0, 0};
    const auto diff = operand(dtype, g.dst_pixels() * g.oc, 1), weights = operand(dtype, g.oc * g.ic, 2),
               in_front = operand(dtype, g.src_pixels() * g.ic, 3), addend = operand(dtype, g.src_pixels() * g.ic, 8);
    const StepScalars scalars{.step = 3, .seed = 5};
    const auto norm = [&](uint32_t seed) {
      std::vector<float> v;
      for (const double x : random_values(static_cast<size_t>(g.ic), seed, 1, 0.2)) v.push_back(static_cast<float>(x));
      return v;
    };
    const std::vector<float> mean = norm(4), inv_std = norm(5), scale = norm(6), shift = norm(7);
    enum class Epilogue { none, bn, end };
    const auto run = [&](int columns, Epilogue epilogue, int order) {
      ConvForm form = cuda::conv_backward_data_form(g, w.type);
      form = widened(form, w, g.src_pixels(), columns, tile_bytes<cuda::Layout::by_depth>(dtype, columns));
      std::vector<uint8_t> dst(static_cast<size_t>(g.src_pixels() * g.ic) * bytes_of(dtype));
      HostOperands operands;
      const Merged merged(operands, form, g.ic, 2);
      cuda::ConvBwdDataArgs args{};
      args.g = g;
      args.diff_dst = operands.of(diff);
      args.weights = operands.of(weights);
      args.diff_src = operands.of(dst);
      if (epilogue == Epilogue::bn) {
        args.slope_of = operands.of(in_front);
        args.act = plan::Act::silu;
        args.slope_norm = {operands.of(mean), operands.of(inv_std), operands.of(scale), operands.of(shift)};
      }
      if (epilogue == Epilogue::end)
        args.end = {operands.of(addend), operands.of(in_front), operands.of(mean),
                    cuda::DropSpec{0.5, 2}.at(operands.of_one(scalars))};
      if (epilogue != Epilogue::none) args.sums = merged.sums(g.ic);
      expect_ran(operands.run(cuda::conv_bwd_data_launch(args, form, w.type), order));
      return std::pair(dst, epilogue != Epilogue::none ? merged.left_and_results() : std::vector<float>());
    };
    const auto plain = run(32, Epilogue::none, 0), with_bn = run(32, Epilogue::bn, 0),
               at_end = run(32, Epilogue::end, 0);
    const Product64 product{g.src_pixels(), g.oc, g.ic, g.ic, 1};
    expect_product(dtype, plain.first, diff, weights, product, tolerance_of(w.type));
    expect_product(
        dtype, with_bn.first, diff, weights, product, tolerance_of(w.type),
        [&](double sum, int64_t row, int64_t column) -> Finished {
          const auto c = static_cast<size_t>(column);
          const double x = value_of(dtype, in_front, row * g.ic + column),
                       z = (x - mean[c]) * inv_std[c] * scale[c] + shift[c];
          const double slope = act_slope(plan::Act::silu, z);
          return {sum * slope, std::abs(sum) * (act_slope_slack(dtype, plan::Act::silu, z) + 1e-6), std::abs(slope)};
        });
    for (const int columns : w.of) {
      if (dtype == DType::f32 && columns != 64) continue;  // there are no others
      for (int order = 0; order < backend::Runner::kOrders; ++order) {
        SCOPED_TRACE(testing::Message() << w.type.suffix() << " " << columns << " columns, "
                                        << backend::Runner::order_name(order));
        EXPECT_TRUE(run(columns, Epilogue::none, order).first == plain.first);
        for (const Epilogue epilogue : {Epilogue::bn, Epilogue::end}) {
          const auto& [want_dst, want_sums] = epilogue == Epilogue::bn ? with_bn : at_end;
          const auto [dst, sums] = run(columns, epilogue, order);
          EXPECT_TRUE(dst == want_dst);
          expect_sums(sums, want_sums);
          if (order > 0 && !kThreadSanitizer) {
            EXPECT_TRUE(sums == run(columns, epilogue, 0).second);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace effnet::test
