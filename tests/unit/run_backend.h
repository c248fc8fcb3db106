// Runs a backend as the engine does, and compares logits; for the tests of every backend.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "backend/backend.h"

namespace qwen2::test {

inline std::vector<uint32_t> page_table(const Backend& backend) {
  std::vector<uint32_t> pages(static_cast<size_t>(
      (backend.plan().limits.max_model_len + backend.page_tokens() - 1) / backend.page_tokens()));
  std::iota(pages.begin(), pages.end(), 0U);
  return pages;
}

// Runs `tokens` from `position` in the engine's chunks; the logits of the last one.
inline std::vector<float> run(Backend& backend, std::span<const TokenId> tokens, int64_t position,
                              const std::vector<uint32_t>& pages) {
  const int64_t chunk = backend.plan().limits.prefill_chunk;
  std::vector<float> row;
  while (!tokens.empty()) {
    const auto count = std::min<size_t>(tokens.size(), static_cast<size_t>(chunk - position % chunk));
    const Chunk piece{tokens.first(count), position, pages, count == tokens.size()};
    const auto logits = backend.forward(std::span(&piece, 1));
    EXPECT_TRUE(logits) << logits.error().message;
    if (!logits) return {};
    if (piece.needs_logits) row.assign(logits->row(0).begin(), logits->row(0).end());
    tokens = tokens.subspan(count);
    position += static_cast<int64_t>(count);
  }
  return row;
}

// The largest difference, relative to the largest expected logit; infinite where a logit is not finite.
inline double difference(const std::vector<float>& logits, const std::vector<float>& expected) {
  if (logits.size() != expected.size()) return INFINITY;
  double largest = 0;
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!std::isfinite(logits[i])) return INFINITY;
    largest = std::max(largest, std::abs(double{expected[i]}));
    worst = std::max(worst, std::abs(double{logits[i]} - expected[i]));
  }
  return worst / largest;
}

}  // namespace qwen2::test
