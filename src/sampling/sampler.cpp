#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>

namespace qwen2 {
namespace {

// The n-th number in [0, 1) of a seed's stream: SplitMix64 as a counter-based generator.
double uniform(uint64_t seed, uint64_t n) {
  uint64_t x = seed + (n + 1) * 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return static_cast<double>((x ^ (x >> 31)) >> 11) * 0x1p-53;
}

// Larger logits first; equal ones by id, so that the order is fixed.
bool better(const std::pair<float, TokenId>& a, const std::pair<float, TokenId>& b) {
  return a.first > b.first || (a.first == b.first && a.second < b.second);
}

}  // namespace

Sampler::Sampler(const SamplingParams& params, std::span<const TokenId> prompt, int64_t vocab_size)
    : params_(params) {
  if (params.repetition_penalty == 1.0F) return;
  seen_.resize(static_cast<size_t>(vocab_size));
  for (const TokenId token : prompt) see(token);
}

void Sampler::see(TokenId token) {
  if (seen_[static_cast<size_t>(token)]) return;
  seen_[static_cast<size_t>(token)] = true;
  seen_tokens_.push_back(token);
}

double Sampler::next_uniform(uint64_t ahead) const {
  return uniform(params_.seed, count_ + ahead);
}

void Sampler::accept(TokenId token) {
  ++count_;
  if (!seen_.empty()) see(token);
}

TokenId Sampler::sample(std::span<const float> logits) {
  if (!seen_.empty()) {
    penalised_.assign(logits.begin(), logits.end());
    for (const TokenId token : seen_tokens_) {
      float& logit = penalised_[static_cast<size_t>(token)];
      logit = logit > 0 ? logit / params_.repetition_penalty : logit * params_.repetition_penalty;
    }
    logits = penalised_;
  }
  const TokenId token =
      params_.temperature == 0
          ? static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin())
          : sample_from(logits);
  accept(token);
  return token;
}

TokenId Sampler::sample_from(std::span<const float> logits) {
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) candidates_.emplace_back(logits[i], static_cast<TokenId>(i));
  if (params_.top_k > 0 && params_.top_k < static_cast<int64_t>(candidates_.size())) {
    std::nth_element(candidates_.begin(), candidates_.begin() + params_.top_k, candidates_.end(), better);
    candidates_.resize(static_cast<size_t>(params_.top_k));
  }
  const bool ordered = params_.top_p < 1.0F;
  if (ordered) std::sort(candidates_.begin(), candidates_.end(), better);
  const float peak = std::min_element(candidates_.begin(), candidates_.end(), better)->first;
  double total = 0;
  for (auto& [value, token] : candidates_) {
    value = std::exp((value - peak) / params_.temperature);
    total += value;
  }
  if (ordered) {  // the smallest set of the likeliest tokens that holds top_p of the probability
    double kept = 0;
    size_t count = 0;
    while (count < candidates_.size() && kept < params_.top_p * total) kept += candidates_[count++].first;
    candidates_.resize(count);
    total = kept;
  }
  double left = next_uniform() * total;
  for (const auto& [weight, token] : candidates_) {
    left -= weight;
    if (left < 0) return token;
  }
  return candidates_.back().second;
}

}  // namespace qwen2
