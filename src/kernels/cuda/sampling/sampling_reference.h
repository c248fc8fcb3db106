// The probabilities that sample() must follow, on the host, in double.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/sampling/sampling.h"

namespace qwen2::cuda::reference {

// A probability for each id: of the top_k largest logits, the likeliest that hold top_p; zero for the others.
std::vector<double> sampling_probabilities(std::span<const float> logits, const SampleRow& row,
                                           std::span<const int32_t> seen);

}  // namespace qwen2::cuda::reference
