#include "plan/op_traits.h"

#include <cstring>

#include "plan/op_ports.h"

namespace effnet::plan {
namespace {

// All bits of the exponent set: NaN or infinity.
template <class Bits, Bits kExponent>
bool all_finite(const std::byte* data, uint64_t bytes) {
  Bits found = 0;
  for (uint64_t i = 0; i + sizeof(Bits) <= bytes; i += sizeof(Bits)) {
    Bits bits;
    std::memcpy(&bits, data + i, sizeof bits);
    found |= (bits & kExponent) == kExponent;
  }
  return !found;
}

}  // namespace

bool updates_parameters(OpId id) {
  return id == OpId::optimizer_sgd || id == OpId::optimizer_rmsprop || id == OpId::optimizer_adamw ||
         id == OpId::ema_update;
}

bool is_of_update(OpId id) { return id == OpId::grad_norm || updates_parameters(id); }

bool can_have_half_gradient(const Op& op) {
  if (op.id != OpId::conv2d_bwd_weights) return false;
  const DType images = op.in(op::conv2d_bwd_weights::in_src)->dtype;
  return images == DType::f16 || images == DType::bf16;
}

bool averages(const Op& op) {
  switch (op.id) {
    case OpId::ema_update:
      return true;
    case OpId::optimizer_sgd:
      return op.attr(op::optimizer_sgd::attr_ema) == 1;
    case OpId::optimizer_rmsprop:
      return op.attr(op::optimizer_rmsprop::attr_ema) == 1;
    case OpId::optimizer_adamw:
      return op.attr(op::optimizer_adamw::attr_ema) == 1;
    default:
      return false;
  }
}

double operand_bytes(const Op& op, int64_t images) {
  double bytes = 0;
  for (const auto* list : {&op.inputs, &op.outputs, &op.updates})
    for (const Tensor* t : *list) {
      if (!t) continue;
      const bool each = t->image_stride || t->arena == Arena::image;
      bytes += static_cast<double>(t->bytes) * static_cast<double>(each ? images : 1);
    }
  return bytes;
}

bool all_finite(const Tensor& tensor, const std::byte* data) {
  switch (tensor.dtype) {
    case DType::f32:
      return all_finite<uint32_t, 0x7f800000u>(data, tensor.bytes);
    case DType::bf16:
      return all_finite<uint16_t, 0x7f80u>(data, tensor.bytes);
    case DType::f16:
      return all_finite<uint16_t, 0x7c00u>(data, tensor.bytes);
    default:
      return true;
  }
}

}  // namespace effnet::plan
