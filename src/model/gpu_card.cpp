#include "model/gpu_card.h"

#include <boost/json.hpp>

#include "base/memory.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

Result<double> positive(const json::object& object, const char* field) {
  const json::value* value = object.if_contains(field);
  json::error_code not_a_number;
  const double number = value == nullptr ? 0 : value->to_number<double>(not_a_number);
  if (not_a_number || !(number > 0 && number < 1e18))
    return fail(ErrorKind::kFormat, "'{}' must be a positive number", field);
  return number;
}

Result<GpuCard> parse_card(const json::value& value) {
  if (!value.is_object()) return fail(ErrorKind::kFormat, "expected an object for each card");
  const json::object& object = value.get_object();
  GpuCard card;
  const json::value* name = object.if_contains("name");
  if (name == nullptr || !name->is_string()) return fail(ErrorKind::kFormat, "'name' must be a string");
  card.name = std::string(name->get_string());
  const json::value* title = object.if_contains("title");
  card.title = title != nullptr && title->is_string() ? std::string(title->get_string()) : card.name;
  QWEN2_TRY(const double memory, positive(object, "memory_bytes"));
  QWEN2_TRY(card.bandwidth, positive(object, "bandwidth_bytes_per_second"));
  QWEN2_TRY(card.fp16_flops, positive(object, "fp16_flops"));
  QWEN2_TRY(const double context, positive(object, "context_bytes"));
  card.memory_bytes = static_cast<uint64_t>(memory);
  card.context_bytes = static_cast<uint64_t>(context);
  const json::value* measured = object.if_contains("measured");
  card.measured = measured != nullptr && measured->is_bool() && measured->get_bool();
  return card;
}

}  // namespace

Result<std::vector<GpuCard>> read_gpu_cards(const std::filesystem::path& file) {
  QWEN2_TRY(const std::string text, read_text_file(file, size_t{1} << 20));
  json::error_code code;
  const json::value root = json::parse(text, code);
  if (code || !root.is_object())
    return fail(ErrorKind::kFormat, "'{}': expected a JSON object", file.string());
  const json::value* list = root.get_object().if_contains("gpus");
  std::vector<GpuCard> cards;
  const auto add = [&](const json::value& value) -> Status {
    auto card = parse_card(value);
    if (!card) return within(fmt::format("'{}'", file.string()), card.error());
    cards.push_back(*std::move(card));
    return {};
  };
  if (list == nullptr) {
    QWEN2_CHECK(add(root));
    return cards;
  }
  if (!list->is_array()) return fail(ErrorKind::kFormat, "'{}': 'gpus' must be an array", file.string());
  for (const json::value& value : list->get_array()) QWEN2_CHECK(add(value));
  return cards;
}

}  // namespace qwen2
