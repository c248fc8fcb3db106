#include "quantize/awq.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "quantize/products.h"

namespace qwen2::quantize {
namespace {

constexpr int kGrid = 20;
constexpr int64_t kPanelRows = 512;  // of W, whose error is measured at a time
constexpr float kLeast = 1e-4F;      // of a scale before it is centred: inputs may be zero

// magnitudes^alpha, with the geometric middle of the least and the largest at 1.
std::vector<float> scales_for(std::span<const float> magnitudes, double alpha) {
  std::vector<float> scales(magnitudes.size());
  for (size_t k = 0; k < scales.size(); ++k)
    scales[k] = std::max(std::pow(magnitudes[k], static_cast<float>(alpha)), kLeast);
  const auto [least, most] = std::ranges::minmax(scales);
  const float middle = std::sqrt(least * most);
  for (float& scale : scales) scale /= middle;
  return scales;
}

// W - Q(W S) S^-1 of one row.
void difference_row(const float* w, std::span<const float> scales, int bits, int64_t group, float* out) {
  const auto cols = static_cast<int64_t>(scales.size());
  std::vector<float> scaled(static_cast<size_t>(group));
  std::vector<uint8_t> codes(static_cast<size_t>(group));
  for (int64_t begin = 0; begin < cols; begin += group) {
    const float* s = scales.data() + begin;
    for (int64_t k = 0; k < group; ++k) scaled[static_cast<size_t>(k)] = w[begin + k] * s[k];
    const AffineGroup rounded = round_group_asymmetric(scaled.data(), group, bits, nullptr, codes.data());
    const float step = f16_to_float(rounded.scale);
    for (int64_t k = 0; k < group; ++k) {
      const auto code = static_cast<float>(codes[static_cast<size_t>(k)] - rounded.zero);
      out[begin + k] = w[begin + k] - step * code / s[k];
    }
  }
}

float rounded_to(DType type, float value) {
  if (type == DType::kF32) return value;
  return type == DType::kF16 ? f16_to_float(float_to_f16(value)) : bf16_to_float(float_to_bf16(value));
}

struct Scratch {
  std::vector<float> differences, products;  // [kPanelRows][cols]
};

// tr(D H D^T).
Result<double> error_of(const float* w, int64_t rows, std::span<const float> scales, const float* hessian,
                        int bits, int64_t group, Scratch& scratch) {
  const auto cols = static_cast<int64_t>(scales.size());
  std::vector<double> row_errors(static_cast<size_t>(rows));
  for (int64_t first = 0; first < rows; first += kPanelRows) {
    const int64_t count = std::min(kPanelRows, rows - first);
    float* differences = scratch.differences.data();
    float* products = scratch.products.data();
    parallel_items(count, [&](int64_t i) {
      difference_row(w + (first + i) * cols, scales, bits, group, differences + i * cols);
    });
    // H is symmetric.
    QWEN2_CHECK(multiply_transposed(differences, count, hessian, cols, cols, 0.0F, products, cols));
    parallel_items(count, [&](int64_t i) {
      double sum = 0;
      for (int64_t k = 0; k < cols; ++k) sum += double{differences[i * cols + k]} * products[i * cols + k];
      row_errors[static_cast<size_t>(first + i)] = sum;
    });
  }
  double total = 0;
  for (const double error : row_errors) total += error;
  return total;
}

}  // namespace

Result<AwqSearch> search_awq_scales(const float* w, int64_t rows, int64_t cols, const float* hessian,
                                    std::span<const float> magnitudes, int bits, int64_t group) {
  const auto panel = static_cast<size_t>(std::min(kPanelRows, rows) * cols);
  Scratch scratch{std::vector<float>(panel), std::vector<float>(panel)};
  AwqSearch best;
  for (int i = 0; i < kGrid; ++i) {
    const double alpha = static_cast<double>(i) / kGrid;
    std::vector<float> scales = scales_for(magnitudes, alpha);
    QWEN2_TRY(const double error, error_of(w, rows, scales, hessian, bits, group, scratch));
    if (i == 0) best.plain_error = error;
    if (i > 0 && error >= best.error) continue;
    best.scales = std::move(scales);
    best.alpha = alpha;
    best.error = error;
  }
  return best;
}

void fold_into_norm(std::span<float> norm, std::span<float> scales, DType stored) {
  for (size_t k = 0; k < scales.size(); ++k) {
    const float quotient = rounded_to(stored, norm[k] / scales[k]);
    const bool usable = quotient != 0.0F && std::isfinite(quotient);
    scales[k] = usable ? norm[k] / quotient : 1.0F;
    if (usable) norm[k] = quotient;
  }
}

void scale_columns(float* w, int64_t rows, int64_t cols, std::span<const float> scales) {
  parallel_ranges(rows, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t k = 0; k < cols; ++k) w[n * cols + k] *= scales[static_cast<size_t>(k)];
    }
  });
}

void divide_rows(float* w, int64_t cols, std::span<const float> scales) {
  for (size_t n = 0; n < scales.size(); ++n) {
    float* row = w + static_cast<int64_t>(n) * cols;
    for (int64_t k = 0; k < cols; ++k) row[k] /= scales[n];
  }
}

}  // namespace qwen2::quantize
