// Modules of MLX (https://github.com/ml-explore/mlx), mode "affine", the embedding included:
//   NAME.weight U32 [out, in * bits / 32]  the codes of a row without gaps, lowest bits first
//   NAME.scales, NAME.biases [out, groups]
// and w = scale * code + bias. Modules may differ in bits and groups, or be plain: their tensors say so.
//
// 4 bits are kept where fp16 holds every bias, as it does all bf16 ones but the smallest. The rest is expanded:
// codes of 8 bits are unsigned, and a shift by 128 would round the minima.
#include <algorithm>

#include "checkpoint/plain_tensor.h"
#include "checkpoint/quantized_blocks.h"
#include "checkpoint/quantized_reader.h"

namespace qwen2 {
namespace {

struct Module {
  const RawTensor* weight = nullptr;
  FloatTensor scales;
  FloatTensor biases;
  int bits = 0;
  int64_t words = 0;  // of a row
  int64_t groups = 0;
  int64_t group = 0;  // columns

  // Codes of 3, 5 and 6 bits may lie in two words.
  [[nodiscard]] unsigned code(int64_t row, int64_t col) const {
    const int64_t bit = col * bits;
    const int64_t at = row * words + bit / 32;
    const auto shift = static_cast<unsigned>(bit % 32);
    uint64_t pair = weight->at<uint32_t>(at);
    if (shift + static_cast<unsigned>(bits) > 32) pair |= uint64_t{weight->at<uint32_t>(at + 1)} << 32;
    return static_cast<unsigned>(pair >> shift) & ((1U << bits) - 1);
  }
};

uint16_t minimum_of(float bias) {
  return float_to_f16(-bias);
}

bool fp16_holds(const FloatTensor& biases) {
  for (int64_t i = 0; i < biases.size(); ++i) {
    if (f16_to_float(minimum_of(biases.at(i))) != -biases.at(i)) return false;
  }
  return true;
}

class MlxReader final : public QuantizedReader {
 public:
  explicit MlxReader(const TensorTable& tensors) : tensors_(tensors) {}

  bool has(std::string_view module) const override {
    const RawTensor* weight = tensors_.find(std::string(module) + ".weight");
    return weight != nullptr && weight->dtype == "U32";
  }

  Result<std::optional<QuantizedFormat>> format(std::string_view name, int64_t rows,
                                                int64_t cols) const override {
    QWEN2_TRY(const Module module, open(name, rows, cols));
    return format_of(module);
  }

  Status load(std::string_view name, int64_t rows, const QuantizedMatrix& target,
              int64_t first_row) const override {
    QWEN2_TRY(const Module module, open_finite(name, rows, target.cols));
    const auto format = format_of(module);
    if (!format) return QuantizedReader::load(name, rows, target, first_row);
    QWEN2_CHECK(check_format(name, target, *format));
    for_each_block(rows, first_row, [&](const BlockRows& part) {
      copy_float_scales(target, part, [&](int64_t group, int64_t row) {
        return module.scales.at(row * module.groups + group);
      });
      copy_minima(target, part, [&](int64_t group, int64_t row) {
        return minimum_of(module.biases.at(row * module.groups + group));
      });
      copy_codes(target, part, [&](int64_t col, EightColumns& codes) {
        for (int64_t j = 0; j < 8; ++j) {
          for (int64_t i = 0; i < part.count; ++i) {
            codes[static_cast<size_t>(j)][static_cast<size_t>(i)] =
                static_cast<uint8_t>(module.code(part.first + i, col + j));
          }
        }
      });
    });
    module.weight->release();
    return {};
  }

  Status read_rows(std::string_view name, int64_t rows, int64_t cols,
                   const Checkpoint::RowSink& sink) const override {
    QWEN2_TRY(const Module module, open_finite(name, rows, cols));
    for_each_row(rows, cols, sink, [&](int64_t row, float* values) {
      for (int64_t group = 0; group < module.groups; ++group) {
        const float scale = module.scales.at(row * module.groups + group);
        const float bias = module.biases.at(row * module.groups + group);
        for (int64_t k = group * module.group; k < (group + 1) * module.group; ++k)
          values[k] = scale * static_cast<float>(module.code(row, k)) + bias;
      }
    });
    module.weight->release();
    return {};
  }

 private:
  Result<Module> open(std::string_view name, int64_t rows, int64_t cols) const {
    const std::string prefix(name);
    Module module;
    QWEN2_TRY(module.bits, bits_of(prefix + ".weight", rows, cols));
    module.words = cols * module.bits / 32;
    QWEN2_TRY(module.weight, tensors_.get(prefix + ".weight", "U32", {rows, module.words}));
    const RawTensor* scales = tensors_.find(prefix + ".scales");
    if (scales != nullptr && scales->shape.size() == 2) module.groups = scales->shape[1];
    QWEN2_TRY(module.scales, tensors_.get_floats(prefix + ".scales", {rows, module.groups}));
    QWEN2_TRY(module.biases, tensors_.get_floats(prefix + ".biases", {rows, module.groups}));
    QWEN2_TRY(module.group, columns_of_groups(tensors_, name, module.groups, cols));
    return module;
  }

  Result<Module> open_finite(std::string_view name, int64_t rows, int64_t cols) const {
    QWEN2_TRY(const Module module, open(name, rows, cols));
    QWEN2_CHECK(check_finite(std::string(name) + ".scales", module.scales));
    QWEN2_CHECK(check_finite(std::string(name) + ".biases", module.biases));
    return module;
  }

  // By the number of words in a row.
  Result<int> bits_of(const std::string& name, int64_t rows, int64_t cols) const {
    const RawTensor* weight = tensors_.find(name);
    for (const int bits : {2, 3, 4, 5, 6, 8}) {
      if (cols * bits % 32 == 0 && weight->shape == std::vector{rows, cols * bits / 32}) return bits;
    }
    return fail(ErrorKind::kUnsupported,
                "'{}': tensor '{}' has shape [{}]; codes of 2 to 8 bits for [{}, {}] were expected",
                weight->path, name, fmt::join(weight->shape, ", "), rows, cols);
  }

  static std::optional<QuantizedFormat> format_of(const Module& module) {
    if (module.bits != 4 || !fp16_holds(module.biases)) return std::nullopt;
    return QuantizedFormat{
        .bits = 4, .group = module.group, .scale = ScaleForm::kF32, .offset = OffsetForm::kMinimum};
  }

  const TensorTable& tensors_;
};

}  // namespace

ReaderResult open_mlx_reader(const TensorTable& tensors, const JsonFields& settings) {
  std::string mode = "affine";
  QWEN2_CHECK(settings.optional("mode", mode));
  if (mode != "affine") {
    return settings.error("mode",
                          fmt::format("is \"{}\"; \"affine\" was expected: convert the model with this mode",
                                      mode.substr(0, 64)),
                          ErrorKind::kUnsupported);
  }
  return std::make_unique<MlxReader>(tensors);
}

}  // namespace qwen2
