// Modules of bitsandbytes in 4 bits, NF4 or FP4, as Transformers saves them
// (https://huggingface.co/docs/bitsandbytes). With n = out * in, row after row:
//   NAME.weight U8 [n / 2, 1]            two codes a byte, the first one in the high half
//   NAME.weight.quant_map F32 [16]       the value of each code
//   NAME.weight.absmax F32 [n / block]   the largest magnitude of each block
//   NAME.weight.quant_state.bitsandbytes__nf4 (or __fp4) U8: JSON with the block, the shape and the offset below
// and w = quant_map[code] * absmax. Where the magnitudes are quantised themselves ("nested"), absmax is U8 and
//   NAME.weight.nested_quant_map F32 [256], NAME.weight.nested_absmax F32 [blocks / nested block]
// give them: nested_quant_map[absmax] * nested_absmax + nested_offset.
// A code stands for a value of a table, not for a multiple of a scale, so that modules are expanded.
#include <algorithm>
#include <boost/json.hpp>
#include <utility>

#include "checkpoint/plain_tensor.h"
#include "checkpoint/quantized_reader.h"

namespace qwen2 {
namespace {

// The fields of the state, for whole matrices.
struct State {
  int64_t block = 0;
  int64_t nested_block = 0;
  float nested_offset = 0;
};

struct Module {
  const RawTensor* weight = nullptr;
  const RawTensor* absmax = nullptr;
  State state;
  int64_t values = 0;
  int64_t blocks = 0;

  [[nodiscard]] bool nested() const { return absmax->dtype == "U8"; }
};

int64_t pieces(int64_t count, int64_t size) {
  return count / size + (count % size != 0 ? 1 : 0);
}

class FourBitReader final : public QuantizedReader {
 public:
  explicit FourBitReader(const TensorTable& tensors) : tensors_(tensors) {}

  bool has(std::string_view module) const override {
    return tensors_.find(std::string(module) + ".weight.absmax") != nullptr || state_of(module) != nullptr;
  }

  Result<std::optional<QuantizedFormat>> format(std::string_view name, int64_t rows,
                                                int64_t cols) const override {
    QWEN2_TRY([[maybe_unused]] const Module module, open(name, rows, cols));
    return std::nullopt;
  }

  Status read_rows(std::string_view name, int64_t rows, int64_t cols,
                   const Checkpoint::RowSink& sink) const override {
    QWEN2_TRY(const Module module, open(name, rows, cols));
    QWEN2_TRY(const std::vector<float> map, table(std::string(name) + ".weight.quant_map", 16));
    QWEN2_TRY(const std::vector<float> absmax, magnitudes(name, module));
    for_each_row(rows, cols, sink, [&](int64_t row, float* values) {
      const int64_t first = row * cols;
      for (int64_t k = 0; k < cols;) {
        const int64_t block = (first + k) / module.state.block;
        const int64_t end = std::min(cols, (block + 1) * module.state.block - first);
        for (; k < end; ++k) {
          const unsigned pair = module.weight->at<uint8_t>((first + k) / 2);
          const unsigned code = (first + k) % 2 == 0 ? pair >> 4 : pair & 15;
          values[k] = map[code] * absmax[static_cast<size_t>(block)];
        }
      }
    });
    module.weight->release();
    return {};
  }

 private:
  const RawTensor* state_of(std::string_view name) const {
    for (const char* type : {"nf4", "fp4"}) {
      const auto* state = tensors_.find(fmt::format("{}.weight.quant_state.bitsandbytes__{}", name, type));
      if (state != nullptr) return state;
    }
    return nullptr;
  }

  Result<Module> open(std::string_view name, int64_t rows, int64_t cols) const {
    const std::string prefix = std::string(name) + ".weight";
    Module module;
    if (__builtin_mul_overflow(rows, cols, &module.values) || module.values % 2 != 0) {
      return fail(ErrorKind::kUnsupported, "'{}': module '{}' is {} x {}; an even number was expected",
                  tensors_.folder().string(), name, rows, cols);
    }
    QWEN2_TRY(module.state, parse_state(name, rows, cols));
    module.blocks = pieces(module.values, module.state.block);
    QWEN2_TRY(module.weight, packed_weight(prefix, module.values / 2));
    QWEN2_TRY(module.absmax, tensors_.get(prefix + ".absmax", {module.blocks}));
    if (!module.nested()) {
      QWEN2_TRY(module.absmax, tensors_.get(prefix + ".absmax", "F32", {module.blocks}));
    } else if (module.state.nested_block == 0) {
      return fail(ErrorKind::kFormat,
                  "'{}': tensor '{}.absmax' is quantised, but the state has no 'nested_blocksize'",
                  module.absmax->path, prefix);
    }
    return module;
  }

  // "bnb_4bit_quant_storage" gives the same bytes another type, for programs that shard by elements.
  Result<const RawTensor*> packed_weight(const std::string& name, int64_t bytes) const {
    const RawTensor* weight = tensors_.find(name);
    const bool other_type =
        weight != nullptr && (weight->dtype == "BF16" || weight->dtype == "F16" || weight->dtype == "F32");
    if (other_type && std::cmp_equal(weight->bytes.size(), bytes)) return weight;
    return tensors_.get(name, "U8", {bytes, 1});
  }

  Result<State> parse_state(std::string_view name, int64_t rows, int64_t cols) const {
    const RawTensor* tensor = state_of(name);
    if (tensor == nullptr) {
      return fail(ErrorKind::kNotFound, "'{}': tensor '{}.weight.quant_state.bitsandbytes__nf4' is missing",
                  tensors_.folder().string(), name);
    }
    constexpr size_t kMostBytes = 4096;
    const std::string where = fmt::format("'{}': the quant_state of '{}.weight'", tensor->path, name);
    if (tensor->bytes.size() > kMostBytes || tensor->dtype != "U8") {
      return fail(ErrorKind::kFormat, "{} must be U8 of at most {} bytes", where, kMostBytes);
    }
    const std::string_view text(reinterpret_cast<const char*>(tensor->bytes.data()), tensor->bytes.size());
    QWEN2_TRY(const JsonFields fields, JsonFields::parse(text, where));
    constexpr int64_t kLargestBlock = 1 << 16;
    State state;
    std::vector<int> shape;
    QWEN2_CHECK(fields.required("blocksize", state.block, 1, kLargestBlock));
    QWEN2_CHECK(fields.optional("nested_blocksize", state.nested_block, 1, kLargestBlock));
    QWEN2_CHECK(fields.optional("nested_offset", state.nested_offset));
    QWEN2_CHECK(fields.required("shape", shape));
    if (shape.size() != 2 || shape[0] != rows || shape[1] != cols) {
      return fields.error("shape", fmt::format("is [{}]; the configuration wants [{}, {}]",
                                               fmt::join(shape, ", "), rows, cols));
    }
    return state;
  }

  Result<std::vector<float>> table(const std::string& name, int64_t size) const {
    QWEN2_TRY(const RawTensor* tensor, tensors_.get(name, "F32", {size}));
    const FloatTensor floats(*tensor, DType::kF32);
    QWEN2_CHECK(check_finite(name, floats));
    std::vector<float> values(static_cast<size_t>(size));
    to_floats(tensor->bytes.data(), DType::kF32, size, values.data());
    return values;
  }

  // The largest magnitude of each block.
  Result<std::vector<float>> magnitudes(std::string_view name, const Module& module) const {
    const std::string prefix = std::string(name) + ".weight.";
    if (!module.nested()) return table(prefix + "absmax", module.blocks);
    const int64_t nested_block = module.state.nested_block;
    QWEN2_TRY(const std::vector<float> map, table(prefix + "nested_quant_map", 256));
    QWEN2_TRY(const std::vector<float> outer,
              table(prefix + "nested_absmax", pieces(module.blocks, nested_block)));
    std::vector<float> values(static_cast<size_t>(module.blocks));
    for (int64_t i = 0; i < module.blocks; ++i) {
      const float inner = map[module.absmax->at<uint8_t>(i)];
      values[static_cast<size_t>(i)] =
          inner * outer[static_cast<size_t>(i / nested_block)] + module.state.nested_offset;
    }
    return values;
  }

  const TensorTable& tensors_;
};

}  // namespace

std::unique_ptr<QuantizedReader> bitsandbytes_4bit_reader(const TensorTable& tensors) {
  return std::make_unique<FourBitReader>(tensors);
}

}  // namespace qwen2
