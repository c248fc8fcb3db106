#include "quantize/rounding.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/parallel.h"
#include "tensor/dtype.h"

namespace qwen2::quantize {
namespace {

// Narrower ranges that are tried: 1, 0.97, ... of the whole one.
constexpr int kClips = 16;
constexpr float kClipStep = 0.03F;

struct Range {
  float low, high;
};

AffineGroup affine_of(Range range, int bits) {
  const auto levels = static_cast<float>((1 << bits) - 1);
  AffineGroup group;
  group.scale = float_to_f16((range.high - range.low) / levels);
  const float scale = f16_to_float(group.scale);
  if (scale == 0.0F) return group;
  group.zero = static_cast<uint8_t>(std::clamp(std::nearbyint(-range.low / scale), 0.0F, levels));
  return group;
}

float code_of(float w, float inverse, float zero, float levels) {
  return std::clamp(std::nearbyint(w * inverse) + zero, 0.0F, levels);
}

float weighted_error(const float* w, int64_t size, const AffineGroup& group, int bits,
                     const float* importance) {
  const auto levels = static_cast<float>((1 << bits) - 1);
  const float scale = f16_to_float(group.scale);
  const float inverse = scale == 0.0F ? 0.0F : 1.0F / scale;
  const auto zero = static_cast<float>(group.zero);
  float error = 0;
  for (int64_t k = 0; k < size; ++k) {
    const float difference = w[k] - scale * (code_of(w[k], inverse, zero, levels) - zero);
    error += importance[k] * difference * difference;
  }
  return error;
}

}  // namespace

GroupedWeights::GroupedWeights(int bits_of_code, int64_t row_count, int64_t col_count, int64_t group_size)
    : bits(bits_of_code),
      rows(row_count),
      cols(col_count),
      group(group_size),
      codes(static_cast<size_t>(row_count * col_count)),
      scales(static_cast<size_t>(row_count * (col_count / group_size))),
      zeros(scales.size(), static_cast<uint8_t>(1 << (bits_of_code - 1))),
      group_of(static_cast<size_t>(col_count)) {
  for (int64_t k = 0; k < cols; ++k) group_of[static_cast<size_t>(k)] = static_cast<int32_t>(k / group_size);
}

void GroupedWeights::expand_row(int64_t row, float* out) const {
  const uint8_t* code = codes.data() + row * cols;
  for (int64_t k = 0; k < cols; ++k) {
    const auto at = static_cast<size_t>(row * groups() + group_of[static_cast<size_t>(k)]);
    out[k] = f16_to_float(scales[at]) * static_cast<float>(code[k] - zeros[at]);
  }
}

GroupedWeights round_symmetric(const cpu::Kernels& kernels, const float* w, int64_t rows, int64_t cols,
                               int bits, int64_t group) {
  GroupedWeights result(bits, rows, cols, group);
  const int middle = 1 << (bits - 1);
  parallel_items(rows, [&](int64_t row) {
    std::vector<int8_t> codes(static_cast<size_t>(group));
    for (int64_t g = 0; g < result.groups(); ++g) {
      const int64_t start = row * cols + g * group;
      result.scales[static_cast<size_t>(row * result.groups() + g)] =
          kernels.quantize_group(w + start, group, bits, codes.data());
      for (int64_t k = 0; k < group; ++k) {
        result.codes[static_cast<size_t>(start + k)] =
            static_cast<uint8_t>(codes[static_cast<size_t>(k)] + middle);
      }
    }
  });
  return result;
}

AffineGroup round_group_asymmetric(const float* w, int64_t size, int bits, const float* importance,
                                   uint8_t* codes) {
  const auto [least, most] = std::minmax_element(w, w + size);
  const Range whole{std::min(*least, 0.0F), std::max(*most, 0.0F)};
  AffineGroup best = affine_of(whole, bits);
  float best_error = std::numeric_limits<float>::infinity();
  for (int i = 0; importance != nullptr && i < kClips; ++i) {
    const float share = 1.0F - kClipStep * static_cast<float>(i);
    const AffineGroup group = affine_of({whole.low * share, whole.high * share}, bits);
    const float error = weighted_error(w, size, group, bits, importance);
    if (error < best_error) {
      best_error = error;
      best = group;
    }
  }
  const float scale = f16_to_float(best.scale);
  const float inverse = scale == 0.0F ? 0.0F : 1.0F / scale;
  for (int64_t k = 0; k < size; ++k) {
    codes[k] = static_cast<uint8_t>(
        code_of(w[k], inverse, static_cast<float>(best.zero), static_cast<float>((1 << bits) - 1)));
  }
  return best;
}

GroupedWeights round_asymmetric(const float* w, int64_t rows, int64_t cols, int bits, int64_t group,
                                const float* importance, int64_t unclipped_rows) {
  GroupedWeights result(bits, rows, cols, group);
  parallel_items(rows, [&](int64_t row) {
    for (int64_t g = 0; g < result.groups(); ++g) {
      const int64_t start = row * cols + g * group;
      const float* own = importance == nullptr || row < unclipped_rows ? nullptr : importance + g * group;
      const AffineGroup rounded =
          round_group_asymmetric(w + start, group, bits, own, result.codes.data() + start);
      result.scales[static_cast<size_t>(row * result.groups() + g)] = rounded.scale;
      result.zeros[static_cast<size_t>(row * result.groups() + g)] = rounded.zero;
    }
  });
  return result;
}

}  // namespace qwen2::quantize
