// How well a model predicts a text, and how far it is from a reference, position by position.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/qwen2_config.h"

namespace qwen2 {

struct EvaluationSummary {
  int64_t positions = 0;  // predicted tokens
  double perplexity = 0;  // exp(mean negative log-likelihood, in nats)
  double mean_nll = 0;    // nats a token
  double nll_error = 0;   // standard error of mean_nll over positions
  // Against the reference; zero without one.
  double reference_perplexity = 0;
  double mean_kl = 0;           // of KL(reference || model), nats
  double kl_error = 0;          // standard error of mean_kl
  double same_top1 = 0;         // share of positions with the same likeliest token
  double logit_error_p999 = 0;  // 99.9th percentile of |logit - reference logit|, to 1.1 %
};

class Evaluation {
 public:
  // The logits before `next` [vocabulary], and the reference's (same size) or none.
  void add(std::span<const float> logits, TokenId next, std::span<const float> reference);
  [[nodiscard]] EvaluationSummary summary() const;

 private:
  struct Mean {
    double sum = 0;
    double squares = 0;
    void add(double x) {
      sum += x;
      squares += x * x;
    }
  };

  int64_t positions_ = 0;
  int64_t compared_ = 0;
  int64_t same_ = 0;
  Mean nll_, reference_nll_, kl_;
  std::vector<int64_t> errors_;  // histogram, 64 bins an octave
};

}  // namespace qwen2
