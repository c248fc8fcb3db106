// How a token is chosen from logits: the parameters of a request, and their ranges.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/error.h"

namespace qwen2 {

struct SamplingParams {
  float temperature = 1.0F;  // 0: greedy
  int64_t top_k = 0;         // 0: all
  float top_p = 1.0F;
  float repetition_penalty = 1.0F;  // of every token in prompt and answer; Keskar et al. 2019, section 4.1
  uint64_t seed = 0;
};

// Checks ranges; the error names the field.
Status check(const SamplingParams& params);

// The model's own defaults, from the text of generation_config.json (may be empty).
Result<SamplingParams> sampling_defaults(std::string_view generation_config);

}  // namespace qwen2
