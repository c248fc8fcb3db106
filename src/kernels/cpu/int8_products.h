// Products of many rows with 8-bit activations and quantised weights, after LLM.int8() (Dettmers et al. 2022,
// https://arxiv.org/abs/2208.07339): activations are rounded to 8 bits, but for the columns that hold
// outliers, which are multiplied in float. Scales are finer than the paper's one a token: one for each token
// and group of columns.
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

  // y [m][part.rows] (+)= x [m][part.cols] W^T of a quantised part; strides in elements, y's at least
  // part.rows rounded up to 64. x is left as it is.
  void run(const WeightPart& part, const float* x, int64_t x_stride, int64_t m, float* y, int64_t y_stride,
           bool accumulate);

  // The columns of which any of the last run's elements was an outlier.
  [[nodiscard]] const std::vector<int32_t>& outliers() const { return outliers_; }

 private:
  Int8Products(const Kernels& kernels, RowProducts rows, LargeBuffer scratch)
      : kernels_(&kernels), rows_(std::move(rows)), scratch_(std::move(scratch)) {}
  void find_outliers(const QuantizedMatrix& w, const float* x, int64_t x_stride, int64_t m);
  void multiply(const QuantizedMatrix& w, int64_t m, float* y, int64_t y_stride, bool accumulate);
  void add_outliers(const QuantizedMatrix& w, int64_t m, float* y, int64_t y_stride) const;

  const Kernels* kernels_;
  RowProducts rows_;                   // where the instruction set has no kernel of its own
  LargeBuffer scratch_;                // activations, rounded
  std::vector<int32_t> outliers_;      // stored columns
  std::vector<float> outlier_values_;  // [m][outliers]
};

}  // namespace qwen2::cpu
