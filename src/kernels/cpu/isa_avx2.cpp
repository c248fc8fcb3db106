// AVX2, FMA and F16C. Compiled with those flags: nothing here runs before detect_isa() agrees.
#include <immintrin.h>

#include "kernels/cpu/kernels.h"

namespace qwen2::cpu {
namespace {

struct V {
  using F = __m256;
  static constexpr int kWidth = 8;
  static constexpr int kGemvVectors = 8;
  static constexpr int kBatchTile = 2;
  static constexpr int kBatchVectors = 4;
  static constexpr int kWideTile = 4;
  static constexpr int kWideVectors = 2;

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F scale_by_power_of_two(F x, F n) {
    const __m256i exponent =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return mul(x, _mm256_castsi256_ps(exponent));
  }
  static F zero_below(F value, F x, float limit) {
    return _mm256_and_ps(value, _mm256_cmp_ps(x, set1(limit), _CMP_GE_OQ));
  }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F abs(F x) { return _mm256_andnot_ps(set1(-0.0F), x); }
  static float reduce_add(F x) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }
  static float reduce_max(F x) {
    __m128 peak = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    peak = _mm_max_ps(peak, _mm_movehl_ps(peak, peak));
    return _mm_cvtss_f32(_mm_max_ss(peak, _mm_movehdup_ps(peak)));
  }
  static F load_f16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static float load_scale(uint16_t half) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half))); }
  static uint16_t to_f16(float x) {
    return static_cast<uint16_t>(
        _mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT), 0));
  }
  static void load_bf16_pairs(const uint16_t* p, F& even, F& odd) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000U))));
  }

  // 32-bit integers, or pairs of 16-bit ones: two neighbouring columns of a row.
  using I = __m256i;
  static I set1_i32(int32_t x) { return _mm256_set1_epi32(x); }
  static I mul_i32(I a, I b) { return _mm256_mullo_epi32(a, b); }
  static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
  static I load_i8(const int8_t* p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static I load_i16(const int16_t* p) {
    return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I low_half(I pairs) { return _mm256_srai_epi32(_mm256_slli_epi32(pairs, 16), 16); }
  static I high_half(I pairs) { return _mm256_srai_epi32(pairs, 16); }
  static I set_pair(const int16_t* x) {
    int32_t both = 0;
    __builtin_memcpy(&both, x, sizeof both);
    return _mm256_set1_epi32(both);
  }
  static I dot(I sum, I a, I b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
  static I load_codes8(const uint8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // Words of four 4-bit codes, and the J-th of each.
  static I load_words(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  template <int J>
  static I nibbles(I words) {
    if constexpr (J == 3) return _mm256_srli_epi16(words, 12);
    return _mm256_and_si256(J == 0 ? words : _mm256_srli_epi16(words, 4 * J), _mm256_set1_epi16(15));
  }
  // Rounds to 16-bit integers and returns their sum.
  static int32_t store_rounded(int16_t* p, F x) {
    const I rounded = _mm256_cvtps_epi32(x);
    const __m128i packed =
        _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    sum = _mm_add_epi32(sum, _mm_unpackhi_epi64(sum, sum));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 1)));
  }
  // The bf16 roundings of x in the low halves of 32-bit integers.
  static I round_bf16(F x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i tie = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, tie), _mm256_set1_epi32(0x7fff)), 16);
    const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
  }
  static void store_bf16_pairs(uint16_t* p, F even, F odd) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm256_or_si256(round_bf16(even), _mm256_slli_epi32(round_bf16(odd), 16)));
  }
  static void store_bf16(uint16_t* p, F x) {
    const __m256i result = round_bf16(x);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }
};

#include "kernels/cpu/kernels.inl"

}  // namespace

extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels{Isa::kAvx2,        gemv_bf16,  gemv_quantized, quantize_activations,
                           sum_magnitudes,    nullptr,    nullptr,        dequantize_block,
                           dequantize_column, add_scaled, quantize_group, attention,
                           merge_attention,   rope,       rms_norm,       swiglu,
                           to_bf16,           split_bf16, widen_block,    read_lines};

}  // namespace qwen2::cpu
