#include "tokenizer/chat_template.h"

#include <boost/json.hpp>

#include "base/memory.h"

namespace qwen2 {

namespace json = boost::json;

Result<ChatTemplate> ChatTemplate::load(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "tokenizer_config.json";
  if (!std::filesystem::exists(path)) return ChatTemplate();
  QWEN2_TRY(const std::string text, read_text_file(path, size_t{16} << 20));
  auto chat = parse(text);
  if (!chat) return within(fmt::format("'{}'", path.string()), chat.error());
  return chat;
}

Result<ChatTemplate> ChatTemplate::parse(std::string_view tokenizer_config_json) {
  json::error_code code;
  const json::value root = json::parse(tokenizer_config_json, code);
  if (code || !root.is_object()) return fail(ErrorKind::kFormat, "expected a JSON object");
  ChatTemplate chat;
  const json::value* field = root.get_object().if_contains("chat_template");
  if (field == nullptr || field->is_null()) return chat;
  if (!field->is_string()) return fail(ErrorKind::kUnsupported, "'chat_template' must be one string");
  const std::string_view text = field->get_string();
  if (text.find("<|im_start|>") == std::string_view::npos ||
      text.find("add_generation_prompt") == std::string_view::npos) {
    return fail(ErrorKind::kUnsupported, "'chat_template' is not ChatML (<|im_start|>role ... <|im_end|>)");
  }
  // '<|im_start|>system\nDEFAULT<|im_end|>', where the newline may be written as an escape of Jinja's string.
  static constexpr std::string_view kOpening = "<|im_start|>system";
  for (size_t at = text.find(kOpening); at != std::string_view::npos; at = text.find(kOpening, at + 1)) {
    std::string_view rest = text.substr(at + kOpening.size());
    if (rest.starts_with("\\n")) {
      rest.remove_prefix(2);
    } else if (rest.starts_with('\n')) {
      rest.remove_prefix(1);
    }
    const size_t end = rest.find("<|im_end|>");
    const size_t quote = rest.find('\'');
    if (end != std::string_view::npos && end > 0 && end < quote) {
      chat.system_ = std::string(rest.substr(0, end));
      return chat;
    }
  }
  return chat;
}

std::string ChatTemplate::render(std::span<const ChatMessage> messages, bool add_generation_prompt) const {
  std::string text;
  const auto add = [&](std::string_view role, std::string_view content) {
    text += fmt::format("<|im_start|>{}\n{}<|im_end|>\n", role, content);
  };
  if (messages.empty() || messages.front().role != "system") add("system", system_);
  for (const ChatMessage& message : messages) add(message.role, message.content);
  if (add_generation_prompt) text += "<|im_start|>assistant\n";
  return text;
}

}  // namespace qwen2
