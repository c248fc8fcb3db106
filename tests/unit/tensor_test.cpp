#include <gtest/gtest.h>

#include <cmath>

#include "random_data.h"
#include "tensor/dtype.h"
#include "tensor/packed_matrix.h"

namespace qwen2 {
namespace {

// The value of a binary16 by its definition.
double f16_value(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  if (exponent == 31) return fraction == 0 ? sign * INFINITY : NAN;
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

TEST(DType, EveryHalfConvertsByItsDefinition) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const double expected = f16_value(half);
    const float actual = f16_to_float(half);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(actual));
      ASSERT_TRUE(std::isnan(f16_to_float(float_to_f16(actual))));
      continue;
    }
    ASSERT_EQ(double{actual}, expected) << bits;
    ASSERT_EQ(float_to_f16(actual), half) << bits;
  }
}

TEST(DType, HalfRoundsToNearestEven) {
  for (int i = 0; i < 200000; ++i) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(test::generator()()));
    if (!std::isfinite(x) || std::abs(x) >= 65520.0F) continue;
    const uint16_t half = float_to_f16(x);
    const double error = std::abs(f16_value(half) - x);
    for (const int step : {-1, 1}) {
      const auto neighbour = static_cast<uint16_t>(half + step);
      if ((neighbour & 0x7fff) >= 0x7c00 || ((neighbour ^ half) & 0x8000) != 0) continue;
      const double other = std::abs(f16_value(neighbour) - x);
      ASSERT_TRUE(error < other || (error == other && (half & 1) == 0)) << x;
    }
  }
  EXPECT_EQ(float_to_f16(65520.0F), 0x7c00);
  EXPECT_EQ(float_to_f16(-1e9F), 0xfc00);
}

TEST(DType, EveryTypeReadsAsFloats) {
  std::vector<float> values = test::normal(33);
  std::vector<uint16_t> bf16, f16;
  for (float& value : values) {
    value = bf16_to_float(float_to_bf16(value));
    bf16.push_back(float_to_bf16(value));
    f16.push_back(float_to_f16(value));
  }
  std::vector<float> out(values.size());
  const auto read = [&](const void* source, DType type) {
    std::vector<std::byte> odd(values.size() * 4 + 1);  // files need not align tensors
    std::memcpy(odd.data() + 1, source, values.size() * dtype_bytes(type));
    to_floats(odd.data() + 1, type, static_cast<int64_t>(values.size()), out.data());
    return out;
  };
  EXPECT_EQ(read(values.data(), DType::kF32), values);
  EXPECT_EQ(read(bf16.data(), DType::kBF16), values);
  // fp16 has more bits than bf16 but a smaller range: tiny values may be flushed on the way.
  read(f16.data(), DType::kF16);
  for (size_t i = 0; i < out.size(); ++i) EXPECT_NEAR(out[i], values[i], 1e-6);
}

TEST(PackedMatrix, GivesBackWhatWasStored) {
  const int64_t rows = 70;
  const int64_t cols = 50;
  std::vector<uint16_t> storage(PackedMatrix::packed_bytes(rows, cols) / 2, 0);
  const PackedMatrix matrix{storage.data(), rows, cols};
  std::vector<std::vector<float>> expected;
  for (int64_t row = 0; row < rows; ++row) {
    expected.push_back(test::normal(static_cast<size_t>(cols)));
    matrix.set_row(row, expected.back().data());
    for (float& value : expected.back()) value = bf16_to_float(float_to_bf16(value));
  }
  std::vector<float> out(static_cast<size_t>(cols));
  for (int64_t row = 0; row < rows; ++row) {
    matrix.get_row(row, out.data());
    EXPECT_EQ(out, expected[static_cast<size_t>(row)]);
  }
}

}  // namespace
}  // namespace qwen2
