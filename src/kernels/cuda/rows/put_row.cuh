// How activations of several rows are written in each layout.
#pragma once

#include "kernels/cuda/common/split_int8.cuh"
#include "kernels/cuda/rows/rows.h"

namespace qwen2::cuda {

// Writes four neighbouring activations of a row. For split int8, whole warps pass consecutive columns.
__device__ __forceinline__ void put_row(const RowsOut& out, int row, int k, const float4& v) {
  if (out.layout == ActivationLayout::kSplitInt8) {
    SplitInt8 terms;
    const float scale = split_to_int8(v, terms);
    auto* at = reinterpret_cast<std::byte*>(out.x) + split_int8_offset(out.stride, row, k);
    *reinterpret_cast<uint32_t*>(at) = terms.high;
    *reinterpret_cast<uint32_t*>(at + kLowTermOffset) = terms.low;
    if (k % kActivationGroup == 0) out.scales[k / kActivationGroup * kMaxRows + row] = scale;
    return;
  }
  uint2 halves = to_halves(v.x, v.y, v.z, v.w);
  if (out.layout == ActivationLayout::kLaneBlocks) halves = to_lane_order(halves);
  *reinterpret_cast<uint2*>(out.x + activation_offset(out.layout, out.stride, row, k)) = halves;
}

}  // namespace qwen2::cuda
