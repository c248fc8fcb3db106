// Slow, plain versions of product() and expand() on the host, in double. Pointers are host pointers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/common/layout.h"

namespace qwen2::cuda::reference {

// Element (row, col) of a matrix; `col` is the stored column.
double element(const DeviceMatrix& w, int64_t row, int64_t col);

// y [rows][w.rows] = x [rows][w.cols] times the transposed matrix.
std::vector<double> product(const DeviceMatrix& w, std::span<const float> x, int rows);

}  // namespace qwen2::cuda::reference
