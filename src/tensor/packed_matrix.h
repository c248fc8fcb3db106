// The in-memory form of a 16-bit weight matrix W [rows = outputs, cols = inputs], y = W x.
//
// Rows are grouped in blocks of 64; inside a block the columns go in pairs and each pair holds its 64 rows:
//   element (n, k) lies at  (n / 64) * 64 * padded_cols + (k / 2) * 128 + (n % 64) * 2 + k % 2.
// One thread that decodes a range of blocks so reads one sequential stream, needs no horizontal sums, and the
// same bytes are oneDNN's BA16a64b2a layout, so that prompts use the weights without a second copy.
// Padding (rows to 64, cols to 32) is zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace qwen2 {

constexpr int64_t kBlockRows = 64;
constexpr int64_t kBlockCols = 32;

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

struct PackedMatrix {
  uint16_t* data = nullptr;  // bf16
  int64_t rows = 0;
  int64_t cols = 0;

  [[nodiscard]] int64_t padded_cols() const { return round_up(cols, kBlockCols); }
  [[nodiscard]] int64_t blocks() const { return round_up(rows, kBlockRows) / kBlockRows; }
  [[nodiscard]] int64_t block_elements() const { return kBlockRows * padded_cols(); }
  [[nodiscard]] size_t bytes() const { return packed_bytes(rows, cols); }
  [[nodiscard]] const uint16_t* block(int64_t index) const { return data + index * block_elements(); }

  static size_t packed_bytes(int64_t rows, int64_t cols) {
    return static_cast<size_t>(round_up(rows, kBlockRows) * round_up(cols, kBlockCols)) * 2;
  }

  // Writes row `row` from `values` [cols], rounded to bf16 (to nearest, ties to even).
  void set_row(int64_t row, const float* values) const;
  // Reads row `row` into `out` [cols].
  void get_row(int64_t row, float* out) const;

 private:
  [[nodiscard]] uint16_t* row_start(int64_t row) const {
    return data + row / kBlockRows * block_elements() + row % kBlockRows * 2;
  }
};

}  // namespace qwen2
