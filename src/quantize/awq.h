// AWQ: inputs with large activations get finer weights by a scale that the operation before takes back. Lin,
// Tang, Tang, Yang, Dang, Gan, Han: "AWQ: Activation-aware Weight Quantization for LLM Compression and
// Acceleration", 2023 (arXiv:2306.00978).
#pragma once

#include <span>
#include <vector>

#include "base/error.h"
#include "quantize/rounding.h"
#include "tensor/dtype.h"

namespace qwen2::quantize {

struct AwqSearch {
  std::vector<float> scales;  // [cols]: W's columns are multiplied, the inputs divided by them
  double alpha = 0;           // scales = (mean |x|)^alpha, up to a factor
  double error = 0;           // ||X (W - Q)^T||^2, up to the factor of H
  double plain_error = 0;     // the same for scales of 1
};

// The best of 20 exponents for W [rows][cols] with inputs of mean magnitude `magnitudes` [cols] and
// H = 2 X^T X [cols][cols]: ||X D^T||^2 = tr(D H D^T) / 2 for D = W - Q(W S) S^-1. Never worse than scales of
// 1.
Result<AwqSearch> search_awq_scales(const float* w, int64_t rows, int64_t cols, const float* hessian,
                                    std::span<const float> magnitudes, int bits, int64_t group);

// Divides `norm` [cols] by `scales` and rounds it to `stored`; the scales become what it was really divided
// by, so that scaling the columns of what follows leaves the float function as it was. A quotient that is
// zero or not finite leaves its input alone.
void fold_into_norm(std::span<float> norm, std::span<float> scales, DType stored);

// Multiplies column k of W [rows][cols] by scales[k].
void scale_columns(float* w, int64_t rows, int64_t cols, std::span<const float> scales);

// Divides row k of W [scales.size()][cols] by scales[k].
void divide_rows(float* w, int64_t cols, std::span<const float> scales);

}  // namespace qwen2::quantize
