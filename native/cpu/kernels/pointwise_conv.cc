#include "cpu/kernels/pointwise_conv.h"

#include <algorithm>
#include <vector>

#include "core/memory.h"
#include "cpu/kernels/common.h"
#include "cpu/kernels/dense_rows.h"
#include "cpu/kernels/stats.h"

namespace effnet::cpu {
namespace {

// About 20 us on one AVX-512 core: long against a barrier, short enough that the last shard of an op is not waited for.
constexpr double kShardFlops = 2.5e6;
// Of inference, where an op is all that there is to share among threads, and what it costs to begin a shard counts.
constexpr double kInferenceShardFlops = 5e6;
constexpr int64_t kMostShards = 128;
// About 4 us: where parts that end together have to be as small.
constexpr double kLeastShardFlops = 0.5e6;
// Of the source, to be kept in L2 beside two panels of weights.
constexpr int64_t kKeptBytes = 512 << 10;
// Blocks of rows that go through a panel of weights together.
constexpr int64_t kPanelBlocks = 8;
// Images no wider are split by channels in the depthwise convolution behind an expansion; then so is the expansion, and
// each core finds what it wrote itself.
constexpr int64_t kDepthwiseByChannels = 32;

// A number of parts of `total` things, at least `wanted` where there are as many, and at most `most`: one that divides
// `total`, so that all parts take equally long, and is a multiple of 4, else of 2, so that as many threads end
// together.
int64_t even_parts(int64_t total, int64_t wanted, int64_t most) {
  if (wanted >= total) return total;
  for (const int64_t multiple : {4, 2, 1}) {
    for (int64_t parts = round_up(wanted, multiple); parts <= std::min(total, most); parts += multiple)
      if (total % parts == 0) return parts;
  }
  return wanted;
}

int64_t part_begin(int64_t total, int64_t parts, int64_t index) { return total * index / parts; }

class PointwiseConv final : public Kernel {
 public:
  PointwiseConv(const PointwiseOperands& operands, const char* name) : operands_(operands) {
    const plan::Tensor& weights = *operands.weights;
    weights_.dtype = operands.src->dtype;
    weights_.terms = operands.transposed ? weights.dims[0] : weights.dims[3];
    weights_.channels = operands.transposed ? weights.dims[3] : weights.dims[0];
    image_rows_ = operands.src->dims[1] * operands.src->dims[2];
    rows_ = operands.src->dims[0] * image_rows_;
    merge_ = {weights_.channels, kStatsMergeChannels};
    const int64_t blocks = ceil_div(rows_, dense_row_block());
    const double shard_flops = operands.mean || operands.transposed ? kShardFlops : kInferenceShardFlops;
    const auto wanted = std::clamp<int64_t>(static_cast<int64_t>(flops() / shard_flops), 1, kMostShards);
    const bool widens = !operands.transposed && !operands.mean && !operands.gate && weights_.channels > weights_.terms;
    // Few rows: every shard takes them all and some of the columns, so that each weight is read once.
    if (blocks < std::max<int64_t>(wanted, 8)) {
      column_parts_ = even_parts(weights_.panels(), wanted, 2 * wanted);
      by_panels_ = !operands.mean &&
                   rows_ * weights_.terms * static_cast<int64_t>(plan::dtype_bytes(weights_.dtype)) <= kKeptBytes;
    } else if (widens && operands.src->dims[2] <= kDepthwiseByChannels && blocks <= kPanelBlocks * 8) {
      row_parts_ = even_parts(blocks, ceil_div(blocks, kPanelBlocks), blocks);
      const int64_t columns = std::max<int64_t>(2, wanted / row_parts_);
      column_parts_ = even_parts(weights_.panels(), columns, 3 * columns);
      by_panels_ = true;
    } else {
      // The parts' statistics are merged: what they are changes their last bits.
      const auto finest = operands.mean ? 0 : static_cast<int64_t>(flops() / kLeastShardFlops);
      row_parts_ = even_parts(blocks, wanted, std::max(2 * wanted, std::min(finest, kMostShards)));
      by_panels_ = !operands.mean && ceil_div(blocks, row_parts_) <= kPanelBlocks;
    }
    for (int64_t part = 0; part < row_parts_; ++part) part_rows_.push_back(row_begin(part + 1) - row_begin(part));
    name_ = kernel_name(name, weights_.dtype);
  }
  Status allocate() {
    auto packed = Block::allocate(weights_.bytes(), Block::Kind::kernel);
    if (!packed.ok()) return packed.status();
    packed_ = std::move(packed.value());
    return ok_status();
  }

  const char* name() const override { return name_.c_str(); }
  int phases() const override { return operands_.mean ? 2 : 1; }
  int shards(int phase) const override {
    return static_cast<int>(phase == 0 ? row_parts_ * column_parts_ : merge_.count());
  }
  size_t worker_scratch_bytes() const override {
    const int64_t most_rows = by_panels_ ? *std::max_element(part_rows_.begin(), part_rows_.end()) : dense_row_block();
    return dense_scratch_bytes(weights_, operands_.gate ? most_rows : 0, operands_.mean);
  }
  size_t shared_scratch_bytes() const override {
    return operands_.mean ? static_cast<size_t>(row_parts_ * part_stats()) * sizeof(double) : 0;
  }
  size_t persistent_bytes() const override { return packed_.bytes(); }
  double flops() const override {
    return 2.0 * static_cast<double>(rows_) * static_cast<double>(weights_.terms * weights_.channels);
  }

  void prepare(const ExecContext& ctx) override {
    weights_.pack(ctx.ptr<float>(operands_.weights), operands_.transposed, packed_.data());
  }

  void run(int phase, int shard, const ExecContext& ctx) override {
    double* stats = reinterpret_cast<double*>(ctx.shared_scratch);
    if (phase == 1) {
      return merge_stats({stats, part_rows_.data(), row_parts_, part_stats() / 2, merge_.begin(shard),
                          merge_.end(shard), operands_.eps, operands_.momentum, ctx.ptr<float>(operands_.mean),
                          ctx.ptr<float>(operands_.inv_std), ctx.ptr<float>(operands_.running_mean),
                          ctx.ptr<float>(operands_.running_var)});
    }
    const int64_t row_part = shard % row_parts_, column_part = shard / row_parts_;
    DenseRowsArgs args{};
    args.weights = weights_;
    args.packed = packed_.data();
    args.src = ctx.ptr<std::byte>(operands_.src);
    args.bias = ctx.ptr<float>(operands_.bias);
    args.gate = ctx.ptr<float>(operands_.gate);
    args.act = operands_.act;
    args.image_rows = image_rows_;
    args.by_panels = by_panels_;
    args.gated_before = row_parts_ == 1 && !ctx.first_shard;
    args.row_begin = row_begin(row_part);
    args.row_end = row_begin(row_part + 1);
    if (operands_.mean) args.stats = stats + row_part * part_stats();
    args.panel_begin = part_begin(weights_.panels(), column_parts_, column_part);
    args.panel_end = part_begin(weights_.panels(), column_parts_, column_part + 1);
    const size_t first =
        static_cast<size_t>(weights_.first_channel(args.panel_begin)) * plan::dtype_bytes(weights_.dtype);
    args.dst = ctx.ptr<std::byte>(operands_.dst) + first;
    args.dst_row = weights_.channels;
    args.past_caches = exceeds_caches(operands_.dst);
    if (operands_.residual) args.residual = ctx.ptr<std::byte>(operands_.residual) + first;
    args.scratch = ctx.worker_scratch;
    dense_rows(args);
  }

 private:
  int64_t row_begin(int64_t part) const {
    const int64_t block = dense_row_block(), blocks = ceil_div(rows_, block);
    return std::min(part_begin(blocks, row_parts_, part) * block, rows_);
  }
  int64_t part_stats() const { return 2 * weights_.padded_channels(); }

  PointwiseOperands operands_;
  DenseWeights weights_{};
  int64_t rows_, image_rows_, row_parts_ = 1, column_parts_ = 1;
  bool by_panels_ = false;
  std::vector<int64_t> part_rows_;
  Split merge_;
  Block packed_;
  std::string name_;
};

}  // namespace

StatusOr<KernelPtr> make_pointwise(const PointwiseOperands& operands, const char* name) {
  auto kernel = std::make_unique<PointwiseConv>(operands, name);
  EFF_RETURN_IF_ERROR(kernel->allocate());
  return KernelPtr(std::move(kernel));
}

}  // namespace effnet::cpu
