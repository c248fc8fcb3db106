#include "checkpoint/quantized_reader.h"

#include <algorithm>
#include <array>
#include <vector>

namespace qwen2 {
namespace {

class ReaderList final : public QuantizedReader {
 public:
  explicit ReaderList(std::vector<std::unique_ptr<QuantizedReader>> readers) : readers_(std::move(readers)) {}

  bool has(std::string_view module) const override { return find(module) != nullptr; }
  Result<std::optional<QuantizedFormat>> format(std::string_view module, int64_t rows,
                                                int64_t cols) const override {
    return find(module)->format(module, rows, cols);
  }
  Status load(std::string_view module, int64_t rows, const QuantizedMatrix& target,
              int64_t first_row) const override {
    return find(module)->load(module, rows, target, first_row);
  }
  Status read_rows(std::string_view module, int64_t rows, int64_t cols,
                   const Checkpoint::RowSink& sink) const override {
    return find(module)->read_rows(module, rows, cols, sink);
  }

 private:
  const QuantizedReader* find(std::string_view module) const {
    const auto found = std::ranges::find_if(readers_, [&](const auto& r) { return r->has(module); });
    return found == readers_.end() ? nullptr : found->get();
  }

  std::vector<std::unique_ptr<QuantizedReader>> readers_;
};

ReaderResult open_bitsandbytes_reader(const TensorTable& tensors, const JsonFields& /*settings*/) {
  std::vector<std::unique_ptr<QuantizedReader>> readers;
  readers.push_back(bitsandbytes_8bit_reader(tensors));
  readers.push_back(bitsandbytes_4bit_reader(tensors));
  return first_of(std::move(readers));
}

using Open = ReaderResult (*)(const TensorTable&, const JsonFields&);
struct Method {
  std::string_view name;
  Open open;
};
constexpr auto kMethods = std::to_array<Method>({{"gptq", open_gptq_reader},
                                                 {"awq", open_awq_reader},
                                                 {"auto-round", open_auto_round_reader},
                                                 {"intel/auto-round", open_auto_round_reader},
                                                 {"bitsandbytes", open_bitsandbytes_reader},
                                                 {"compressed-tensors", open_compressed_reader},
                                                 {"fp8", open_fp8_reader}});

ReaderResult open_method(const TensorTable& tensors, const JsonFields& settings, const std::string& method) {
  for (const Method& known : kMethods) {
    if (known.name == method) return known.open(tensors, settings);
  }
  return settings.error(
      "quant_method",
      fmt::format("is \"{}\"; \"gptq\", \"awq\", \"auto-round\", \"bitsandbytes\", "
                  "\"compressed-tensors\" or \"fp8\" was expected: take the model in one of these, "
                  "as GGUF, or in 16 bits, which --precision rounds",
                  method.substr(0, 64)),
      ErrorKind::kUnsupported);
}

// The settings of GPTQ files from before config.json had them.
ReaderResult open_by_own_file(const TensorTable& tensors) {
  const std::filesystem::path file = tensors.folder() / "quantize_config.json";
  if (!std::filesystem::exists(file)) return nullptr;
  QWEN2_TRY(const JsonFields settings, JsonFields::read(file, size_t{1} << 20));
  std::string method = "gptq";
  QWEN2_CHECK(settings.optional("quant_method", method));
  return open_method(tensors, settings, method);
}

}  // namespace

Status QuantizedReader::load(std::string_view module, int64_t /*rows*/, const QuantizedMatrix& /*target*/,
                             int64_t /*first_row*/) const {
  return fail(ErrorKind::kInternal, "module '{}' has no quantised form", module);
}

Status QuantizedReader::read_rows(std::string_view module, int64_t /*rows*/, int64_t /*cols*/,
                                  const Checkpoint::RowSink& /*sink*/) const {
  return fail(ErrorKind::kInternal, "module '{}' has a quantised form", module);
}

std::unique_ptr<QuantizedReader> first_of(std::vector<std::unique_ptr<QuantizedReader>> readers) {
  return std::make_unique<ReaderList>(std::move(readers));
}

Status read_group_size(const JsonFields& settings, int64_t& size) {
  static constexpr std::array<int64_t, 8> kSizes{-1, 16, 32, 64, 128, 256, 512, 1024};
  QWEN2_CHECK(settings.optional("group_size", size));
  if (std::ranges::find(kSizes, size) == kSizes.end()) {
    return settings.error("group_size",
                          fmt::format("is {}; 16, 32, 64, 128, 256, 512, 1024 or -1 was expected", size),
                          ErrorKind::kUnsupported);
  }
  return {};
}

int64_t groups_of_scales(const TensorTable& tensors, const std::string& scales, int64_t cols, int64_t group) {
  const RawTensor* tensor = tensors.find(scales);
  if (tensor != nullptr && tensor->shape.size() == 2) return tensor->shape[0];
  return group == -1 || cols % group != 0 ? 1 : cols / group;
}

ReaderResult open_quantized_reader(const TensorTable& tensors, std::string_view config_json) {
  const auto config =
      JsonFields::parse(config_json, fmt::format("'{}'", (tensors.folder() / "config.json").string()));
  // What is no JSON object is reported by who reads the model's sizes from it.
  if (!config) return nullptr;
  // MLX has a field of its own. Newer versions write it a second time, as settings without a method.
  const auto mlx = config->find<JsonFields>("quantization");
  std::optional<JsonFields> settings;
  QWEN2_CHECK(config->optional("quantization_config", settings));
  // What compressed-tensors wrote in 2024.
  if (!settings) QWEN2_CHECK(config->optional("compression_config", settings));
  if (mlx && (!settings || settings->value("quant_method") == nullptr)) return open_mlx_reader(tensors, *mlx);
  if (!settings) return open_by_own_file(tensors);
  std::string method;
  QWEN2_CHECK(settings->required("quant_method", method));
  return open_method(tensors, *settings, method);
}

Result<int64_t> columns_of_group(const TensorTable& tensors, std::string_view module, int64_t group,
                                 int64_t cols) {
  const int64_t size = group == -1 ? cols : group;
  if (size <= 0 || cols % size != 0 || size % 8 != 0) {
    return fail(ErrorKind::kUnsupported,
                "'{}': module '{}' has {} columns; a multiple of 8 and of the group of {} was expected",
                tensors.folder().string(), module, cols, size);
  }
  return size;
}

Result<int64_t> columns_of_groups(const TensorTable& tensors, std::string_view module, int64_t groups,
                                  int64_t cols) {
  if (groups < 1 || cols % groups != 0) {
    return fail(ErrorKind::kFormat,
                "'{}': module '{}' has {} columns and {} groups; equal groups were expected",
                tensors.folder().string(), module, cols, groups);
  }
  return columns_of_group(tensors, module, cols / groups, cols);
}

}  // namespace qwen2
