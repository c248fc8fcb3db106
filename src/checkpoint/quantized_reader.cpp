#include "checkpoint/quantized_reader.h"

#include <algorithm>
#include <array>
#include <boost/json.hpp>

namespace qwen2 {
namespace {

namespace json = boost::json;

ReaderResult open_method(const TensorTable& tensors, const json::value& value) {
  const json::object* object = value.if_object();
  if (object == nullptr) return fail(ErrorKind::kFormat, "'quantization_config' must be an object");
  const QuantizationSettings settings(*object);
  QWEN2_TRY(const std::string_view method, settings.text("quant_method", std::nullopt));
  if (method == "gptq") return open_gptq_reader(tensors, settings);
  if (method == "awq") return open_awq_reader(tensors, settings);
  if (method == "bitsandbytes") return open_bitsandbytes_reader(tensors, settings);
  return fail(ErrorKind::kUnsupported,
              "'quantization_config.quant_method' is \"{}\"; \"gptq\", \"awq\" or \"bitsandbytes\" was "
              "expected",
              method.substr(0, 64));
}

std::unexpected<Error> wrong(std::string_view key, std::string_view expected) {
  return fail(ErrorKind::kFormat, "'quantization_config.{}' must be {}", key, expected);
}

}  // namespace

const json::value* QuantizationSettings::find(std::string_view key) const {
  const json::value* value = object_.if_contains(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

Result<int64_t> QuantizationSettings::integer(std::string_view key) const {
  const json::value* value = find(key);
  if (value == nullptr || !value->is_int64()) return wrong(key, "an integer");
  return value->get_int64();
}

Result<bool> QuantizationSettings::boolean(std::string_view key, std::optional<bool> fallback) const {
  const json::value* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  if (value == nullptr || !value->is_bool()) return wrong(key, "true or false");
  return value->get_bool();
}

Result<std::string_view> QuantizationSettings::text(std::string_view key,
                                                    std::optional<std::string_view> fallback) const {
  const json::value* value = find(key);
  if (value == nullptr && fallback) return *fallback;
  if (value == nullptr || !value->is_string()) return wrong(key, "a string");
  return std::string_view(value->get_string());
}

Result<int64_t> QuantizationSettings::group_size() const {
  static constexpr std::array<int64_t, 5> kSizes{-1, 16, 32, 64, 128};
  QWEN2_TRY(const int64_t size, integer("group_size"));
  if (std::ranges::find(kSizes, size) == kSizes.end()) {
    return fail(ErrorKind::kUnsupported,
                "'quantization_config.group_size' is {}; 16, 32, 64, 128 or -1 was expected", size);
  }
  return size;
}

ReaderResult open_quantized_reader(const TensorTable& tensors, std::string_view config_json) {
  json::error_code code;
  const json::value config = json::parse(config_json, code);
  // What is no JSON object is reported by who reads the model's sizes from it.
  const json::object* object = code ? nullptr : config.if_object();
  const json::value* value = object == nullptr ? nullptr : object->if_contains("quantization_config");
  if (value == nullptr || value->is_null()) return nullptr;
  auto reader = open_method(tensors, *value);
  if (!reader) {
    return within(fmt::format("'{}'", (tensors.folder() / "config.json").string()), reader.error());
  }
  return reader;
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
