#include "tokenizer/chat_template.h"

#include <algorithm>
#include <array>
#include <ctime>

#include "base/memory.h"

namespace qwen2 {
namespace {

namespace json = boost::json;
namespace fs = std::filesystem;
using jinja::Value;

// As in tokenizer_config.json of Qwen2-1.5B-Instruct.
constexpr std::string_view kQwen2Template =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

constexpr std::array<std::string_view, 7> kSpecialTokens = {
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};

constexpr size_t kMaxConfigBytes = size_t{16} << 20;

Result<json::object> parse_object(std::string_view text) {
  json::error_code code;
  json::value root = json::parse(text, code);
  if (code || !root.is_object()) return fail(ErrorKind::kFormat, "expected a JSON object");
  return std::move(root.get_object());
}

// A token is a text, or an object with its text under "content".
std::optional<std::string_view> token_text(const json::value* value) {
  if (value != nullptr && value->is_object()) value = value->get_object().if_contains("content");
  if (value == nullptr || !value->is_string()) return std::nullopt;
  return std::string_view(value->get_string());
}

}  // namespace

ChatTemplate::ChatTemplate() : source_("none in the model: Qwen2's own") {
  auto parsed = jinja::Template::parse(kQwen2Template);
  if (parsed) template_ = std::move(*parsed);
}

Status ChatTemplate::use(std::string_view text, std::string source) {
  auto parsed = jinja::Template::parse(text);
  if (!parsed) {
    return fail(parsed.error().kind, "chat template ({}): {}; --chat-template FILE renders another", source,
                parsed.error().message);
  }
  template_ = std::move(*parsed);
  with_tools_.reset();
  source_ = std::move(source);
  is_fallback_ = false;
  return {};
}

Status ChatTemplate::use_for_tools(std::string_view text) {
  auto parsed = jinja::Template::parse(text);
  if (!parsed) return within("chat template 'tool_use'", parsed.error());
  with_tools_ = std::move(*parsed);
  return {};
}

Status ChatTemplate::read_special_tokens(const json::object& config) {
  for (const std::string_view name : kSpecialTokens) {
    const auto text = token_text(config.if_contains(name));
    const auto known = std::ranges::find(special_tokens_, name, &std::pair<std::string, Value>::first);
    if (!text || known != special_tokens_.end()) continue;
    special_tokens_.emplace_back(name, Value::own(std::string(*text)));
  }
  return {};
}

// "chat_template": a text, or [{"name": "default", "template": ...}, {"name": "tool_use", ...}].
Status ChatTemplate::read_templates(const json::object& config, std::string_view where) {
  const json::value* field = config.if_contains("chat_template");
  if (field == nullptr || field->is_null()) return {};
  const std::string source = fmt::format("'chat_template' of {}", where);
  if (field->is_string()) return use(field->get_string(), source);
  const json::array* list = field->if_array();
  if (list == nullptr)
    return fail(ErrorKind::kFormat, "'chat_template' must be a text or a list of named texts");
  const auto named = [&](std::string_view name) -> std::optional<std::string_view> {
    for (const json::value& item : *list) {
      const json::object* entry = item.if_object();
      if (entry == nullptr || token_text(entry->if_contains("name")) != name) continue;
      return token_text(entry->if_contains("template"));
    }
    return std::nullopt;
  };
  const auto text = named("default");
  if (!text)
    return fail(ErrorKind::kUnsupported, "'chat_template' is a list without a template named 'default'");
  QWEN2_CHECK(use(*text, source + ", 'default'"));
  if (const auto tools = named("tool_use")) return use_for_tools(*tools);
  return {};
}

Result<ChatTemplate> ChatTemplate::parse(std::string_view tokenizer_config_json, std::string_view where) {
  QWEN2_TRY(const json::object config, parse_object(tokenizer_config_json));
  ChatTemplate chat;
  QWEN2_CHECK(chat.read_special_tokens(config));
  QWEN2_CHECK(chat.read_templates(config, where));
  return chat;
}

Result<ChatTemplate> ChatTemplate::load(const fs::path& folder) {
  ChatTemplate chat;
  const fs::path file = folder / "chat_template.jinja";
  const bool has_file = fs::exists(file);
  for (const std::string_view name : {"tokenizer_config.json", "special_tokens_map.json"}) {
    const fs::path path = folder / name;
    if (!fs::exists(path)) continue;
    QWEN2_TRY(const std::string text, read_text_file(path, kMaxConfigBytes));
    const auto config = parse_object(text);
    if (!config) return within(fmt::format("'{}'", path.string()), config.error());
    QWEN2_CHECK(chat.read_special_tokens(*config));
    if (has_file || name != "tokenizer_config.json") continue;
    if (const Status status = chat.read_templates(*config, name); !status) {
      return within(fmt::format("'{}'", path.string()), status.error());
    }
  }
  if (!has_file) return chat;
  QWEN2_TRY(const std::string text, read_text_file(file, jinja::kMaxTemplateBytes));
  if (const Status status = chat.use(text, "chat_template.jinja"); !status) {
    return within(fmt::format("'{}'", folder.string()), status.error());
  }
  const fs::path tools = folder / "additional_chat_templates" / "tool_use.jinja";
  if (!fs::exists(tools)) return chat;
  QWEN2_TRY(const std::string tools_text, read_text_file(tools, jinja::kMaxTemplateBytes));
  QWEN2_CHECK(chat.use_for_tools(tools_text));
  return chat;
}

Status ChatTemplate::replace(const fs::path& path) {
  QWEN2_TRY(const std::string text, read_text_file(path, jinja::kMaxTemplateBytes));
  return use(text, fmt::format("--chat-template {}", path.string()));
}

void ChatTemplate::remove() {
  template_.reset();
  with_tools_.reset();
  source_ = "none";
}

std::string_view ChatTemplate::eos_token() const {
  const auto found = std::ranges::find(special_tokens_, "eos_token", &std::pair<std::string, Value>::first);
  return found == special_tokens_.end() ? std::string_view() : std::string_view(found->second.text()->text());
}

Result<MarkedText> ChatTemplate::render(std::span<const ChatMessage> messages,
                                        bool add_generation_prompt) const {
  json::array list;
  for (const ChatMessage& message : messages) {
    list.push_back(json::object{{"role", message.role}, {"content", message.content}});
  }
  return render(list, nullptr, add_generation_prompt);
}

Result<MarkedText> ChatTemplate::render(const json::array& messages, const json::value& tools,
                                        bool add_generation_prompt, const json::object& more) const {
  const bool from_message = !trusts_messages_;
  std::vector<std::pair<std::string, Value>> variables;  // the first of a name counts
  QWEN2_TRY(Value list, jinja::from_json(messages, from_message));
  QWEN2_TRY(Value tool_list, jinja::from_json(tools, from_message));
  variables.emplace_back("messages", std::move(list));
  variables.emplace_back("tools", std::move(tool_list));
  variables.emplace_back("documents", Value::none());
  variables.emplace_back("add_generation_prompt", Value::boolean(add_generation_prompt));
  for (const auto& [name, item] : more) {
    QWEN2_TRY(Value value, jinja::from_json(item, from_message));
    variables.emplace_back(name, std::move(value));
  }
  variables.insert(variables.end(), special_tokens_.begin(), special_tokens_.end());
  const std::optional<jinja::Template>& chosen = with_tools_ && !tools.is_null() ? with_tools_ : template_;
  if (!chosen) {
    return fail(ErrorKind::kInvalidArgument,
                "the model has no chat template: --chat-template FILE gives it one");
  }
  auto text = chosen->render(std::move(variables), std::time(nullptr));
  if (!text) return within("chat template", text.error());
  return text;
}

Result<std::vector<TokenId>> chat_tokens(const Tokenizer& tokenizer, const ChatTemplate& chat,
                                         std::span<const ChatMessage> messages, bool add_generation_prompt) {
  QWEN2_TRY(const MarkedText prompt, chat.render(messages, add_generation_prompt));
  return tokenizer.encode(prompt);
}

std::vector<TokenId> chat_end_tokens(const Tokenizer& tokenizer, const ChatTemplate& chat) {
  const auto id = chat.eos_token().empty() ? std::nullopt : tokenizer.added_token(chat.eos_token());
  return id ? std::vector<TokenId>{*id} : std::vector<TokenId>();
}

}  // namespace qwen2
