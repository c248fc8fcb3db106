// Quantised matrices: the format, its kernels of every instruction set, and rounding, against slow
// references.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "kernels/cpu/dense.h"
#include "kernels/cpu/int8_products.h"
#include "kernels/cpu/row_products.h"
#include "random_data.h"
#include "tensor/quantized_storage.h"

namespace qwen2::cpu {
namespace {

using test::normal;
using test::uniform;

uint16_t random_scale() {
  return float_to_f16(
      std::ldexp(static_cast<float>(uniform(1024, 2047)), static_cast<int>(uniform(-20, -14))) *
      (uniform(0, 9) == 0 ? -1.0F : 1.0F));
}

// Random codes, scales and offsets.
QuantizedStorage random_matrix(const QuantizedFormat& format, int64_t rows, int64_t cols) {
  QuantizedStorage storage(format, rows, cols);
  const QuantizedMatrix& m = storage.matrix();
  const int low = format.bits == 4 ? 0 : -128;
  const int high = format.bits == 4 ? 15 : 127;
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t k = 0; k < cols; ++k) m.set_code(n, k, static_cast<int>(uniform(low, high)));
    for (int64_t k = 0; k < cols; k += m.scale_group()) {
      if (format.scale == ScaleForm::kF32) {
        m.set_scale_f32(n, k, normal(1)[0] * 0.01F);
      } else {
        m.set_scale_f16(n, k, random_scale());
      }
      if (format.offset == OffsetForm::kMinimum) m.set_minimum_f16(n, k, random_scale());
    }
    for (int64_t k = 0; k < cols; k += format.group) {
      if (m.two_level()) m.set_sub_scale(n, k, static_cast<int8_t>(uniform(-128, 127)));
      if (m.two_level() && format.offset == OffsetForm::kMinimum)
        m.set_sub_minimum(n, k, static_cast<int8_t>(uniform(0, 63)));
      if (format.offset == OffsetForm::kZero) m.set_zero(n, k, static_cast<int>(uniform(-127, 128)));
    }
  }
  if (format.permuted) {
    std::iota(m.permutation, m.permutation + cols, 0);
    std::shuffle(m.permutation, m.permutation + cols, test::generator());
  }
  return storage;
}

struct Case {
  QuantizedFormat format;
  int64_t rows, cols;
};

// Every form, group and awkward size.
std::vector<Case> cases() {
  using enum ScaleForm;
  using enum OffsetForm;
  std::vector<Case> all{{{8, 32, kF16TimesI8, kMinimum}, 70, 512},  {{8, 16, kF16TimesI8, kNone}, 64, 256},
                        {{4, 32, kF16TimesI8, kMinimum}, 129, 768}, {{8, 96, kF32, kNone}, 65, 96},
                        {{8, 1536, kF32, kNone}, 64, 1536},         {{4, 328, kF16, kZero}, 100, 328}};
  for (const int bits : {4, 8}) {
    for (const int64_t group : {16, 32, 64, 128}) {
      for (const OffsetForm offset : {kNone, kZero, kMinimum}) {
        all.push_back(
            {{bits, group, kF16, offset, uniform(0, 1) == 1}, uniform(1, 200), group * uniform(1, 9)});
      }
    }
  }
  return all;
}

std::string name(const Case& c) {
  return fmt::format("{} bits, group {}, scale {}, offset {}{}, {} x {}", c.format.bits, c.format.group,
                     static_cast<int>(c.format.scale), static_cast<int>(c.format.offset),
                     c.format.permuted ? ", permuted" : "", c.rows, c.cols);
}

class QuantizedTest : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (GetParam() > detect_isa()) GTEST_SKIP() << "this processor has no " << isa_name(GetParam());
  }
  [[nodiscard]] const Kernels& kernels() const { return kernels_for(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(AllIsas, QuantizedTest, testing::Values(Isa::kBaseline, Isa::kAvx2, Isa::kAvx512),
                         [](const auto& param) { return std::string(isa_name(param.param)); });

TEST(QuantizedMatrix, KeepsEveryElement) {
  for (const Case& c : cases()) {
    const QuantizedStorage storage(c.format, c.rows, c.cols);
    const QuantizedMatrix& m = storage.matrix();
    std::vector<int> codes;
    for (int64_t n = 0; n < c.rows; ++n) {
      for (int64_t k = 0; k < c.cols; ++k) {
        codes.push_back(static_cast<int>(c.format.bits == 4 ? uniform(0, 15) : uniform(-128, 127)));
        m.set_code(n, k, codes.back());
      }
    }
    size_t at = 0;
    for (int64_t n = 0; n < c.rows; ++n) {
      for (int64_t k = 0; k < c.cols; ++k) ASSERT_EQ(m.code(n, k), codes[at++]) << name(c);
    }
  }
}

TEST_P(QuantizedTest, RowProductsMatchReference) {
  for (const Case& c : cases()) {
    const QuantizedStorage storage = random_matrix(c.format, c.rows, c.cols);
    auto products = RowProducts::create(kernels(), c.cols);
    ASSERT_TRUE(products);
    const int64_t x_stride = c.cols + 8;
    const int64_t y_stride = round_up(c.rows, kBlockRows) + 16;
    for (const int batch : {1, 3, 4, 9, 16}) {
      const auto x = normal(static_cast<size_t>(batch * x_stride));
      const auto before = normal(static_cast<size_t>(batch * y_stride));
      auto y = before;
      products->run(WeightMatrix::of(storage.matrix()), x.data(), x_stride, batch, y.data(), y_stride, true);
      std::vector<float> row(static_cast<size_t>(c.cols));
      for (int64_t n = 0; n < c.rows; ++n) {
        storage.matrix().get_row(n, row.data());
        for (int64_t b = 0; b < batch; ++b) {
          double expected = before[static_cast<size_t>(b * y_stride + n)];
          double magnitude = 0;
          for (int64_t k = 0; k < c.cols; ++k) {
            const double w = row[static_cast<size_t>(k)];
            expected += w * x[static_cast<size_t>(b * x_stride + k)];
            // Codes times x are summed before the offset is taken off: what cancels there counts too.
            magnitude += std::abs(w) + std::abs(storage.matrix().minimum(n, k));
          }
          // Activations are rounded to 1/65534 of their chunk's largest, which is below 6.
          ASSERT_NEAR(y[static_cast<size_t>(b * y_stride + n)], expected, 1e-4 * magnitude + 1e-6)
              << name(c) << ", batch " << batch;
        }
      }
    }
  }
}

TEST_P(QuantizedTest, RowProductsDoNotDependOnTheBatch) {
  for (const Case& c : cases()) {
    const QuantizedStorage storage = random_matrix(c.format, c.rows, c.cols);
    auto products = RowProducts::create(kernels(), c.cols);
    ASSERT_TRUE(products);
    const WeightMatrix w = WeightMatrix::of(storage.matrix());
    const int64_t y_stride = round_up(c.rows, kBlockRows);
    const auto x = normal(static_cast<size_t>(kMaxGemvBatch * c.cols));
    std::vector<float> together(static_cast<size_t>(kMaxGemvBatch * y_stride));
    products->run(w, x.data(), c.cols, kMaxGemvBatch, together.data(), y_stride, false);
    for (int64_t b = 0; b < kMaxGemvBatch; ++b) {
      std::vector<float> alone(static_cast<size_t>(y_stride));
      products->run(w, x.data() + b * c.cols, c.cols, 1, alone.data(), y_stride, false);
      for (int64_t n = 0; n < c.rows; ++n)
        ASSERT_EQ(alone[static_cast<size_t>(n)], together[static_cast<size_t>(b * y_stride + n)]) << name(c);
    }
  }
}

TEST_P(QuantizedTest, PartsOfDifferentFormatsAreOneMatrix) {
  const int64_t cols = 256;
  const QuantizedStorage four = random_matrix({.bits = 4, .group = 32}, 128, cols);
  const QuantizedStorage eight = random_matrix({.bits = 8, .group = 64, .permuted = true}, 64, cols);
  std::vector<uint16_t> storage(PackedMatrix::packed_bytes(70, cols) / 2);
  const PackedMatrix dense{storage.data(), 70, cols};
  for (int64_t n = 0; n < 70; ++n) dense.set_row(n, normal(static_cast<size_t>(cols)).data());
  WeightMatrix w = WeightMatrix::of(four.matrix());
  w.parts.push_back({.first_row = 128, .is_quantized = true, .quantized = eight.matrix()});
  w.parts.push_back({.first_row = 192, .dense = dense});
  ASSERT_EQ(w.rows(), 262);
  auto products = RowProducts::create(kernels(), cols);
  auto prompts = Dense::create(kernels(), 32, cols);
  ASSERT_TRUE(products && prompts);
  const int64_t count = 32;
  const int64_t y_stride = round_up(w.rows(), kBlockRows);
  const auto x = normal(static_cast<size_t>(count * cols));
  std::vector<float> few(static_cast<size_t>(count * y_stride)), many(few.size());
  products->run(w, x.data(), cols, count, few.data(), y_stride, false);
  ASSERT_TRUE((*prompts)->run(w, x.data(), cols, count, many.data(), y_stride, false, Rounding::kTwoBf16));
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t n = 0; n < w.rows(); ++n) {
    w.get_row(n, row.data());
    for (int64_t i = 0; i < count; ++i) {
      double expected = 0;
      double magnitude = 0;
      for (int64_t k = 0; k < cols; ++k) {
        expected += double{row[static_cast<size_t>(k)]} * x[static_cast<size_t>(i * cols + k)];
        magnitude += std::abs(double{row[static_cast<size_t>(k)]});
      }
      ASSERT_NEAR(few[static_cast<size_t>(i * y_stride + n)], expected, 3e-4 * magnitude) << n;
      // Prompts round the weights to bf16.
      ASSERT_NEAR(many[static_cast<size_t>(i * y_stride + n)], expected, 1e-2 * magnitude) << n;
    }
  }
}

// Reference products y [m][rows].
std::vector<double> products_of(const QuantizedMatrix& w, const std::vector<float>& x, int64_t m) {
  std::vector<double> y;
  std::vector<float> row(static_cast<size_t>(w.cols));
  for (int64_t n = 0; n < w.rows; ++n) {
    w.get_row(n, row.data());
    for (int64_t i = 0; i < m; ++i) {
      double sum = 0;
      for (int64_t k = 0; k < w.cols; ++k)
        sum += double{row[static_cast<size_t>(k)]} * x[static_cast<size_t>(i * w.cols + k)];
      y.push_back(sum);
    }
  }
  return y;
}

TEST_P(QuantizedTest, EightBitActivationsKeepOutliers) {
  for (const Case& c : cases()) {
    const QuantizedStorage storage = random_matrix(c.format, c.rows, c.cols);
    const QuantizedMatrix& w = storage.matrix();
    for (const int64_t m : {int64_t{1}, uniform(6, 25)}) {
      auto products = Int8Products::create(kernels(), m, c.cols);
      ASSERT_TRUE(products) << products.error().message;
      auto x = normal(static_cast<size_t>(m * c.cols));
      // One column that would take all the levels; a token's mean magnitude must stay below a 24th of it.
      const int64_t column = uniform(0, c.cols - 1);
      if (c.cols >= 64) {
        for (int64_t i = 0; i < m; i += 2) x[static_cast<size_t>(i * c.cols + column)] = 5000.0F;
      }
      const auto expected = products_of(w, x, m);
      const int64_t y_stride = round_up(c.rows, kBlockRows);
      std::vector<float> y(static_cast<size_t>(m * y_stride), 0.5F);
      products->run(WeightMatrix::of(w), x.data(), c.cols, m, y.data(), y_stride, true);
      if (c.cols >= 64) {
        ASSERT_EQ(products->outlier_columns().size(), 1U) << name(c);
      }
      double error = 0;
      double norm = 0;  // what the products of ordinary elements would have, on average
      std::vector<float> row(static_cast<size_t>(c.cols));
      for (int64_t n = 0; n < c.rows; ++n) {
        w.get_row(n, row.data());
        norm += static_cast<double>(m) * std::inner_product(row.begin(), row.end(), row.begin(), 0.0);
        for (int64_t i = 0; i < m; ++i) {
          const double expected_y = expected[static_cast<size_t>(n * m + i)];
          error += std::pow(y[static_cast<size_t>(i * y_stride + n)] - 0.5 - expected_y, 2);
        }
      }
      // A level is a 127th of a chunk's largest, about 2.5: its rounding is 0.6 % of an element. Few products
      // scatter, and all products of one row of activations as one, since they share its rounding.
      EXPECT_LT(std::sqrt(error / norm), m == 1 || c.rows * m < 16 ? 0.05 : 0.02)
          << name(c) << ", " << m << " rows";
    }
  }
}

TEST_P(QuantizedTest, EightBitActivationsDoNotDependOnTheBatch) {
  for (const Case& c : cases()) {
    const QuantizedStorage storage = random_matrix(c.format, c.rows, c.cols);
    const WeightMatrix w = WeightMatrix::of(storage.matrix());
    const int64_t most = 37;
    auto products = Int8Products::create(kernels(), most, c.cols);
    ASSERT_TRUE(products);
    const int64_t y_stride = round_up(c.rows, kBlockRows);
    auto x = normal(static_cast<size_t>(most * c.cols));
    for (int64_t i = 0; i < most; i += 3) x[static_cast<size_t>(i * c.cols + i % c.cols)] = 4000.0F;
    const auto before = normal(static_cast<size_t>(most * y_stride));
    std::vector<float> alone = before;
    for (int64_t i = 0; i < most; ++i)
      products->run(w, x.data() + i * c.cols, c.cols, 1, alone.data() + i * y_stride, y_stride, true);
    for (const int64_t m : {int64_t{3}, int64_t{4}, int64_t{8}, int64_t{13}, int64_t{16}, most}) {
      std::vector<float> together = before;
      products->run(w, x.data(), c.cols, m, together.data(), y_stride, true);
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t n = 0; n < c.rows; ++n) {
          const auto at = static_cast<size_t>(i * y_stride + n);
          ASSERT_EQ(together[at], alone[at]) << name(c) << ", row " << i << " of " << m;
        }
      }
    }
  }
}

TEST_P(QuantizedTest, BlocksExpandToTheNearestBf16) {
  for (const Case& c : cases()) {
    const QuantizedStorage storage = random_matrix(c.format, c.rows, c.cols);
    const QuantizedMatrix& m = storage.matrix();
    std::vector<uint16_t> expanded(PackedMatrix::packed_bytes(c.rows, c.cols) / 2, 0xffff);
    const PackedMatrix dense{expanded.data(), c.rows, c.cols};
    for (int64_t block = 0; block < m.blocks(); ++block)
      kernels().dequantize_block(m, block, expanded.data() + block * dense.block_elements());
    std::vector<float> expected(static_cast<size_t>(c.cols)), actual(expected.size());
    for (int64_t n = 0; n < c.rows; ++n) {
      m.get_row(n, expected.data());
      dense.get_row(n, actual.data());
      for (int64_t k = 0; k < c.cols; ++k) {
        const int64_t own = m.permutation != nullptr ? m.permutation[k] : k;
        // As numbers: the sign of a zero may differ.
        ASSERT_EQ(bf16_to_float(float_to_bf16(expected[static_cast<size_t>(own)])),
                  actual[static_cast<size_t>(k)])
            << name(c) << ", " << n << ", " << k;
      }
    }
  }
}

TEST_P(QuantizedTest, ActivationsRoundToTheNearestLevel) {
  for (const int levels : {127, 32767}) {
    for (const int64_t chunk : {8, 32, 96, 128}) {
      const int64_t cols = chunk * 3 + (chunk == 128 ? 40 : 0);
      auto x = normal(static_cast<size_t>(cols), 30.0F);
      std::fill_n(x.begin() + chunk, chunk, 0.0F);  // a chunk of zeros
      std::vector<int16_t> codes(x.size());
      std::vector<float> scales(4);
      std::vector<int32_t> sums(4);
      kernels().quantize_activations(x.data(), cols, chunk, levels, codes.data(), scales.data(), sums.data());
      for (int64_t k = 0; k < cols; ++k) {
        const float scale = scales[static_cast<size_t>(k / chunk)];
        const auto code = codes[static_cast<size_t>(k)];
        EXPECT_LE(std::abs(code), levels);
        // Half a level, and what floats of this size are off in their last bits.
        const float off = scale * (0.501F + 2e-7F * static_cast<float>(std::abs(code)));
        EXPECT_NEAR(scale * static_cast<float>(code), x[static_cast<size_t>(k)], off);
      }
      for (int64_t begin = 0; begin < cols; begin += chunk) {
        const auto end = std::min(begin + chunk, cols);
        EXPECT_EQ(sums[static_cast<size_t>(begin / chunk)],
                  std::accumulate(codes.begin() + begin, codes.begin() + end, 0));
      }
    }
  }
}

double rounding_error(const std::vector<float>& weights, double scale, int low, int high) {
  double error = 0;
  for (const float w : weights) {
    const double code = std::clamp(std::nearbyint(w / scale), double(low), double(high));
    error += (w - code * scale) * (w - code * scale);
  }
  return error;
}

TEST_P(QuantizedTest, GroupsAreRoundedWithAGoodClip) {
  for (const int bits : {4, 8}) {
    const int low = bits == 4 ? -8 : -127;
    const int high = bits == 4 ? 7 : 127;
    double plain = 0;
    double searched = 0;
    for (int round = 0; round < 50; ++round) {
      const auto weights = normal(static_cast<size_t>(16 * uniform(1, 8)), 0.02F);
      std::vector<int8_t> codes(weights.size());
      const float scale = f16_to_float(
          kernels().quantize_group(weights.data(), static_cast<int64_t>(weights.size()), bits, codes.data()));
      double error = 0;
      double largest = 0;
      for (size_t k = 0; k < weights.size(); ++k) {
        ASSERT_GE(codes[k], low);
        ASSERT_LE(codes[k], high);
        // Nearest to within the float arithmetic of ties.
        const double ideal = std::clamp(double{weights[k]} / scale, double(low), double(high));
        ASSERT_NEAR(codes[k], ideal, 0.5001);
        error += std::pow(weights[k] - double{scale} * codes[k], 2);
        largest = std::max(largest, std::abs(double{weights[k]}));
      }
      searched += error;
      plain += rounding_error(weights, largest / high, low, high);
    }
    EXPECT_LT(searched, plain * (bits == 4 ? 0.9 : 1.0));
  }
  std::vector<int8_t> codes(16, 1);
  EXPECT_EQ(kernels().quantize_group(std::vector<float>(16).data(), 16, 4, codes.data()), 0);
  EXPECT_EQ(codes, std::vector<int8_t>(16));
}

}  // namespace
}  // namespace qwen2::cpu
