#include "loadgen/statistics.h"

#include <algorithm>
#include <numeric>

namespace qwen2 {

double percentile(const std::vector<double>& sorted, double p) {
  const double position = p / 100 * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(position);
  if (below + 1 >= sorted.size()) return sorted.back();
  const double fraction = position - static_cast<double>(below);
  return sorted[below] + fraction * (sorted[below + 1] - sorted[below]);
}

Summary summarise(std::vector<double> samples) {
  Summary summary;
  summary.n = samples.size();
  if (samples.empty()) return summary;
  std::sort(samples.begin(), samples.end());
  summary.mean = std::accumulate(samples.begin(), samples.end(), 0.0) / static_cast<double>(samples.size());
  summary.min = samples.front();
  summary.max = samples.back();
  summary.p50 = percentile(samples, 50);
  summary.p95 = percentile(samples, 95);
  summary.p99 = percentile(samples, 99);
  return summary;
}

boost::json::object to_json(const Summary& s) {
  boost::json::object object{{"n", s.n}};
  if (s.n == 0) return object;
  object["mean"] = s.mean;
  object["min"] = s.min;
  object["max"] = s.max;
  object["p50"] = s.p50;
  object["p95"] = s.p95;
  object["p99"] = s.p99;
  object["p95_has_enough_samples"] = s.enough_for(95);
  object["p99_has_enough_samples"] = s.enough_for(99);
  return object;
}

}  // namespace qwen2
