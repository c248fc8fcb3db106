// AVX-512 F, BW, DQ, VL and BF16. Compiled with those flags: nothing here runs before detect_isa() agrees.
#include <immintrin.h>

#include "kernels/cpu/kernels.h"

namespace qwen2::cpu {
namespace {

struct V {
  using F = __m512;
  static constexpr int kWidth = 16;
  static constexpr int kGemvVectors = 4;
  static constexpr int kBatchTile = 4;  // 16 sums, 8 unpacked weights, 2 inputs: 26 of 32 registers
  static constexpr int kBatchVectors = 4;

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F scale_by_power_of_two(F x, F n) { return _mm512_scalef_ps(x, n); }
  static F zero_below(F value, F x, float limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, set1(limit), _CMP_GE_OQ), value);
  }
  static float reduce_add(F x) { return _mm512_reduce_add_ps(x); }
  static float reduce_max(F x) { return _mm512_reduce_max_ps(x); }
  static F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static uint16_t to_f16(float x) {
    return static_cast<uint16_t>(
        _mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT), 0));
  }
  static void load_bf16_pairs(const uint16_t* p, F& even, F& odd) {
    const __m512i both = _mm512_loadu_si512(p);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000U))));
  }
  static void store_bf16(uint16_t* p, F x) {
    const __m256bh packed = _mm512_cvtneps_pbh(x);
    __builtin_memcpy(p, &packed, sizeof packed);
  }
};

#include "kernels/cpu/kernels.inl"

}  // namespace

extern const Kernels kAvx512Kernels;
const Kernels kAvx512Kernels{Isa::kAvx512, gemv_bf16, attention,  merge_attention, rope,      rms_norm,
                             swiglu,       to_bf16,   split_bf16, widen_block,     read_lines};

}  // namespace qwen2::cpu
