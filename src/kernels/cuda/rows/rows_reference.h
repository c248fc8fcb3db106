// Slow, plain versions of what the kernels on rows compute, on the host, in double.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace qwen2::cuda::reference {

// x / sqrt(mean(x^2) + epsilon) * norm
std::vector<double> rms_norm(std::span<const double> x, std::span<const float> norm, double epsilon);

// x / (1 + exp(-x))
double silu(double x);

// Rotates dimension d with d + half, for d < half, by the position's angles (RoPE).
void rotate(std::span<double> head, int64_t position, double theta);

}  // namespace qwen2::cuda::reference
