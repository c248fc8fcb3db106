// Split int8 activations: 16-bit integers as two signed 8-bit terms, for products in integers.
//
// kActivationGroup neighbouring activations share a scale: their largest magnitude over kSplitInt8Limit.
// Each is rounded to 256 * high + low. The two terms are two columns of the tensor core instruction. A
// chunk's sums are exact, so they do not depend on the order of additions.
#pragma once

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/layout.h"

namespace qwen2::cuda {

constexpr float kSplitInt8Limit = 127 * 256;
static_assert(kActivationGroup == 4 * kWarp);  // four activations a lane

// The terms of four neighbouring activations, one in each byte.
struct SplitInt8 {
  uint32_t high, low;
};

__device__ __forceinline__ float warp_max_magnitude(float v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __uint_as_float(
      __reduce_max_sync(kFullMask, __float_as_uint(v)));  // the bits of v >= 0 are ordered like v
#else
  return warp_max(v);
#endif
}

// Splits kActivationGroup activations, four of each lane of a whole warp, in their order. Returns their
// scale.
__device__ __forceinline__ float split_to_int8(const float4& v, SplitInt8& split_int8) {
  const float largest =
      warp_max_magnitude(fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
  float inverse;  // the operand is never denormal, which __fdividef() would check
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(fmaxf(largest, 1e-30F)));
  inverse = __fmul_rn(inverse, kSplitInt8Limit);
  // Adding 1.5 * 2^23 leaves the rounded integer in the lowest bits; adding 128 more rounds the high term.
  constexpr float kShift = 12582912;
  const auto in_bits = [&](float value, float shift) {
    return __float_as_uint(__fmaf_rn(value, inverse, shift));
  };
  const auto bytes = [&](float shift, uint32_t pick) {
    const uint32_t first = __byte_perm(in_bits(v.x, shift), in_bits(v.y, shift), pick);
    const uint32_t second = __byte_perm(in_bits(v.z, shift), in_bits(v.w, shift), pick);
    return __byte_perm(first, second, 0x5410);
  };
  split_int8.low = bytes(kShift, 0x0040);
  split_int8.high = bytes(kShift + 128, 0x0051);
  return __fmul_rn(largest, 1 / kSplitInt8Limit);
}

}  // namespace qwen2::cuda
