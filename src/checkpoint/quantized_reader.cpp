#include "checkpoint/quantized_reader.h"

#include <algorithm>
#include <array>

namespace qwen2 {
namespace {

ReaderResult open_method(const TensorTable& tensors, const JsonFields& settings) {
  std::string method;
  QWEN2_CHECK(settings.required("quant_method", method));
  if (method == "gptq") return open_gptq_reader(tensors, settings);
  if (method == "awq") return open_awq_reader(tensors, settings);
  if (method == "bitsandbytes") return open_bitsandbytes_reader(tensors, settings);
  return settings.error(
      "quant_method",
      fmt::format("is \"{}\"; \"gptq\", \"awq\" or \"bitsandbytes\" was expected", method.substr(0, 64)),
      ErrorKind::kUnsupported);
}

}  // namespace

Result<int64_t> group_size(const JsonFields& settings) {
  static constexpr std::array<int64_t, 5> kSizes{-1, 16, 32, 64, 128};
  int64_t size = 0;
  QWEN2_CHECK(settings.required("group_size", size));
  if (std::ranges::find(kSizes, size) == kSizes.end()) {
    return settings.error("group_size", fmt::format("is {}; 16, 32, 64, 128 or -1 was expected", size),
                          ErrorKind::kUnsupported);
  }
  return size;
}

ReaderResult open_quantized_reader(const TensorTable& tensors, std::string_view config_json) {
  const auto config =
      JsonFields::parse(config_json, fmt::format("'{}'", (tensors.folder() / "config.json").string()));
  // What is no JSON object is reported by who reads the model's sizes from it.
  if (!config) return nullptr;
  std::optional<JsonFields> settings;
  QWEN2_CHECK(config->optional("quantization_config", settings));
  if (!settings) return nullptr;
  return open_method(tensors, *settings);
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

}  // namespace qwen2
