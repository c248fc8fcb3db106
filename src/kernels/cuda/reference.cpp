#include "kernels/cuda/reference.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tensor/dtype.h"

namespace qwen2::cuda::reference {

double element(const DeviceMatrix& w, int64_t row, int64_t col) {
  const CodePlace place = code_place(w.form, col);
  const uint8_t* codes = w.codes + byte_place(w, row, place.byte);
  if (w.form == MatrixForm::kF16) return f16_to_float(static_cast<uint16_t>(codes[0] | codes[1] << 8));
  const int raw = *codes;
  const auto at =
      static_cast<size_t>((row / kTileRows * w.groups + col / w.group) * kTileRows + row % kTileRows);
  if (is_general(w.form)) {
    const int code = form_bits(w.form) == 8 ? raw - 128 : raw >> place.shift & 15;
    return double{static_cast<const float*>(w.scales)[at]} * code - w.minima[at];
  }
  const double scale = f16_to_float(static_cast<const uint16_t*>(w.scales)[at]);
  return scale * signed_code(w.form, raw, place.shift);
}

std::vector<double> product(const DeviceMatrix& w, std::span<const float> x, int rows) {
  std::vector<double> y(static_cast<size_t>(rows) * static_cast<size_t>(w.rows));
  for (int64_t n = 0; n < w.rows; ++n) {
    for (int64_t k = 0; k < w.cols; ++k) {
      const double value = element(w, n, k);
      const int64_t from = w.order != nullptr ? w.order[k] : k;
      for (int64_t m = 0; m < rows; ++m)
        y[static_cast<size_t>(m * w.rows + n)] += value * x[static_cast<size_t>(m * w.cols + from)];
    }
  }
  return y;
}

std::vector<double> rms_norm(std::span<const double> x, std::span<const float> norm, double epsilon) {
  const double squares = std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
  const double factor = 1 / std::sqrt(squares / static_cast<double>(x.size()) + epsilon);
  std::vector<double> out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] * factor * norm[i];
  return out;
}

double silu(double x) {
  return x / (1 + std::exp(-x));
}

void rotate(std::span<double> head, int64_t position, double theta) {
  const size_t half = head.size() / 2;
  for (size_t i = 0; i < half; ++i) {
    const double frequency = std::pow(theta, -static_cast<double>(i) / static_cast<double>(half));
    const double angle = static_cast<double>(position) * frequency;
    const double first = head[i];
    const double second = head[i + half];
    head[i] = first * std::cos(angle) - second * std::sin(angle);
    head[i + half] = second * std::cos(angle) + first * std::sin(angle);
  }
}

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
