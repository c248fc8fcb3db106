// From logits to a token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/qwen2_config.h"
#include "sampling/parameters.h"

namespace qwen2 {

// Samples one request's tokens. The n-th token depends on the seed, n, the logits and the tokens so far, and
// on nothing else.
class Sampler {
 public:
  Sampler(const SamplingParams& params, std::span<const TokenId> prompt, int64_t vocab_size);

  // pick(), then accept().
  TokenId sample(std::span<const float> logits);

  // For backends that choose the token themselves, from the same inputs, and call accept().
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
