#include "sampling/parameters.h"

#include <boost/json.hpp>

namespace qwen2 {
namespace {

namespace json = boost::json;

}  // namespace

Status check(const SamplingParams& params) {
  if (!(params.temperature >= 0 && params.temperature <= 100)) {
    return fail(ErrorKind::kInvalidArgument, "'temperature' must be from 0 to 100");
  }
  if (params.top_k < 0) return fail(ErrorKind::kInvalidArgument, "'top_k' must be 0 (off) or positive");
  if (!(params.top_p > 0 && params.top_p <= 1))
    return fail(ErrorKind::kInvalidArgument, "'top_p' must be above 0 and at most 1");
  if (!(params.repetition_penalty > 0 && params.repetition_penalty <= 10)) {
    return fail(ErrorKind::kInvalidArgument, "'repetition_penalty' must be above 0 and at most 10");
  }
  return {};
}

Result<SamplingParams> sampling_defaults(std::string_view generation_config) {
  SamplingParams params;
  if (generation_config.empty()) return params;
  json::error_code code;
  const json::value root = json::parse(generation_config, code);
  if (code || !root.is_object())
    return fail(ErrorKind::kFormat, "generation_config.json: expected a JSON object");
  const auto read = [&](const char* key, auto& target) -> Status {
    const json::value* value = root.get_object().if_contains(key);
    if (value == nullptr || value->is_null()) return {};
    json::error_code not_a_number;
    const double number = value->to_number<double>(not_a_number);
    if (not_a_number) return fail(ErrorKind::kFormat, "generation_config.json: '{}' must be a number", key);
    target = static_cast<std::remove_reference_t<decltype(target)>>(number);
    return {};
  };
  QWEN2_CHECK(read("temperature", params.temperature));
  QWEN2_CHECK(read("top_k", params.top_k));
  QWEN2_CHECK(read("top_p", params.top_p));
  QWEN2_CHECK(read("repetition_penalty", params.repetition_penalty));
  if (const json::value* sample = root.get_object().if_contains("do_sample");
      sample != nullptr && sample->is_bool() && !sample->get_bool()) {
    params.temperature = 0;
  }
  if (auto status = check(params); !status) return within("generation_config.json", status.error());
  return params;
}

}  // namespace qwen2
