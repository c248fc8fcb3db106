// GPTQ: rounds a matrix column by column and moves each column's error into the columns that are still to be
// rounded, so that the layer's outputs change least. Frantar, Ashkboos, Hoefler, Alistarh: "GPTQ: Accurate
// Post-Training Quantization for Generative Pre-trained Transformers", 2022 (arXiv:2210.17323).
#pragma once

#include "base/error.h"
#include "quantize/rounding.h"

namespace qwen2::quantize {

struct GptqOptions {
  int bits = 4;
  int64_t group = 128;     // 16, 32, 64 or 128
  double damping = 0.01;   // share of the Hessian's mean diagonal that is added to its diagonal
  bool act_order = false;  // columns in descending order of the Hessian's diagonal; groups follow that order
};

// Rounds W [rows][cols] for inputs X with the Hessian H = 2 X^T X [cols][cols], which may have any positive
// factor. Symmetric, each group with the clip search of round_symmetric() at the time that it is reached.
// Both arrays are overwritten, and no other of their size is made. A Hessian that is not positive definite
// with its damping is an error that says so.
Result<GroupedWeights> round_gptq(const cpu::Kernels& kernels, float* w, int64_t rows, int64_t cols,
                                  float* hessian, const GptqOptions& options);

// Replaces the symmetric positive definite H [n][n] by the upper triangle U with H^-1 = U^T U, zeros below
// it.
Status invert_to_cholesky(float* h, int64_t n);

}  // namespace qwen2::quantize
