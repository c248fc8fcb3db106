// The words of a measurement and how samples are summarised. All times are seconds on the monotonic clock.
//
//   TTFT        scheduled send to the first event that carries a token
//   TPOT        (last - first event that carries a token) / (completion tokens - 1); needs two such events
//   ITL         the gap between two neighbouring events that carry tokens
//   E2E         scheduled send to the last byte
//   queue time  submission to admission, as the server saw it
//   lag         scheduled send to the moment the client began to connect: the client's own lateness
#pragma once

#include <boost/json.hpp>
#include <cstddef>
#include <vector>

namespace qwen2 {

struct Summary {
  size_t n = 0;
  double mean = 0, std = 0, min = 0, max = 0;  // std over n, not n - 1
  double p50 = 0, p90 = 0, p95 = 0, p99 = 0;

  // A percentile means something when at least one sample lies beyond it.
  [[nodiscard]] bool enough_for(double percentile) const {
    return static_cast<double>(n) * (100 - percentile) >= 100;
  }
};

// Linear interpolation between the closest ranks: position p/100 * (n - 1). `sorted` must not be empty.
double percentile(const std::vector<double>& sorted, double p);

Summary summarise(std::vector<double> samples);

// Every number times `scale`: 1e3 turns seconds into milliseconds. Only "n" where there are no samples.
boost::json::object to_json(const Summary& summary, double scale);

}  // namespace qwen2
