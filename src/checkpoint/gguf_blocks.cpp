#include "checkpoint/gguf_blocks.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace qwen2 {
namespace {

// Columns of the formats with one level of scales, and bytes of 6-bit factors in Q4_K, Q5_K and Q3_K.
constexpr int64_t kSmallBlock = 32;
constexpr int64_t kFactorBytes = 12;

int low(uint8_t byte) {
  return byte & 15;
}
int high(uint8_t byte) {
  return byte >> 4;
}

template <class T>
T load_block(const uint8_t* source) {
  T value = 0;
  std::memcpy(&value, source, sizeof value);
  return value;
}

// The functions below copy the codes and the factors of one block; its fp16 scale and minimum lie where the
// table of forms says.

void copy_q8_0(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  for (int64_t i = 0; i < kSmallBlock; ++i) {
    target.set_code(row, col + i, static_cast<int8_t>(block[2 + i]));
  }
}

// The low halves of the bytes are the first codes, the high halves the last.
void copy_nibbles(const uint8_t* codes, const QuantizedMatrix& target, int64_t row, int64_t col,
                  int64_t bytes) {
  for (int64_t i = 0; i < bytes; ++i) {
    target.set_code(row, col + i, low(codes[i]));
    target.set_code(row, col + bytes + i, high(codes[i]));
  }
}

// fp16 d; nibbles. The weight is d * (code - 8).
void copy_q4_0(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  copy_nibbles(block + 2, target, row, col, 16);
}

// fp16 d, fp16 m; nibbles. The weight is d * code + m.
void copy_q4_1(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  copy_nibbles(block + 4, target, row, col, 16);
}

// 32 bits, then nibbles: bit j is the fifth bit of code j. Codes are kept less `zero`.
void copy_five_bits(const uint8_t* source, const QuantizedMatrix& target, int64_t row, int64_t col,
                    int zero) {
  const auto fifth = load_block<uint32_t>(source);
  const uint8_t* const codes = source + sizeof fifth;
  for (int64_t i = 0; i < 16; ++i) {
    const auto code = [&](int nibble, int64_t place) {
      return (nibble | static_cast<int>(fifth >> place & 1) << 4) - zero;
    };
    target.set_code(row, col + i, code(low(codes[i]), i));
    target.set_code(row, col + 16 + i, code(high(codes[i]), 16 + i));
  }
}

// fp16 d; five bits. The weight is d * (code - 16).
void copy_q5_0(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  copy_five_bits(block + 2, target, row, col, 16);
}

// fp16 d, fp16 m; five bits. The weight is d * code + m.
void copy_q5_1(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  copy_five_bits(block + 4, target, row, col, 0);
}

// 16 bytes of nibbles that index ggml's table of levels; the levels are signed bytes and become the codes.
void copy_levels(const uint8_t* nibbles, const QuantizedMatrix& target, int64_t row, int64_t col) {
  static constexpr std::array<int8_t, 16> kLevels{-127, -104, -83, -65, -49, -35, -22, -10,
                                                  1,    13,   25,  38,  53,  69,  89,  113};
  for (int64_t i = 0; i < 16; ++i) {
    target.set_code(row, col + i, kLevels[static_cast<size_t>(low(nibbles[i]))]);
    target.set_code(row, col + 16 + i, kLevels[static_cast<size_t>(high(nibbles[i]))]);
  }
}

// fp16 d; nibbles. The weight is d * level.
void copy_iq4_nl(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  copy_levels(block + 2, target, row, col);
}

// fp16 d; eight 6-bit factors: their top two bits in 16 bits, their low halves in four bytes; nibbles. The
// weight is d * (factor - 32) * level.
void copy_iq4_xs(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  const auto upper = load_block<uint16_t>(block + 2);
  const uint8_t* const lower = block + 4;
  const uint8_t* const nibbles = block + 8;
  for (int64_t group = 0; group < 8; ++group) {
    const int factor = (lower[group / 2] >> (4 * (group % 2)) & 15) | (upper >> (2 * group) & 3) << 4;
    target.set_sub_scale(row, col + group * 32, static_cast<int8_t>(factor - 32));
    copy_levels(nibbles + group * 16, target, row, col + group * 32);
  }
}

// Calls set(i, code) for 256 codes of two bits: in each half of 128, byte i holds codes i, 32 + i, 64 + i and
// 96 + i, the lowest bits first.
template <class F>
void for_each_two_bits(const uint8_t* bytes, const F& set) {
  for (int64_t i = 0; i < kSuperBlock; ++i) {
    const int64_t half = i / 128;
    set(i, bytes[half * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3);
  }
}

// 16 bytes of factors, d's in the low half and dmin's in the high one; two bits a code; fp16 d and dmin. The
// weight is d * factor * code - dmin * factor'.
void copy_q2_k(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  for (int64_t group = 0; group < 16; ++group) {
    target.set_sub_scale(row, col + group * 16, static_cast<int8_t>(low(block[group])));
    target.set_sub_minimum(row, col + group * 16, static_cast<int8_t>(high(block[group])));
  }
  for_each_two_bits(block + 16, [&](int64_t i, int code) { target.set_code(row, col + i, code); });
}

// 32 bytes of third bits, bit g of byte i that of code i of the group g of 32; two bits a code; 12 bytes of
// 6-bit factors; fp16 d. Factors 0-7 have their low halves in the low halves of bytes 0-7, factors 8-15 in
// the high ones; the top two bits lie in bytes 8-11. The weight is d * (factor - 32) * (code - 4); the code is
// kept plus 4, since the zero of 4 bits is 8.
void copy_q3_k(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  const uint8_t* const packed = block + 96;
  for (int64_t group = 0; group < 16; ++group) {
    const int lower = group < 8 ? low(packed[group]) : high(packed[group - 8]);
    const int upper = packed[8 + group % 4] >> (2 * (group / 4)) & 3;
    target.set_sub_scale(row, col + group * 16, static_cast<int8_t>((lower | upper << 4) - 32));
  }
  for_each_two_bits(block + 32, [&](int64_t i, int code) {
    const int third = block[i % 32] >> (i / 32) & 1;
    target.set_code(row, col + i, (code | third << 2) + 4);
  });
}

// Q4_K's and Q5_K's head: fp16 d and dmin; eight 6-bit factors of each. The first four of d are the low bits
// of bytes 0-3, of dmin of bytes 4-7; the last four have their low halves in bytes 8-11 (d in the low one)
// and their top two bits in bytes 0-3 and 4-7. A weight is d * factor * code - dmin * factor'.
void copy_k_factors(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  const uint8_t* const packed = block + 4;
  for (int64_t i = 0; i < 4; ++i) {
    const auto set = [&](int64_t group, int scale, int minimum) {
      target.set_sub_scale(row, col + group * kSmallBlock, static_cast<int8_t>(scale));
      target.set_sub_minimum(row, col + group * kSmallBlock, static_cast<int8_t>(minimum));
    };
    set(i, packed[i] & 63, packed[4 + i] & 63);
    set(4 + i, low(packed[8 + i]) | (packed[i] >> 6) << 4, high(packed[8 + i]) | (packed[4 + i] >> 6) << 4);
  }
}

// Four pieces of 64 codes: the low halves of 32 bytes, then the high halves.
void copy_q4_k(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  copy_k_factors(block, target, row, col);
  const uint8_t* const codes = block + 4 + kFactorBytes;
  for (int64_t piece = 0; piece < 4; ++piece) {
    copy_nibbles(codes + piece * 32, target, row, col + piece * 64, 32);
  }
}

// As Q4_K, with the fifth bits before the nibbles: bit g of byte i is of code i of the group g of 32.
void copy_q5_k(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  copy_k_factors(block, target, row, col);
  const uint8_t* const fifth = block + 4 + kFactorBytes;
  const uint8_t* const codes = fifth + 32;
  for (int64_t piece = 0; piece < 4; ++piece) {
    for (int64_t i = 0; i < 32; ++i) {
      const uint8_t nibbles = codes[piece * 32 + i];
      const int bits = fifth[i] >> (2 * piece);
      target.set_code(row, col + piece * 64 + i, low(nibbles) | (bits & 1) << 4);
      target.set_code(row, col + piece * 64 + 32 + i, high(nibbles) | (bits >> 1 & 1) << 4);
    }
  }
}

// 128 bytes of low halves, 64 bytes of top two bits, 16 signed factors, fp16 scale. In each half of 128
// codes, byte i of the first holds codes i and 64 + i, byte i of the second codes i, 32 + i, 64 + i and 96 +
// i. The weight is d * factor * (code - 32), and the code is kept less 32.
void copy_q6_k(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  const uint8_t* const factors = block + 192;
  for (int64_t group = 0; group < 16; ++group) {
    target.set_sub_scale(row, col + group * 16, static_cast<int8_t>(factors[group]));
  }
  for (int64_t half = 0; half < 2; ++half) {
    const uint8_t* const lower = block + half * 64;
    const uint8_t* const upper = block + 128 + half * 32;
    const int64_t first = col + half * 128;
    for (int64_t i = 0; i < 32; ++i) {
      const auto code = [&](int nibble, int quarter) {
        return (nibble | (upper[i] >> (2 * quarter) & 3) << 4) - 32;
      };
      target.set_code(row, first + i, code(low(lower[i]), 0));
      target.set_code(row, first + 32 + i, code(low(lower[32 + i]), 1));
      target.set_code(row, first + 64 + i, code(high(lower[i]), 2));
      target.set_code(row, first + 96 + i, code(high(lower[32 + i]), 3));
    }
  }
}

struct BlockForm {
  GgmlType type;
  QuantizedFormat format;
  void (*copy)(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col);
  int64_t scale_at;               // bytes before the fp16 scale
  int64_t minimum_at = 0;         // bytes before the fp16 minimum, where the format has one
  bool minimum_is_added = false;  // the file has it with the other sign
};

constexpr auto kForms = std::to_array<BlockForm>({
    {GgmlType::kQ4_0, {4, 32, ScaleForm::kF16, OffsetForm::kNone}, copy_q4_0, 0},
    {GgmlType::kQ4_1, {4, 32, ScaleForm::kF16, OffsetForm::kMinimum}, copy_q4_1, 0, 2, true},
    {GgmlType::kQ5_0, {8, 32, ScaleForm::kF16, OffsetForm::kNone}, copy_q5_0, 0},
    {GgmlType::kQ5_1, {8, 32, ScaleForm::kF16, OffsetForm::kMinimum}, copy_q5_1, 0, 2, true},
    {GgmlType::kQ8_0, {8, 32, ScaleForm::kF16, OffsetForm::kNone}, copy_q8_0, 0},
    {GgmlType::kIQ4_NL, {8, 32, ScaleForm::kF16, OffsetForm::kNone}, copy_iq4_nl, 0},
    {GgmlType::kIQ4_XS, {8, 32, ScaleForm::kF16TimesI8, OffsetForm::kNone}, copy_iq4_xs, 0},
    {GgmlType::kQ2_K, {4, 16, ScaleForm::kF16TimesI8, OffsetForm::kMinimum}, copy_q2_k, 80, 82},
    {GgmlType::kQ3_K, {4, 16, ScaleForm::kF16TimesI8, OffsetForm::kNone}, copy_q3_k, 108},
    {GgmlType::kQ4_K, {4, 32, ScaleForm::kF16TimesI8, OffsetForm::kMinimum}, copy_q4_k, 0, 2},
    {GgmlType::kQ5_K, {8, 32, ScaleForm::kF16TimesI8, OffsetForm::kMinimum}, copy_q5_k, 0, 2},
    {GgmlType::kQ6_K, {8, 16, ScaleForm::kF16TimesI8, OffsetForm::kNone}, copy_q6_k, 208},
});

const BlockForm* form_of(GgmlType type) {
  const auto* const found =
      std::find_if(kForms.begin(), kForms.end(), [&](const BlockForm& form) { return form.type == type; });
  return found == kForms.end() ? nullptr : found;
}

bool is_finite_f16(uint16_t bits) {
  constexpr uint16_t kExponent = 0x7c00;
  return (bits & kExponent) != kExponent;
}

// False where a scale or a minimum is infinite or NaN.
bool copy_scales_of(const BlockForm& form, const uint8_t* block, const QuantizedMatrix& target, int64_t row,
                    int64_t col) {
  const auto scale = load_block<uint16_t>(block + form.scale_at);
  target.set_scale_f16(row, col, scale);
  if (form.format.offset != OffsetForm::kMinimum) return is_finite_f16(scale);
  const auto minimum = load_block<uint16_t>(block + form.minimum_at);
  constexpr unsigned kSign = 0x8000;
  target.set_minimum_f16(row, col, static_cast<uint16_t>(minimum ^ (form.minimum_is_added ? kSign : 0)));
  return is_finite_f16(scale) && is_finite_f16(minimum);
}

}  // namespace

std::optional<QuantizedFormat> gguf_format(GgmlType type) {
  const BlockForm* form = form_of(type);
  return form == nullptr ? std::nullopt : std::optional(form->format);
}

bool copy_gguf_row(GgmlType type, const std::byte* source, const QuantizedMatrix& target, int64_t row) {
  const BlockForm& form = *form_of(type);
  const GgmlBlock block = ggml_block(type);
  const auto* bytes = reinterpret_cast<const uint8_t*>(source);
  bool finite = true;
  for (int64_t col = 0; col < target.cols; col += block.elements, bytes += block.bytes) {
    finite = copy_scales_of(form, bytes, target, row, col) && finite;
    form.copy(bytes, target, row, col);
  }
  return finite;
}

}  // namespace qwen2
