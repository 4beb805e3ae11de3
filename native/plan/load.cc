// The verifier. Every number in the buffer is hostile until checked here; after load() the rest of the engine indexes
// without looking.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <tuple>

#include "core/math.h"
#include "plan/op_ports.h"
#include "plan/op_traits.h"
#include "plan/plan.h"
#include "plan/shapes.h"

namespace effnet::plan {
namespace {

#define EFF_OP_TABLE_HASH_ONLY
#include "plan/op_table.inc"
#undef EFF_OP_TABLE_HASH_ONLY

static_assert(std::endian::native == std::endian::little, "the plan format is little-endian");

struct PortRule {
  int fixed;
  uint32_t required;  // bit i: fixed port i must be present
  bool variadic;
};
struct OpRule {
  OpId id;
  const char* name;
  PortRule inputs, outputs, updates;
  uint32_t attrs;
};

constexpr OpRule kRules[] = {
#define EFF_OP(id, name, in, in_mask, in_var, out, out_mask, out_var, upd, upd_mask, upd_var, attrs) \
  {static_cast<OpId>(id), #name, {in, in_mask, in_var}, {out, out_mask, out_var}, {upd, upd_mask, upd_var}, attrs},
#include "plan/op_table.inc"
#undef EFF_OP
};

bool is_image_wise(OpId id) {
  switch (id) {
#define EFF_IMAGE_WISE_OP(name) case OpId::name:
#include "plan/op_table.inc"
#undef EFF_IMAGE_WISE_OP
    return true;
    default:
      return false;
  }
}

const OpRule* rule_of(uint16_t id) {
  for (const OpRule& rule : kRules)
    if (static_cast<uint16_t>(rule.id) == id) return &rule;
  return nullptr;
}

constexpr uint64_t kMaxPlanBytes = uint64_t{1} << 30;
constexpr uint64_t kMaxArenaBytes = uint64_t{1} << 42;

// Whether [offset, offset + count * size) lies in a buffer of `total` bytes; no overflow for any input.
bool in_range(uint64_t offset, uint64_t count, uint64_t size, uint64_t total) {
  return offset <= total && (size == 0 || count <= (total - offset) / size);
}

bool overlap(const Tensor& a, const Tensor& b) {
  return a.arena == b.arena && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
}

// What an op may write: results go to scratch, gradients, folded weights or the host; weights only through updates.
bool writable_output(Arena arena) {
  return arena == Arena::activations || arena == Arena::grads || arena == Arena::prepared || arena == Arena::output ||
         arena == Arena::image;
}

Status bad(const char* what, uint64_t index, const char* why) {
  return error(Code::plan_invalid, "plan: %s %llu: %s", what, static_cast<unsigned long long>(index), why);
}

}  // namespace

size_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::f16:
      return "f16";
    case DType::u8:
      return "u8";
    case DType::i32:
      return "i32";
  }
  return "?";
}

const char* op_name(OpId id) {
  const OpRule* rule = rule_of(static_cast<uint16_t>(id));
  return rule ? rule->name : "?";
}

const Tensor* Plan::find(std::string_view name) const {
  for (const Tensor& tensor : tensors_)
    if (tensor.name == name) return &tensor;
  return nullptr;
}

class Loader {
 public:
  Loader(std::span<const std::byte> bytes, const Header& header) : bytes_(bytes), header_(header) {}

  Status check_header() const {
    if (header_.magic != kMagic) return error(Code::plan_invalid, "plan: not a plan (magic %08x)", header_.magic);
    if (header_.version != kVersion)
      return error(Code::plan_invalid, "plan: version %u, this build reads %u", header_.version, kVersion);
    if (header_.op_table_hash != kOpTableHash)
      return error(Code::plan_invalid, "plan: made for op table %08x, this addon has %08x: rebuild with npm run setup",
                   header_.op_table_hash, kOpTableHash);
    if (header_.header_bytes != sizeof(Header) || header_.total_bytes != bytes_.size())
      return error(Code::plan_invalid, "plan: %zu bytes, its header says %llu", bytes_.size(),
                   static_cast<unsigned long long>(header_.total_bytes));
    const uint64_t total = bytes_.size();
    if (!section(header_.tensors_offset, header_.tensor_count, sizeof(TensorRecord), total) ||
        !section(header_.ops_offset, header_.op_count, sizeof(OpRecord), total) ||
        !section(header_.refs_offset, header_.ref_count, sizeof(uint32_t), total) ||
        !section(header_.attrs_offset, header_.attr_count, sizeof(double), total) ||
        !in_range(header_.names_offset, header_.names_bytes, 1, total))
      return error(Code::plan_invalid, "plan: a section lies outside the buffer");
    const RegionRecord& region = header_.region;
    if (!in_range(region.first_op, region.op_count, 1, header_.op_count) || region.reserved ||
        (region.op_count == 0) != (region.images == 0) || (region.op_count == 0 && region.first_op != 0))
      return error(Code::plan_invalid, "plan: a region of %u ops from %u for %u images", region.op_count,
                   region.first_op, region.images);
    for (int i = 0; i < kArenaCount; ++i)
      if (header_.arena_bytes[i] > kMaxArenaBytes) return bad("arena", static_cast<uint64_t>(i), "too large");
    return ok_status();
  }

  Status read_tensors(std::vector<Tensor>& tensors) const {
    tensors.reserve(header_.tensor_count);
    for (uint32_t i = 0; i < header_.tensor_count; ++i) {
      TensorRecord record;
      std::memcpy(&record, bytes_.data() + header_.tensors_offset + i * sizeof record, sizeof record);
      if (!name_ok(record.name_offset, record.name_bytes)) return bad("tensor", i, "name outside the name pool");
      if (record.dtype >= kDTypeCount) return bad("tensor", i, "unknown dtype");
      if (record.arena >= kArenaCount) return bad("tensor", i, "unknown arena");
      if (record.rank > 4) return bad("tensor", i, "rank above 4");
      if ((record.flags & ~kTensorSlice) || record.reserved) return bad("tensor", i, "unknown flag");
      Tensor tensor;
      tensor.name = name_at(record.name_offset, record.name_bytes);
      tensor.dtype = static_cast<DType>(record.dtype);
      tensor.arena = static_cast<Arena>(record.arena);
      tensor.rank = record.rank;
      uint64_t elements = 1;
      for (int d = 0; d < 4; ++d) {
        const uint64_t dim = record.dims[d];
        if (dim == 0 || (d >= record.rank && dim != 1)) return bad("tensor", i, "bad dimension");
        if (elements > kMaxArenaBytes / dim) return bad("tensor", i, "too many elements");
        elements *= dim;
        tensor.dims[d] = static_cast<int64_t>(dim);
      }
      if (record.bytes != elements * dtype_bytes(tensor.dtype)) return bad("tensor", i, "bytes do not match its shape");
      if (record.offset % kAlignment != 0) return bad("tensor", i, "offset is not aligned");
      if (!in_range(record.offset, record.bytes, 1, header_.arena_bytes[record.arena]))
        return bad("tensor", i, "lies outside its arena");
      tensor.offset = record.offset;
      tensor.bytes = record.bytes;
      const bool slice = record.flags & kTensorSlice;
      if (slice || tensor.arena == Arena::image) EFF_RETURN_IF_ERROR(check_one_image(tensor, slice, i));
      if (slice) tensor.image_stride = tensor.bytes;
      tensors.push_back(tensor);
    }
    return ok_status();
  }

  Status read_ops(const std::vector<Tensor>& tensors, std::vector<Op>& ops) const {
    ops.reserve(header_.op_count);
    bool step_seen = false;
    uint64_t refs_used = 0;
    for (uint32_t i = 0; i < header_.op_count; ++i) {
      OpRecord record;
      std::memcpy(&record, bytes_.data() + header_.ops_offset + i * sizeof record, sizeof record);
      const OpRule* rule = rule_of(record.op);
      if (!rule) return bad("op", i, "unknown op");
      if (!name_ok(record.name_offset, record.name_bytes)) return bad("op", i, "name outside the name pool");
      if (record.flags & ~(kOpPrepare | kOpRecomputed | kOpTf32 | kOpHalfGradient)) return bad("op", i, "unknown flag");
      Op op;
      op.id = rule->id;
      op.flags = record.flags;
      op.name = name_at(record.name_offset, record.name_bytes);
      if (op.is_prepare() && step_seen) return bad("op", i, "a prepare op after a step op");
      step_seen |= !op.is_prepare();
      // Each op has operands of its own; else a small buffer could name the same long list for each of many ops.
      refs_used += uint64_t{record.input_count} + record.output_count + record.update_count;
      if (refs_used > header_.ref_count) return bad("op", i, "more operands than the plan has");
      if (!resolve(record.input_first, record.input_count, rule->inputs, tensors, op.inputs) ||
          !resolve(record.output_first, record.output_count, rule->outputs, tensors, op.outputs) ||
          !resolve(record.update_first, record.update_count, rule->updates, tensors, op.updates))
        return bad("op", i, "wrong operands");
      if (record.attr_count != rule->attrs || !in_range(record.attr_first, record.attr_count, 1, header_.attr_count))
        return bad("op", i, "wrong number of attributes");
      op.attrs.resize(record.attr_count);
      if (record.attr_count)
        std::memcpy(op.attrs.data(), bytes_.data() + header_.attrs_offset + record.attr_first * sizeof(double),
                    record.attr_count * sizeof(double));
      for (double value : op.attrs)
        if (!std::isfinite(value) || std::abs(value) > 1e15) return bad("op", i, "an attribute is not finite");
      EFF_RETURN_IF_ERROR(check_writes(op, i));
      EFF_RETURN_IF_ERROR(check_shapes(op));
      if (op.has_half_gradient() && !can_have_half_gradient(op))
        return bad("op", i, "rounds a gradient of weights to 16 bits, and has none of 16-bit images");
      ops.push_back(std::move(op));
    }
    return ok_status();
  }

  // Images of a region are in work at the same time: what an op of it writes belongs to its image alone, and what the
  // images share is only read.
  Status check_region(const std::vector<Op>& ops) const {
    const RegionRecord& region = header_.region;
    std::vector<Extent> extents;
    for (uint32_t i = 0; i < ops.size(); ++i) {
      const Op& op = ops[i];
      const bool inside = i - region.first_op < region.op_count;
      for (const auto* list : {&op.inputs, &op.outputs, &op.updates})
        for (const Tensor* t : *list)
          if (t && !inside && (t->image_stride || t->arena == Arena::image))
            return bad("op", i, "touches a single image, but is not of the region");
      if (!inside) continue;
      if (op.is_prepare() || !is_image_wise(op.id)) return bad("op", i, "cannot run image by image");
      if (op.id == OpId::bn_act && op.attr(op::bn_act::attr_drop_rate) != 0)
        return bad("op", i, "drops images by their number in a region");
      for (const Tensor* t : op.outputs) {
        if (!t) continue;
        if (!t->image_stride && t->arena != Arena::image) return bad("op", i, "writes what the images share");
        if (t->image_stride) extents.push_back({t, true});
      }
      for (const Tensor* t : op.inputs)
        if (t && t->arena != Arena::image) extents.push_back({t, false});
    }
    // A part of the batch bounds the number of images, and with it the time that a step takes.
    const auto slice = [](const Extent& e) { return e.tensor->image_stride > 0; };
    if (region.op_count > 0 && std::none_of(extents.begin(), extents.end(), slice))
      return bad("op", region.first_op, "begins a region that sees nothing of a batch");
    return check_extents(extents);
  }

  // The arenas that a plan has to itself end with their last tensor: a header cannot ask for more.
  Status check_own_arenas(const std::vector<Tensor>& tensors) const {
    for (const Arena arena : {Arena::activations, Arena::prepared, Arena::input, Arena::output, Arena::image}) {
      uint64_t end = 0;
      for (const Tensor& tensor : tensors)
        if (tensor.arena == arena) end = std::max(end, end_of(tensor));
      if (header_.arena_bytes[static_cast<int>(arena)] > round_up(end, kAlignment))
        return bad("arena", static_cast<uint64_t>(arena), "is larger than its tensors");
    }
    return ok_status();
  }

  // Optimizers find moments and averages at the parameters' offsets in arenas of the same layout.
  Status check_mirrors(const std::vector<Op>& ops) const {
    const auto mirrors = [this](Arena a) {
      return header_.arena_bytes[static_cast<int>(a)] >= header_.arena_bytes[static_cast<int>(Arena::weights)];
    };
    for (uint32_t i = 0; i < ops.size(); ++i) {
      const OpId id = ops[i].id;
      const bool one_moment = id == OpId::optimizer_sgd;
      const bool two_moments = id == OpId::optimizer_rmsprop || id == OpId::optimizer_adamw;
      if ((one_moment || two_moments) && !(mirrors(Arena::grads) && mirrors(Arena::moment0)))
        return bad("op", i, "the arenas of gradients and moments are smaller than the weights");
      if (two_moments && !mirrors(Arena::moment1)) return bad("op", i, "the arena of second moments is too small");
      if (averages(ops[i]) && !mirrors(Arena::ema)) return bad("op", i, "the arena of the average is too small");
    }
    return ok_status();
  }

 private:
  // Of a region: a tensor of which each image has its own.
  Status check_one_image(const Tensor& tensor, bool slice, uint32_t index) const {
    if (header_.region.op_count == 0) return bad("tensor", index, "belongs to a region, and there is none");
    if (tensor.rank == 0 || tensor.dims[0] != 1) return bad("tensor", index, "is not of one image");
    if (!slice) return ok_status();
    if (tensor.arena != Arena::activations && tensor.arena != Arena::input && tensor.arena != Arena::output)
      return bad("tensor", index, "a slice of something that is not a batch");
    if (!in_range(tensor.offset, header_.region.images, tensor.bytes,
                  header_.arena_bytes[static_cast<int>(tensor.arena)]))
      return bad("tensor", index, "its images lie outside the arena");
    return ok_status();
  }

  // One past the last byte, of all images.
  uint64_t end_of(const Tensor& tensor) const {
    return tensor.offset + tensor.bytes + tensor.image_stride * (header_.region.images - 1);
  }

  // Where the ops of a region reach, in arenas that all images share.
  struct Extent {
    const Tensor* tensor;
    bool written;
  };

  // Bytes that are written are seen as slices of the same place only: image i never meets image j.
  Status check_extents(std::vector<Extent>& extents) const {
    const auto place = [](const Extent& e) {
      return std::tuple(e.tensor->arena, e.tensor->offset, e.tensor->image_stride, e.tensor->bytes, !e.written);
    };
    std::sort(extents.begin(), extents.end(), [&](const Extent& a, const Extent& b) { return place(a) < place(b); });
    const Extent* last = nullptr;
    uint64_t end = 0, written_end = 0;
    for (const Extent& extent : extents) {
      const Tensor& t = *extent.tensor;
      if (!last || last->tensor->arena != t.arena) end = written_end = 0;
      const bool same = last && last->tensor->arena == t.arena && last->tensor->offset == t.offset &&
                        last->tensor->image_stride == t.image_stride && last->tensor->bytes == t.bytes;
      last = &extent;
      if (same) continue;  // the first of a place is the one that writes, if any does
      if (t.offset < (extent.written ? end : written_end))
        return error(Code::plan_invalid, "plan: tensor %.*s overlaps another one of the region",
                     static_cast<int>(t.name.size()), t.name.data());
      end = std::max(end, end_of(t));
      if (extent.written) written_end = std::max(written_end, end_of(t));
    }
    return ok_status();
  }

  static bool section(uint64_t offset, uint64_t count, uint64_t size, uint64_t total) {
    return offset % 8 == 0 && in_range(offset, count, size, total);
  }
  bool name_ok(uint64_t offset, uint64_t bytes) const { return in_range(offset, bytes, 1, header_.names_bytes); }
  std::string_view name_at(uint32_t offset, uint32_t bytes) const {
    return {reinterpret_cast<const char*>(bytes_.data()) + header_.names_offset + offset, bytes};
  }

  bool resolve(uint32_t first, uint32_t count, const PortRule& rule, const std::vector<Tensor>& tensors,
               std::vector<const Tensor*>& into) const {
    const uint32_t fixed = static_cast<uint32_t>(rule.fixed);
    if (rule.variadic ? count < fixed : count != fixed) return false;
    if (!in_range(first, count, 1, header_.ref_count)) return false;
    into.reserve(count);
    for (uint32_t i = 0; i < count; ++i) {
      uint32_t ref;
      std::memcpy(&ref, bytes_.data() + header_.refs_offset + (first + uint64_t{i}) * sizeof ref, sizeof ref);
      if (ref == kNoTensor) {
        if (i >= fixed || (rule.required >> i & 1)) return false;
        into.push_back(nullptr);
      } else {
        if (ref >= tensors.size()) return false;
        into.push_back(&tensors[ref]);
      }
    }
    return true;
  }

  // Whether no two of them share a byte; the same tensor twice does.
  static bool apart(std::vector<const Tensor*> list) {
    std::erase(list, nullptr);
    std::sort(list.begin(), list.end(), [](const Tensor* a, const Tensor* b) {
      return std::tuple(a->arena, a->offset) < std::tuple(b->arena, b->offset);
    });
    return std::adjacent_find(list.begin(), list.end(),
                              [](const Tensor* a, const Tensor* b) { return overlap(*a, *b); }) == list.end();
  }

  Status check_writes(const Op& op, uint32_t index) const {
    for (const Tensor* out : op.outputs) {
      if (!out) continue;
      if (!writable_output(out->arena)) return bad("op", index, "writes where results may not go");
      if ((out->arena == Arena::prepared) != op.is_prepare())
        return bad("op", index, "only prepare ops write prepared tensors, and they write nothing else");
      for (const Tensor* in : op.inputs)
        if (in && overlap(*in, *out)) return bad("op", index, "an output overlaps an input");
    }
    for (const Tensor* updated : op.updates)
      if (updated && (updated->arena != Arena::weights || updated->dtype != DType::f32 || op.is_prepare()))
        return bad("op", index, "updates something that is not a weight");
    if (!apart(op.outputs)) return bad("op", index, "two outputs overlap");
    if (!apart(op.updates)) return bad("op", index, "updates the same weights twice");
    return ok_status();
  }

  std::span<const std::byte> bytes_;
  const Header& header_;
};

StatusOr<std::shared_ptr<const Plan>> Plan::load(std::span<const std::byte> bytes) {
  if (bytes.size() < sizeof(Header) || bytes.size() > kMaxPlanBytes)
    return error(Code::plan_invalid, "plan: %zu bytes is no plan", bytes.size());
  std::shared_ptr<Plan> plan(new Plan);
  plan->storage_.assign(bytes.begin(), bytes.end());
  Header header;
  std::memcpy(&header, plan->storage_.data(), sizeof header);
  Loader loader(plan->storage_, header);
  EFF_RETURN_IF_ERROR(loader.check_header());
  EFF_RETURN_IF_ERROR(loader.read_tensors(plan->tensors_));
  EFF_RETURN_IF_ERROR(loader.read_ops(plan->tensors_, plan->ops_));
  EFF_RETURN_IF_ERROR(loader.check_region(plan->ops_));
  EFF_RETURN_IF_ERROR(loader.check_own_arenas(plan->tensors_));
  EFF_RETURN_IF_ERROR(loader.check_mirrors(plan->ops_));
  plan->region_ = {header.region.first_op, header.region.op_count, header.region.images};
  std::memcpy(plan->arena_bytes_, header.arena_bytes, sizeof header.arena_bytes);
  return std::shared_ptr<const Plan>(std::move(plan));
}

}  // namespace effnet::plan
