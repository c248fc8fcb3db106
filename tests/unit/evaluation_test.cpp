#include "engine/evaluation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "random_data.h"

namespace qwen2 {
namespace {

std::vector<double> probabilities(const std::vector<float>& logits) {
  std::vector<double> p(logits.begin(), logits.end());
  double sum = 0;
  for (double& value : p) sum += value = std::exp(value);
  for (double& value : p) value /= sum;
  return p;
}

TEST(Evaluation, IsWhatTheDefinitionsSay) {
  Evaluation evaluation;
  double nll = 0;
  double kl = 0;
  int same = 0;
  std::vector<double> errors;
  const int positions = 50;
  for (int i = 0; i < positions; ++i) {
    const auto reference = test::normal(40, 2.0F);
    auto logits = reference;
    const auto noise = test::normal(40, 0.3F);
    for (size_t k = 0; k < logits.size(); ++k) logits[k] += noise[k];
    const auto next = static_cast<TokenId>(test::uniform(0, 39));
    evaluation.add(logits, next, reference);
    const auto p = probabilities(reference);
    const auto q = probabilities(logits);
    nll -= std::log(q[static_cast<size_t>(next)]);
    for (size_t k = 0; k < p.size(); ++k) {
      kl += p[k] * std::log(p[k] / q[k]);
      errors.push_back(std::abs(double{logits[k]} - reference[k]));
    }
    same +=
        std::max_element(p.begin(), p.end()) - p.begin() == std::max_element(q.begin(), q.end()) - q.begin()
            ? 1
            : 0;
  }
  std::sort(errors.begin(), errors.end());
  const EvaluationSummary s = evaluation.summary();
  EXPECT_EQ(s.positions, positions);
  EXPECT_NEAR(s.mean_nll, nll / positions, 1e-9);
  EXPECT_NEAR(s.perplexity, std::exp(nll / positions), 1e-6);
  EXPECT_NEAR(s.mean_kl, kl / positions, 1e-9);
  EXPECT_DOUBLE_EQ(s.same_top1, static_cast<double>(same) / positions);
  EXPECT_NEAR(s.logit_error_p999, errors[errors.size() - 3], 0.012 * errors.back());
  EXPECT_GT(s.kl_error, 0);
}

TEST(Evaluation, OfTheReferenceItselfIsZero) {
  Evaluation evaluation;
  for (int i = 0; i < 5; ++i) {
    const auto logits = test::normal(100, 5.0F);
    evaluation.add(logits, static_cast<TokenId>(i), logits);
  }
  const EvaluationSummary s = evaluation.summary();
  EXPECT_EQ(s.mean_kl, 0);
  EXPECT_EQ(s.same_top1, 1);
  EXPECT_EQ(s.perplexity, s.reference_perplexity);
  EXPECT_LT(s.logit_error_p999, 1e-6);
  EXPECT_EQ(Evaluation().summary().positions, 0);
}

}  // namespace
}  // namespace qwen2
