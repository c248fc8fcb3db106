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
  static constexpr int kWideTile = 8;
  static constexpr int kWideVectors = 2;

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
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F abs(F x) { return _mm512_abs_ps(x); }
  static float reduce_add(F x) { return _mm512_reduce_add_ps(x); }
  static float reduce_max(F x) { return _mm512_reduce_max_ps(x); }
  static F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static float load_scale(uint16_t half) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half))); }
  static uint16_t to_f16(float x) {
    return static_cast<uint16_t>(
        _mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT), 0));
  }
  static void load_bf16_pairs(const uint16_t* p, F& even, F& odd) {
    const __m512i both = _mm512_loadu_si512(p);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000U))));
  }

  // 32-bit integers, or pairs of 16-bit ones: two neighbouring columns of a row.
  using I = __m512i;
  static I set1_i32(int32_t x) { return _mm512_set1_epi32(x); }
  static I mul_i32(I a, I b) { return _mm512_mullo_epi32(a, b); }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static I load_i8(const int8_t* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I load_i16(const int16_t* p) {
    return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static I low_half(I pairs) { return _mm512_srai_epi32(_mm512_slli_epi32(pairs, 16), 16); }
  static I high_half(I pairs) { return _mm512_srai_epi32(pairs, 16); }
  // Two activations of 16 bits, or four of 8, for every row.
  template <class T>
  static I repeat_32_bits(const T* x) {
    int32_t bits = 0;
    __builtin_memcpy(&bits, x, sizeof bits);
    return _mm512_set1_epi32(bits);
  }
  static I set_pair(const int16_t* x) { return repeat_32_bits(x); }
  // As _mm512_dpwssd_epi32(); around that g++ 12 copies every sum twice.
  static I dot(I sum, I a, I b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
  static I load_codes8(const uint8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  // Words of four 4-bit codes, and the J-th of each.
  static I load_words(const uint8_t* p) { return _mm512_loadu_si512(p); }
  template <int J>
  static I nibbles(I words) {
    if constexpr (J == 3) return _mm512_srli_epi16(words, 12);
    return _mm512_and_si512(J == 0 ? words : _mm512_srli_epi16(words, 4 * J), _mm512_set1_epi16(15));
  }
  // Bytes: unsigned codes and signed activations, four columns of a row in 32 bits.
  static I add_i32(I a, I b) { return _mm512_add_epi32(a, b); }
  static I load_bytes(const uint8_t* p) { return _mm512_load_si512(p); }
  static I set_quad(const int8_t* x) { return repeat_32_bits(x); }
  // As _mm512_dpbusd_epi32(); around that g++ 12 copies every sum twice.
  static I dot_bytes(I sum, I codes, I x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(x));
    return sum;
  }
  static void store_bytes(uint8_t* p, I x) { _mm512_store_si512(p, x); }
  // The even and the odd nibbles of words.
  static void nibble_bytes(const uint8_t* p, I& even, I& odd) {
    const I words = _mm512_loadu_si512(p);
    const I mask = _mm512_set1_epi8(15);
    even = _mm512_and_si512(words, mask);
    odd = _mm512_and_si512(_mm512_srli_epi16(words, 4), mask);
  }
  // Two lines of pairs of 32 rows as quads of unsigned bytes, of 16 rows each.
  static void quads(const uint8_t* first, const uint8_t* second, I& low, I& high) {
    const I a = _mm512_loadu_si512(first);
    const I b = _mm512_loadu_si512(second);
    alignas(64) static constexpr int16_t kLow[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                     37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                     11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const I places = _mm512_load_si512(kLow);
    const I sign = _mm512_set1_epi8(-128);
    low = _mm512_xor_si512(_mm512_permutex2var_epi16(a, places, b), sign);
    high = _mm512_xor_si512(_mm512_permutex2var_epi16(a, _mm512_add_epi16(places, _mm512_set1_epi16(16)), b),
                            sign);
  }
  // Rounds to 16-bit integers and returns their sum.
  static int32_t store_rounded(int16_t* p, F x) {
    const I rounded = _mm512_cvtps_epi32(x);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
    return _mm512_reduce_add_epi32(rounded);
  }
  static void store_bf16_pairs(uint16_t* p, F even, F odd) {
    const auto low = __builtin_bit_cast(__m256i, _mm512_cvtneps_pbh(even));
    const auto high = __builtin_bit_cast(__m256i, _mm512_cvtneps_pbh(odd));
    _mm512_storeu_si512(
        p, _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
  }
  static void store_bf16(uint16_t* p, F x) {
    const __m256bh packed = _mm512_cvtneps_pbh(x);
    __builtin_memcpy(p, &packed, sizeof packed);
  }
};

#include "kernels/cpu/kernels.inl"

#include "kernels/cpu/int8.inl"

}  // namespace

extern const Kernels kAvx512Kernels;
const Kernels kAvx512Kernels{Isa::kAvx512,      gemv_bf16,  gemv_quantized, quantize_activations,
                             sum_magnitudes,    gemm_int8,  order_for_int8, dequantize_block,
                             dequantize_column, add_scaled, quantize_group, attention,
                             merge_attention,   rope,       rms_norm,       swiglu,
                             to_bf16,           split_bf16, widen_block,    read_lines};

}  // namespace qwen2::cpu
