// Modules in 8-bit floats, E4M3 without infinities, as AutoFP8, compressed-tensors ("float-quantized") and
// Qwen's and DeepSeek's FP8 folders hold them:
//   NAME.weight F8_E4M3 [out, in]
//   NAME.weight_scale [], [1], [out] or [out, 1]           of the tensor, or of each row
//   NAME.weight_scale_inv [out / block rows, in / block columns], rounded up; newer compressed-tensors call it
//   weight_scale
// and w = weight * scale, whatever the name says. Scales of activations are not needed. QuantizedMatrix has
// integer codes, so that modules are expanded.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>

#include "checkpoint/plain_tensor.h"
#include "checkpoint/quantized_reader.h"

namespace qwen2 {
namespace {

// Four bits of exponent, three of mantissa; all ones is NaN.
std::array<float, 256> e4m3_values() {
  std::array<float, 256> values{};
  for (size_t code = 0; code < values.size(); ++code) {
    const auto mantissa = static_cast<float>(code & 7);
    const int exponent = static_cast<int>(code >> 3 & 15);
    float value = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    if ((code & 127) == 127) value = std::numeric_limits<float>::quiet_NaN();
    values[code] = code >= 128 ? -value : value;
  }
  return values;
}

struct Module {
  const RawTensor* weight = nullptr;
  std::string scale_name;
  FloatTensor scale;
  // A scale covers that many rows and columns.
  Fp8Block block;
  int64_t scales_per_row = 1;
};

class Fp8Reader final : public QuantizedReader {
 public:
  Fp8Reader(const TensorTable& tensors, const Fp8Block& block) : tensors_(tensors), block_(block) {}

  bool has(std::string_view module) const override {
    const RawTensor* weight = tensors_.find(std::string(module) + ".weight");
    return weight != nullptr && weight->dtype.starts_with("F8_");
  }

  Result<std::optional<QuantizedFormat>> format(std::string_view name, int64_t rows,
                                                int64_t cols) const override {
    QWEN2_TRY([[maybe_unused]] const Module module, open(name, rows, cols));
    return std::nullopt;
  }

  Status read_rows(std::string_view name, int64_t rows, int64_t cols,
                   const Checkpoint::RowSink& sink) const override {
    static const std::array<float, 256> kValues = e4m3_values();
    QWEN2_TRY(const Module module, open(name, rows, cols));
    QWEN2_CHECK(check_finite(module.scale_name, module.scale));
    std::atomic<int64_t> nan_row = rows;
    for_each_row(rows, cols, sink, [&](int64_t row, float* values) {
      bool has_nan = false;
      for (int64_t k = 0; k < cols; ++k) {
        const uint8_t code = module.weight->at<uint8_t>(row * cols + k);
        has_nan = has_nan || (code & 127) == 127;
        values[k] = kValues[code];
      }
      if (has_nan) nan_row = row;
      for (int64_t k = 0; k < cols; k += module.block.cols) {
        const float scale =
            module.scale.at(row / module.block.rows * module.scales_per_row + k / module.block.cols);
        const int64_t end = std::min(cols, k + module.block.cols);
        for (int64_t i = k; i < end; ++i) values[i] *= scale;
      }
    });
    module.weight->release();
    if (nan_row == rows) return {};
    return fail(ErrorKind::kFormat,
                "'{}': tensor '{}.weight' holds NaN in row {}; finite values were expected",
                module.weight->path, name, nan_row.load());
  }

 private:
  Result<Module> open(std::string_view name, int64_t rows, int64_t cols) const {
    const std::string prefix = std::string(name) + ".weight";
    Module module;
    QWEN2_TRY(module.weight, tensors_.get(prefix, "F8_E4M3", {rows, cols}));
    const bool inverse = tensors_.find(prefix + "_scale_inv") != nullptr;
    module.scale_name = prefix + (inverse ? "_scale_inv" : "_scale");
    const RawTensor* scale = tensors_.find(module.scale_name);
    const std::vector<int64_t> blocks{(rows - 1) / block_.rows + 1, (cols - 1) / block_.cols + 1};
    using Shape = std::vector<int64_t>;
    if (scale != nullptr &&
        (scale->shape.empty() || scale->shape == Shape{1} || scale->shape == Shape{1, 1})) {
      module.block = {rows, cols};
    } else if (scale != nullptr && (scale->shape == Shape{rows} || scale->shape == Shape{rows, 1})) {
      module.block = {1, cols};
    } else {
      QWEN2_TRY(scale, tensors_.get(module.scale_name, blocks));
      module.block = block_;
      module.scales_per_row = blocks[1];
    }
    QWEN2_TRY(const DType type, float_dtype(module.scale_name, *scale));
    module.scale = FloatTensor(*scale, type);
    return module;
  }

  const TensorTable& tensors_;
  Fp8Block block_;
};

}  // namespace

std::unique_ptr<QuantizedReader> fp8_reader(const TensorTable& tensors, const Fp8Block& block) {
  return std::make_unique<Fp8Reader>(tensors, block);
}

Status read_fp8_block(const JsonFields& settings, std::string_view field, Fp8Block& block) {
  std::vector<int> sizes;
  QWEN2_CHECK(settings.optional(field, sizes));
  if (sizes.empty()) return {};
  if (sizes.size() != 2 || sizes[0] < 1 || sizes[1] < 1) {
    return settings.error(field,
                          fmt::format("is [{}]; two sizes from 1 on were expected", fmt::join(sizes, ", ")));
  }
  block = {sizes[0], sizes[1]};
  return {};
}

ReaderResult open_fp8_reader(const TensorTable& tensors, const JsonFields& settings) {
  Fp8Block block;
  QWEN2_CHECK(read_fp8_block(settings, "weight_block_size", block));
  return fp8_reader(tensors, block);
}

}  // namespace qwen2
