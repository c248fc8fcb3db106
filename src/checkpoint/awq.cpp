// AWQ modules of AutoAWQ's "gemm" version (https://github.com/casper-hansen/AutoAWQ), 4 bits. Eight codes of
// neighbouring outputs are in an int32; from the lowest bits on they are those of outputs 0, 2, 4, 6, 1, 3,
// 5, 7:
//   NAME.qweight I32 [in, out / 8]
//   NAME.qzeros  I32 [groups, out / 8]
//   NAME.scales  F16 or BF16 [groups, out]
// and w = scale * (code - zero).
#include "checkpoint/quantized_blocks.h"
#include "checkpoint/quantized_reader.h"

namespace qwen2 {
namespace {

// Where an output lies in its word.
unsigned nibble_shift(int64_t row) {
  static constexpr std::array<unsigned, 8> kShift{0, 16, 4, 20, 8, 24, 12, 28};
  return kShift[static_cast<size_t>(row % 8)];
}

struct Module {
  const RawTensor* qweight = nullptr;
  const RawTensor* qzeros = nullptr;
  FloatTensor scales;
  QuantizedFormat format;
};

class AwqReader final : public QuantizedReader {
 public:
  AwqReader(const TensorTable& tensors, int64_t group) : tensors_(tensors), group_(group) {}

  bool has(std::string_view module) const override {
    return tensors_.find(std::string(module) + ".qweight") != nullptr;
  }

  Result<std::optional<QuantizedFormat>> format(std::string_view name, int64_t rows,
                                                int64_t cols) const override {
    QWEN2_TRY(const Module module, open(name, rows, cols));
    return module.format;
  }

  Status load(std::string_view name, int64_t rows, const QuantizedMatrix& target,
              int64_t first_row) const override {
    QWEN2_TRY(const Module module, open(name, rows, target.cols));
    QWEN2_CHECK(check_format(name, target, module.format));
    QWEN2_CHECK(check_finite(std::string(name) + ".scales", module.scales));
    const int64_t words = rows / 8;
    for_each_block(rows, first_row, [&](const BlockRows& part) {
      copy_scales(target, part, module.scales, rows);
      copy_zeros(target, part, [&](int64_t group, int64_t row) {
        return static_cast<int>(module.qzeros->at<uint32_t>(group * words + row / 8) >> nibble_shift(row) &
                                15);
      });
      copy_codes(target, part, [&](int64_t col, EightColumns& codes) {
        for (int64_t j = 0; j < 8; ++j) {
          auto& column = codes[static_cast<size_t>(j)];
          for (int64_t i = 0; i < part.count; ++i) {
            const int64_t row = part.first + i;
            const auto word = module.qweight->at<uint32_t>((col + j) * words + row / 8);
            column[static_cast<size_t>(i)] = static_cast<uint8_t>(word >> nibble_shift(row) & 15);
          }
        }
      });
    });
    for (const RawTensor* tensor : {module.qweight, module.qzeros, &module.scales.raw()}) tensor->release();
    return {};
  }

 private:
  Result<Module> open(std::string_view name, int64_t rows, int64_t cols) const {
    const std::string prefix(name);
    Module module;
    const int64_t groups = groups_of_scales(tensors_, prefix + ".scales", cols, group_);
    QWEN2_TRY(const int64_t group, columns_of_groups(tensors_, name, groups, cols));
    if (rows % 8 != 0) {
      return fail(ErrorKind::kUnsupported, "'{}': module '{}' has {} rows; a multiple of 8 was expected",
                  tensors_.folder().string(), name, rows);
    }
    QWEN2_TRY(module.qweight, tensors_.get(prefix + ".qweight", "I32", {cols, rows / 8}));
    QWEN2_TRY(module.qzeros, tensors_.get(prefix + ".qzeros", "I32", {groups, rows / 8}));
    QWEN2_TRY(module.scales, tensors_.get_floats(prefix + ".scales", {groups, rows}));
    module.format = {
        .bits = 4, .group = group, .scale = scale_form(module.scales), .offset = OffsetForm::kZero};
    return module;
  }

  const TensorTable& tensors_;
  int64_t group_;  // what modules are expected to have; -1: whole rows
};

}  // namespace

ReaderResult open_awq_reader(const TensorTable& tensors, const JsonFields& settings) {
  int64_t bits = 4;
  int64_t group = 128;
  std::string version = "gemm";
  bool zero_point = true;
  QWEN2_CHECK(settings.optional("bits", bits));
  if (bits != 4) {
    return settings.error("bits", fmt::format("is {}; 4 was expected for \"awq\"", bits),
                          ErrorKind::kUnsupported);
  }
  QWEN2_CHECK(read_group_size(settings, group));
  QWEN2_CHECK(settings.optional("version", version));
  if (version != "gemm" && version != "GEMM") {
    return settings.error("version", fmt::format("is \"{}\"; \"gemm\" was expected", version.substr(0, 64)),
                          ErrorKind::kUnsupported);
  }
  QWEN2_CHECK(settings.optional("zero_point", zero_point));
  if (!zero_point)
    return settings.error("zero_point", "is false; true was expected", ErrorKind::kUnsupported);
  return std::make_unique<AwqReader>(tensors, group);
}

}  // namespace qwen2
