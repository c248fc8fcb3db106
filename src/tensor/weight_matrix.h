// A weight matrix [rows, cols] in whichever form it is kept, bf16 or quantised.
//
// Matrices that are multiplied with the same activations (query, key and value; gate and up) are one matrix.
// Where a checkpoint stores them in different formats, it has several parts, each some of the rows.
#pragma once

#include <algorithm>
#include <vector>

#include "tensor/packed_matrix.h"
#include "tensor/quantized_matrix.h"

namespace qwen2 {

struct WeightPart {
  int64_t first_row = 0;  // multiple of 64
  bool is_quantized = false;
  PackedMatrix dense = {};         // when not quantised
  QuantizedMatrix quantized = {};  // when quantised

  [[nodiscard]] int64_t rows() const { return is_quantized ? quantized.rows : dense.rows; }
  [[nodiscard]] int64_t cols() const { return is_quantized ? quantized.cols : dense.cols; }
  [[nodiscard]] int64_t blocks() const { return round_up(rows(), kBlockRows) / kBlockRows; }
  [[nodiscard]] size_t bytes() const { return is_quantized ? quantized.bytes() : dense.bytes(); }
};

struct WeightMatrix {
  std::vector<WeightPart> parts;  // by first_row; without gaps

  static WeightMatrix of(const PackedMatrix& matrix) { return {{{.dense = matrix}}}; }
  static WeightMatrix of(const QuantizedMatrix& matrix) {
    return {{{.is_quantized = true, .quantized = matrix}}};
  }

  [[nodiscard]] int64_t rows() const { return parts.back().first_row + parts.back().rows(); }
  [[nodiscard]] int64_t cols() const { return parts.front().cols(); }
  [[nodiscard]] int64_t blocks() const { return round_up(rows(), kBlockRows) / kBlockRows; }
  [[nodiscard]] size_t bytes() const {
    size_t bytes = 0;
    for (const WeightPart& part : parts) bytes += part.bytes();
    return bytes;
  }
  [[nodiscard]] bool is_quantized() const {
    return std::all_of(parts.begin(), parts.end(), [](const WeightPart& part) { return part.is_quantized; });
  }
  // Reads row `row` into `out` [cols], in the activations' order.
  void get_row(int64_t row, float* out) const {
    for (const WeightPart& part : parts) {
      const int64_t own = row - part.first_row;
      if (own >= part.rows()) continue;
      return part.is_quantized ? part.quantized.get_row(own, out) : part.dense.get_row(own, out);
    }
  }
};

}  // namespace qwen2
