// Products of 8-bit activations with quantised weights, after LLM.int8() (Dettmers et al. 2022,
// https://arxiv.org/abs/2208.07339): activations are rounded to 8 bits, but for outliers, which are
// multiplied in float. Scales are finer than the paper's one a token: one for each token and group of
// columns. A row's result does not depend on the others.
#pragma once

#include <vector>

#include "base/error.h"
#include "base/memory.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/row_products.h"
#include "tensor/weight_matrix.h"

namespace qwen2::cpu {

class Int8Products {
 public:
  // `max_rows` is the largest m, `max_cols` the widest matrix (in columns) that will be used.
  static Result<Int8Products> create(const Kernels& kernels, int64_t max_rows, int64_t max_cols);
  static size_t workspace_bytes(int64_t max_rows, int64_t max_cols);

  // y [m][w.rows] (+)= x [m][w.cols] W^T, all of whose parts are quantised; strides in elements, y's at least
  // w.rows rounded up to 64. x is left as it is.
  void run(const WeightMatrix& w, const float* x, int64_t x_stride, int64_t m, float* y, int64_t y_stride,
           bool accumulate);

  // The stored columns of the last part in which any of the last run's rows had an outlier.
  [[nodiscard]] const std::vector<int32_t>& outlier_columns() const { return outlier_columns_; }

 private:
  struct Scratch;
  Int8Products(const Kernels& kernels, RowProducts rows, LargeBuffer buffer)
      : kernels_(&kernels), rows_(std::move(rows)), buffer_(std::move(buffer)) {}
  void run_part(const WeightPart& part, const float* x, int64_t x_stride, int64_t m, float* y,
                int64_t y_stride, bool accumulate);
  [[nodiscard]] bool multiplies_bytes(int64_t m) const;
  void round_row(const QuantizedMatrix& w, const float* x, int64_t row, const Scratch& scratch) const;
  void multiply(const QuantizedMatrix& w, int64_t m, const Scratch& scratch, float* y, int64_t y_stride,
                bool accumulate);
  void collect_outliers(int64_t m, const Scratch& scratch);
  void add_outliers(const QuantizedMatrix& w, int64_t m, const Scratch& scratch, float* y,
                    int64_t y_stride) const;

  const Kernels* kernels_;
  RowProducts rows_;  // where the instruction set has no kernel of its own, and for very few rows
  LargeBuffer buffer_;
  std::vector<int32_t> outlier_columns_;  // ascending
};

}  // namespace qwen2::cpu
