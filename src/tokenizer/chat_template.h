// ChatML, the chat format of Qwen2 and Qwen2.5 (without tools).
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"

namespace qwen2 {

struct ChatMessage {
  std::string role;
  std::string content;
};

class ChatTemplate {
 public:
  // Reads the default system prompt out of `chat_template` in tokenizer_config.json. A template that is not
  // ChatML is an error. Without the file or the field, Qwen2's own prompt is used.
  static Result<ChatTemplate> load(const std::filesystem::path& folder);
  static Result<ChatTemplate> parse(std::string_view tokenizer_config_json);

  // The prompt's text. A system message is put in front when the first message is not one.
  [[nodiscard]] std::string render(std::span<const ChatMessage> messages, bool add_generation_prompt) const;

  [[nodiscard]] const std::string& default_system_prompt() const { return system_; }

 private:
  std::string system_ = "You are a helpful assistant.";
};

}  // namespace qwen2
