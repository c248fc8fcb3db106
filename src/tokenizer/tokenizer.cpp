#include "tokenizer/tokenizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdlib>

#include "base/memory.h"
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

Result<bool> parse_normalizer(const json::value& root) {
  const json::value* normalizer = member(root, "normalizer");
  if (normalizer == nullptr || normalizer->is_null()) return false;
  if (text_of(member(*normalizer, "type")) == "NFC") return true;
  return fail(ErrorKind::kUnsupported, "'normalizer' must be null or of type NFC");
}

// The pattern of Sequence[Split(Regex, Isolated), ByteLevel].
Result<Pretokenizer> parse_pretokenizer(const json::value& root) {
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
  return Pretokenizer::compile(regex);
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

std::string normalise_nfc(std::string_view text) {
  const bool ascii =
      std::all_of(text.begin(), text.end(), [](char c) { return static_cast<signed char>(c) >= 0; });
  if (ascii) return std::string(text);
  utf8proc_uint8_t* out = nullptr;
  const auto size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                 static_cast<utf8proc_ssize_t>(text.size()), &out,
                                 static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (size < 0) return std::string(text);
  std::string result(reinterpret_cast<const char*>(out), static_cast<size_t>(size));
  std::free(out);  // NOLINT(cppcoreguidelines-no-malloc): utf8proc's contract
  return result;
}

struct AddedToken {
  std::string text;
  TokenId id;
  bool special;
};

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
    for (const char* key : {"single_word", "lstrip", "rstrip", "normalized"}) {
      if (is_set(item, key)) {
        return fail(ErrorKind::kUnsupported, "added token '{}': '{}' is not supported", text.substr(0, 64),
                    key);
      }
    }
    added.push_back({std::string(text), static_cast<TokenId>(id->get_int64()), is_set(item, "special")});
  }
  return added;
}

}  // namespace

Result<Tokenizer> Tokenizer::load(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer.json";
  QWEN2_TRY(const std::string text, read_text_file(path));
  auto tokenizer = parse(text);
  if (!tokenizer) return within(fmt::format("'{}'", path.string()), tokenizer.error());
  return tokenizer;
}

Result<Tokenizer> Tokenizer::parse(std::string_view tokenizer_json) {
  json::error_code code;
  json::monotonic_resource memory;
  json::parse_options options;
  options.max_depth = 16;
  const json::value root = json::parse(tokenizer_json, code, &memory, options);
  if (code) return fail(ErrorKind::kFormat, "not valid JSON: {}", code.message());
  QWEN2_CHECK(check_model(root));
  QWEN2_TRY(const bool nfc, parse_normalizer(root));
  QWEN2_TRY(Pretokenizer pretokenizer, parse_pretokenizer(root));
  const json::value& model = *member(root, "model");
  QWEN2_TRY(auto tokens, parse_vocabulary(model));
  QWEN2_TRY(const auto merges, parse_merges(model));
  QWEN2_TRY(const auto added, parse_added(root));

  TokenId largest = 0;
  for (const auto& [text, id] : tokens) largest = std::max(largest, id);
  for (const AddedToken& token : added) largest = std::max(largest, token.id);
  std::vector<std::string> bytes(static_cast<size_t>(largest) + 1);
  std::vector<bool> special(bytes.size());
  for (const auto& [text, id] : tokens) {
    if (!bytes[static_cast<size_t>(id)].empty())
      return fail(ErrorKind::kFormat, "'model.vocab': id {} occurs twice", id);
    bytes[static_cast<size_t>(id)] = text;
  }

  QWEN2_TRY(Bpe bpe, Bpe::create(std::move(tokens), merges));
  Tokenizer tokenizer(std::move(bpe), std::move(pretokenizer));
  tokenizer.nfc_ = nfc;
  for (const AddedToken& token : added) {
    bytes[static_cast<size_t>(token.id)] = token.text;
    special[static_cast<size_t>(token.id)] = token.special;
    tokenizer.added_first_bytes_[static_cast<uint8_t>(token.text[0])] = true;
    tokenizer.added_.push_back({token.text, token.id});
  }
  std::stable_sort(tokenizer.added_.begin(), tokenizer.added_.end(),
                   [](const Added& a, const Added& b) { return a.text.size() > b.text.size(); });
  tokenizer.bytes_ = std::move(bytes);
  tokenizer.special_ = std::move(special);
  return tokenizer;
}

Result<std::vector<TokenId>> Tokenizer::encode(std::string_view input) const {
  const std::string text = valid_utf8(input);
  std::vector<TokenId> out;
  out.reserve(text.size() / 4 + 8);
  size_t ordinary = 0;  // start of the text since the last added token
  for (size_t i = 0; i < text.size();) {
    const Added* match = nullptr;
    if (added_first_bytes_[static_cast<uint8_t>(text[i])]) {
      const std::string_view rest = std::string_view(text).substr(i);
      const auto found = std::find_if(added_.begin(), added_.end(),
                                      [&](const Added& a) { return rest.starts_with(a.text); });
      if (found != added_.end()) match = &*found;
    }
    if (match == nullptr) {
      ++i;
      continue;
    }
    QWEN2_CHECK(encode_ordinary(std::string_view(text).substr(ordinary, i - ordinary), out));
    out.push_back(match->id);
    i += match->text.size();
    ordinary = i;
  }
  QWEN2_CHECK(encode_ordinary(std::string_view(text).substr(ordinary), out));
  return out;
}

Status Tokenizer::encode_ordinary(std::string_view text, std::vector<TokenId>& out) const {
  if (text.empty()) return {};
  if (!nfc_) return pretokenizer_.split(text, [&](std::string_view piece) { bpe_.encode(piece, out); });
  const std::string normal = normalise_nfc(text);
  return pretokenizer_.split(normal, [&](std::string_view piece) { bpe_.encode(piece, out); });
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool skip_special) const {
  std::string bytes;
  for (const TokenId id : ids) {
    if (!skip_special || !is_special(id)) bytes += token_bytes(id);
  }
  return valid_utf8(bytes);
}

std::string_view Tokenizer::token_bytes(TokenId id) const {
  return id >= 0 && static_cast<size_t>(id) < bytes_.size()
             ? std::string_view(bytes_[static_cast<size_t>(id)])
             : std::string_view();
}

bool Tokenizer::is_special(TokenId id) const {
  return id >= 0 && static_cast<size_t>(id) < special_.size() && special_[static_cast<size_t>(id)];
}

std::optional<TokenId> Tokenizer::added_token(std::string_view text) const {
  for (const Added& token : added_) {
    if (token.text == text) return token.id;
  }
  return std::nullopt;
}

std::string StreamDecoder::push(TokenId id) {
  if (tokenizer_->is_special(id)) return {};
  pending_ += tokenizer_->token_bytes(id);
  const size_t keep = incomplete_utf8_suffix(pending_);
  std::string text = valid_utf8(std::string_view(pending_).substr(0, pending_.size() - keep));
  pending_.erase(0, pending_.size() - keep);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text = valid_utf8(pending_);
  pending_.clear();
  return text;
}

}  // namespace qwen2
