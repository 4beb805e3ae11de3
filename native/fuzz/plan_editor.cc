#include "fuzz/plan_editor.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>

#include "core/math.h"
#include "plan/format.h"
#include "plan/plan.h"

namespace effnet::fuzz {
namespace {

using plan::Arena;
using plan::Header;
using plan::OpRecord;
using plan::TensorRecord;

#define EFF_OP_TABLE_HASH_ONLY
#include "plan/op_table.inc"
#undef EFF_OP_TABLE_HASH_ONLY

constexpr uint16_t kOps = 1
#define EFF_OP(...) +1
#include "plan/op_table.inc"
#undef EFF_OP
    ;

struct Draft {
  Header header = {};
  std::vector<TensorRecord> tensors;
  std::vector<OpRecord> ops;
  std::vector<uint32_t> refs;
  std::vector<double> attrs;
  Bytes names;

  bool read(const Bytes& bytes) {
    if (bytes.size() < sizeof header) return false;
    std::memcpy(&header, bytes.data(), sizeof header);
    return section(bytes, header.tensors_offset, header.tensor_count, tensors) &&
           section(bytes, header.ops_offset, header.op_count, ops) &&
           section(bytes, header.refs_offset, header.ref_count, refs) &&
           section(bytes, header.attrs_offset, header.attr_count, attrs) &&
           section(bytes, header.names_offset, header.names_bytes, names);
  }

  Bytes write() {
    Bytes bytes(sizeof header);
    const auto append = [&bytes](const auto& list) {
      bytes.resize(round_up(bytes.size(), 8));
      const size_t at = bytes.size(), size = list.size() * sizeof list[0];
      bytes.resize(at + size);
      if (size) std::memcpy(bytes.data() + at, list.data(), size);
      return static_cast<uint64_t>(at);
    };
    header.tensor_count = static_cast<uint32_t>(tensors.size());
    header.op_count = static_cast<uint32_t>(ops.size());
    header.ref_count = static_cast<uint32_t>(refs.size());
    header.attr_count = static_cast<uint32_t>(attrs.size());
    header.names_bytes = names.size();
    header.tensors_offset = append(tensors);
    header.ops_offset = append(ops);
    header.refs_offset = append(refs);
    header.attrs_offset = append(attrs);
    header.names_offset = append(names);
    bytes.resize(round_up(bytes.size(), 8));
    header.total_bytes = bytes.size();
    std::memcpy(bytes.data(), &header, sizeof header);
    return bytes;
  }

 private:
  template <class T>
  static bool section(const Bytes& bytes, uint64_t offset, uint64_t count, std::vector<T>& into) {
    if (offset > bytes.size() || count > (bytes.size() - offset) / sizeof(T)) return false;
    into.resize(count);
    if (count) std::memcpy(into.data(), bytes.data() + offset, count * sizeof(T));
    return true;
  }
};

uint64_t bytes_of(const TensorRecord& t) {
  uint64_t elements = 1;
  for (const uint32_t dim : t.dims) elements *= dim;  // may wrap; then the verifier must say so
  return elements * plan::dtype_bytes(static_cast<plan::DType>(t.dtype));
}

TensorRecord* tensor_at(Draft& d, uint32_t ref) {
  if (ref >= d.refs.size() || d.refs[ref] >= d.tensors.size()) return nullptr;
  return &d.tensors[d.refs[ref]];
}

// Convolutions: the spatial size of the result follows from source, kernel and attributes.
void repair_convolutions(Draft& d) {
  using plan::OpId;
  for (const OpRecord& op : d.ops) {
    const auto id = static_cast<OpId>(op.op);
    const bool depthwise = op.op >= static_cast<uint16_t>(OpId::depthwise_conv2d) &&
                           op.op <= static_cast<uint16_t>(OpId::depthwise_conv2d_bias_act);
    const bool dense = id == OpId::conv2d || id == OpId::conv2d_bwd_data || id == OpId::conv2d_bwd_weights ||
                       id == OpId::conv2d_bias_act || id == OpId::input_conv2d_stats ||
                       id == OpId::input_conv2d_bias_act || id == OpId::input_conv2d_bwd_weights;
    if ((!dense && !depthwise) || op.attr_first + uint64_t{5} > d.attrs.size()) continue;
    TensorRecord *src = tensor_at(d, op.input_first), *weights = tensor_at(d, op.input_first + 1);
    TensorRecord* dst = tensor_at(d, op.output_first);
    if (id == OpId::conv2d_bwd_data || id == OpId::depthwise_conv2d_bwd_data) std::swap(src, dst);
    if (id == OpId::conv2d_bwd_weights || id == OpId::depthwise_conv2d_bwd_weights ||
        id == OpId::input_conv2d_bwd_weights)
      std::swap(weights, dst);
    if (!src || !weights || !dst) continue;
    const double* a = d.attrs.data() + op.attr_first;
    if (!(a[0] >= 1 && a[0] <= 64)) continue;
    for (int s = 0; s < 2; ++s) {
      const double pads = a[1 + s] + a[3 + s];
      if (!(pads >= 0 && pads <= 200)) continue;
      const int64_t room = int64_t{src->dims[1 + s]} + static_cast<int64_t>(pads) - weights->dims[(dense ? 1 : 0) + s];
      if (room >= 0 && room < (int64_t{1} << 31))
        dst->dims[1 + s] = static_cast<uint32_t>(room / static_cast<int64_t>(a[0]) + 1);
    }
  }
}

bool is_slice(const TensorRecord& t) { return t.flags & plan::kTensorSlice; }

// Sizes, offsets and arenas after shapes have changed. What mirrors the weights keeps doing so, and a slice stays where
// its batch is.
void place_again(Draft& d) {
  uint64_t end[plan::kArenaCount] = {};
  std::map<std::pair<uint8_t, uint64_t>, uint64_t> moved;  // arena and old offset -> new offset
  const uint64_t images = std::max<uint64_t>(1, d.header.region.images);
  for (TensorRecord& t : d.tensors) t.bytes = bytes_of(t);
  for (int pass = 0; pass < 3; ++pass) {
    for (TensorRecord& t : d.tensors) {
      const bool grads = t.arena == static_cast<uint8_t>(Arena::grads);
      if (t.arena >= plan::kArenaCount || pass != (is_slice(t) ? 2 : grads ? 1 : 0)) continue;
      const auto like = grads ? static_cast<uint8_t>(Arena::weights) : t.arena;
      const auto known = pass == 0 ? moved.end() : moved.find({like, t.offset});
      const uint64_t before = t.offset;
      t.offset = known != moved.end() ? known->second : end[t.arena];
      moved.emplace(std::pair{t.arena, before}, t.offset);
      const uint64_t bytes = is_slice(t) && images < 4096 ? t.bytes * images : t.bytes;
      end[t.arena] = std::max(end[t.arena], round_up(t.offset + bytes, plan::kAlignment));
    }
  }
  const uint64_t most = std::max(end[0], end[1]);
  for (int a = 0; a < plan::kArenaCount; ++a) {
    const bool mirror = a <= static_cast<int>(Arena::ema) && d.header.arena_bytes[a] > 0;
    d.header.arena_bytes[a] = mirror ? most : end[a];
  }
}

constexpr uint32_t kDims[] = {0,  1,  1,  2,  3,  4,  5,  7,  8,  9,  12,  15, 16,
                              17, 24, 31, 32, 33, 48, 63, 64, 65, 96, 127, 129};
constexpr uint32_t kHuge[] = {1000, 4097, 65535, 65536, 0x100000, 0x7fffffff, 0x80000000, 0xffffffff};
constexpr double kNumbers[] = {0,
                               1,
                               2,
                               3,
                               4,
                               5,
                               -1,
                               0.5,
                               0.1,
                               0.999999,
                               1e-30,
                               63,
                               64,
                               65,
                               255,
                               2147483647.0,
                               2147483648.0,
                               4294967295.0,
                               4294967296.0,
                               1e15,
                               -1e15,
                               1e300,
                               std::numeric_limits<double>::infinity(),
                               -std::numeric_limits<double>::infinity(),
                               std::numeric_limits<double>::quiet_NaN()};

uint32_t some_dim(Random& random) { return random.chance(90) ? random.pick(kDims) : random.pick(kHuge); }

// One size everywhere it occurs: batch, channels or an image's side.
void rename_size(Draft& d, Random& random) {
  const TensorRecord& t = d.tensors[random.below(d.tensors.size())];
  const uint32_t from = t.dims[random.below(4)], to = some_dim(random);
  if (from == 1 && !random.chance(20)) return;
  const size_t only = random.chance(60) ? 4 : random.below(4);
  for (TensorRecord& other : d.tensors)
    for (size_t axis = 0; axis < std::min<size_t>(other.rank, 4); ++axis)
      if (other.dims[axis] == from && (only == 4 || axis == only)) other.dims[axis] = to;
}

void change_tensor(Draft& d, Random& random) {
  static constexpr uint64_t kOffsets[] = {
      0, 64, 128, 1, 63, 1 << 20, uint64_t{1} << 42, ~uint64_t{0}, ~uint64_t{0} - 63};
  TensorRecord& t = d.tensors[random.below(d.tensors.size())];
  switch (random.below(9)) {
    case 8:
      t.flags = static_cast<uint8_t>(random.chance(80) ? t.flags ^ plan::kTensorSlice : random.next());
      return;
    case 0:
      t.dims[random.below(4)] = some_dim(random);
      return;
    case 1:
      t.dtype = static_cast<uint8_t>(random.below(6));
      return;
    case 2:
      t.arena = static_cast<uint8_t>(random.below(plan::kArenaCount + 1));
      return;
    case 3:
      t.rank = static_cast<uint8_t>(random.below(6));
      return;
    case 4:
      t.offset = random.chance(50) ? d.tensors[random.below(d.tensors.size())].offset : random.pick(kOffsets);
      return;
    case 5:
      t.bytes = random.chance(50) ? t.bytes + 64 * random.below(3) - 64 : random.next() >> random.below(64);
      return;
    case 6:
      std::memcpy(t.dims, d.tensors[random.below(d.tensors.size())].dims, sizeof t.dims);
      return;
    default:
      t.name_bytes = static_cast<uint32_t>(random.next() >> random.below(64));
  }
}

// Copies of the operands behind the others: the verifier refuses ops that share theirs.
OpRecord with_own_operands(Draft& d, OpRecord op) {
  for (auto [first, count] : {std::pair{&op.input_first, op.input_count}, std::pair{&op.output_first, op.output_count},
                              std::pair{&op.update_first, op.update_count}}) {
    if (*first > d.refs.size() || count > d.refs.size() - *first) continue;
    const std::vector<uint32_t> own(d.refs.begin() + *first, d.refs.begin() + *first + count);
    *first = static_cast<uint32_t>(d.refs.size());
    d.refs.insert(d.refs.end(), own.begin(), own.end());
  }
  return op;
}

void change_op(Draft& d, Random& random) {
  OpRecord& op = d.ops[random.below(d.ops.size())];
  const auto word = [&random](uint32_t value) {
    static constexpr uint32_t kWords[] = {0, 1, 2, 7, 0x7fffffff, 0xfffffff0, 0xffffffff};
    return random.chance(60) ? value + static_cast<uint32_t>(random.below(3)) - 1 : random.pick(kWords);
  };
  switch (random.below(12)) {
    case 0:
      op.op = static_cast<uint16_t>(random.below(kOps + 2));
      return;
    case 1:
      op.flags = static_cast<uint16_t>(random.chance(80) ? random.below(4) : random.next());
      return;
    case 2:
      op.input_first = word(op.input_first);
      return;
    case 3:
      op.input_count = word(op.input_count);
      return;
    case 4:
      op.output_first = word(op.output_first);
      return;
    case 5:
      op.update_count = word(op.update_count);
      return;
    case 6:
      op.attr_first = word(op.attr_first);
      return;
    case 7:
      op.name_offset = word(op.name_offset);
      return;
    case 8:
      std::swap(op, d.ops[random.below(d.ops.size())]);
      return;
    case 9:
      d.ops.insert(d.ops.begin() + static_cast<ptrdiff_t>(random.below(d.ops.size())), with_own_operands(d, op));
      return;
    case 10:
      if (d.ops.size() > 1) d.ops.erase(d.ops.begin() + static_cast<ptrdiff_t>(random.below(d.ops.size())));
      return;
    default:
      op = with_own_operands(d, d.ops[random.below(d.ops.size())]);
  }
}

void change_operand(Draft& d, Random& random) {
  uint32_t& ref = d.refs[random.below(d.refs.size())];
  switch (random.below(6)) {
    case 0:
      ref = plan::kNoTensor;
      return;
    case 1:
      ref = static_cast<uint32_t>(d.tensors.size() + random.below(2));
      return;
    case 2:
      std::swap(ref, d.refs[random.below(d.refs.size())]);
      return;
    default:
      ref = static_cast<uint32_t>(random.below(d.tensors.size()));
  }
}

void change_region(Draft& d, Random& random) {
  plan::RegionRecord& region = d.header.region;
  static constexpr uint32_t kWords[] = {0, 1, 2, 3, 7, 0x7fffffff, 0xffffffff};
  uint32_t& word = *std::array{&region.first_op, &region.op_count, &region.images, &region.reserved}[random.below(4)];
  word = random.chance(60) ? word + static_cast<uint32_t>(random.below(3)) - 1 : random.pick(kWords);
}

void change_header(Draft& d, Random& random) {
  if (random.chance(d.header.region.op_count ? 60 : 10)) return change_region(d, random);
  uint64_t& bytes = d.header.arena_bytes[random.below(plan::kArenaCount)];
  switch (random.below(4)) {
    case 0:
      bytes = 0;
      return;
    case 1:
      bytes += 64;
      return;
    case 2:
      bytes = bytes >= 64 ? bytes - 64 : 64;
      return;
    default:
      bytes = random.next() >> random.below(64);
  }
}

}  // namespace

void set_op_table_hash(Bytes& plan) {
  if (plan.size() >= sizeof(Header)) std::memcpy(plan.data() + offsetof(Header, op_table_hash), &kOpTableHash, 4);
}

void mutate_plan(Bytes& bytes, Random& random) {
  Draft d;
  if (random.chance(8) || !d.read(bytes) || d.tensors.empty() || d.ops.empty() || d.refs.empty())
    return mutate_bytes(bytes, random);
  bool shapes = false;
  switch (random.below(10)) {
    case 0:
    case 1:
    case 2:
      rename_size(d, random);
      shapes = true;
      break;
    case 3:
    case 4:
      change_tensor(d, random);
      shapes = random.chance(70);
      break;
    case 5:
      change_op(d, random);
      break;
    case 6:
    case 7:
      change_operand(d, random);
      break;
    case 8:
      if (!d.attrs.empty()) {
        d.attrs[random.below(d.attrs.size())] = random.pick(kNumbers);
        shapes = random.chance(50);
      }
      break;
    default:
      change_header(d, random);
  }
  if (shapes) {
    repair_convolutions(d);
    place_again(d);
  }
  bytes = d.write();
}

}  // namespace effnet::fuzz
