#include "checkpoint/gguf_metadata.h"

#include <utf8proc.h>

#include <algorithm>
#include <boost/json.hpp>

#include "checkpoint/qwen2_pattern.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

// The format's numbers in tokenizer.ggml.token_type.
constexpr int64_t kNormalToken = 1;
constexpr int64_t kControlToken = 3;
constexpr int64_t kUserToken = 4;
constexpr int64_t kUnusedToken = 5;

std::unexpected<Error> missing(std::string_view key) {
  return fail(ErrorKind::kFormat, "metadata key '{}' is missing", key);
}

Result<int64_t> required_integer(const GgufFile& file, std::string_view key) {
  QWEN2_TRY(const auto value, file.integer(key));
  if (!value) return missing(key);
  return *value;
}

Result<double> required_number(const GgufFile& file, std::string_view key) {
  QWEN2_TRY(const auto value, file.number(key));
  if (!value) return missing(key);
  return *value;
}

Result<std::vector<std::string_view>> string_array(const GgufFile& file, std::string_view key) {
  const GgufValue* value = file.find(key);
  if (value == nullptr) return missing(key);
  const auto* array = std::get_if<GgufArray>(value);
  auto strings = array == nullptr ? std::nullopt : array->strings();
  if (!strings) return fail(ErrorKind::kFormat, "'{}' must be an array of strings", key);
  return *std::move(strings);
}

Status expect_string(const GgufFile& file, std::string_view key, std::string_view expected) {
  QWEN2_TRY(const auto value, file.string(key));
  if (!value) return missing(key);
  if (*value != expected) {
    return fail(ErrorKind::kUnsupported, "'{}' is '{}'; only '{}' is supported", key, value->substr(0, 64),
                expected);
  }
  return {};
}

// The tokens' texts; none without a tokeniser.
Result<std::vector<std::string_view>> tokens_or_none(const GgufFile& file) {
  static constexpr std::string_view kKey = "tokenizer.ggml.tokens";
  if (file.find(kKey) == nullptr) return std::vector<std::string_view>();
  return string_array(file, kKey);
}

Result<int64_t> vocabulary_size(const GgufFile& file, const std::vector<std::string_view>& tokens) {
  const auto named = static_cast<int64_t>(tokens.size());
  const auto embedding = file.tensors.find("token_embd.weight");
  if (embedding == file.tensors.end()) return named;
  const int64_t rows = embedding->second.shape[1];
  if (rows < named) {
    return fail(ErrorKind::kFormat, "'tokenizer.ggml.tokens' has {} tokens, 'token_embd.weight' {} rows",
                named, rows);
  }
  return rows;
}

// What config.json would say under "rope_scaling"; null without scaling.
Result<json::value> read_rope_scaling(const GgufFile& file, int64_t positions) {
  QWEN2_TRY(const auto type, file.string("qwen2.rope.scaling.type"));
  QWEN2_TRY(const auto factor, file.number("qwen2.rope.scaling.factor"));
  QWEN2_TRY(const auto old_factor, file.number("qwen2.rope.scale_linear"));
  // A factor without a type is linear; 0 and 1 both mean unscaled.
  const std::string_view name = type.value_or("linear");
  const double scale = factor.value_or(old_factor.value_or(1));
  if (name == "none" || (name == "linear" && (scale == 0 || scale == 1))) return json::value(nullptr);
  if (name != "yarn") {
    return fail(ErrorKind::kUnsupported,
                "'qwen2.rope.scaling.type' is '{}' with factor {}; 'yarn' or 'none' was expected",
                name.substr(0, 64), scale);
  }
  QWEN2_TRY(const auto original, file.integer("qwen2.rope.scaling.original_context_length"));
  for (const std::string_view key :
       {"qwen2.rope.scaling.attn_factor", "qwen2.rope.scaling.yarn_log_multiplier"}) {
    if (file.find(key) != nullptr)
      return fail(ErrorKind::kUnsupported, "'{}' is not supported in YaRN scaling", key);
  }
  return json::value{{"rope_type", name},
                     {"factor", scale},
                     {"original_max_position_embeddings", original.value_or(positions)}};
}

Status check_rope(const GgufFile& file, int64_t head_dim) {
  if (file.tensors.contains("rope_freqs.weight")) {
    return fail(ErrorKind::kUnsupported,
                "tensor 'rope_freqs.weight' is present: RoPE scaling is not implemented");
  }
  QWEN2_TRY(const auto dimensions, file.integer("qwen2.rope.dimension_count"));
  if (dimensions.value_or(head_dim) != head_dim) {
    return fail(ErrorKind::kUnsupported,
                "'qwen2.rope.dimension_count' is {}; the head size, {}, was expected", *dimensions, head_dim);
  }
  return {};
}

Status check_architecture(const GgufFile& file) {
  QWEN2_CHECK(expect_string(file, "general.architecture", "qwen2"));
  QWEN2_TRY(const auto window, file.integer("qwen2.attention.sliding_window"));
  if (window.value_or(0) != 0) {
    return fail(ErrorKind::kUnsupported,
                "'qwen2.attention.sliding_window' is {}: sliding windows are not implemented", *window);
  }
  return {};
}

// The key of the head size is optional: without it, it is the hidden size a head.
Result<int64_t> head_size(const GgufFile& file, int64_t hidden, int64_t heads) {
  if (heads < 1 || hidden % heads != 0) {
    return fail(ErrorKind::kFormat,
                "'qwen2.embedding_length' {} is not a multiple of 'qwen2.attention.head_count' {}", hidden,
                heads);
  }
  QWEN2_TRY(const auto key, file.integer("qwen2.attention.key_length"));
  QWEN2_TRY(const auto value, file.integer("qwen2.attention.value_length"));
  const int64_t size = key.value_or(hidden / heads);
  if (value.value_or(size) != size) {
    return fail(ErrorKind::kUnsupported,
                "'qwen2.attention.value_length' is {}; the size of a key, {}, was expected", *value, size);
  }
  return size;
}

bool is_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    utf8proc_int32_t code_point = 0;
    const auto size = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + i,
                                       static_cast<utf8proc_ssize_t>(text.size() - i), &code_point);
    if (size < 1) return false;
    i += static_cast<size_t>(size);
  }
  return true;
}

struct Vocabulary {
  json::object ordinary;
  json::array added;
};

Result<Vocabulary> read_vocabulary(const GgufFile& file, const json::storage_ptr& storage) {
  QWEN2_TRY(const auto tokens, string_array(file, "tokenizer.ggml.tokens"));
  const GgufValue* types_value = file.find("tokenizer.ggml.token_type");
  if (types_value == nullptr) return missing("tokenizer.ggml.token_type");
  const auto* array = std::get_if<GgufArray>(types_value);
  const auto types = array == nullptr ? std::nullopt : array->integers();
  if (!types || types->size() != tokens.size()) {
    return fail(ErrorKind::kFormat, "'tokenizer.ggml.token_type' must be an array of {} integers",
                tokens.size());
  }
  Vocabulary vocabulary{json::object(storage), json::array(storage)};
  vocabulary.ordinary.reserve(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string_view text = tokens[id];
    const int64_t type = (*types)[id];
    if (!is_utf8(text)) return fail(ErrorKind::kFormat, "'tokenizer.ggml.tokens'[{}] is not UTF-8", id);
    if (type == kUnusedToken) continue;  // pads the embedding
    if (type == kNormalToken) {
      if (!vocabulary.ordinary.emplace(text, id).second) {
        return fail(ErrorKind::kFormat, "'tokenizer.ggml.tokens'[{}]: '{}' occurs twice", id,
                    text.substr(0, 64));
      }
    } else if (type == kControlToken || type == kUserToken) {
      vocabulary.added.push_back(json::object{{{"id", id},
                                               {"content", text},
                                               {"single_word", false},
                                               {"lstrip", false},
                                               {"rstrip", false},
                                               {"normalized", false},
                                               {"special", type == kControlToken}},
                                              storage});
    } else {
      return fail(ErrorKind::kUnsupported, "'tokenizer.ggml.token_type'[{}] is {}; 1, 3, 4 or 5 was expected",
                  id, type);
    }
  }
  return vocabulary;
}

Result<json::array> read_merges(const GgufFile& file, const json::storage_ptr& storage) {
  QWEN2_TRY(const auto merges, string_array(file, "tokenizer.ggml.merges"));
  json::array list(storage);
  list.reserve(merges.size());
  for (const std::string_view merge : merges) {
    if (!is_utf8(merge)) {
      return fail(ErrorKind::kFormat, "'tokenizer.ggml.merges'[{}] is not UTF-8", list.size());
    }
    list.emplace_back(merge);
  }
  return list;
}

}  // namespace

Result<std::string> gguf_config_json(const GgufFile& file) {
  QWEN2_CHECK(check_architecture(file));
  QWEN2_TRY(const auto tokens, tokens_or_none(file));
  QWEN2_TRY(const int64_t vocabulary, vocabulary_size(file, tokens));
  QWEN2_TRY(const int64_t layers, required_integer(file, "qwen2.block_count"));
  QWEN2_TRY(const int64_t hidden, required_integer(file, "qwen2.embedding_length"));
  QWEN2_TRY(const int64_t intermediate, required_integer(file, "qwen2.feed_forward_length"));
  QWEN2_TRY(const int64_t positions, required_integer(file, "qwen2.context_length"));
  QWEN2_TRY(const int64_t heads, required_integer(file, "qwen2.attention.head_count"));
  QWEN2_TRY(const auto kv_heads, file.integer("qwen2.attention.head_count_kv"));
  QWEN2_TRY(const double epsilon, required_number(file, "qwen2.attention.layer_norm_rms_epsilon"));
  QWEN2_TRY(const auto theta, file.number("qwen2.rope.freq_base"));
  QWEN2_TRY(const int64_t head_dim, head_size(file, hidden, heads));
  QWEN2_CHECK(check_rope(file, head_dim));
  QWEN2_TRY(json::value rope_scaling, read_rope_scaling(file, positions));
  return json::serialize(json::object{{"architectures", json::array{"Qwen2ForCausalLM"}},
                                      {"model_type", "qwen2"},
                                      {"hidden_act", "silu"},
                                      {"vocab_size", vocabulary},
                                      {"hidden_size", hidden},
                                      {"intermediate_size", intermediate},
                                      {"num_hidden_layers", layers},
                                      {"num_attention_heads", heads},
                                      {"num_key_value_heads", kv_heads.value_or(heads)},
                                      {"head_dim", head_dim},
                                      {"max_position_embeddings", positions},
                                      {"rope_scaling", std::move(rope_scaling)},
                                      {"rms_norm_eps", epsilon},
                                      {"rope_theta", theta.value_or(10000.0)},
                                      {"tie_word_embeddings", !file.tensors.contains("output.weight")}});
}

namespace {

// The id under `key`, if it is there, below `count`.
Result<std::optional<size_t>> token_id(const GgufFile& file, std::string_view key, size_t count) {
  QWEN2_TRY(const auto id, file.integer(key));
  if (!id) return std::nullopt;
  if (*id < 0 || static_cast<uint64_t>(*id) >= count) {
    return fail(ErrorKind::kFormat, "'{}' is {}; a token of {} was expected", key, *id, count);
  }
  return static_cast<size_t>(*id);
}

}  // namespace

Result<std::string> gguf_generation_config_json(const GgufFile& file) {
  QWEN2_TRY(const auto tokens, tokens_or_none(file));
  QWEN2_TRY(const int64_t vocabulary, vocabulary_size(file, tokens));
  json::array ids;
  const auto add = [&](int64_t id) {
    if (std::find(ids.begin(), ids.end(), json::value(id)) == ids.end()) ids.emplace_back(id);
  };
  for (const std::string_view key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    QWEN2_TRY(const auto id, file.integer(key));
    if (!id) continue;
    if (*id < 0 || *id >= vocabulary) {
      return fail(ErrorKind::kFormat, "'{}' is {}; a token of a vocabulary of {} was expected", key, *id,
                  vocabulary);
    }
    add(*id);
  }
  for (const std::string_view text : {"<|im_end|>", "<|endoftext|>"}) {
    const auto found = std::find(tokens.begin(), tokens.end(), text);
    if (found != tokens.end()) add(found - tokens.begin());
  }
  return ids.empty() ? std::string() : json::serialize(json::object{{"eos_token_id", ids}});
}

Result<std::string> gguf_tokenizer_config(const GgufFile& file) {
  QWEN2_TRY(const auto chat_template, file.string("tokenizer.chat_template"));
  if (chat_template && !is_utf8(*chat_template)) {
    return fail(ErrorKind::kFormat, "'tokenizer.chat_template' is not UTF-8");
  }
  json::object config;
  if (chat_template) config["chat_template"] = *chat_template;
  QWEN2_TRY(const auto tokens, tokens_or_none(file));
  for (const std::string_view name : {"bos", "eos"}) {
    QWEN2_TRY(const auto id, token_id(file, fmt::format("tokenizer.ggml.{}_token_id", name), tokens.size()));
    if (id && is_utf8(tokens[*id])) config[fmt::format("{}_token", name)] = tokens[*id];
  }
  return json::serialize(config);
}

namespace {

// All of these are Qwen2's pattern; older files do not name it.
Status check_pattern(const GgufFile& file) {
  QWEN2_TRY(const auto name, file.string("tokenizer.ggml.pre"));
  const std::string_view pattern = name.value_or("default");
  if (pattern == "default" || pattern == "qwen2" || pattern == "deepseek-r1-qwen") return {};
  return fail(ErrorKind::kUnsupported,
              "'tokenizer.ggml.pre' is '{}'; 'qwen2', 'deepseek-r1-qwen' or 'default' was expected",
              pattern.substr(0, 64));
}

// What tokenizer.json would say of the tokens around a text; null for none.
Result<json::value> read_post_processor(const GgufFile& file) {
  QWEN2_TRY(const auto tokens, tokens_or_none(file));
  json::array single;
  json::object special;
  const auto add = [&](std::string_view name) -> Status {
    QWEN2_TRY(const auto wanted, file.boolean(fmt::format("tokenizer.ggml.add_{}_token", name)));
    if (!wanted.value_or(false)) return {};
    const std::string key = fmt::format("tokenizer.ggml.{}_token_id", name);
    QWEN2_TRY(const auto id, token_id(file, key, tokens.size()));
    if (!id) return missing(key);
    single.push_back(json::object{{"SpecialToken", json::object{{"id", name}}}});
    special[name] = json::object{{"ids", json::array{*id}}};
    return {};
  };
  QWEN2_CHECK(add("bos"));
  single.push_back(json::object{{"Sequence", json::object{{"id", "A"}}}});
  QWEN2_CHECK(add("eos"));
  if (special.empty()) return json::value(nullptr);
  return json::value{
      {"type", "TemplateProcessing"}, {"single", std::move(single)}, {"special_tokens", std::move(special)}};
}

}  // namespace

Result<TokenizerTexts> gguf_tokenizer(const GgufFile& file) {
  if (file.find("tokenizer.ggml.model") == nullptr) {
    return fail(ErrorKind::kNotFound, "metadata key 'tokenizer.ggml.model' is missing: no tokeniser");
  }
  QWEN2_CHECK(expect_string(file, "tokenizer.ggml.model", "gpt2"));
  QWEN2_CHECK(check_pattern(file));
  const auto storage = json::make_shared_resource<json::monotonic_resource>();
  QWEN2_TRY(Vocabulary vocabulary, read_vocabulary(file, storage));
  QWEN2_TRY(json::array merges, read_merges(file, storage));
  QWEN2_TRY(json::value post_processor, read_post_processor(file));
  QWEN2_TRY(std::string config, gguf_tokenizer_config(file));
  const json::value split{{"type", "Split"},
                          {"pattern", json::object{{"Regex", kQwen2Pattern}}},
                          {"behavior", "Isolated"},
                          {"invert", false}};
  const json::value byte_level{
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
  json::object model(storage);
  model["type"] = "BPE";
  model["vocab"] = std::move(vocabulary.ordinary);
  model["merges"] = std::move(merges);
  json::object root(storage);
  root["version"] = "1.0";
  root["added_tokens"] = std::move(vocabulary.added);
  root["normalizer"] = json::object{{"type", "NFC"}};
  root["pre_tokenizer"] =
      json::object{{"type", "Sequence"}, {"pretokenizers", json::array{split, byte_level}}};
  root["decoder"] = byte_level;
  root["post_processor"] = std::move(post_processor);
  root["model"] = std::move(model);
  return TokenizerTexts{json::serialize(root), std::move(config), {}};
}

}  // namespace qwen2
