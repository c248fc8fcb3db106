#include "tokenizer/tokenizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>

#include "base/memory.h"
#include "checkpoint/folder_checks.h"
#include "tokenizer/utf8.h"

namespace qwen2 {
namespace {

namespace fs = std::filesystem;

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

// The text after NFC, with its marks. Where a character of the template and one of a message become one, it is
// the message's.
MarkedText normalise_nfc(const MarkedText& text) {
  const std::string whole = normalise_nfc(std::string_view(text.text()));
  if (whole == text.text()) return text;
  MarkedText out;
  size_t begin = 0;
  const auto add = [&](size_t end, bool from_message) {
    out.append(normalise_nfc(std::string_view(text.text()).substr(begin, end - begin)), from_message);
    begin = end;
  };
  for (const auto& [from, to] : text.from_messages()) {
    add(from, false);
    add(to, true);
  }
  add(text.size(), false);
  return out.text() == whole ? out : MarkedText(whole, true);
}

MarkedText valid_utf8(const MarkedText& text) {
  if (qwen2::valid_utf8(text.text()) == text.text()) return text;
  MarkedText out;
  size_t begin = 0;
  const auto add = [&](size_t end, bool from_message) {
    out.append(qwen2::valid_utf8(std::string_view(text.text()).substr(begin, end - begin)), from_message);
    begin = end;
  };
  for (const auto& [from, to] : text.from_messages()) {
    add(from, false);
    add(to, true);
  }
  add(text.size(), false);
  return out;
}

// Empty where the file is not there.
Result<std::string> text_or_none(const fs::path& path) {
  if (!fs::exists(path)) return std::string();
  return read_text_file(path);
}

Result<TokenizerParts> load_parts(const fs::path& folder) {
  const fs::path path = folder / "tokenizer.json";
  if (fs::exists(path) || !fs::exists(folder / "vocab.json") || !fs::exists(folder / "merges.txt")) {
    QWEN2_TRY(const std::string text, read_text_file(path));
    if (is_lfs_pointer(text)) return lfs_pointer_error(path);
    auto parts = parse_tokenizer_json(text);
    if (!parts) return within("tokenizer.json", parts.error());
    return parts;
  }
  QWEN2_TRY(const std::string vocabulary, read_text_file(folder / "vocab.json"));
  QWEN2_TRY(const std::string merges, read_text_file(folder / "merges.txt"));
  QWEN2_TRY(const std::string config, text_or_none(folder / "tokenizer_config.json"));
  QWEN2_TRY(const std::string added, text_or_none(folder / "added_tokens.json"));
  return parse_vocabulary_files(vocabulary, merges, config, added);
}

}  // namespace

Result<Tokenizer> Tokenizer::load(const fs::path& folder) {
  auto parts = load_parts(folder);
  auto tokenizer = parts ? create(std::move(*parts)) : std::unexpected(parts.error());
  if (!tokenizer) return within(fmt::format("tokeniser of '{}'", folder.string()), tokenizer.error());
  return tokenizer;
}

Result<Tokenizer> Tokenizer::parse(std::string_view tokenizer_json) {
  QWEN2_TRY(TokenizerParts parts, parse_tokenizer_json(tokenizer_json));
  return create(std::move(parts));
}

Result<Tokenizer> Tokenizer::create(TokenizerParts parts) {
  TokenId largest = 0;
  for (const auto& [text, id] : parts.tokens) largest = std::max(largest, id);
  for (const AddedToken& token : parts.added) largest = std::max(largest, token.id);
  for (const auto* around : {&parts.before, &parts.after}) {
    for (const TokenId id : *around) {
      if (id > largest)
        return fail(ErrorKind::kFormat, "'post_processor' adds token {}, the largest is {}", id, largest);
    }
  }
  std::vector<std::string> bytes(static_cast<size_t>(largest) + 1);
  std::vector<bool> special(bytes.size());
  for (const auto& [text, id] : parts.tokens) {
    if (!bytes[static_cast<size_t>(id)].empty())
      return fail(ErrorKind::kFormat, "'model.vocab': id {} occurs twice", id);
    bytes[static_cast<size_t>(id)] = text;
  }
  QWEN2_TRY(Pretokenizer pretokenizer, Pretokenizer::compile(parts.pattern));
  QWEN2_TRY(Bpe bpe, Bpe::create(std::move(parts.tokens), parts.merges));
  Tokenizer tokenizer(std::move(bpe), std::move(pretokenizer));
  tokenizer.nfc_ = parts.nfc;
  tokenizer.before_ = std::move(parts.before);
  tokenizer.after_ = std::move(parts.after);
  for (AddedToken& token : parts.added) {
    bytes[static_cast<size_t>(token.id)] = token.text;
    special[static_cast<size_t>(token.id)] = token.special;
    if (token.normalized && parts.nfc) token.text = normalise_nfc(std::string_view(token.text));
    (token.normalized ? tokenizer.normalized_ : tokenizer.added_).list.push_back(std::move(token));
  }
  tokenizer.added_.prepare();
  tokenizer.normalized_.prepare();
  tokenizer.bytes_ = std::move(bytes);
  tokenizer.special_ = std::move(special);
  return tokenizer;
}

void Tokenizer::AddedTokens::prepare() {
  std::ranges::stable_sort(list, std::ranges::greater(),
                           [](const AddedToken& token) { return token.text.size(); });
  for (const AddedToken& token : list) first_bytes[static_cast<uint8_t>(token.text[0])] = true;
}

const AddedToken* Tokenizer::AddedTokens::at(const MarkedText& text, size_t position) const {
  if (!first_bytes[static_cast<uint8_t>(text.text()[position])]) return nullptr;
  const std::string_view rest = std::string_view(text.text()).substr(position);
  const auto found = std::ranges::find_if(list, [&](const AddedToken& a) {
    return rest.starts_with(a.text) &&
           !(a.special && text.is_from_message(position, position + a.text.size()));
  });
  return found == list.end() ? nullptr : &*found;
}

template <class Ordinary>
Status Tokenizer::AddedTokens::split(const MarkedText& text, std::vector<TokenId>& out,
                                     Ordinary ordinary) const {
  size_t begin = 0;  // of the text since the last added token
  for (size_t i = 0; i < text.size();) {
    const AddedToken* token = at(text, i);
    if (token == nullptr) {
      ++i;
      continue;
    }
    QWEN2_CHECK(ordinary(begin, i));
    out.push_back(token->id);
    i += token->text.size();
    begin = i;
  }
  return ordinary(begin, text.size());
}

Result<std::vector<TokenId>> Tokenizer::encode(std::string_view text) const {
  QWEN2_TRY(std::vector<TokenId> out, encode(MarkedText(std::string(text))));
  out.insert(out.begin(), before_.begin(), before_.end());
  out.insert(out.end(), after_.begin(), after_.end());
  return out;
}

Result<std::vector<TokenId>> Tokenizer::encode(const MarkedText& input) const {
  const MarkedText text = valid_utf8(input);
  std::vector<TokenId> out;
  out.reserve(text.size() / 4 + 8);
  QWEN2_CHECK(added_.split(text, out,
                           [&](size_t begin, size_t end) { return encode_ordinary(text, begin, end, out); }));
  return out;
}

Status Tokenizer::encode_ordinary(const MarkedText& text, size_t begin, size_t end,
                                  std::vector<TokenId>& out) const {
  if (begin == end) return {};
  const std::string_view piece = std::string_view(text.text()).substr(begin, end - begin);
  if (normalized_.list.empty()) return encode_pieces(nfc_ ? normalise_nfc(piece) : std::string(piece), out);
  const MarkedText normal = nfc_ ? normalise_nfc(text.part(begin, end)) : text.part(begin, end);
  return normalized_.split(normal, out, [&](size_t from, size_t to) {
    return encode_pieces(std::string_view(normal.text()).substr(from, to - from), out);
  });
}

Status Tokenizer::encode_pieces(std::string_view text, std::vector<TokenId>& out) const {
  if (text.empty()) return {};
  return pretokenizer_.split(text, [&](std::string_view piece) { bpe_.encode(piece, out); });
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
  for (const AddedTokens* tokens : {&added_, &normalized_}) {
    const auto found = std::ranges::find(tokens->list, text, &AddedToken::text);
    if (found != tokens->list.end()) return found->id;
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
