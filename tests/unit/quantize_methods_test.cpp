// GPTQ, AWQ and rounding to nearest against slow versions of themselves.
#include <gtest/gtest.h>

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>

#include "quantize/awq.h"
#include "quantize/gptq.h"
#include "random_data.h"
#include "tensor/dtype.h"

namespace qwen2::quantize {
namespace {

using test::normal;

const cpu::Kernels& kernels() {
  return cpu::kernels_for(cpu::detect_isa());
}

// Inputs with correlated columns, some much larger than others.
std::vector<float> correlated_inputs(int64_t count, int64_t cols) {
  const auto sources = normal(static_cast<size_t>(count * cols));
  const auto mix = normal(static_cast<size_t>(cols * cols), 1.0F / std::sqrt(static_cast<float>(cols)));
  const auto sizes = normal(static_cast<size_t>(cols));
  std::vector<float> x(sources.size());
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t k = 0; k < cols; ++k) {
      float sum = 0.3F * sources[static_cast<size_t>(i * cols + k)];
      for (int64_t j = 0; j < cols; ++j)
        sum += sources[static_cast<size_t>(i * cols + j)] * mix[static_cast<size_t>(j * cols + k)];
      x[static_cast<size_t>(i * cols + k)] = sum * std::exp(sizes[static_cast<size_t>(k)]);
    }
  }
  return x;
}

std::vector<float> hessian_of(const std::vector<float>& x, int64_t cols) {
  std::vector<float> h(static_cast<size_t>(cols * cols));
  const auto count = static_cast<int64_t>(x.size()) / cols;
  for (int64_t a = 0; a < cols; ++a) {
    for (int64_t b = 0; b < cols; ++b) {
      double sum = 0;
      for (int64_t i = 0; i < count; ++i)
        sum += double{x[static_cast<size_t>(i * cols + a)]} * x[static_cast<size_t>(i * cols + b)];
      h[static_cast<size_t>(a * cols + b)] = static_cast<float>(2 * sum);
    }
  }
  return h;
}

// ||(W - Q) X||^2, from H.
double output_error(const std::vector<float>& w, const GroupedWeights& q, const std::vector<float>& h) {
  double error = 0;
  std::vector<float> row(static_cast<size_t>(q.cols));
  for (int64_t n = 0; n < q.rows; ++n) {
    q.expand_row(n, row.data());
    Eigen::VectorXd d(q.cols);
    for (int64_t k = 0; k < q.cols; ++k)
      d[k] = double{w[static_cast<size_t>(n * q.cols + k)]} - row[static_cast<size_t>(k)];
    using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const Eigen::Map<const RowMajor> hessian(h.data(), q.cols, q.cols);
    error += 0.5 * d.dot(hessian.cast<double>() * d);
  }
  return error;
}

// GPTQ as its derivation has it: after each column, the inverse Hessian of the columns that are left is made
// anew (Frantar et al. 2022, equations 2 and 3), in double and without blocks.
GroupedWeights textbook_gptq(std::vector<float> w, int64_t rows, int64_t cols, const std::vector<float>& h,
                             const GptqOptions& options) {
  Eigen::MatrixXd hessian(cols, cols);
  for (int64_t a = 0; a < cols; ++a) {
    for (int64_t b = 0; b < cols; ++b) hessian(a, b) = h[static_cast<size_t>(a * cols + b)];
  }
  hessian.diagonal().array() += options.damping * hessian.diagonal().mean();
  GroupedWeights result(options.bits, rows, cols, options.group);
  const double high = options.bits == 4 ? 7 : 127;
  const double low = options.bits == 4 ? -8 : -127;
  std::vector<float> scales(static_cast<size_t>(rows));
  std::vector<int8_t> codes(static_cast<size_t>(options.group));
  for (int64_t k = 0; k < cols; ++k) {
    const Eigen::MatrixXd inverse = hessian.bottomRightCorner(cols - k, cols - k).inverse();
    for (int64_t n = 0; n < rows; ++n) {
      float* row = w.data() + n * cols;
      if (k % options.group == 0) {
        const uint16_t scale = kernels().quantize_group(row + k, options.group, options.bits, codes.data());
        result.scales[static_cast<size_t>(n * result.groups() + k / options.group)] = scale;
        scales[static_cast<size_t>(n)] = f16_to_float(scale);
      }
      const double scale = scales[static_cast<size_t>(n)];
      const double code = std::clamp(std::nearbyint(row[k] / scale), low, high);
      result.codes[static_cast<size_t>(n * cols + k)] =
          static_cast<uint8_t>(static_cast<int>(code) + (1 << (options.bits - 1)));
      const double error = (row[k] - code * scale) / inverse(0, 0);
      for (int64_t j = k; j < cols; ++j) row[j] -= static_cast<float>(error * inverse(0, j - k));
    }
  }
  return result;
}

TEST(Gptq, CholeskyOfTheInverse) {
  for (const int64_t n : {1, 7, 130, 300, 600}) {
    const auto x = normal(static_cast<size_t>(3 * n * n));
    auto h = hessian_of(x, n);
    const auto original = h;
    ASSERT_TRUE(invert_to_cholesky(h.data(), n));
    using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const Eigen::MatrixXd u = Eigen::Map<const RowMajor>(h.data(), n, n).cast<double>();
    const Eigen::MatrixXd m = Eigen::Map<const RowMajor>(original.data(), n, n).cast<double>();
    EXPECT_EQ(u.triangularView<Eigen::StrictlyLower>().toDenseMatrix().norm(), 0.0) << n;
    EXPECT_LT((u.transpose() * u * m - Eigen::MatrixXd::Identity(n, n)).norm(),
              1e-3 * std::sqrt(static_cast<double>(n)))
        << n;
  }
  std::vector<float> indefinite{1, 2, 2, 1};
  EXPECT_FALSE(invert_to_cholesky(indefinite.data(), 2));
}

TEST(Gptq, AgreesWithTheTextbook) {
  for (const int bits : {4, 8}) {
    const int64_t rows = 8;
    const int64_t cols = 160;  // two blocks
    const GptqOptions options{.bits = bits, .group = 32};
    const auto w = normal(static_cast<size_t>(rows * cols), 0.05F);
    const auto h = hessian_of(correlated_inputs(400, cols), cols);
    auto work = w;
    auto used = h;
    const auto fast = round_gptq(kernels(), work.data(), rows, cols, used.data(), options);
    ASSERT_TRUE(fast) << fast.error().message;
    const GroupedWeights slow = textbook_gptq(w, rows, cols, h, options);
    // A tie may fall to the other side in float, and moves what follows it in its row.
    size_t equal = 0;
    for (size_t i = 0; i < slow.codes.size(); ++i) equal += fast->codes[i] == slow.codes[i] ? 1 : 0;
    EXPECT_GT(static_cast<double>(equal), 0.7 * static_cast<double>(slow.codes.size()));
    const double expected = output_error(w, slow, h);
    EXPECT_NEAR(output_error(w, *fast, h), expected, 0.1 * expected);
  }
}

TEST(Gptq, ChangesOutputsLessThanRounding) {
  for (const int bits : {4, 8}) {
    for (const bool act_order : {false, true}) {
      const int64_t rows = 40;
      const int64_t cols = 256;
      const auto w = normal(static_cast<size_t>(rows * cols), 0.05F);
      auto x = correlated_inputs(700, cols);
      for (size_t i = 17; i < x.size(); i += static_cast<size_t>(cols)) x[i] = 0;  // a dead input
      const auto h = hessian_of(x, cols);
      auto work = w;
      auto used = h;
      const auto gptq =
          round_gptq(kernels(), work.data(), rows, cols, used.data(), {bits, 64, 0.01, act_order});
      ASSERT_TRUE(gptq) << gptq.error().message;
      const GroupedWeights rtn = round_symmetric(kernels(), w.data(), rows, cols, bits, 64);
      EXPECT_LT(output_error(w, *gptq, h), 0.95 * output_error(w, rtn, h)) << bits << act_order;
      std::vector<int64_t> members(static_cast<size_t>(cols / 64));
      for (const int32_t g : gptq->group_of) ++members[static_cast<size_t>(g)];
      EXPECT_EQ(members, std::vector<int64_t>(members.size(), 64));
    }
  }
}

TEST(Awq, SearchIsNeverWorseThanRounding) {
  const int64_t rows = 24;
  const int64_t cols = 128;
  const auto w = normal(static_cast<size_t>(rows * cols), 0.05F);
  const auto x = correlated_inputs(500, cols);
  const auto h = hessian_of(x, cols);
  std::vector<float> magnitudes(static_cast<size_t>(cols));
  for (size_t i = 0; i < x.size(); ++i) magnitudes[i % magnitudes.size()] += std::abs(x[i]) / 500.0F;
  const auto found = search_awq_scales(w.data(), rows, cols, h.data(), magnitudes, 4, 32);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_LT(found->error, found->plain_error);
  // What it says is the error of the scaled and rounded matrix.
  auto scaled = w;
  scale_columns(scaled.data(), rows, cols, found->scales);
  const GroupedWeights rounded = round_asymmetric(scaled.data(), rows, cols, 4, 32, nullptr);
  auto scaled_h = h;
  for (size_t a = 0; a < magnitudes.size(); ++a) {
    for (size_t b = 0; b < magnitudes.size(); ++b)
      scaled_h[a * magnitudes.size() + b] /= found->scales[a] * found->scales[b];
  }
  EXPECT_NEAR(2 * output_error(scaled, rounded, scaled_h), found->error, 0.02 * found->error);
}

TEST(Rounding, AsymmetricCodesAreTheNearest) {
  const auto w = normal(64 * 96, 0.1F);
  const std::vector<float> importance(96, 1.0F);
  const GroupedWeights whole = round_asymmetric(w.data(), 64, 96, 4, 32, nullptr);
  const GroupedWeights clipped = round_asymmetric(w.data(), 64, 96, 4, 32, importance.data());
  std::vector<float> a(96), b(96);
  double whole_error = 0;
  double clipped_error = 0;
  for (int64_t n = 0; n < 64; ++n) {
    whole.expand_row(n, a.data());
    clipped.expand_row(n, b.data());
    for (size_t k = 0; k < 96; ++k) {
      const float value = w[static_cast<size_t>(n) * 96 + k];
      const float scale = f16_to_float(whole.scales[static_cast<size_t>(n) * 3 + k / 32]);
      EXPECT_LE(std::abs(a[k] - value), scale * 1.01F);  // an end of the range may be a code away
      whole_error += std::pow(a[k] - value, 2);
      clipped_error += std::pow(b[k] - value, 2);
    }
  }
  EXPECT_LT(clipped_error, whole_error);
  const std::vector<float> zeros(32);
  std::vector<uint8_t> codes(32, 9);
  const AffineGroup group = round_group_asymmetric(zeros.data(), 32, 4, nullptr, codes.data());
  EXPECT_EQ(group.scale, 0);
}

}  // namespace
}  // namespace qwen2::quantize
