// Modules of bitsandbytes' LLM.int8(), as Transformers saves them (https://huggingface.co/docs/bitsandbytes):
//   NAME.weight I8  [out, in]
//   NAME.SCB    F32 [out]     the largest magnitude of each row
//   NAME.weight_format U8 []  0 for rows as above; absent in older files
// and w = weight * SCB / 127. Columns of outliers, which bitsandbytes multiplies in 16 bits, are a matter of
// activations: the stored weights cover them too.
#include "checkpoint/quantized_blocks.h"
#include "checkpoint/quantized_reader.h"
namespace qwen2 {
namespace {

struct Module {
  const RawTensor* weight = nullptr;
  FloatTensor scb;
  QuantizedFormat format;
};

class EightBitReader final : public QuantizedReader {
 public:
  explicit EightBitReader(const TensorTable& tensors) : tensors_(tensors) {}

  bool has(std::string_view module) const override {
    const RawTensor* weight = tensors_.find(std::string(module) + ".weight");
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
    QWEN2_CHECK(check_format(name, target, module.format));
    QWEN2_CHECK(check_finite(std::string(name) + ".SCB", module.scb));
    for_each_block(rows, first_row, [&](const BlockRows& part) {
      for (int64_t i = 0; i < part.count; ++i) {
        const float scale = module.scb.at(part.first + i) / 127.0F;
        target.set_scale_f32(part.block * kBlockRows + part.lane + i, 0, scale);
      }
      copy_codes(target, part, [&](int64_t col, EightColumns& codes) {
        for (int64_t i = 0; i < part.count; ++i) {
          const int64_t start = (part.first + i) * target.cols + col;
          for (int64_t j = 0; j < 8; ++j) {
            codes[static_cast<size_t>(j)][static_cast<size_t>(i)] = module.weight->at<uint8_t>(start + j);
          }
        }
      });
    });
    module.weight->release();
    return {};
  }

 private:
  Result<Module> open(std::string_view name, int64_t rows, int64_t cols) const {
    const std::string prefix(name);
    Module module;
    QWEN2_TRY(const int64_t group, columns_of_group(tensors_, name, -1, cols));
    QWEN2_TRY(module.weight, tensors_.get(prefix + ".weight", "I8", {rows, cols}));
    QWEN2_TRY(const RawTensor* scb, tensors_.get(prefix + ".SCB", "F32", {rows}));
    module.scb = FloatTensor(*scb, DType::kF32);
    if (const RawTensor* layout = tensors_.find(prefix + ".weight_format"); layout != nullptr) {
      if (layout->bytes.empty() || layout->at<uint8_t>(0) != 0) {
        return fail(ErrorKind::kUnsupported, "'{}': tensor '{}.weight_format' is not 0; rows were expected",
                    layout->path, name);
      }
    }
    module.format = {.bits = 8, .group = group, .scale = ScaleForm::kF32, .offset = OffsetForm::kNone};
    return module;
  }

  const TensorTable& tensors_;
};

}  // namespace

std::unique_ptr<QuantizedReader> bitsandbytes_8bit_reader(const TensorTable& tensors) {
  return std::make_unique<EightBitReader>(tensors);
}

}  // namespace qwen2
