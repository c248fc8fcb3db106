// From logits to a token.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "model/qwen2_config.h"

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

// Samples one request's tokens. The n-th token depends on the seed, n, the logits and the tokens so far, and
// on nothing else.
class Sampler {
 public:
  Sampler(const SamplingParams& params, std::span<const TokenId> prompt, int64_t vocab_size);

  TokenId sample(std::span<const float> logits);

 private:
  TokenId sample_from(std::span<const float> logits);

  SamplingParams params_;
  std::vector<bool> seen_;        // by token, only with a repetition penalty
  std::vector<float> penalised_;  // copy of the logits, only with a repetition penalty
  std::vector<std::pair<float, TokenId>> candidates_;
  uint64_t count_ = 0;
};

}  // namespace qwen2
