#include "kernels/cuda/sampling/sampling_reference.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace qwen2::cuda::reference {

std::vector<double> sampling_probabilities(std::span<const float> logits, const SampleRow& row,
                                           std::span<const int32_t> seen) {
  std::vector<double> values(logits.begin(), logits.end());
  for (const int32_t token : seen) {
    double& logit = values[static_cast<size_t>(token)];
    logit = logit > 0 ? logit / row.penalty : logit * row.penalty;
  }
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] > values[b]; });
  if (row.top_k > 0 && static_cast<size_t>(row.top_k) < order.size())
    order.resize(static_cast<size_t>(row.top_k));
  std::vector<double> probabilities(values.size());
  double total = 0;
  for (const size_t i : order) total += std::exp((values[i] - values[order.front()]) / row.temperature);
  double kept = 0;
  for (const size_t i : order) {
    if (row.top_p < 1 && kept >= row.top_p * total) break;
    probabilities[i] = std::exp((values[i] - values[order.front()]) / row.temperature);
    kept += probabilities[i];
  }
  for (double& p : probabilities) p /= kept;
  return probabilities;
}

}  // namespace qwen2::cuda::reference
