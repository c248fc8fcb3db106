#include "tokenizer/tokenizer_json.h"

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <charconv>

#include "checkpoint/qwen2_pattern.h"
#include "tokenizer/utf8.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

constexpr int64_t kMaxTokenId = 1 << 22;

// GPT-2's byte alphabet: printable Latin-1 bytes stand for themselves, the rest for U+0100 upwards.
// Returns the byte of a code point, or -1.
int byte_of(char32_t c) {
  static const std::array<int16_t, 324> kTable = [] {
    std::array<int16_t, 324> table{};
    table.fill(-1);
    int16_t next = 256;
    for (int16_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      table[static_cast<size_t>(printable ? byte : next++)] = byte;
    }
    return table;
  }();
  return c < kTable.size() ? kTable[c] : -1;
}

// Raw bytes of a token written in the byte alphabet.
Result<std::string> token_from_alphabet(std::string_view text) {
  std::string bytes;
  for (size_t i = 0; i < text.size();) {
    const int byte = byte_of(next_code_point(text, i));
    if (byte < 0) {
      return fail(ErrorKind::kFormat, "token '{}' has a character outside of the byte alphabet",
                  text.substr(0, 64));
    }
    bytes += static_cast<char>(byte);
  }
  return bytes;
}

const json::value* member(const json::value& value, std::string_view key) {
  const json::object* object = value.if_object();
  return object == nullptr ? nullptr : object->if_contains(key);
}

std::string_view text_of(const json::value* value) {
  return value != nullptr && value->is_string() ? std::string_view(value->get_string()) : std::string_view();
}

bool is_set(const json::value& object, std::string_view key) {
  const json::value* value = member(object, key);
  if (value == nullptr || value->is_null()) return false;
  if (value->is_bool()) return value->get_bool();
  return !value->is_string() || !value->get_string().empty();
}

// Null, NFC, or a Sequence of at most that one.
Result<bool> parse_normalizer(const json::value& root) {
  const json::value* normalizer = member(root, "normalizer");
  if (normalizer == nullptr || normalizer->is_null()) return false;
  if (text_of(member(*normalizer, "type")) == "Sequence") {
    const json::value* list = member(*normalizer, "normalizers");
    if (list != nullptr && list->is_array() && list->get_array().empty()) return false;
    if (list != nullptr && list->is_array() && list->get_array().size() == 1)
      normalizer = &list->get_array()[0];
  }
  if (text_of(member(*normalizer, "type")) == "NFC") return true;
  return fail(ErrorKind::kUnsupported, "'normalizer' must be null, of type NFC, or a Sequence of one NFC");
}

// The pattern of Sequence[Split(Regex, Isolated), ByteLevel].
Result<std::string> parse_pretokenizer(const json::value& root) {
  const json::value* pre = member(root, "pre_tokenizer");
  const json::value* list = pre == nullptr ? nullptr : member(*pre, "pretokenizers");
  if (list == nullptr || !list->is_array() || list->get_array().size() != 2) {
    return fail(ErrorKind::kUnsupported, "'pre_tokenizer' must be a Sequence of Split and ByteLevel");
  }
  const json::value& split = list->get_array()[0];
  const json::value& bytes = list->get_array()[1];
  const json::value* pattern = member(split, "pattern");
  const std::string_view regex = pattern == nullptr ? std::string_view() : text_of(member(*pattern, "Regex"));
  if (text_of(member(split, "type")) != "Split" || text_of(member(split, "behavior")) != "Isolated" ||
      is_set(split, "invert") || regex.empty()) {
    return fail(ErrorKind::kUnsupported,
                "'pre_tokenizer.pretokenizers[0]' must be an isolated Split by a Regex");
  }
  if (text_of(member(bytes, "type")) != "ByteLevel" || is_set(bytes, "add_prefix_space") ||
      is_set(bytes, "use_regex")) {
    return fail(ErrorKind::kUnsupported,
                "'pre_tokenizer.pretokenizers[1]' must be ByteLevel without prefix space and regex");
  }
  return std::string(regex);
}

Result<std::vector<std::pair<std::string, TokenId>>> parse_vocabulary(const json::value& model) {
  const json::value* vocabulary = member(model, "vocab");
  if (vocabulary == nullptr || !vocabulary->is_object())
    return fail(ErrorKind::kFormat, "'model.vocab' must be an object");
  std::vector<std::pair<std::string, TokenId>> tokens;
  tokens.reserve(vocabulary->get_object().size());
  for (const auto& [text, id] : vocabulary->get_object()) {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() >= kMaxTokenId) {
      return fail(ErrorKind::kFormat, "'model.vocab': the id of '{}' must be an integer from 0 to {}",
                  std::string_view(text).substr(0, 64), kMaxTokenId - 1);
    }
    QWEN2_TRY(std::string bytes, token_from_alphabet(text));
    tokens.emplace_back(std::move(bytes), static_cast<TokenId>(id.get_int64()));
  }
  return tokens;
}

// "a b" strings, or ["a", "b"] arrays in newer files.
Result<std::vector<std::pair<std::string, std::string>>> parse_merges(const json::value& model) {
  const json::value* list = member(model, "merges");
  if (list == nullptr || !list->is_array())
    return fail(ErrorKind::kFormat, "'model.merges' must be an array");
  std::vector<std::pair<std::string, std::string>> merges;
  merges.reserve(list->get_array().size());
  for (const json::value& item : list->get_array()) {
    std::string_view left;
    std::string_view right;
    if (item.is_string()) {
      const std::string_view both = item.get_string();
      const size_t space = both.find(' ');
      if (space != std::string_view::npos) {
        left = both.substr(0, space);
        right = both.substr(space + 1);
      }
    } else if (item.is_array() && item.get_array().size() == 2) {
      left = text_of(&item.get_array()[0]);
      right = text_of(&item.get_array()[1]);
    }
    if (left.empty() || right.empty()) {
      return fail(ErrorKind::kFormat, "'model.merges'[{}] must name two tokens", merges.size());
    }
    QWEN2_TRY(std::string a, token_from_alphabet(left));
    QWEN2_TRY(std::string b, token_from_alphabet(right));
    merges.emplace_back(std::move(a), std::move(b));
  }
  return merges;
}

Status check_model(const json::value& root) {
  const json::value* model = member(root, "model");
  if (model == nullptr || text_of(member(*model, "type")) != "BPE") {
    return fail(ErrorKind::kUnsupported, "'model.type' must be BPE");
  }
  for (const char* key :
       {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"}) {
    if (is_set(*model, key)) return fail(ErrorKind::kUnsupported, "'model.{}' must not be set", key);
  }
  if (const json::value* decoder = member(root, "decoder");
      decoder == nullptr || text_of(member(*decoder, "type")) != "ByteLevel") {
    return fail(ErrorKind::kUnsupported, "'decoder' must be of type ByteLevel");
  }
  return {};
}

Result<std::vector<AddedToken>> parse_added(const json::value& root) {
  std::vector<AddedToken> added;
  const json::value* list = member(root, "added_tokens");
  if (list == nullptr || list->is_null()) return added;
  if (!list->is_array()) return fail(ErrorKind::kFormat, "'added_tokens' must be an array");
  for (const json::value& item : list->get_array()) {
    const std::string_view text = text_of(member(item, "content"));
    const json::value* id = member(item, "id");
    if (text.empty() || id == nullptr || !id->is_int64() || id->get_int64() < 0 ||
        id->get_int64() >= kMaxTokenId) {
      return fail(ErrorKind::kFormat, "'added_tokens'[{}] needs a 'content' and an 'id' from 0 to {}",
                  added.size(), kMaxTokenId - 1);
    }
    for (const char* key : {"single_word", "lstrip", "rstrip"}) {
      if (is_set(item, key)) {
        return fail(ErrorKind::kUnsupported, "added token '{}': '{}' is not supported", text.substr(0, 64),
                    key);
      }
    }
    added.push_back({std::string(text), static_cast<TokenId>(id->get_int64()), is_set(item, "special"),
                     is_set(item, "normalized")});
  }
  return added;
}

// The tokens that a TemplateProcessing puts around one text.
Status read_template_processing(const json::value& processor, TokenizerParts& parts) {
  const json::value* single = member(processor, "single");
  if (single == nullptr || !single->is_array())
    return fail(ErrorKind::kFormat, "'post_processor.single' must be an array");
  bool behind = false;  // of the text
  for (const json::value& item : single->get_array()) {
    if (member(item, "Sequence") != nullptr) {
      if (std::exchange(behind, true))
        return fail(ErrorKind::kUnsupported, "'post_processor.single' has the text twice");
      continue;
    }
    const json::value* special = member(item, "SpecialToken");
    const std::string_view name = special == nullptr ? std::string_view() : text_of(member(*special, "id"));
    const json::value* all = member(processor, "special_tokens");
    const json::value* token = all == nullptr ? nullptr : member(*all, name);
    const json::value* ids = token == nullptr ? nullptr : member(*token, "ids");
    if (ids == nullptr || !ids->is_array()) {
      return fail(ErrorKind::kFormat, "'post_processor': special token '{}' has no 'ids'",
                  name.substr(0, 64));
    }
    for (const json::value& id : ids->get_array()) {
      if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() >= kMaxTokenId) {
        return fail(ErrorKind::kFormat, "'post_processor': an id of special token '{}' is no token id",
                    name.substr(0, 64));
      }
      (behind ? parts.after : parts.before).push_back(static_cast<TokenId>(id.get_int64()));
    }
  }
  return {};
}

// ByteLevel changes offsets alone.
Status read_post_processor(const json::value* processor, TokenizerParts& parts) {
  if (processor == nullptr || processor->is_null()) return {};
  const std::string_view type = text_of(member(*processor, "type"));
  if (type == "ByteLevel") return {};
  if (type == "TemplateProcessing") return read_template_processing(*processor, parts);
  const json::value* list = member(*processor, "processors");
  if (type != "Sequence" || list == nullptr || !list->is_array()) {
    return fail(ErrorKind::kUnsupported, "'post_processor' of type '{}' is not supported",
                type.substr(0, 64));
  }
  for (const json::value& item : list->get_array()) {
    if (text_of(member(item, "type")) == "Sequence")
      return fail(ErrorKind::kUnsupported, "'post_processor' has a Sequence in a Sequence");
    QWEN2_CHECK(read_post_processor(&item, parts));
  }
  return {};
}

// `where` begins the error.
Result<json::value> parse_json(std::string_view text, std::string_view where, json::storage_ptr storage) {
  json::error_code code;
  json::parse_options options;
  options.max_depth = 16;
  json::value root = json::parse(text, code, std::move(storage), options);
  if (code) return fail(ErrorKind::kFormat, "{}not valid JSON: {}", where, code.message());
  return root;
}

// Lines "a b" behind an optional "#version: ..." line.
Result<std::vector<std::pair<std::string, std::string>>> parse_merge_lines(std::string_view text) {
  std::vector<std::pair<std::string, std::string>> merges;
  for (size_t line = 1; !text.empty(); ++line) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view row = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (row.ends_with('\r')) row.remove_suffix(1);
    if (row.empty() || (line == 1 && row.starts_with("#version"))) continue;
    const size_t space = row.find(' ');
    if (space == 0 || space == std::string_view::npos || space + 1 >= row.size()) {
      return fail(ErrorKind::kFormat, "merges.txt: line {} must name two tokens", line);
    }
    QWEN2_TRY(std::string left, token_from_alphabet(row.substr(0, space)));
    QWEN2_TRY(std::string right, token_from_alphabet(row.substr(space + 1)));
    merges.emplace_back(std::move(left), std::move(right));
  }
  return merges;
}

// {"151643": {"content": ..., "special": ...}} of tokenizer_config.json as the list of tokenizer.json.
Result<json::value> decoder_as_list(const json::value& config) {
  json::array list;
  const json::value* decoder = member(config, "added_tokens_decoder");
  if (decoder == nullptr || !decoder->is_object()) return json::value{{"added_tokens", std::move(list)}};
  for (const auto& [id, token] : decoder->get_object()) {
    json::object item = token.is_object() ? token.get_object() : json::object();
    const std::string_view digits = id;
    int64_t number = -1;
    const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    if (read.ptr != digits.data() + digits.size()) {
      return fail(ErrorKind::kFormat, "tokenizer_config.json: '{}' in 'added_tokens_decoder' is no token id",
                  digits.substr(0, 64));
    }
    item["id"] = number;
    list.push_back(std::move(item));
  }
  return json::value{{"added_tokens", std::move(list)}};
}

}  // namespace

Result<TokenizerParts> parse_tokenizer_json(std::string_view text) {
  json::monotonic_resource memory;
  QWEN2_TRY(const json::value root, parse_json(text, "", &memory));
  QWEN2_CHECK(check_model(root));
  TokenizerParts parts;
  QWEN2_TRY(parts.nfc, parse_normalizer(root));
  QWEN2_TRY(parts.pattern, parse_pretokenizer(root));
  const json::value& model = *member(root, "model");
  QWEN2_TRY(parts.tokens, parse_vocabulary(model));
  QWEN2_TRY(parts.merges, parse_merges(model));
  QWEN2_TRY(parts.added, parse_added(root));
  QWEN2_CHECK(read_post_processor(member(root, "post_processor"), parts));
  return parts;
}

Result<TokenizerParts> parse_vocabulary_files(std::string_view vocab_json, std::string_view merges_txt,
                                              std::string_view tokenizer_config_json,
                                              std::string_view added_tokens_json) {
  TokenizerParts parts;
  parts.nfc = true;
  parts.pattern = kQwen2Pattern;
  QWEN2_TRY(const json::value vocabulary, parse_json(vocab_json, "vocab.json: ", {}));
  QWEN2_TRY(parts.tokens, parse_vocabulary(json::value{{"vocab", vocabulary}}));
  QWEN2_TRY(parts.merges, parse_merge_lines(merges_txt));
  if (!tokenizer_config_json.empty()) {
    QWEN2_TRY(const json::value config, parse_json(tokenizer_config_json, "tokenizer_config.json: ", {}));
    QWEN2_TRY(const json::value list, decoder_as_list(config));
    QWEN2_TRY(parts.added, parse_added(list));
  }
  if (!parts.added.empty() || added_tokens_json.empty()) return parts;
  // The older file has texts and ids alone; they are special.
  QWEN2_TRY(const json::value added, parse_json(added_tokens_json, "added_tokens.json: ", {}));
  if (!added.is_object()) return fail(ErrorKind::kFormat, "added_tokens.json: an object was expected");
  json::array list;
  for (const auto& [content, id] : added.get_object()) {
    list.push_back(json::object{{"content", content}, {"id", id}, {"special", true}});
  }
  QWEN2_TRY(parts.added, parse_added(json::value{{"added_tokens", std::move(list)}}));
  return parts;
}

}  // namespace qwen2
