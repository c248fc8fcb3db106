// Float matrix products of row-major matrices, through oneDNN's sgemm on all threads.
#pragma once

#include <cstdint>

#include "base/error.h"

namespace qwen2::quantize {

// y [m][rows] = x [m][cols] W^T + beta * y for W [rows][cols]; strides in elements.
Status multiply_transposed(const float* x, int64_t m, const float* w, int64_t rows, int64_t cols, float beta,
                           float* y, int64_t y_stride);

// c [m][n] += alpha * a [m][k] b [k][n]; strides in elements.
Status add_product(float alpha, const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t m,
                   int64_t n, int64_t k, float* c, int64_t c_stride);

// c [m][n] += alpha * a [m][k] b^T for b [n][k].
Status add_product_transposed(float alpha, const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                              int64_t m, int64_t n, int64_t k, float* c, int64_t c_stride);

// h [cols][cols] += alpha * x^T x for x [count][cols].
Status add_gram(float alpha, const float* x, int64_t count, int64_t cols, float* h);

}  // namespace qwen2::quantize
