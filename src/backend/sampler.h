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

  // pick(), then accept().
  TokenId sample(std::span<const float> logits);

  // For those who pick the token elsewhere, by the same inputs, and hand it in.
  [[nodiscard]] const SamplingParams& params() const { return params_; }
  // In [0, 1): what decides the next token, or the one `ahead` of it.
  [[nodiscard]] double next_uniform(uint64_t ahead = 0) const;
  // Every token so far once, in no order; empty without a repetition penalty.
  [[nodiscard]] std::span<const TokenId> seen() const { return seen_tokens_; }
  void accept(TokenId token);

 private:
  TokenId sample_from(std::span<const float> logits);
  void see(TokenId token);

  SamplingParams params_;
  std::vector<bool> seen_;  // by token, only with a repetition penalty
  std::vector<TokenId> seen_tokens_;
  std::vector<float> penalised_;  // copy of the logits, only with a repetition penalty
  std::vector<std::pair<float, TokenId>> candidates_;
  uint64_t count_ = 0;
};

}  // namespace qwen2
