// Products of few rows, as decoding needs them: every weight is read once and used for all rows. A row's
// result does not depend on the others.
#pragma once

#include <memory>

#include "base/error.h"
#include "base/memory.h"
#include "kernels/cpu/kernels.h"
#include "tensor/weight_matrix.h"

namespace qwen2::cpu {

class RowProducts {
 public:
  // `max_cols` is the widest matrix (in columns) that will be used.
  static Result<RowProducts> create(const Kernels& kernels, int64_t max_cols);
  static size_t workspace_bytes(int64_t max_cols);

  // y [count][w.rows] (+)= x [count][w.cols] W^T for at most kMaxGemvBatch rows; strides in elements, y's at
  // least w.rows rounded up to 64.
  void run(const WeightMatrix& w, const float* x, int64_t x_stride, int64_t count, float* y, int64_t y_stride,
           bool accumulate);

  // The same for one quantised matrix and rows [count][w.cols] that are rounded and in its order of columns,
  // with their scales and sums as QuantizedGemvArgs has them.
  void run_rounded(const QuantizedMatrix& w, const int16_t* rows, const float* scales, const int32_t* sums,
                   int64_t count, float* y, int64_t y_stride, bool accumulate);

 private:
  RowProducts(const Kernels& kernels, int64_t max_cols, LargeBuffer scratch)
      : kernels_(&kernels), max_cols_(max_cols), scratch_(std::move(scratch)) {}
  QuantizedGemvArgs prepare(const QuantizedMatrix& w, size_t slot, const float* x, int64_t x_stride,
                            int64_t count) const;

  const Kernels* kernels_;
  int64_t max_cols_;
  LargeBuffer scratch_;  // kSlots of rounded activations, and one of reordered ones
};

}  // namespace qwen2::cpu
