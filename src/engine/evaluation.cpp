#include "engine/evaluation.h"

#include <algorithm>
#include <cmath>

namespace qwen2 {
namespace {

constexpr int kBinsPerOctave = 64;
constexpr int kSmallestOctave = -24;  // smaller differences count as this
constexpr int kLargestOctave = 24;
constexpr size_t kBins = static_cast<size_t>(kLargestOctave - kSmallestOctave) * kBinsPerOctave;

size_t bin_of(double difference) {
  const double octaves = std::log2(std::max(difference, 0x1p-24)) - kSmallestOctave;
  return std::min(static_cast<size_t>(octaves * kBinsPerOctave), kBins - 1);
}

double bin_value(size_t bin) {
  return std::exp2(kSmallestOctave + (static_cast<double>(bin) + 0.5) / kBinsPerOctave);
}

// log(sum(exp(x))).
double log_sum(std::span<const float> x) {
  const double peak = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const float value : x) sum += std::exp(value - peak);
  return peak + std::log(sum);
}

double standard_error(double sum, double squares, int64_t n) {
  if (n < 2) return 0;
  const auto count = static_cast<double>(n);
  const double variance = std::max(0.0, (squares - sum * sum / count) / (count - 1));
  return std::sqrt(variance / count);
}

}  // namespace

void Evaluation::add(std::span<const float> logits, TokenId next, std::span<const float> reference) {
  const double total = log_sum(logits);
  ++positions_;
  nll_.add(total - logits[static_cast<size_t>(next)]);
  if (reference.empty()) return;
  errors_.resize(kBins);
  const double reference_total = log_sum(reference);
  reference_nll_.add(reference_total - reference[static_cast<size_t>(next)]);
  double kl = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double p = reference[i] - reference_total;
    kl += std::exp(p) * (p - (logits[i] - total));
    ++errors_[bin_of(std::abs(double{logits[i]} - reference[i]))];
  }
  kl_.add(kl);
  compared_ += static_cast<int64_t>(logits.size());
  const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
  if (best == std::max_element(reference.begin(), reference.end()) - reference.begin()) ++same_;
}

EvaluationSummary Evaluation::summary() const {
  EvaluationSummary s;
  s.positions = positions_;
  if (positions_ == 0) return s;
  const auto n = static_cast<double>(positions_);
  s.mean_nll = nll_.sum / n;
  s.nll_error = standard_error(nll_.sum, nll_.squares, positions_);
  s.perplexity = std::exp(s.mean_nll);
  if (compared_ == 0) return s;
  s.reference_perplexity = std::exp(reference_nll_.sum / n);
  s.mean_kl = kl_.sum / n;
  s.kl_error = standard_error(kl_.sum, kl_.squares, positions_);
  s.same_top1 = static_cast<double>(same_) / n;
  auto left = static_cast<int64_t>(0.001 * static_cast<double>(compared_));
  size_t bin = kBins - 1;
  while (bin > 0 && left - errors_[bin] >= 0) left -= errors_[bin--];
  s.logit_error_p999 = bin_value(bin);
  return s;
}

}  // namespace qwen2
