#include "loadgen/statistics.h"

#include <algorithm>
#include <cmath>
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
  double squares = 0;
  for (const double x : samples) squares += (x - summary.mean) * (x - summary.mean);
  summary.std = std::sqrt(squares / static_cast<double>(samples.size()));
  summary.min = samples.front();
  summary.max = samples.back();
  summary.p50 = percentile(samples, 50);
  summary.p90 = percentile(samples, 90);
  summary.p95 = percentile(samples, 95);
  summary.p99 = percentile(samples, 99);
  return summary;
}

boost::json::object to_json(const Summary& s, double scale) {
  boost::json::object object{{"n", s.n}};
  if (s.n == 0) return object;
  object["mean"] = s.mean * scale;
  object["std"] = s.std * scale;
  object["min"] = s.min * scale;
  object["p50"] = s.p50 * scale;
  object["p90"] = s.p90 * scale;
  object["p95"] = s.p95 * scale;
  object["p99"] = s.p99 * scale;
  object["max"] = s.max * scale;
  return object;
}

}  // namespace qwen2
