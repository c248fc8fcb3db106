// The chat template of a model: its own Jinja text, rendered as Transformers does.
#pragma once

#include <boost/json.hpp>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "tokenizer/jinja/template.h"
#include "tokenizer/marked_text.h"
#include "tokenizer/tokenizer.h"

namespace qwen2 {

struct ChatMessage {
  std::string role;
  std::string content;
};

class ChatTemplate {
 public:
  // Qwen2's published template, for a model that carries none.
  ChatTemplate();

  // Of a folder: chat_template.jinja, else "chat_template" of tokenizer_config.json (a text, or a list of named
  // ones), else Qwen2's.
  static Result<ChatTemplate> load(const std::filesystem::path& folder);
  // Of the text of a tokenizer_config.json alone; `where` is what source() names.
  static Result<ChatTemplate> parse(std::string_view tokenizer_config_json, std::string_view where);

  // Renders the template of `path` instead; the special tokens stay.
  Status replace(const std::filesystem::path& path);
  // The model has none: rendering is an error that says so.
  void remove();
  // Special tokens are recognised in messages too.
  void trust_messages() { trusts_messages_ = true; }

  // Error kInvalidArgument where the template refuses the messages; it names the template's line.
  [[nodiscard]] Result<MarkedText> render(std::span<const ChatMessage> messages,
                                          bool add_generation_prompt) const;
  // `messages` and `tools` (null for none) as a request brings them; `more` are further variables of the template.
  [[nodiscard]] Result<MarkedText> render(const boost::json::array& messages, const boost::json::value& tools,
                                          bool add_generation_prompt,
                                          const boost::json::object& more = {}) const;

  // Where the text comes from, for people.
  [[nodiscard]] const std::string& source() const { return source_; }
  // The model has no template: Qwen2's is rendered.
  [[nodiscard]] bool is_fallback() const { return is_fallback_; }
  // "eos_token" of tokenizer_config.json; empty without one.
  [[nodiscard]] std::string_view eos_token() const;

 private:
  Status read_special_tokens(const boost::json::object& config);
  Status read_templates(const boost::json::object& config, std::string_view where);
  Status use(std::string_view text, std::string source);
  Status use_for_tools(std::string_view text);

  std::optional<jinja::Template> template_;
  std::optional<jinja::Template> with_tools_;  // rendered where tools are given, if the model has one
  std::string source_;
  bool is_fallback_ = true;
  bool trusts_messages_ = false;
  std::vector<std::pair<std::string, jinja::Value>> special_tokens_;  // bos_token and its kin
};

// The tokens of a rendered chat.
Result<std::vector<TokenId>> chat_tokens(const Tokenizer& tokenizer, const ChatTemplate& chat,
                                         std::span<const ChatMessage> messages, bool add_generation_prompt);

// The token that ends an answer in a chat: eos_token of tokenizer_config.json; empty where it has none.
std::vector<TokenId> chat_end_tokens(const Tokenizer& tokenizer, const ChatTemplate& chat);

}  // namespace qwen2
