#include "kernels/cuda/rows/rows_reference.h"

#include <cmath>
#include <numeric>

namespace qwen2::cuda::reference {

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

}  // namespace qwen2::cuda::reference
