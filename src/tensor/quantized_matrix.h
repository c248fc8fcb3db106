// The one in-memory form of a quantised weight matrix W [rows, cols]: grouped affine,
//   w[n][k] = scale * (code - zero)   or   scale * code - minimum,
// with one scale and one zero or minimum for each row and group of neighbouring columns. Every format that is
// read maps onto it without a second rounding: codes are copied, and a scale is kept as its format has it.
//
// 8-bit codes are signed, 4-bit codes are 0..15. Rows go in blocks of 64, as in PackedMatrix, so that a
// thread reads one sequential stream:
//   8 bits: code (n, k) is byte  block * 64 * cols + (k / 2) * 128 + (n % 64) * 2 + k % 2
//   4 bits: columns go in eights; the 16-bit word  block * 16 * cols + (k / 8) * 128 + (n % 64) * 2 + k % 2
//           holds the codes of columns k % 2 + {0, 2, 4, 6} of its eight, lowest bits first
//   scales, zeros, minima: block, then group (or super-block), then row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"
#include "tensor/packed_matrix.h"

namespace qwen2 {

// Columns of a super-block, as in GGUF's K-quants.
constexpr int64_t kSuperBlock = 256;

enum class ScaleForm : uint8_t {
  kF16,         // fp16 a group
  kF32,         // float a group
  kF16TimesI8,  // fp16 a super-block times a signed byte a group
};

enum class OffsetForm : uint8_t {
  kNone,     // the zero is 8 for 4 bits and 0 for 8 bits
  kZero,     // a 16-bit signed integer a group
  kMinimum,  // fp16 a group; with kF16TimesI8, fp16 a super-block times a signed byte a group
};

struct QuantizedFormat {
  int bits = 8;       // 4 or 8
  int64_t group = 0;  // columns: a multiple of 8 that divides the matrix's columns
  ScaleForm scale = ScaleForm::kF16;
  OffsetForm offset = OffsetForm::kNone;
  bool permuted = false;  // columns are stored in another order than the activations'

  bool operator==(const QuantizedFormat&) const = default;
};

struct QuantizedMatrix {
  QuantizedFormat format;
  int64_t rows = 0;
  int64_t cols = 0;  // multiple of 8
  uint8_t* codes = nullptr;
  std::byte* scales = nullptr;     // fp16 or float, see ScaleForm
  int8_t* sub_scales = nullptr;    // kF16TimesI8
  std::byte* offsets = nullptr;    // int16 zeros or fp16 minima, see OffsetForm
  int8_t* sub_offsets = nullptr;   // kF16TimesI8 and kMinimum
  int32_t* permutation = nullptr;  // [cols]: stored column k belongs to activation permutation[k]

  [[nodiscard]] int64_t blocks() const { return round_up(rows, kBlockRows) / kBlockRows; }
  [[nodiscard]] int64_t groups() const { return cols / format.group; }
  [[nodiscard]] bool two_level() const { return format.scale == ScaleForm::kF16TimesI8; }
  // Columns that share one element of `scales`, and of kMinimum `offsets`.
  [[nodiscard]] int64_t scale_group() const { return two_level() ? kSuperBlock : format.group; }
  [[nodiscard]] size_t block_code_bytes() const {
    return static_cast<size_t>(kBlockRows * cols * format.bits / 8);
  }
  // Place of (row, col) in a table with one element for every `group` columns.
  [[nodiscard]] size_t table_index(int64_t row, int64_t col, int64_t group) const {
    return static_cast<size_t>((row / kBlockRows * (cols / group) + col / group) * kBlockRows +
                               row % kBlockRows);
  }

  // Bytes of each array, in the order of the members; 0 for what the format does not have.
  struct Sizes {
    size_t codes, scales, sub_scales, offsets, sub_offsets, permutation;
  };
  [[nodiscard]] Sizes sizes() const;
  // Everything that a product reads.
  [[nodiscard]] size_t bytes() const;

  // Element by element, for readers, references and tests. `col` is the stored column.
  [[nodiscard]] int code(int64_t row, int64_t col) const;
  void set_code(int64_t row, int64_t col, int code) const;
  // Sets the scale of the (super-)group that holds (row, col): fp16 bits, or a float where the form is kF32.
  void set_scale_f16(int64_t row, int64_t col, uint16_t bits) const;
  void set_scale_f32(int64_t row, int64_t col, float scale) const;
  void set_sub_scale(int64_t row, int64_t col, int8_t factor) const;
  void set_zero(int64_t row, int64_t col, int zero) const;
  void set_minimum_f16(int64_t row, int64_t col, uint16_t bits) const;
  void set_sub_minimum(int64_t row, int64_t col, int8_t factor) const;
  [[nodiscard]] float scale(int64_t row, int64_t col) const;    // of the group
  [[nodiscard]] float minimum(int64_t row, int64_t col) const;  // scale * zero, or the minimum
  [[nodiscard]] float value(int64_t row, int64_t col) const {
    return scale(row, col) * static_cast<float>(code(row, col)) - minimum(row, col);
  }
  // Reads row `row` into `out` [cols], in the activations' order; each value is rounded at most once, to
  // float.
  void get_row(int64_t row, float* out) const;
};

}  // namespace qwen2
