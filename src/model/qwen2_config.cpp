#include "model/qwen2_config.h"

#include <boost/json.hpp>
#include <string>

namespace qwen2 {
namespace {

namespace json = boost::json;

Result<int64_t> integer(const json::object& object, std::string_view key, int64_t low, int64_t high) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr) return fail(ErrorKind::kFormat, "'{}' is missing", key);
  if (!value->is_int64() || value->get_int64() < low || value->get_int64() > high) {
    return fail(ErrorKind::kFormat, "'{}' must be an integer from {} to {}", key, low, high);
  }
  return value->get_int64();
}

Result<double> number(const json::object& object, std::string_view key, double low, double high) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr) return fail(ErrorKind::kFormat, "'{}' is missing", key);
  json::error_code code;
  const double result = value->to_number<double>(code);
  if (code || !(result >= low && result <= high)) {
    return fail(ErrorKind::kFormat, "'{}' must be a number from {} to {}", key, low, high);
  }
  return result;
}

bool is_absent(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value == nullptr || value->is_null();
}

Status check_architecture(const json::object& object) {
  const json::value* type = object.if_contains("model_type");
  if (type == nullptr || !type->is_string() || type->get_string() != "qwen2") {
    return fail(ErrorKind::kUnsupported, "'model_type' is {}; only \"qwen2\" is supported",
                type == nullptr ? "missing" : json::serialize(*type).substr(0, 64));
  }
  if (const json::value* list = object.if_contains("architectures"); list != nullptr) {
    const bool known = list->is_array() && list->get_array().size() == 1 &&
                       list->get_array()[0].is_string() &&
                       list->get_array()[0].get_string() == "Qwen2ForCausalLM";
    if (!known) {
      return fail(ErrorKind::kUnsupported, "'architectures' is {}; only [\"Qwen2ForCausalLM\"] is supported",
                  json::serialize(*list).substr(0, 64));
    }
  }
  if (const json::value* act = object.if_contains("hidden_act");
      act != nullptr && (!act->is_string() || act->get_string() != "silu")) {
    return fail(ErrorKind::kUnsupported, "'hidden_act' must be \"silu\"");
  }
  if (const json::value* window = object.if_contains("use_sliding_window");
      window != nullptr && (!window->is_bool() || window->get_bool())) {
    return fail(ErrorKind::kUnsupported,
                "'use_sliding_window' must be false: sliding windows are not implemented");
  }
  if (!is_absent(object, "rope_scaling")) {
    return fail(ErrorKind::kUnsupported,
                "'rope_scaling' must be absent or null: RoPE scaling is not implemented");
  }
  return {};
}

// "rope_theta" of the classic layout, or "rope_parameters" of Transformers 5.
Result<double> rope_theta(const json::object& object) {
  const json::value* parameters = object.if_contains("rope_parameters");
  if (parameters == nullptr || !parameters->is_object()) return number(object, "rope_theta", 1.0, 1e12);
  const json::object& rope = parameters->get_object();
  if (const json::value* type = rope.if_contains("rope_type");
      type != nullptr && (!type->is_string() || type->get_string() != "default")) {
    return fail(ErrorKind::kUnsupported, "'rope_parameters.rope_type' must be \"default\"");
  }
  return number(rope, "rope_theta", 1.0, 1e12);
}

Result<json::value> parse_object(std::string_view text) {
  json::error_code code;
  json::value parsed = json::parse(text, code);
  if (code) return fail(ErrorKind::kFormat, "not valid JSON: {}", code.message());
  if (!parsed.is_object()) return fail(ErrorKind::kFormat, "expected a JSON object");
  return parsed;
}

Status read_eos(const json::object& object, Qwen2Config& config) {
  const json::value* value = object.if_contains("eos_token_id");
  if (value == nullptr || value->is_null()) return {};
  const auto add = [&](const json::value& item) {
    if (!item.is_int64() || item.get_int64() < 0 || item.get_int64() >= config.vocab_size) return false;
    config.eos_token_ids.push_back(static_cast<TokenId>(item.get_int64()));
    return true;
  };
  config.eos_token_ids.clear();
  bool good = true;
  if (value->is_array()) {
    for (const json::value& item : value->get_array()) good = good && add(item);
  } else {
    good = add(*value);
  }
  if (!good) return fail(ErrorKind::kFormat, "'eos_token_id' must hold token ids below 'vocab_size'");
  return {};
}

Status read_sizes(const json::object& object, Qwen2Config& config) {
  QWEN2_TRY(config.vocab_size, integer(object, "vocab_size", 1, 1 << 22));
  QWEN2_TRY(config.hidden_size, integer(object, "hidden_size", 16, 1 << 16));
  QWEN2_TRY(config.intermediate_size, integer(object, "intermediate_size", 16, 1 << 18));
  QWEN2_TRY(config.layers, integer(object, "num_hidden_layers", 1, 1024));
  QWEN2_TRY(config.heads, integer(object, "num_attention_heads", 1, 1024));
  QWEN2_TRY(config.kv_heads, integer(object, "num_key_value_heads", 1, 1024));
  QWEN2_TRY(config.max_position_embeddings, integer(object, "max_position_embeddings", 1, 1 << 24));
  if (is_absent(object, "head_dim")) {
    if (config.hidden_size % config.heads != 0) {
      return fail(ErrorKind::kFormat, "'hidden_size' {} is not a multiple of 'num_attention_heads' {}",
                  config.hidden_size, config.heads);
    }
    config.head_dim = config.hidden_size / config.heads;
  } else {
    QWEN2_TRY(config.head_dim, integer(object, "head_dim", 1, 1 << 16));
  }
  if (config.heads % config.kv_heads != 0) {
    return fail(ErrorKind::kFormat, "'num_attention_heads' {} is not a multiple of 'num_key_value_heads' {}",
                config.heads, config.kv_heads);
  }
  if (config.head_dim % 32 != 0 || config.head_dim > 256) {
    return fail(ErrorKind::kUnsupported,
                "head size {} is not supported; a multiple of 32 up to 256 was expected", config.head_dim);
  }
  if (config.group() > 48) {
    return fail(ErrorKind::kUnsupported, "{} query heads for each KV head; at most 48 are supported",
                config.group());
  }
  if (config.hidden_size % 16 != 0 || config.intermediate_size % 16 != 0) {
    return fail(ErrorKind::kUnsupported, "'hidden_size' and 'intermediate_size' must be multiples of 16");
  }
  return {};
}

}  // namespace

Result<Qwen2Config> parse_qwen2_config(std::string_view text, std::string_view generation_config) {
  auto parsed = parse_object(text);
  if (!parsed) return within("config.json", parsed.error());
  const json::object& object = parsed->get_object();
  Qwen2Config config;
  const auto read = [&]() -> Status {
    QWEN2_CHECK(check_architecture(object));
    QWEN2_CHECK(read_sizes(object, config));
    QWEN2_TRY(const double epsilon, number(object, "rms_norm_eps", 0.0, 1.0));
    config.rms_norm_eps = static_cast<float>(epsilon);
    QWEN2_TRY(config.rope_theta, rope_theta(object));
    if (const json::value* tied = object.if_contains("tie_word_embeddings")) {
      if (!tied->is_bool()) return fail(ErrorKind::kFormat, "'tie_word_embeddings' must be true or false");
      config.tied_head = tied->get_bool();
    }
    return read_eos(object, config);
  };
  if (auto status = read(); !status) return within("config.json", status.error());
  if (!generation_config.empty()) {
    auto generation = parse_object(generation_config);
    if (!generation) return within("generation_config.json", generation.error());
    if (auto status = read_eos(generation->get_object(), config); !status) {
      return within("generation_config.json", status.error());
    }
  }
  return config;
}

}  // namespace qwen2
