// Modules of compressed-tensors (https://github.com/neuralmagic/compressed-tensors), which LLM Compressor writes.
// What a module is, bits and groups included, follows from its tensors.
//
// "pack-quantized", with per = 32 / bits codes in an int32, lowest bits first, each 2^(bits - 1) more than q:
//   NAME.weight_packed     I32 [out, in / per]      `per` neighbouring inputs a word
//   NAME.weight_scale      [out, groups]            one group: a scale for each row
//   NAME.weight_zero_point I32 [out / per, groups]  packed along the outputs, with the same offset; or, in 2024,
//                          I8 [out, groups], which symmetric modules had too
//   NAME.weight_g_idx      I32 [in]                 the group of each input; a -1 in it: as there is none
//   NAME.weight_shape      I64 or I32 [2]
// "int-quantized":
//   NAME.weight I8 [out, in], NAME.weight_scale [out, groups] or [1], perhaps NAME.weight_zero_point I8
// and w = scale * (q - zero). "float-quantized" modules are those of fp8.cpp.
#include <algorithm>
#include <array>
#include <boost/json.hpp>

#include "checkpoint/column_order.h"
#include "checkpoint/quantized_blocks.h"
#include "checkpoint/quantized_reader.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

struct Module {
  bool packed = false;
  const RawTensor* weight = nullptr;
  FloatTensor scales;
  const RawTensor* zeros = nullptr;  // null: none, or all are 0
  const RawTensor* g_idx = nullptr;  // null: none
  std::vector<int32_t> order;        // as of column_order()
  int64_t cols = 0;
  int64_t groups = 1;
  QuantizedFormat format;

  [[nodiscard]] int bits() const { return format.bits; }
  [[nodiscard]] int64_t per_word() const { return 32 / bits(); }
  [[nodiscard]] float scale(int64_t row, int64_t group) const {
    return scales.at(scales.size() == 1 ? 0 : row * groups + group);
  }
  // The codes of one input in the terms of QuantizedMatrix: 4-bit codes count from 0, 8-bit codes are signed.
  void copy_column(int64_t input, int64_t first_row, int64_t count, uint8_t* out) const {
    if (!packed) {
      for (int64_t i = 0; i < count; ++i) out[i] = weight->at<uint8_t>((first_row + i) * cols + input);
      return;
    }
    const int64_t words = cols / per_word();
    const int64_t word = first_row * words + input / per_word();
    const int64_t shift = input % per_word() * bits();
    const uint32_t mask = bits() == 4 ? 15 : 255;
    const uint32_t sign = bits() == 4 ? 0 : 128;  // flipping the top bit subtracts 128
    for (int64_t i = 0; i < count; ++i)
      out[i] = static_cast<uint8_t>((weight->at<uint32_t>(word + i * words) >> shift & mask) ^ sign);
  }
  [[nodiscard]] int zero(int64_t row, int64_t group) const {
    const int offset = bits() == 4 ? 8 : 0;
    if (zeros->dtype == "I8") return zeros->at<int8_t>(row * groups + group) + offset;
    const auto word = zeros->at<uint32_t>(row / per_word() * groups + group);
    const auto field = static_cast<int>(word >> (row % per_word() * bits()) & ((1U << bits()) - 1));
    return bits() == 4 ? field : field - 128;
  }
};

bool all_zero(const RawTensor& tensor) {
  return std::ranges::all_of(tensor.bytes, [](std::byte b) { return b == std::byte{0}; });
}

class CompressedReader final : public QuantizedReader {
 public:
  CompressedReader(const TensorTable& tensors, bool symmetric) : tensors_(tensors), symmetric_(symmetric) {}

  bool has(std::string_view module) const override {
    const std::string prefix = std::string(module) + ".weight";
    if (tensors_.find(prefix + "_packed") != nullptr) return true;
    const RawTensor* weight = tensors_.find(prefix);
    return weight != nullptr && weight->dtype == "I8";
  }

  Result<std::optional<QuantizedFormat>> format(std::string_view name, int64_t rows,
                                                int64_t cols) const override {
    QWEN2_TRY(const Module module, open(name, rows, cols));
    return module.format;
  }

  Status load(std::string_view name, int64_t rows, const QuantizedMatrix& target,
              int64_t first_row) const override {
    QWEN2_TRY(const Module module, open(name, rows, target.cols));
    const std::string prefix = std::string(name) + ".weight";
    QWEN2_CHECK(check_format(name, target, module.format));
    QWEN2_CHECK(check_finite(prefix + "_scale", module.scales));
    if (module.g_idx != nullptr) {
      QWEN2_CHECK(set_permutation(prefix + "_g_idx", *module.g_idx, module.order, target, first_row));
    }
    for_each_block(rows, first_row, [&](const BlockRows& part) {
      copy_float_scales(target, part, [&](int64_t group, int64_t row) { return module.scale(row, group); });
      if (target.format.offset == OffsetForm::kZero) {
        copy_zeros(target, part, [&](int64_t group, int64_t row) { return module.zero(row, group); });
      }
      copy_codes(target, part, [&](int64_t col, EightColumns& codes) {
        for (int64_t j = 0; j < 8; ++j) {
          const int64_t input = module.order.empty() ? col + j : module.order[static_cast<size_t>(col + j)];
          module.copy_column(input, part.first, part.count, codes[static_cast<size_t>(j)].data());
        }
      });
    });
    module.weight->release();
    return {};
  }

 private:
  Result<Module> open(std::string_view name, int64_t rows, int64_t cols) const {
    const std::string prefix = std::string(name) + ".weight";
    Module module;
    module.cols = cols;
    module.packed = tensors_.find(prefix + "_packed") != nullptr;
    int bits = 8;
    if (module.packed) {
      QWEN2_TRY(bits, packed_bits(prefix, rows, cols));
      module.weight = tensors_.find(prefix + "_packed");
      QWEN2_CHECK(check_shape(prefix + "_shape", rows, cols));
    } else {
      QWEN2_TRY(module.weight, tensors_.get(prefix, "I8", {rows, cols}));
    }
    QWEN2_CHECK(open_scales(name, rows, module));
    QWEN2_TRY(const int64_t group, columns_of_groups(tensors_, name, module.groups, cols));
    module.format = {.bits = bits, .group = group, .scale = ScaleForm::kF32, .offset = OffsetForm::kNone};
    QWEN2_CHECK(open_zeros(prefix + "_zero_point", rows, module));
    QWEN2_CHECK(open_order(prefix + "_g_idx", module));
    return module;
  }

  // 4 or 8, by the number of words in a row.
  Result<int> packed_bits(const std::string& prefix, int64_t rows, int64_t cols) const {
    const RawTensor* packed = tensors_.find(prefix + "_packed");
    const bool as_four = packed->shape == std::vector{rows, cols / 8} && cols % 8 == 0;
    const bool as_eight = packed->shape == std::vector{rows, cols / 4} && cols % 4 == 0;
    if (packed->dtype != "I32" || !(as_four || as_eight)) {
      return fail(
          ErrorKind::kUnsupported,
          "'{}': tensor '{}_packed' is {} [{}]; I32 [{}, {}] for 4 bits or [{}, {}] for 8 bits was expected",
          packed->path, prefix, packed->dtype, fmt::join(packed->shape, ", "), rows, cols / 8, rows,
          cols / 4);
    }
    return as_four ? 4 : 8;
  }

  Status check_shape(const std::string& name, int64_t rows, int64_t cols) const {
    const RawTensor* shape = tensors_.find(name);
    if (shape == nullptr) return {};
    QWEN2_CHECK(tensors_.get(name, {2}));
    const bool wide = shape->dtype == "I64";
    if (!wide && shape->dtype != "I32") {
      return fail(ErrorKind::kUnsupported, "'{}': tensor '{}' has dtype {}; I64 or I32 was expected",
                  shape->path, name, shape->dtype);
    }
    const auto size = [&](int64_t i) { return wide ? shape->at<int64_t>(i) : shape->at<int32_t>(i); };
    if (size(0) != rows || size(1) != cols) {
      return fail(ErrorKind::kFormat, "'{}': tensor '{}' says [{}, {}]; the configuration wants [{}, {}]",
                  shape->path, name, size(0), size(1), rows, cols);
    }
    return {};
  }

  Status open_scales(std::string_view name, int64_t rows, Module& module) const {
    const std::string scale = std::string(name) + ".weight_scale";
    const RawTensor* tensor = tensors_.find(scale);
    if (tensor != nullptr && tensor->shape.size() == 2) module.groups = tensor->shape[1];
    const bool one = tensor != nullptr && !module.packed && tensor->shape == std::vector<int64_t>{1};
    QWEN2_TRY(module.scales, tensors_.get_floats(scale, one ? std::vector<int64_t>{1}
                                                            : std::vector<int64_t>{rows, module.groups}));
    return {};
  }

  Status open_zeros(const std::string& name, int64_t rows, Module& module) const {
    const RawTensor* zeros = tensors_.find(name);
    if (zeros == nullptr) {
      if (symmetric_) return {};
      return fail(ErrorKind::kNotFound, "'{}': tensor '{}' is missing, and 'symmetric' is false",
                  tensors_.folder().string(), name);
    }
    if (module.packed && zeros->dtype == "I32") {
      QWEN2_CHECK(tensors_.get(name, {(rows - 1) / module.per_word() + 1, module.groups}));
    } else {
      const std::vector<int64_t> own = module.scales.raw().shape;
      QWEN2_CHECK(tensors_.get(name, "I8", own));
      if (all_zero(*zeros)) return {};
      if (own.size() != 2) {
        return fail(ErrorKind::kUnsupported, "'{}': tensor '{}' is of the whole tensor; 0 was expected",
                    zeros->path, name);
      }
    }
    module.zeros = zeros;
    module.format.offset = OffsetForm::kZero;
    return {};
  }

  Status open_order(const std::string& name, Module& module) const {
    const RawTensor* g_idx = tensors_.find(name);
    if (g_idx == nullptr || module.groups == 1) return {};
    QWEN2_CHECK(tensors_.get(name, "I32", {module.cols}));
    for (int64_t k = 0; k < module.cols; ++k) {
      if (g_idx->at<int32_t>(k) == -1) return {};
    }
    module.g_idx = g_idx;
    QWEN2_TRY(module.order, column_order(name, *g_idx, module.format.group));
    module.format.permuted = !module.order.empty();
    return {};
  }

  const TensorTable& tensors_;
  bool symmetric_;  // whether modules may have no zeros
};

Status check_formats(const JsonFields& settings) {
  static constexpr std::array<std::string_view, 6> kFormats{
      "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense"};
  std::string format = "dense";
  QWEN2_CHECK(settings.optional("format", format));
  if (std::ranges::find(kFormats, format) == kFormats.end()) {
    return settings.error(
        "format",
        fmt::format("is \"{}\"; \"pack-quantized\", \"int-quantized\" or \"float-quantized\" was "
                    "expected: take the model in one of these, in 16 bits or as GGUF",
                    format.substr(0, 64)),
        ErrorKind::kUnsupported);
  }
  std::optional<JsonFields> sparsity;
  std::string sparse = "dense";
  QWEN2_CHECK(settings.optional("sparsity_config", sparsity));
  if (sparsity) QWEN2_CHECK(sparsity->optional("format", sparse));
  if (sparse != "dense") {
    return sparsity->error("format", fmt::format("is \"{}\"; \"dense\" was expected", sparse.substr(0, 64)),
                           ErrorKind::kUnsupported);
  }
  // Rotations of activations, which the product would have to make.
  std::optional<JsonFields> transform;
  QWEN2_CHECK(settings.optional("transform_config", transform));
  if (transform && transform->value("config_groups") != nullptr) {
    return settings.error("transform_config", "has groups: transforms are not supported",
                          ErrorKind::kUnsupported);
  }
  return {};
}

}  // namespace

ReaderResult open_compressed_reader(const TensorTable& tensors, const JsonFields& settings) {
  QWEN2_CHECK(check_formats(settings));
  json::object groups;
  QWEN2_CHECK(settings.optional("config_groups", groups));
  bool any_symmetric = groups.empty();
  Fp8Block block;
  for (const auto& [name, value] : groups) {
    if (!value.is_object()) return settings.error("config_groups", "must hold objects");
    const JsonFields group(value.get_object(),
                           fmt::format("'quantization_config.config_groups.{}'", std::string_view(name)));
    std::optional<JsonFields> weights;
    bool symmetric = true;
    QWEN2_CHECK(group.optional("weights", weights));
    if (weights) {
      QWEN2_CHECK(weights->optional("symmetric", symmetric));
      QWEN2_CHECK(read_fp8_block(*weights, "block_structure", block));
    }
    any_symmetric = any_symmetric || symmetric;
  }
  std::vector<std::unique_ptr<QuantizedReader>> readers;
  readers.push_back(std::make_unique<CompressedReader>(tensors, any_symmetric));
  readers.push_back(fp8_reader(tensors, block));
  return first_of(std::move(readers));
}

}  // namespace qwen2
