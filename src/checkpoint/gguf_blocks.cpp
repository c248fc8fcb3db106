#include "checkpoint/gguf_blocks.h"

#include <cstring>

namespace qwen2 {
namespace {

// Columns of the formats with one level of scales, and bytes of 6-bit factors in Q4_K and Q5_K.
constexpr int64_t kSmallBlock = 32;
constexpr int64_t kFactorBytes = 12;

int low(uint8_t byte) {
  return byte & 15;
}
int high(uint8_t byte) {
  return byte >> 4;
}

uint16_t half_bits(const uint8_t* source) {
  uint16_t bits = 0;
  std::memcpy(&bits, source, sizeof bits);
  return bits;
}

// fp16 scale; 32 signed bytes.
void copy_q8_0(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  target.set_scale_f16(row, col, half_bits(block));
  for (int64_t i = 0; i < kSmallBlock; ++i) {
    target.set_code(row, col + i, static_cast<int8_t>(block[2 + i]));
  }
}

// 16 bytes: the low halves are the first 16 codes, the high halves the last.
void copy_nibbles(const uint8_t* codes, const QuantizedMatrix& target, int64_t row, int64_t col,
                  int64_t bytes) {
  for (int64_t i = 0; i < bytes; ++i) {
    target.set_code(row, col + i, low(codes[i]));
    target.set_code(row, col + bytes + i, high(codes[i]));
  }
}

// fp16 scale d; nibbles. The weight is d * (code - 8).
void copy_q4_0(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  target.set_scale_f16(row, col, half_bits(block));
  copy_nibbles(block + 2, target, row, col, 16);
}

// fp16 scale d, fp16 offset m; nibbles. The weight is d * code + m, so the minimum is -m: only its sign
// flips.
void copy_q4_1(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  target.set_scale_f16(row, col, half_bits(block));
  target.set_minimum_f16(row, col, static_cast<uint16_t>(half_bits(block + 2) ^ 0x8000U));
  copy_nibbles(block + 4, target, row, col, 16);
}

// Q4_K's and Q5_K's head: fp16 d and dmin; eight 6-bit factors of each. The first four of d are the low bits
// of bytes 0-3, of dmin of bytes 4-7; the last four have their low halves in bytes 8-11 (d in the low one)
// and their top two bits in bytes 0-3 and 4-7. A weight is d * factor * code - dmin * factor'.
void copy_k_scales(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  target.set_scale_f16(row, col, half_bits(block));
  target.set_minimum_f16(row, col, half_bits(block + 2));
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
  copy_k_scales(block, target, row, col);
  const uint8_t* const codes = block + 4 + kFactorBytes;
  for (int64_t piece = 0; piece < 4; ++piece) {
    copy_nibbles(codes + piece * 32, target, row, col + piece * 64, 32);
  }
}

// As Q4_K, with the fifth bits before the nibbles: bit g of byte i is of code i of the group g of 32.
void copy_q5_k(const uint8_t* block, const QuantizedMatrix& target, int64_t row, int64_t col) {
  copy_k_scales(block, target, row, col);
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
  target.set_scale_f16(row, col, half_bits(factors + 16));
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

using CopyBlock = void (*)(const uint8_t*, const QuantizedMatrix&, int64_t, int64_t);

CopyBlock copy_of(GgmlType type) {
  switch (type) {
    case GgmlType::kQ8_0:
      return copy_q8_0;
    case GgmlType::kQ4_0:
      return copy_q4_0;
    case GgmlType::kQ4_1:
      return copy_q4_1;
    case GgmlType::kQ4_K:
      return copy_q4_k;
    case GgmlType::kQ5_K:
      return copy_q5_k;
    case GgmlType::kQ6_K:
      return copy_q6_k;
    default:
      return nullptr;
  }
}

}  // namespace

std::optional<QuantizedFormat> gguf_format(GgmlType type) {
  switch (type) {
    case GgmlType::kQ8_0:
      return QuantizedFormat{8, 32, ScaleForm::kF16, OffsetForm::kNone};
    case GgmlType::kQ4_0:
      return QuantizedFormat{4, 32, ScaleForm::kF16, OffsetForm::kNone};
    case GgmlType::kQ4_1:
      return QuantizedFormat{4, 32, ScaleForm::kF16, OffsetForm::kMinimum};
    case GgmlType::kQ4_K:
      return QuantizedFormat{4, 32, ScaleForm::kF16TimesI8, OffsetForm::kMinimum};
    case GgmlType::kQ5_K:
      return QuantizedFormat{8, 32, ScaleForm::kF16TimesI8, OffsetForm::kMinimum};
    case GgmlType::kQ6_K:
      return QuantizedFormat{8, 16, ScaleForm::kF16TimesI8, OffsetForm::kNone};
    default:
      return std::nullopt;
  }
}

void copy_gguf_row(GgmlType type, const std::byte* source, const QuantizedMatrix& target, int64_t row) {
  const CopyBlock copy = copy_of(type);
  const GgmlBlock block = ggml_block(type);
  const auto* bytes = reinterpret_cast<const uint8_t*>(source);
  for (int64_t col = 0; col < target.cols; col += block.elements, bytes += block.bytes) {
    copy(bytes, target, row, col);
  }
}

}  // namespace qwen2
