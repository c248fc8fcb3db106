// The slow, obvious version of every kernel, in double precision: what the tests hold the kernels against.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/packed_matrix.h"

namespace qwen2::cpu::reference {

// y [rows] = W x, W from its packed form.
std::vector<double> matrix_vector(const PackedMatrix& w, const float* x);

// Attention of one query head of one token over `count` keys: q [dim], keys and values [count][dim].
std::vector<double> attention(const float* q, const std::vector<std::vector<float>>& keys,
                              const std::vector<std::vector<float>>& values, int64_t count);

std::vector<double> rms_norm(const float* x, const float* weight, double epsilon, int64_t size);

// Rotate-half RoPE of one head at `position`.
std::vector<double> rope(const float* x, int64_t position, double theta, int dim);

double swiglu(double gate, double up);

}  // namespace qwen2::cpu::reference
