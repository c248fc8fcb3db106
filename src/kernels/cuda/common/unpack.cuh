// Codes of 4 and 8 bits as fp16, exactly, by bit tricks.
#pragma once

#include "kernels/cuda/common/device.cuh"
#include "kernels/cuda/common/layout.h"

namespace qwen2::cuda {

// Two bytes of a word, less 128, as fp16. `pick` selects bytes for prmt: two of the word, two of `magic`,
// which is the exponent of 1024. `magic` is an argument because the compiler reloads a constant each time.
template <uint32_t pick>
__device__ __forceinline__ uint32_t unpack_bytes(uint32_t word, uint32_t magic) {
  uint32_t pair;  // 1024 + byte, twice
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(pair) : "r"(word), "r"(magic), "n"(pick));
  return as_bits(__hsub2(as_half2(pair), as_half2(0x64806480U)));  // - 1152
}

// Two codes as fp16: from the even or odd bytes of a word; of 4 bits, from their low or high halves.
template <MatrixForm form>
__device__ __forceinline__ uint32_t unpack_pair(uint32_t word, bool odd, bool high, uint32_t magic) {
  constexpr bool general = is_general(form);
  if constexpr (form_bits(form) == 8) {
    const uint32_t w = general ? word : word ^ 0x80808080U;
    return odd ? unpack_bytes<0x4341>(w, magic) : unpack_bytes<0x4240>(w, magic);
  } else {
    const uint32_t w = odd ? word >> 8 : word;
    if (!high) {  // 1024 + code, where a signed one has 8 added
      const uint32_t pair = and_xor(w, 0x000f000fU, general ? 0x64006400U : 0x64086408U);
      return as_bits(__hsub2(as_half2(pair), as_half2(general ? 0x64006400U : 0x64086408U)));
    }
    const uint32_t pair = and_xor(w, 0x00f000f0U, general ? 0x64006400U : 0x64806480U);
    return as_bits(__hfma2(as_half2(pair), as_half2(0x2c002c00U),
                           as_half2(general ? 0xd400d400U : 0xd480d480U)));  // (1024 + 16 code) / 16 - 64
  }
}

__device__ __forceinline__ uint32_t word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

}  // namespace qwen2::cuda
