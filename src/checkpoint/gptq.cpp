// GPTQ modules, as AutoGPTQ and GPTQModel write them and Transformers, vLLM and GPTQModel read them
// (https://github.com/ModelCloud/GPTQModel). With per = 32 / bits codes in an int32, lowest bits first:
//   NAME.qweight I32 [in / per, out]      the codes of `per` neighbouring inputs
//   NAME.qzeros  I32 [groups, out / per]  the zeros of `per` neighbouring outputs
//   NAME.scales  F16 or BF16 [groups, out]
//   NAME.g_idx   I32 [in]                 the group of each input; only "desc_act" files need it
// and w = scale * (code - zero). "checkpoint_format": "gptq_v2" stores the zero itself, "gptq" one less.
#include "checkpoint/column_order.h"
#include "checkpoint/quantized_blocks.h"
#include "checkpoint/quantized_reader.h"

namespace qwen2 {
namespace {

struct Settings {
  int64_t bits = 4;     // what modules are expected to have; their shapes say what they have
  int64_t group = 128;  // the same; -1: whole rows
  bool sym = true;
  bool desc_act = false;
  GptqZeros zeros = GptqZeros::kLessOne;
};

struct Module {
  const RawTensor* qweight = nullptr;
  const RawTensor* qzeros = nullptr;
  FloatTensor scales;
  const RawTensor* g_idx = nullptr;  // may be null
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t bits = 0;
  int64_t group = 0;           // columns
  std::vector<int32_t> order;  // as of column_order()
  // What is added to a stored word of zeros. GPTQModel adds ones to whole words when it reads "gptq", and
  // subtracts them when it writes, so that a borrow of a zero of 0 crosses into its neighbour and comes back.
  // Other readers add one to each field, with a wrap or without; all agree where no field is all ones.
  uint32_t zero_offset = 0;

  [[nodiscard]] int64_t groups() const { return cols / group; }
  [[nodiscard]] int64_t per_word() const { return 32 / bits; }
  [[nodiscard]] uint32_t mask() const { return (uint32_t{1} << bits) - 1; }
  // One in each field of a word.
  [[nodiscard]] uint32_t ones() const { return bits == 4 ? 0x11111111U : 0x01010101U; }
  // Codes of 8 bits are stored signed.
  [[nodiscard]] int bias() const { return bits == 8 ? 128 : 0; }
  [[nodiscard]] bool every_zero_word_is(uint32_t word) const {
    const auto words = static_cast<int64_t>(qzeros->bytes.size() / sizeof(uint32_t));
    for (int64_t i = 0; i < words; ++i) {
      if (qzeros->at<uint32_t>(i) != word) return false;
    }
    return true;
  }
};

class GptqReader final : public QuantizedReader {
 public:
  GptqReader(const TensorTable& tensors, const Settings& settings) : tensors_(tensors), settings_(settings) {}

  bool has(std::string_view module) const override {
    return tensors_.find(std::string(module) + ".qweight") != nullptr;
  }

  Result<std::optional<QuantizedFormat>> format(std::string_view name, int64_t rows,
                                                int64_t cols) const override {
    QWEN2_TRY(const Module module, open(name, rows, cols));
    return format_of(module);
  }

  Status load(std::string_view name, int64_t rows, const QuantizedMatrix& target,
              int64_t first_row) const override {
    QWEN2_TRY(const Module module, open(name, rows, target.cols));
    QWEN2_CHECK(check_format(name, target, format_of(module)));
    QWEN2_CHECK(check_finite(std::string(name) + ".scales", module.scales));
    if (module.g_idx != nullptr) {
      QWEN2_CHECK(
          set_permutation(std::string(name) + ".g_idx", *module.g_idx, module.order, target, first_row));
    }
    for_each_block(rows, first_row, [&](const BlockRows& part) {
      copy_scales(target, part, module.scales, rows);
      if (target.format.offset == OffsetForm::kZero) {
        copy_zeros(target, part, [&](int64_t group, int64_t row) { return zero(module, group, row); });
      }
      copy_module_codes(module, target, part);
    });
    for (const RawTensor* tensor : {module.qweight, module.qzeros, &module.scales.raw()}) tensor->release();
    return {};
  }

 private:
  Result<Module> open(std::string_view name, int64_t rows, int64_t cols) const {
    const std::string prefix(name);
    Module module;
    module.rows = rows;
    module.cols = cols;
    QWEN2_TRY(module.bits, bits_of(prefix + ".qweight", rows, cols));
    const int64_t groups = groups_of_scales(tensors_, prefix + ".scales", cols, settings_.group);
    QWEN2_TRY(module.group, columns_of_groups(tensors_, name, groups, cols));
    if (rows % module.per_word() != 0) {
      return fail(ErrorKind::kUnsupported, "'{}': module '{}' has {} rows; a multiple of {} was expected",
                  tensors_.folder().string(), name, rows, module.per_word());
    }
    QWEN2_TRY(module.qweight, tensors_.get(prefix + ".qweight", "I32", {cols / module.per_word(), rows}));
    QWEN2_TRY(module.qzeros, tensors_.get(prefix + ".qzeros", "I32", {groups, rows / module.per_word()}));
    QWEN2_TRY(module.scales, tensors_.get_floats(prefix + ".scales", {groups, rows}));
    module.zero_offset = zero_offset(module);
    if (settings_.desc_act || tensors_.find(prefix + ".g_idx") != nullptr) {
      QWEN2_TRY(module.g_idx, tensors_.get(prefix + ".g_idx", "I32", {cols}));
      QWEN2_TRY(module.order, column_order(prefix + ".g_idx", *module.g_idx, module.group));
    }
    return module;
  }

  // By the rows of "qweight": settings may differ by module ("dynamic"), or be absent.
  Result<int64_t> bits_of(const std::string& name, int64_t rows, int64_t cols) const {
    const std::vector<int64_t>& shape = tensors_.find(name)->shape;
    for (const int64_t bits : {4, 8}) {
      if (shape == std::vector{cols * bits / 32, rows}) return bits;
    }
    for (const int64_t bits : {2, 3}) {
      if (shape != std::vector{cols * bits / 32, rows}) continue;
      return fail(ErrorKind::kUnsupported,
                  "'{}': tensor '{}' holds codes of {} bits; 4 or 8 were expected: take the model in one of "
                  "these, or as GGUF",
                  tensors_.find(name)->path, name, bits);
    }
    return settings_.bits;  // its shape is wrong
  }

  uint32_t zero_offset(const Module& module) const {
    switch (settings_.zeros) {
      case GptqZeros::kItself:
        return 0;
      case GptqZeros::kShown:  // symmetric zeros are in the middle
        return settings_.sym &&
                       module.every_zero_word_is((module.ones() << (module.bits - 1)) - module.ones())
                   ? module.ones()
                   : 0;
      case GptqZeros::kLessOne:
        break;
    }
    return module.ones();
  }

  QuantizedFormat format_of(const Module& module) const {
    QuantizedFormat format;
    format.bits = static_cast<int>(module.bits);
    format.group = module.group;
    format.scale = scale_form(module.scales);
    // kNone stands for zeros of 2^(bits - 1).
    const uint32_t centred = module.ones() << (module.bits - 1);
    const bool none = settings_.sym && module.every_zero_word_is(centred - module.zero_offset);
    format.offset = none ? OffsetForm::kNone : OffsetForm::kZero;
    format.permuted = !module.order.empty();
    return format;
  }

  static int zero(const Module& module, int64_t group, int64_t row) {
    const int64_t words = module.rows / module.per_word();
    const uint32_t word =
        module.qzeros->at<uint32_t>(group * words + row / module.per_word()) + module.zero_offset;
    return static_cast<int>(word >> (row % module.per_word() * module.bits) & module.mask()) - module.bias();
  }

  static void copy_module_codes(const Module& module, const QuantizedMatrix& target, const BlockRows& part) {
    const auto sign = static_cast<uint8_t>(module.bias());  // flipping the top bit subtracts 128
    copy_codes(target, part, [&](int64_t col, EightColumns& codes) {
      for (int64_t j = 0; j < 8; ++j) {
        const int64_t input = module.order.empty() ? col + j : module.order[static_cast<size_t>(col + j)];
        const int64_t start = input / module.per_word() * module.rows + part.first;
        const int64_t shift = input % module.per_word() * module.bits;
        auto& column = codes[static_cast<size_t>(j)];
        for (int64_t i = 0; i < part.count; ++i) {
          const uint32_t code = module.qweight->at<uint32_t>(start + i) >> shift & module.mask();
          column[static_cast<size_t>(i)] = static_cast<uint8_t>(code ^ sign);
        }
      }
    });
  }

  const TensorTable& tensors_;
  Settings settings_;
};

}  // namespace

ReaderResult open_gptq_reader(const TensorTable& tensors, const JsonFields& settings, GptqZeros zeros) {
  Settings s;
  s.zeros = zeros;
  QWEN2_CHECK(settings.optional("bits", s.bits));
  if (s.bits != 4 && s.bits != 8) {
    return settings.error(
        "bits",
        fmt::format("is {}; 4 or 8 was expected for GPTQ: take the model in one of these, or as "
                    "GGUF",
                    s.bits),
        ErrorKind::kUnsupported);
  }
  QWEN2_CHECK(read_group_size(settings, s.group));
  QWEN2_CHECK(settings.optional("sym", s.sym));
  QWEN2_CHECK(settings.optional("desc_act", s.desc_act));
  return std::make_unique<GptqReader>(tensors, s);
}

ReaderResult open_gptq_reader(const TensorTable& tensors, const JsonFields& settings) {
  std::string layout = "gptq";
  bool marlin = false;
  QWEN2_CHECK(settings.optional("checkpoint_format", layout));
  QWEN2_CHECK(settings.optional("is_marlin_format", marlin));
  if ((layout != "gptq" && layout != "gptq_v2") || marlin) {
    return settings.error("checkpoint_format",
                          fmt::format("is \"{}\"; \"gptq\" or \"gptq_v2\" was expected",
                                      marlin ? "marlin" : layout.substr(0, 64)),
                          ErrorKind::kUnsupported);
  }
  return open_gptq_reader(tensors, settings, layout == "gptq" ? GptqZeros::kLessOne : GptqZeros::kItself);
}

}  // namespace qwen2
