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
  static float reduce_add(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static float reduce_max(F x) {
    float peak = x[0];
    for (int i = 1; i < kWidth; ++i) peak = x[i] > peak ? x[i] : peak;
    return peak;
  }
  static F load_f16(const uint16_t* p) {
    return F{f16_to_float(p[0]), f16_to_float(p[1]), f16_to_float(p[2]), f16_to_float(p[3])};
  }
  static uint16_t to_f16(float x) { return float_to_f16(x); }
  static void load_bf16_pairs(const uint16_t* p, F& even, F& odd) {
    U both;
    __builtin_memcpy(&both, p, sizeof both);
    const U low = both << 16;
    const U high = both & 0xffff0000U;
    even = __builtin_bit_cast(F, low);
    odd = __builtin_bit_cast(F, high);
  }
  static void store_bf16(uint16_t* p, F x) {
    for (int i = 0; i < kWidth; ++i) p[i] = float_to_bf16(x[i]);
  }
};

#include "kernels/cpu/kernels.inl"

}  // namespace

extern const Kernels kBaselineKernels;
const Kernels kBaselineKernels{Isa::kBaseline, gemv_bf16, attention,  merge_attention, rope,      rms_norm,
                               swiglu,         to_bf16,   split_bf16, widen_block,     read_lines};

}  // namespace qwen2::cpu
