#include "quantize/calibration.h"

#include <boost/json.hpp>

#include "base/memory.h"

namespace qwen2::quantize {
namespace {

namespace json = boost::json;
using Sequences = std::vector<std::vector<TokenId>>;

Result<std::vector<ChatMessage>> conversation_of(std::string_view line) {
  json::error_code code;
  const json::value parsed = json::parse(line, code);
  const json::value* list = &parsed;
  if (!code && parsed.is_object()) list = parsed.get_object().if_contains("messages");
  const json::array* items = code || list == nullptr ? nullptr : list->if_array();
  if (items == nullptr) return fail(ErrorKind::kFormat, "an array of messages was expected");
  std::vector<ChatMessage> messages;
  for (const json::value& item : *items) {
    const json::object* object = item.if_object();
    const json::value* role = object == nullptr ? nullptr : object->if_contains("role");
    const json::value* content = object == nullptr ? nullptr : object->if_contains("content");
    if (role == nullptr || content == nullptr || !role->is_string() || !content->is_string())
      return fail(ErrorKind::kFormat, "a message must have the strings 'role' and 'content'");
    messages.push_back({std::string(role->get_string()), std::string(content->get_string())});
  }
  if (messages.empty()) return fail(ErrorKind::kFormat, "a conversation must have messages");
  return messages;
}

Result<Sequences> chats(std::string_view text, const Tokenizer& tokenizer, const ChatTemplate& chat,
                        size_t length) {
  Sequences sequences;
  for (size_t line = 1; !text.empty(); ++line) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view row = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (row.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const auto messages = conversation_of(row);
    if (!messages) return within(fmt::format("line {}", line), messages.error());
    QWEN2_TRY(auto tokens, chat_tokens(tokenizer, chat, *messages, false));
    if (tokens.size() > length) tokens.resize(length);
    sequences.push_back(std::move(tokens));
  }
  return sequences;
}

Result<Sequences> pieces(std::string_view text, const Tokenizer& tokenizer, size_t length) {
  QWEN2_TRY(const std::vector<TokenId> tokens, tokenizer.encode(text));
  Sequences sequences;
  for (size_t first = 0; first < tokens.size(); first += length) {
    const std::span piece = std::span(tokens).subspan(first, std::min(length, tokens.size() - first));
    sequences.emplace_back(piece.begin(), piece.end());
  }
  return sequences;
}

}  // namespace

Result<Sequences> read_calibration(const std::filesystem::path& path, const Tokenizer& tokenizer,
                                   const ChatTemplate& chat, const CalibrationLimits& limits) {
  QWEN2_TRY(const std::string text, read_text_file(path));
  const auto length = static_cast<size_t>(limits.length);
  auto all =
      path.extension() == ".jsonl" ? chats(text, tokenizer, chat, length) : pieces(text, tokenizer, length);
  if (!all) return within(fmt::format("'{}'", path.string()), all.error());
  if (all->empty()) return fail(ErrorKind::kFormat, "'{}' has no text to calibrate with", path.string());
  const auto wanted = static_cast<size_t>(limits.sequences);
  if (all->size() <= wanted) return all;
  Sequences taken;
  for (size_t i = 0; i < wanted; ++i) taken.push_back(std::move((*all)[i * all->size() / wanted]));
  return taken;
}

}  // namespace qwen2::quantize
