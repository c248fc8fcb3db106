#include "model/qwen2_config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
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
  std::vector<std::string> architectures;
  QWEN2_CHECK(fields.optional("architectures", architectures));
  if (!architectures.empty() && std::ranges::find(architectures, "Qwen2ForCausalLM") == architectures.end()) {
    return fields.error("architectures",
                        fmt::format("names {:.64}; only Qwen2ForCausalLM is supported",
                                    fmt::format("{}", fmt::join(architectures, ", "))),
                        ErrorKind::kUnsupported);
  }
  return check_only(fields, "hidden_act", "silu");
}

// Layers with a window see no more than its last tokens. Within the window they are as the others.
Status read_sliding_window(const JsonFields& fields, Qwen2Config& config) {
  bool used = false;
  QWEN2_CHECK(fields.optional("use_sliding_window", used));
  std::vector<std::string> layers;
  QWEN2_CHECK(fields.optional("layer_types", layers));
  int64_t first = config.layers;  // with a window
  QWEN2_CHECK(fields.optional("max_window_layers", first, 0, 1 << 20));
  const bool listed = std::ranges::find(layers, "sliding_attention") != layers.end();
  if (!listed && (!used || !layers.empty() || first >= config.layers)) return {};
  int64_t window = 0;
  QWEN2_CHECK(fields.required("sliding_window", window, 1, 1 << 24));
  config.max_position_embeddings = std::min(config.max_position_embeddings, window);
  return {};
}

// As Transformers computes it where the file does not say.
double default_attention_factor(double factor) {
  return factor <= 1 ? 1 : 0.1 * std::log(factor) + 1;
}

Status read_yarn(const JsonFields& scaling, Qwen2Config& config) {
  Yarn yarn;
  yarn.original_context = config.max_position_embeddings;
  QWEN2_CHECK(scaling.required("factor", yarn.factor, 1.0, 1e4));
  QWEN2_CHECK(scaling.optional("original_max_position_embeddings", yarn.original_context, 1, 1 << 24));
  QWEN2_CHECK(scaling.optional("beta_fast", yarn.beta_fast, 1e-3, 1e6));
  QWEN2_CHECK(scaling.optional("beta_slow", yarn.beta_slow, 1e-3, 1e6));
  yarn.attention_factor = default_attention_factor(yarn.factor);
  QWEN2_CHECK(scaling.optional("attention_factor", yarn.attention_factor, 1e-3, 1e3));
  for (const std::string_view name : {"mscale", "mscale_all_dim", "truncate"}) {
    if (scaling.value(name) != nullptr) {
      return scaling.error(name, "is not supported in YaRN scaling", ErrorKind::kUnsupported);
    }
  }
  const auto stretched = static_cast<int64_t>(static_cast<double>(yarn.original_context) * yarn.factor);
  config.max_position_embeddings = std::max(config.max_position_embeddings, stretched);
  config.yarn = yarn;
  return {};
}

// "rope_theta" and "rope_scaling" of the classic layout, or "rope_parameters" of Transformers 5.
Status read_rope(const JsonFields& fields, Qwen2Config& config) {
  std::optional<JsonFields> parameters;
  QWEN2_CHECK(fields.optional("rope_parameters", parameters));
  QWEN2_CHECK((parameters ? *parameters : fields).optional("rope_theta", config.rope_theta, 1.0, 1e12));
  if (!parameters) QWEN2_CHECK(fields.optional("rope_scaling", parameters));
  if (!parameters) return {};
  const std::string_view name = parameters->value("rope_type") != nullptr ? "rope_type" : "type";
  std::string_view type = "default";
  QWEN2_CHECK(parameters->optional(name, type));
  if (type == "yarn") return read_yarn(*parameters, config);
  double factor = 1;
  QWEN2_CHECK(parameters->optional("factor", factor));
  if (type == "default" || (type == "linear" && factor == 1)) return {};
  return parameters->error(name,
                           fmt::format("is \"{}\" with factor {}; \"yarn\" or \"default\" was expected",
                                       type.substr(0, 64), factor),
                           ErrorKind::kUnsupported);
}

// One id, or a list of them; those of both files end an answer.
Status read_eos(const JsonFields& fields, Qwen2Config& config) {
  constexpr std::string_view kName = "eos_token_id";
  if (fields.value(kName) == nullptr) return {};
  const auto one = fields.find<TokenId>(kName);
  const auto ids = one ? std::optional(std::vector{*one}) : fields.find<std::vector<TokenId>>(kName);
  const auto known = [&](TokenId id) { return id >= 0 && id < config.vocab_size; };
  if (!ids || !std::ranges::all_of(*ids, known))
    return fields.error(kName, "must hold token ids below 'vocab_size'");
  for (const TokenId id : *ids) {
    if (std::ranges::find(config.eos_token_ids, id) == config.eos_token_ids.end())
      config.eos_token_ids.push_back(id);
  }
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
  QWEN2_CHECK(fields.optional("rms_norm_eps", config.rms_norm_eps, 0, 1));
  QWEN2_CHECK(read_rope(fields, config));
  QWEN2_CHECK(read_sliding_window(fields, config));
  QWEN2_CHECK(fields.optional("tie_word_embeddings", config.tied_head));
  if (!generation_config.empty()) {
    QWEN2_TRY(const JsonFields generation, JsonFields::parse(generation_config, "generation_config.json"));
    QWEN2_CHECK(read_eos(generation, config));
  }
  QWEN2_CHECK(read_eos(fields, config));
  return config;
}

}  // namespace qwen2
