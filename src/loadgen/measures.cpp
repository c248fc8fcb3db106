#include "loadgen/measures.h"

#include <algorithm>

namespace qwen2 {

std::optional<double> ttft_of(const RequestRecord& r) {
  if (!r.failure.empty() || r.content_times.empty()) return std::nullopt;
  return r.first_content - r.scheduled;
}

std::optional<double> tpot_of(const RequestRecord& r) {
  if (!r.failure.empty() || r.completion_tokens < 2 || r.content_times.size() < 2) return std::nullopt;
  return (r.last_content - r.first_content) / static_cast<double>(r.completion_tokens - 1);
}

std::optional<double> e2el_of(const RequestRecord& r) {
  if (!r.failure.empty()) return std::nullopt;
  return r.end - r.scheduled;
}

Measures measure(std::span<const RequestRecord> records, const std::optional<Objective>& objective) {
  Measures m;
  std::vector<double> ttft, tpot, itl, e2el, queue, lag;
  for (const RequestRecord& r : records) {
    lag.push_back(r.sent - r.scheduled);
    if (!r.failure.empty()) {
      ++m.failed;
      ++m.failures[r.failure];
      continue;
    }
    ++m.completed;
    m.input_tokens += std::max<int64_t>(0, r.prompt_tokens);
    m.output_tokens += std::max<int64_t>(0, r.completion_tokens);
    m.events += static_cast<int64_t>(r.content_times.size());
    if (objective && is_good(r, *objective)) ++m.good;
    e2el.push_back(*e2el_of(r));
    if (const auto time = ttft_of(r)) ttft.push_back(*time);
    if (const auto time = tpot_of(r)) tpot.push_back(*time);
    if (r.queue_seconds >= 0) queue.push_back(r.queue_seconds);
    for (size_t i = 1; i < r.content_times.size(); ++i)
      itl.push_back(r.content_times[i] - r.content_times[i - 1]);
  }
  m.ttft = summarise(std::move(ttft));
  m.tpot = summarise(std::move(tpot));
  m.itl = summarise(std::move(itl));
  m.e2el = summarise(std::move(e2el));
  m.queue = summarise(std::move(queue));
  m.lag = summarise(std::move(lag));
  return m;
}

}  // namespace qwen2
