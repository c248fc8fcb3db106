#include "model/qwen2_config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <optional>
#include <string>

#include "base/json_fields.h"

namespace qwen2 {
namespace {

// `supported` is the only value that the program knows; an absent field has it.
Status check_only(const JsonFields& fields, std::string_view name, std::string_view supported) {
  std::string_view text = supported;
  QWEN2_CHECK(fields.optional(name, text));
  if (text == supported) return {};
  return fields.error(name, fmt::format("is \"{}\"; only \"{}\" is supported", text.substr(0, 64), supported),
                      ErrorKind::kUnsupported);
}

Status check_architecture(const JsonFields& fields) {
  if (fields.value("model_type") == nullptr) {
    return fields.error("model_type", "is missing; only \"qwen2\" is supported", ErrorKind::kUnsupported);
  }
  QWEN2_CHECK(check_only(fields, "model_type", "qwen2"));
  std::vector<std::string> architectures{"Qwen2ForCausalLM"};
  QWEN2_CHECK(fields.optional("architectures", architectures));
  if (architectures.size() != 1 || architectures[0] != "Qwen2ForCausalLM") {
    return fields.error("architectures",
                        fmt::format("names {:.64}; only Qwen2ForCausalLM is supported",
                                    fmt::format("{}", fmt::join(architectures, ", "))),
                        ErrorKind::kUnsupported);
  }
  QWEN2_CHECK(check_only(fields, "hidden_act", "silu"));
  bool sliding_window = false;
  QWEN2_CHECK(fields.optional("use_sliding_window", sliding_window));
  if (sliding_window) {
    return fields.error("use_sliding_window", "must be false: sliding windows are not implemented",
                        ErrorKind::kUnsupported);
  }
  if (fields.value("rope_scaling") != nullptr) {
    return fields.error("rope_scaling", "must be absent or null: RoPE scaling is not implemented",
                        ErrorKind::kUnsupported);
  }
  return {};
}

// "rope_theta" of the classic layout, or "rope_parameters" of Transformers 5.
Status read_rope_theta(const JsonFields& fields, double& theta) {
  std::optional<JsonFields> parameters;
  QWEN2_CHECK(fields.optional("rope_parameters", parameters));
  if (parameters) QWEN2_CHECK(check_only(*parameters, "rope_type", "default"));
  return (parameters ? *parameters : fields).required("rope_theta", theta, 1.0, 1e12);
}

// One id, or a list of them.
Status read_eos(const JsonFields& fields, Qwen2Config& config) {
  constexpr std::string_view kName = "eos_token_id";
  if (fields.value(kName) == nullptr) return {};
  const auto one = fields.find<TokenId>(kName);
  const auto ids = one ? std::optional(std::vector{*one}) : fields.find<std::vector<TokenId>>(kName);
  const auto known = [&](TokenId id) { return id >= 0 && id < config.vocab_size; };
  if (!ids || !std::ranges::all_of(*ids, known))
    return fields.error(kName, "must hold token ids below 'vocab_size'");
  config.eos_token_ids = *ids;
  return {};
}

Status read_sizes(const JsonFields& fields, Qwen2Config& config) {
  QWEN2_CHECK(fields.required("vocab_size", config.vocab_size, 1, 1 << 22));
  QWEN2_CHECK(fields.required("hidden_size", config.hidden_size, 16, 1 << 16));
  QWEN2_CHECK(fields.required("intermediate_size", config.intermediate_size, 16, 1 << 18));
  QWEN2_CHECK(fields.required("num_hidden_layers", config.layers, 1, 1024));
  QWEN2_CHECK(fields.required("num_attention_heads", config.heads, 1, 1024));
  QWEN2_CHECK(fields.required("num_key_value_heads", config.kv_heads, 1, 1024));
  QWEN2_CHECK(fields.required("max_position_embeddings", config.max_position_embeddings, 1, 1 << 24));
  QWEN2_CHECK(fields.optional("head_dim", config.head_dim, 1, 1 << 16));
  return {};
}

Status check_sizes(Qwen2Config& config) {
  if (config.head_dim == 0) {  // absent
    if (config.hidden_size % config.heads != 0) {
      return fail(ErrorKind::kFormat, "'hidden_size' {} is not a multiple of 'num_attention_heads' {}",
                  config.hidden_size, config.heads);
    }
    config.head_dim = config.hidden_size / config.heads;
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
  QWEN2_TRY(const JsonFields fields, JsonFields::parse(text, "config.json"));
  Qwen2Config config;
  QWEN2_CHECK(check_architecture(fields));
  QWEN2_CHECK(read_sizes(fields, config));
  if (const Status status = check_sizes(config); !status) return within("config.json", status.error());
  QWEN2_CHECK(fields.required("rms_norm_eps", config.rms_norm_eps, 0, 1));
  QWEN2_CHECK(read_rope_theta(fields, config.rope_theta));
  QWEN2_CHECK(fields.optional("tie_word_embeddings", config.tied_head));
  QWEN2_CHECK(read_eos(fields, config));
  if (!generation_config.empty()) {
    QWEN2_TRY(const JsonFields generation, JsonFields::parse(generation_config, "generation_config.json"));
    QWEN2_CHECK(read_eos(generation, config));
  }
  return config;
}

}  // namespace qwen2
