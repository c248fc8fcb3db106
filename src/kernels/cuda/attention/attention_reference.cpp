#include "kernels/cuda/attention/attention_reference.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace qwen2::cuda::reference {

std::vector<double> attention(std::span<const double> q, std::span<const double> keys,
                              std::span<const double> values, std::span<const double> bias) {
  const size_t dim = q.size();
  std::vector<double> scores(keys.size() / dim);
  for (size_t k = 0; k < scores.size(); ++k) {
    scores[k] =
        std::inner_product(q.begin(), q.end(), keys.begin() + static_cast<std::ptrdiff_t>(k * dim), 0.0);
    if (!bias.empty()) scores[k] += bias[k];
  }
  const double peak = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  std::vector<double> out(dim);
  for (size_t k = 0; k < scores.size(); ++k) {
    const double weight = std::exp(scores[k] - peak);
    total += weight;
    for (size_t d = 0; d < dim; ++d) out[d] += weight * values[k * dim + d];
  }
  for (double& value : out) value /= total;
  return out;
}

}  // namespace qwen2::cuda::reference
