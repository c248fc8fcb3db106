// Codes of 4 and 8 bits as fp16, exactly, by bit tricks.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/layout.h"

namespace qwen2::cuda {

// Two fp16 pairs of the q-th pairs of a word, exact.
template <MatrixForm form>
__device__ __forceinline__ uint32_t unpack_pair(uint32_t word, int q, uint32_t magic) {
  if constexpr (form_bits(form) == 8) {
    uint32_t
        pair;  // 1024 + byte, twice; the selector as a constant: the compiler would rather load it each time
    if (q == 0) {
      asm("prmt.b32 %0, %1, %2, 0x4140;" : "=r"(pair) : "r"(word), "r"(magic));
    } else {
      asm("prmt.b32 %0, %1, %2, 0x4342;" : "=r"(pair) : "r"(word), "r"(magic));
    }
    return as_bits(__hsub2(as_half2(pair), as_half2(0x64806480U)));  // - 1152
  } else {
    constexpr bool general = is_general(form);
    const uint32_t w = q >= 2 ? word >> 8 : word;
    if (q % 2 == 0) {  // 1024 + code
      return as_bits(__hsub2(as_half2(and_or(w, 0x000f000fU, 0x64006400U)),
                             as_half2(general ? 0x64006400U : 0x64086408U)));
    }
    return as_bits(__hfma2(as_half2(and_or(w, 0x00f000f0U, 0x64006400U)), as_half2(0x2c002c00U),
                           as_half2(general ? 0xd400d400U : 0xd480d480U)));  // (1024 + 16 code) / 16 - 64
  }
}

__device__ __forceinline__ uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

}  // namespace qwen2::cuda
