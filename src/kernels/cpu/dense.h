// Products of many rows at once (prompt chunks) through oneDNN, on the same packed weights as decoding.
#pragma once

#include <cstdint>
#include <memory>

#include "base/error.h"
#include "kernels/cpu/kernels.h"
#include "tensor/weight_matrix.h"

namespace qwen2::cpu {

// How activations are rounded for a bf16 product. Two terms cost twice the multiplications and leave an error
// of 2^-17 instead of 2^-9; a product in float ignores the choice.
enum class Rounding { kOneBf16, kTwoBf16 };

// Products are in bf16 with float accumulation where the processor has AVX-512 BF16, otherwise in float on
// panels of weights that are widened as they are used. Quantised weights are turned into bf16 a panel at a
// time: multiplying a chunk of many rows takes far longer than that.
class Dense {
 public:
  // `max_rows` is the largest m, `max_cols` the widest matrix (in columns) that will be used.
  static Result<std::unique_ptr<Dense>> create(const Kernels& kernels, int64_t max_rows, int64_t max_cols);
  static size_t workspace_bytes(Isa isa, int64_t max_rows, int64_t max_cols);

  virtual ~Dense() = default;
  Dense() = default;
  Dense(const Dense&) = delete;
  Dense& operator=(const Dense&) = delete;

  // y [m][w.rows] (+)= x [m][w.cols] W^T; strides in elements.
  virtual Status run(const WeightMatrix& w, const float* x, int64_t x_stride, int64_t m, float* y,
                     int64_t y_stride, bool accumulate, Rounding rounding) = 0;
};

}  // namespace qwen2::cpu
