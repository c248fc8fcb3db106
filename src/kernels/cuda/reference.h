// Slow, obvious versions of the CUDA kernels on the host, in double; pointers are host pointers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/kernels.h"

namespace qwen2::cuda::reference {

// Element (row, col) of a matrix, `col` as it is stored.
double element(const DeviceMatrix& w, int64_t row, int64_t col);

// y [rows][w.rows] = x [rows][w.cols] times the transposed matrix.
std::vector<double> product(const DeviceMatrix& w, std::span<const float> x, int rows);

// x / sqrt(mean(x^2) + epsilon) * norm
std::vector<double> rms_norm(std::span<const double> x, std::span<const float> norm, double epsilon);

double silu(double x);

// Rotates dimension d with d + half, for d < half, by the position's angles.
void rotate(std::span<double> head, int64_t position, double theta);

// softmax(q K^T + bias) V of one query head; q is scaled. keys and values are [length][dim]; `bias` is empty
// or has one number a key.
std::vector<double> attention(std::span<const double> q, std::span<const double> keys,
                              std::span<const double> values, std::span<const double> bias);

// The ids that sampling may return, with their probabilities: the top_k largest, of them the likeliest that
// hold top_p.
std::vector<double> sampling_probabilities(std::span<const float> logits, const SampleRow& row,
                                           std::span<const int32_t> seen);

}  // namespace qwen2::cuda::reference
