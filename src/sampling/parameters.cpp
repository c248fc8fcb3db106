#include "sampling/parameters.h"

#include "base/json_fields.h"

namespace qwen2 {

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
  QWEN2_TRY(const JsonFields fields, JsonFields::parse(generation_config, "generation_config.json"));
  QWEN2_CHECK(fields.optional("temperature", params.temperature));
  QWEN2_CHECK(fields.optional("top_k", params.top_k));
  QWEN2_CHECK(fields.optional("top_p", params.top_p));
  QWEN2_CHECK(fields.optional("repetition_penalty", params.repetition_penalty));
  if (fields.find<bool>("do_sample") == false) params.temperature = 0;
  if (auto status = check(params); !status) return within("generation_config.json", status.error());
  return params;
}

}  // namespace qwen2
