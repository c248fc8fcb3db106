// Activations as integers of 16 bits, for products with symmetric codes in groups of whole chunks.
//
// kDigitColumns neighbouring activations share a scale, their largest magnitude over kDigitLimit; each is
// rounded to 256 * high + low, two signed 8-bit digits, which are two columns of the tensor cores' integer
// step. Sums of a chunk are exact, so that no kernel's order of work shows in them.
#pragma once

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/layout.h"

namespace qwen2::cuda {

// Products in integers, or in fp16.
template <MatrixForm form, bool fine>
constexpr bool kInDigits = form != MatrixForm::kF16 && !fine;

constexpr float kDigitLimit = 127 * 256;
static_assert(kDigitColumns == 4 * kWarp);  // a lane has four neighbours

// Of four neighbours, in the bytes of a word.
struct Digits {
  uint32_t high, low;
};

__device__ __forceinline__ float warp_max_magnitude(float v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __uint_as_float(
      __reduce_max_sync(kFullMask, __float_as_uint(v)));  // bits of v >= 0 are in its order
#else
  return warp_max(v);
#endif
}

// By a whole warp, whose lanes have kDigitColumns activations in their order. Returns their scale.
__device__ __forceinline__ float make_digits(const float4& v, Digits& digits) {
  const float largest =
      warp_max_magnitude(fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
  float inverse;  // of no denormal number: __fdividef() would care for them
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(fmaxf(largest, 1e-30F)));
  inverse = __fmul_rn(inverse, kDigitLimit);
  // The sum with 1.5 * 2^23 has the rounded integer in its lowest bits, that with 128 more the high digit.
  constexpr float kShift = 12582912;
  const auto in_bits = [&](float value, float shift) {
    return __float_as_uint(__fmaf_rn(value, inverse, shift));
  };
  const auto bytes = [&](float shift, uint32_t pick) {
    const uint32_t first = __byte_perm(in_bits(v.x, shift), in_bits(v.y, shift), pick);
    const uint32_t second = __byte_perm(in_bits(v.z, shift), in_bits(v.w, shift), pick);
    return __byte_perm(first, second, 0x5410);
  };
  digits.low = bytes(kShift, 0x0040);
  digits.high = bytes(kShift + 128, 0x0051);
  return __fmul_rn(largest, 1 / kDigitLimit);
}

// c[16 x 8] += a[16 x 32] * b[32 x 8], signed bytes in, sums of 32 bits. Lane (g = lane / 4, t = lane % 4)
// holds rows g and g + 8 of a and c, column g of b. Turing has the step of 8 x 16 only.
__device__ __forceinline__ void mma_integer(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  const auto step = [](int& c0, int& c1, uint32_t a, uint32_t b) {
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
        : "+r"(c0), "+r"(c1)
        : "r"(a), "r"(b));
  };
  step(c[0], c[1], a[0], b0);
  step(c[2], c[3], a[1], b0);
  step(c[0], c[1], a[2], b1);
  step(c[2], c[3], a[3], b1);
#endif
}

}  // namespace qwen2::cuda
