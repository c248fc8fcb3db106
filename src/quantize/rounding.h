// Rounding to the nearest code of a group's scale, and the form that every method's result has.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/kernels.h"

namespace qwen2::quantize {

// Grouped affine weights: w[n][k] = scale[n][g] * (code[n][k] - zero[n][g]) with g = group_of[k].
struct GroupedWeights {
  int bits = 4;  // 4 or 8
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t group = 0;              // columns; divides cols
  std::vector<uint8_t> codes;     // [rows][cols], 0 .. 2^bits - 1
  std::vector<uint16_t> scales;   // fp16 [rows][groups]
  std::vector<uint8_t> zeros;     // [rows][groups]
  std::vector<int32_t> group_of;  // [cols]; `group` columns have each group

  GroupedWeights(int bits_of_code, int64_t row_count, int64_t col_count, int64_t group_size);
  [[nodiscard]] int64_t groups() const { return cols / group; }
  // The values of one row, [cols].
  void expand_row(int64_t row, float* out) const;
};

// Symmetric, with the clip search that loading in 4 or 8 bits uses (Kernels::quantize_group). `group` is a
// multiple of 16.
GroupedWeights round_symmetric(const cpu::Kernels& kernels, const float* w, int64_t rows, int64_t cols,
                               int bits, int64_t group);

// Between the least and the largest weight of each group. With `importance` [cols] (the mean square of each
// input), the range that leaves the least weighted squared error among several narrower ones; null, and in
// the first `unclipped_rows` rows: the whole range.
GroupedWeights round_asymmetric(const float* w, int64_t rows, int64_t cols, int bits, int64_t group,
                                const float* importance, int64_t unclipped_rows = 0);

// One group as round_asymmetric() rounds it.
struct AffineGroup {
  uint16_t scale = 0;  // fp16
  uint8_t zero = 0;
};
AffineGroup round_group_asymmetric(const float* w, int64_t size, int bits, const float* importance,
                                   uint8_t* codes);

}  // namespace qwen2::quantize
