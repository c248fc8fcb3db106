#include "loadgen/prompt_file.h"

#include <boost/json.hpp>
#include <optional>

#include "base/memory.h"

namespace qwen2 {
namespace {

namespace json = boost::json;

constexpr size_t kMaxBytes = size_t{2} << 30;

std::string text_at(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
}

std::string turn(const json::array& turns, size_t index, std::initializer_list<std::string_view> speakers) {
  if (index >= turns.size() || !turns[index].is_object()) return {};
  const std::string from = text_at(turns[index].get_object(), "from");
  for (const std::string_view speaker : speakers) {
    if (from == speaker) return text_at(turns[index].get_object(), "value");
  }
  return {};
}

// Nothing where the entry has no prompt to send.
Result<std::optional<FilePrompt>> prompt_of(const json::value& entry) {
  const json::object* object = entry.if_object();
  if (object == nullptr) return fail(ErrorKind::kFormat, "not a JSON object");
  FilePrompt prompt;
  if (const json::value* turns = object->if_contains("conversations");
      turns != nullptr && turns->is_array()) {
    prompt.prompt = turn(turns->get_array(), 0, {"human", "user"});
    prompt.answer = turn(turns->get_array(), 1, {"gpt", "chatgpt", "assistant"});
  } else if (object->contains("prompt")) {
    prompt.prompt = text_at(*object, "prompt");
    prompt.answer = text_at(*object, "answer");
  } else {
    return fail(ErrorKind::kFormat, "has neither \"conversations\" nor \"prompt\"");
  }
  if (prompt.prompt.empty()) return std::optional<FilePrompt>();
  return std::optional(std::move(prompt));
}

Status add(const json::value& entry, size_t number, std::vector<FilePrompt>& prompts) {
  auto prompt = prompt_of(entry);
  if (!prompt) return within(fmt::format("entry {}", number), prompt.error());
  if (*prompt) prompts.push_back(std::move(**prompt));
  return {};
}

Result<std::vector<FilePrompt>> parse_prompts(std::string_view text) {
  std::vector<FilePrompt> prompts;
  json::error_code code;
  if (const size_t first = text.find_first_not_of(" \t\r\n");
      first != std::string_view::npos && text[first] == '[') {
    const json::value root = json::parse(text, code);
    if (code) return fail(ErrorKind::kFormat, "not a JSON array: {}", code.message());
    for (const json::value& entry : root.get_array()) QWEN2_CHECK(add(entry, prompts.size(), prompts));
    return prompts;
  }
  for (size_t number = 0; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const json::value entry = json::parse(line, code);
    if (code) return fail(ErrorKind::kFormat, "line {} is not JSON: {}", number + 1, code.message());
    QWEN2_CHECK(add(entry, number, prompts));
  }
  return prompts;
}

}  // namespace

Result<std::vector<FilePrompt>> read_prompts(const std::filesystem::path& path) {
  QWEN2_TRY(const std::string text, read_text_file(path, kMaxBytes));
  auto prompts = parse_prompts(text);
  if (!prompts) return within(fmt::format("--prompts '{}'", path.string()), prompts.error());
  if (prompts->empty()) return fail(ErrorKind::kFormat, "--prompts '{}' has no prompts", path.string());
  return prompts;
}

}  // namespace qwen2
