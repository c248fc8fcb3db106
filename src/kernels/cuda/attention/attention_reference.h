// A slow, plain version of attend_rows() and attend_chunk() on the host, in double.
#pragma once

#include <span>
#include <vector>

namespace qwen2::cuda::reference {

// softmax(q K^T + bias) V of one query head; q is scaled. keys and values are [length][dim]; `bias` is
// empty or has one number for each key.
std::vector<double> attention(std::span<const double> q, std::span<const double> keys,
                              std::span<const double> values, std::span<const double> bias);

}  // namespace qwen2::cuda::reference
