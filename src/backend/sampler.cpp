#include "backend/sampler.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>

namespace qwen2 {
namespace {

namespace json = boost::json;

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

Status check(const SamplingParams& params) {
  if (!(params.temperature >= 0 && params.temperature <= 100)) {
    return fail(ErrorKind::kInvalidArgument, "'temperature' must be from 0 to 100");
  }
  if (params.top_k < 0) return fail(ErrorKind::kInvalidArgument, "'top_k' must be 0 (off) or positive");
  if (!(params.top_p > 0 && params.top_p <= 1))
    return fail(ErrorKind::kInvalidArgument, "'top_p' must be above 0 and at most 1");
  if (!(params.repetition_penalty > 0 && params.repetition_penalty <= 10)) {
    return fail(ErrorKind::kInvalidArgument, "'repetition_penalty' must be above 0 and at most 10");
  }
  return {};
}

Result<SamplingParams> sampling_defaults(std::string_view generation_config) {
  SamplingParams params;
  if (generation_config.empty()) return params;
  json::error_code code;
  const json::value root = json::parse(generation_config, code);
  if (code || !root.is_object())
    return fail(ErrorKind::kFormat, "generation_config.json: expected a JSON object");
  const auto read = [&](const char* key, auto& target) -> Status {
    const json::value* value = root.get_object().if_contains(key);
    if (value == nullptr || value->is_null()) return {};
    json::error_code not_a_number;
    const double number = value->to_number<double>(not_a_number);
    if (not_a_number) return fail(ErrorKind::kFormat, "generation_config.json: '{}' must be a number", key);
    target = static_cast<std::remove_reference_t<decltype(target)>>(number);
    return {};
  };
  QWEN2_CHECK(read("temperature", params.temperature));
  QWEN2_CHECK(read("top_k", params.top_k));
  QWEN2_CHECK(read("top_p", params.top_p));
  QWEN2_CHECK(read("repetition_penalty", params.repetition_penalty));
  if (const json::value* sample = root.get_object().if_contains("do_sample");
      sample != nullptr && sample->is_bool() && !sample->get_bool()) {
    params.temperature = 0;
  }
  if (auto status = check(params); !status) return within("generation_config.json", status.error());
  return params;
}

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
