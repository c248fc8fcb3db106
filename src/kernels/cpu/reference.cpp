#include "kernels/cpu/reference.h"

#include <algorithm>
#include <cmath>

namespace qwen2::cpu::reference {

std::vector<double> matrix_vector(const PackedMatrix& w, const float* x) {
  std::vector<double> y(static_cast<size_t>(w.rows));
  std::vector<float> row(static_cast<size_t>(w.cols));
  for (int64_t n = 0; n < w.rows; ++n) {
    w.get_row(n, row.data());
    for (int64_t k = 0; k < w.cols; ++k)
      y[static_cast<size_t>(n)] += double{row[static_cast<size_t>(k)]} * x[k];
  }
  return y;
}

std::vector<double> attention(const float* q, const std::vector<std::vector<float>>& keys,
                              const std::vector<std::vector<float>>& values, int64_t count) {
  const size_t dim = keys[0].size();
  std::vector<double> scores(static_cast<size_t>(count));
  for (size_t i = 0; i < scores.size(); ++i) {
    for (size_t d = 0; d < dim; ++d) scores[i] += double{q[d]} * keys[i][d];
  }
  const double peak = *std::max_element(scores.begin(), scores.end());
  double denominator = 0;
  for (double& score : scores) denominator += score = std::exp(score - peak);
  std::vector<double> out(dim);
  for (size_t i = 0; i < scores.size(); ++i) {
    for (size_t d = 0; d < dim; ++d) out[d] += scores[i] / denominator * values[i][d];
  }
  return out;
}

std::vector<double> rms_norm(const float* x, const float* weight, double epsilon, int64_t size) {
  double squares = 0;
  for (int64_t i = 0; i < size; ++i) squares += double{x[i]} * x[i];
  const double scale = 1.0 / std::sqrt(squares / static_cast<double>(size) + epsilon);
  std::vector<double> out(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) out[static_cast<size_t>(i)] = x[i] * scale * weight[i];
  return out;
}

std::vector<double> rope(const float* x, int64_t position, double theta, int dim) {
  std::vector<double> out(static_cast<size_t>(dim));
  const size_t half = out.size() / 2;
  for (size_t i = 0; i < half; ++i) {
    const double angle = static_cast<double>(position) * std::pow(theta, -2.0 * static_cast<double>(i) / dim);
    out[i] = x[i] * std::cos(angle) - x[i + half] * std::sin(angle);
    out[i + half] = x[i + half] * std::cos(angle) + x[i] * std::sin(angle);
  }
  return out;
}

double swiglu(double gate, double up) {
  return gate / (1.0 + std::exp(-gate)) * up;
}

}  // namespace qwen2::cpu::reference
