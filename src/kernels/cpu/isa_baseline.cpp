// What any 64-bit processor runs: short arrays that the compiler turns into its baseline's vectors.
#include "kernels/cpu/kernels.h"
#include "tensor/dtype.h"

namespace qwen2::cpu {
namespace {

struct V {
  static constexpr int kWidth = 4;
  static constexpr int kGemvVectors = 8;
  static constexpr int kBatchTile = 2;
  static constexpr int kBatchVectors = 4;
  static constexpr int kWideTile = 4;
  static constexpr int kWideVectors = 2;
  using F = float __attribute__((vector_size(16)));
  using I = int32_t __attribute__((vector_size(16)));
  using U = uint32_t __attribute__((vector_size(16)));

  static F load(const float* p) {
    F x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  static void store(float* p, F x) { __builtin_memcpy(p, &x, sizeof x); }
  static F set1(float x) { return F{x, x, x, x}; }
  static F add(F a, F b) { return a + b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F max(F a, F b) { return a > b ? a : b; }
  static F min(F a, F b) { return a < b ? a : b; }
  static F round(F x) {  // adding and subtracting 1.5 * 2^23 rounds to the nearest integer
    const F magic = set1(12582912.0F);
    return (x + magic) - magic;
  }
  static F scale_by_power_of_two(F x, F n) {
    const I exponent = (__builtin_convertvector(n, I) + 127) << 23;
    return x * __builtin_bit_cast(F, exponent);
  }
  static F zero_below(F value, F x, float limit) { return x >= set1(limit) ? value : set1(0.0F); }
  static F sub(F a, F b) { return a - b; }
  static F abs(F x) { return max(x, -x); }
  static float reduce_add(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static float reduce_max(F x) {
    float peak = x[0];
    for (int i = 1; i < kWidth; ++i) peak = x[i] > peak ? x[i] : peak;
    return peak;
  }
  static F load_f16(const uint16_t* p) {
    return F{f16_to_float(p[0]), f16_to_float(p[1]), f16_to_float(p[2]), f16_to_float(p[3])};
  }
  static float load_scale(uint16_t half) { return f16_to_float(half); }
  static uint16_t to_f16(float x) { return float_to_f16(x); }
  static void load_bf16_pairs(const uint16_t* p, F& even, F& odd) {
    U both;
    __builtin_memcpy(&both, p, sizeof both);
    const U low = both << 16;
    const U high = both & 0xffff0000U;
    even = __builtin_bit_cast(F, low);
    odd = __builtin_bit_cast(F, high);
  }

  // 32-bit integers, or pairs of 16-bit ones: two neighbouring columns of a row.
  static I set1_i32(int32_t x) { return I{x, x, x, x}; }
  static I mul_i32(I a, I b) { return a * b; }
  static F to_float(I x) { return __builtin_convertvector(x, F); }
  static I load_i8(const int8_t* p) { return I{p[0], p[1], p[2], p[3]}; }
  static I load_i16(const int16_t* p) { return I{p[0], p[1], p[2], p[3]}; }
  static I low_half(I pairs) { return (pairs << 16) >> 16; }
  static I high_half(I pairs) { return pairs >> 16; }
  static I set_pair(const int16_t* x) {
    int32_t both = 0;
    __builtin_memcpy(&both, x, sizeof both);
    return set1_i32(both);
  }
  static I dot(I sum, I a, I b) { return sum + low_half(a) * low_half(b) + high_half(a) * high_half(b); }
  static I load_codes8(const uint8_t* p) {
    I pairs;
    for (int i = 0; i < kWidth; ++i) {
      const int32_t low = static_cast<int32_t>(p[2 * i] ^ 0x80U) - 128;
      const int32_t high = static_cast<int32_t>(p[2 * i + 1] ^ 0x80U) - 128;
      pairs[i] =
          static_cast<int32_t>((static_cast<uint32_t>(high) << 16) | (static_cast<uint32_t>(low) & 0xffffU));
    }
    return pairs;
  }
  // Words of four 4-bit codes, and the J-th of each.
  static I load_words(const uint8_t* p) {
    I words;
    __builtin_memcpy(&words, p, sizeof words);
    return words;
  }
  template <int J>
  static I nibbles(I words) {
    return __builtin_bit_cast(I, (__builtin_bit_cast(U, words) >> (4U * J)) & 0x000f000fU);
  }
  // Rounds to 16-bit integers and returns their sum.
  static int32_t store_rounded(int16_t* p, F x) {
    const I rounded = __builtin_convertvector(round(x), I);
    for (int i = 0; i < kWidth; ++i) p[i] = static_cast<int16_t>(rounded[i]);
    return (rounded[0] + rounded[1]) + (rounded[2] + rounded[3]);
  }
  static void store_bf16_pairs(uint16_t* p, F even, F odd) {
    for (int i = 0; i < kWidth; ++i) {
      p[2 * i] = float_to_bf16(even[i]);
      p[2 * i + 1] = float_to_bf16(odd[i]);
    }
  }
  static void store_bf16(uint16_t* p, F x) {
    for (int i = 0; i < kWidth; ++i) p[i] = float_to_bf16(x[i]);
  }
};

#include "kernels/cpu/kernels.inl"

}  // namespace

extern const Kernels kBaselineKernels;
const Kernels kBaselineKernels{Isa::kBaseline,    gemv_bf16,  gemv_quantized, quantize_activations,
                               sum_magnitudes,    nullptr,    nullptr,        dequantize_block,
                               dequantize_column, add_scaled, quantize_group, attention,
                               merge_attention,   rope,       rms_norm,       swiglu,
                               to_bf16,           split_bf16, widen_block,    read_lines};

}  // namespace qwen2::cpu
