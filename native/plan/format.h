// The plan: one flat little-endian buffer that describes a step. Written by ts/passes/emit.ts, read by load.cc, which
// trusts nothing. It holds logical tensors, ops, offsets and names; no kernel names, no thread count, no pointers.
#pragma once

#include <cstdint>

namespace effnet::plan {

inline constexpr uint32_t kMagic = 0x50464645;  // "EFFP"
inline constexpr uint32_t kVersion = 2;
inline constexpr uint32_t kNoTensor = 0xffffffffu;  // an absent optional port
inline constexpr uint64_t kAlignment = 64;          // of every tensor offset, bytes

// What lives how long, and who may share it.
enum class Arena : uint8_t {
  weights = 0,      // FP32 parameters, then BN buffers; shared by all plans of a model; layout fixed by the model
  grads = 1,        // gradient of parameter p lies at p's offset in `weights`
  moment0 = 2,      // optimizer state, same layout
  moment1 = 3,      //
  ema = 4,          // moving average of `weights`, same layout
  activations = 5,  // planned by lifetime; undefined between steps; one allocation serves all plans of a session
  prepared = 6,     // outputs of the prepare program (folded weights), kept between steps; one per plan
  input = 7,        // a batch: images, labels; another address each step
  output = 8,       // what the host reads after a step: loss, ranks, logits
  image = 9,  // of a region: results on one image's way through it, planned by lifetime; one copy per image in work
};
inline constexpr int kArenaCount = 10;

enum class DType : uint8_t { f32 = 0, bf16 = 1, f16 = 2, u8 = 3, i32 = 4 };
inline constexpr int kDTypeCount = 5;

enum class Act : uint8_t { identity = 0, silu = 1, relu = 2, relu6 = 3, sigmoid = 4 };

enum OpFlags : uint16_t {
  kOpPrepare = 1,     // belongs to the prepare program: runs when weights changed, before the next step
  kOpRecomputed = 2,  // a forward op repeated in the backward part to save memory (shown by dump)
  kOpTf32 = 4,        // FP32 operands may go through tensor cores, rounded to TF32; for GPUs
  // The gradient of weights is rounded to the 16 bits that its images have; for GPUs, of conv2d_bwd_weights.
  kOpHalfGradient = 8,
};

// Consecutive ops of the step that are run for one image after another (or for several at once), all of them before the
// next image: its wide results stay in a core's cache. Their operands are weights, whole tensors that they only read,
// tensors of the arena `image`, and slices. op_count 0: there is none.
struct RegionRecord {
  uint32_t first_op, op_count;
  uint32_t images;
  uint32_t reserved;
};
static_assert(sizeof(RegionRecord) == 16);

enum TensorFlags : uint8_t {
  kTensorSlice = 1,  // the part of a batch that belongs to the region's image i: [offset + i * bytes, + bytes)
};

struct Header {
  uint32_t magic;
  uint32_t version;
  uint32_t op_table_hash;
  uint32_t header_bytes;  // sizeof(Header)
  uint64_t total_bytes;
  uint32_t tensor_count, op_count;
  uint32_t ref_count, attr_count;
  uint64_t tensors_offset;  // TensorRecord[tensor_count]
  uint64_t ops_offset;      // OpRecord[op_count]; prepare ops first
  uint64_t refs_offset;     // uint32_t[ref_count]: tensor indices, kNoTensor = absent
  uint64_t attrs_offset;    // double[attr_count]: every attribute is a double, integers exact
  uint64_t names_offset;    // bytes, UTF-8, not terminated
  uint64_t names_bytes;
  RegionRecord region;
  uint64_t arena_bytes[kArenaCount];
};
static_assert(sizeof(Header) == 104 + 8 * kArenaCount);

struct TensorRecord {
  uint32_t name_offset, name_bytes;
  uint8_t dtype, arena, rank, flags;
  uint32_t reserved;
  uint64_t offset, bytes;
  uint32_t dims[4];  // NHWC for images, OHWI for dense weights, HWC for depthwise weights; unused = 1
};
static_assert(sizeof(TensorRecord) == 48);

struct OpRecord {
  uint16_t op, flags;
  uint32_t name_offset, name_bytes;
  uint32_t input_first, input_count;    // into refs
  uint32_t output_first, output_count;  //
  uint32_t update_first, update_count;  // written in place
  uint32_t attr_first, attr_count;      // into attrs
};
static_assert(sizeof(OpRecord) == 44);

}  // namespace effnet::plan
