// Shapes of the tiled matrix products, shared with the host: a block of 8 warps makes kM x kN results at a time from
// operands that arrive in shared memory through a ring of stages.
#pragma once

#include <cstddef>
#include <cstdint>

namespace effnet::cuda {

inline constexpr uint32_t kTileThreads = 256;
inline constexpr int kTileStages = 3;

// An operand with the sum's index innermost in memory lies in a stage by rows of kDepth terms, one with results'
// index innermost by kDepth rows of it. Both are padded so that 8 consecutive rows begin on different banks.
enum class Layout { by_rows, by_depth };

// `kElement`: bytes of an operand's value, `kResult`: of a result. An operand's chunk is 16 bytes.
template <int kElement, int kM_, int kN_, Layout kLayoutA_, Layout kLayoutB_, int kResult = kElement>
struct TileShape {
  static constexpr int kM = kM_, kN = kN_;
  static constexpr Layout kLayoutA = kLayoutA_, kLayoutB = kLayoutB_;
  static constexpr int kVector = 16 / kElement;
  static constexpr int kDepth = 64 / kElement;  // terms of a step
  static constexpr int kWarpsN = kM == 32 ? 8 : kM == 64 ? (kN == 32 ? 2 : 4) : kN == 32 ? 1 : 2;
  static constexpr int kWarpsM = 8 / kWarpsN;
  static constexpr int kWarpRows = kM / kWarpsM, kWarpColumns = kN / kWarpsN;
  static_assert(kWarpRows % 16 == 0 && kWarpColumns % 16 == 0);

  // Of a stage, in elements.
  static constexpr int kPitchA = kLayoutA == Layout::by_rows ? kDepth + kVector : kM + 8;
  static constexpr int kPitchB = kLayoutB == Layout::by_rows ? kDepth + kVector : kN + 8;
  static constexpr int kSizeA = (kLayoutA == Layout::by_rows ? kM : kDepth) * kPitchA;
  static constexpr int kSizeB = (kLayoutB == Layout::by_rows ? kN : kDepth) * kPitchB;
  static constexpr size_t kStagesSize = size_t{kTileStages} * (kSizeA + kSizeB);
  // Results leave through a slab of 16 rows a warp.
  static constexpr int kSlabPitch = kWarpColumns + 8;
  static constexpr size_t kSlabsSize = size_t{8} * 16 * kSlabPitch;  // in results
  static constexpr size_t kShared = kStagesSize * kElement + kSlabsSize * kResult;
};

}  // namespace effnet::cuda
