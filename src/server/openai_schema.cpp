#include "server/openai_schema.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <ctime>
#include <random>

namespace qwen2 {
namespace {

namespace json = boost::json;

constexpr size_t kMaxStops = 16;

template <class T>
using Parsed = std::expected<T, HttpError>;

template <class... Args>
std::unexpected<HttpError> bad(std::string_view param, fmt::format_string<Args...> format, Args&&... args) {
  HttpError error;
  error.message = fmt::format(format, std::forward<Args>(args)...);
  error.param = param;
  return std::unexpected(std::move(error));
}

// Reads optional fields of one object and remembers the first error.
class Fields {
 public:
  explicit Fields(const json::object& object) : object_(object) {}

  [[nodiscard]] const json::value* find(std::string_view key) const {
    const json::value* value = object_.if_contains(key);
    return value == nullptr || value->is_null() ? nullptr : value;
  }

  void read(std::string_view key, bool& target) {
    if (const json::value* value = find(key)) {
      if (value->is_bool()) {
        target = value->get_bool();
      } else {
        wrong_type(key, "true or false");
      }
    }
  }
  void read(std::string_view key, float& target) {
    if (const json::value* value = find(key)) {
      json::error_code code;
      const double number = value->to_number<double>(code);
      if (code || !std::isfinite(number)) {
        wrong_type(key, "a number");
      } else {
        target = static_cast<float>(number);
      }
    }
  }
  void read(std::string_view key, int64_t& target) {
    if (const json::value* value = find(key)) {
      if (value->is_int64()) {
        target = value->get_int64();
      } else {
        wrong_type(key, "an integer");
      }
    }
  }
  void read(std::string_view key, std::string& target) {
    if (const json::value* value = find(key)) {
      if (value->is_string()) {
        target = std::string(value->get_string());
      } else {
        wrong_type(key, "a string");
      }
    }
  }
  // A feature that is not there: only the value that means "off" passes.
  void require_off(std::string_view key, double off) {
    const json::value* value = find(key);
    if (value == nullptr || error_) return;
    json::error_code code;
    const bool is_off = (value->is_bool() && !value->get_bool()) ||
                        (value->is_array() && value->get_array().empty()) ||
                        (value->is_object() && value->get_object().empty()) ||
                        (value->is_string() && value->get_string().empty()) ||
                        (value->is_number() && value->to_number<double>(code) == off);
    if (!is_off) error_ = bad(key, "'{}' is not supported", key).error();
  }
  void wrong_type(std::string_view key, std::string_view expected) {
    if (!error_) error_ = bad(key, "'{}' must be {}", key, expected).error();
  }
  [[nodiscard]] const std::optional<HttpError>& error() const { return error_; }

 private:
  const json::object& object_;
  std::optional<HttpError> error_;
};

Parsed<std::vector<std::string>> parse_stop(const json::value* value) {
  std::vector<std::string> stops;
  if (value == nullptr) return stops;
  if (value->is_string()) {
    stops.emplace_back(value->get_string());
  } else if (value->is_array()) {
    for (const json::value& item : value->get_array()) {
      if (!item.is_string()) return bad("stop", "'stop' must be a string or an array of strings");
      stops.emplace_back(item.get_string());
    }
  } else {
    return bad("stop", "'stop' must be a string or an array of strings");
  }
  if (stops.size() > kMaxStops) return bad("stop", "'stop' may hold at most {} strings", kMaxStops);
  return stops;
}

// A string, or an array of {"type": "text", "text": ...} parts.
Parsed<std::string> parse_content(const json::value* value, size_t index) {
  const std::string param = fmt::format("messages[{}].content", index);
  if (value != nullptr && value->is_string()) return std::string(value->get_string());
  if (value == nullptr || !value->is_array())
    return bad(param, "'{}' must be a string or an array of text parts", param);
  std::string text;
  for (const json::value& part : value->get_array()) {
    const json::object* object = part.if_object();
    const json::value* type = object == nullptr ? nullptr : object->if_contains("type");
    const json::value* content = object == nullptr ? nullptr : object->if_contains("text");
    if (type == nullptr || !type->is_string() || type->get_string() != "text" || content == nullptr ||
        !content->is_string()) {
      return bad(param, "'{}': only parts of type \"text\" are supported", param);
    }
    text += content->get_string();
  }
  return text;
}

Parsed<std::vector<ChatMessage>> parse_messages(const json::value* value) {
  if (value == nullptr || !value->is_array() || value->get_array().empty()) {
    return bad("messages", "'messages' must be an array of at least one message");
  }
  std::vector<ChatMessage> messages;
  for (const json::value& item : value->get_array()) {
    const json::object* object = item.if_object();
    const json::value* role = object == nullptr ? nullptr : object->if_contains("role");
    const std::string param = fmt::format("messages[{}]", messages.size());
    if (role == nullptr || !role->is_string())
      return bad(param, "'{}' must be an object with a 'role'", param);
    std::string name(role->get_string());
    if (name == "developer") name = "system";
    if (name != "system" && name != "user" && name != "assistant") {
      return bad(param + ".role", "'{}.role' must be system, user or assistant", param);
    }
    auto content = parse_content(object->if_contains("content"), messages.size());
    if (!content) return std::unexpected(std::move(content).error());
    messages.push_back({std::move(name), std::move(*content)});
  }
  return messages;
}

Parsed<std::vector<TokenId>> encode(const ServedModel& model, std::string_view text, std::string_view param) {
  if (model.tokenizer == nullptr)
    return bad(param, "the model has no tokeniser: send token ids to /v1/completions");
  auto tokens = model.tokenizer->encode(text);
  if (!tokens) return bad(param, "the prompt could not be tokenised: {}", tokens.error().message);
  return std::move(*tokens);
}

// A string, an array of token ids, or an array of exactly one of either.
Parsed<std::vector<TokenId>> parse_prompt(const ServedModel& model, const json::value* value) {
  if (value == nullptr) return bad("prompt", "'prompt' is missing");
  if (value->is_string()) return encode(model, value->get_string(), "prompt");
  if (!value->is_array()) return bad("prompt", "'prompt' must be a string or an array of token ids");
  const json::array& list = value->get_array();
  if (!list.empty() && (list[0].is_string() || list[0].is_array())) {
    if (list.size() > 1) return bad("prompt", "several prompts in one request are not supported");
    return parse_prompt(model, &list[0]);
  }
  std::vector<TokenId> tokens;
  for (const json::value& item : list) {
    if (!item.is_int64() || item.get_int64() < 0 || item.get_int64() > INT32_MAX) {
      return bad("prompt", "'prompt' must be a string or an array of token ids");
    }
    tokens.push_back(static_cast<TokenId>(item.get_int64()));
  }
  return tokens;
}

Parsed<std::vector<TokenId>> parse_input(Endpoint endpoint, const Fields& fields, const ServedModel& model) {
  if (endpoint != Endpoint::kChat) return parse_prompt(model, fields.find("prompt"));
  auto messages = parse_messages(fields.find("messages"));
  if (!messages) return std::unexpected(std::move(messages).error());
  return encode(model, model.chat.render(*messages, true), "messages");
}

void read_sampling(Fields& fields, GenerationRequest& request) {
  fields.read("temperature", request.sampling.temperature);
  fields.read("top_p", request.sampling.top_p);
  fields.read("top_k", request.sampling.top_k);
  fields.read("repetition_penalty", request.sampling.repetition_penalty);
  fields.read("ignore_eos", request.ignore_eos);
  if (request.sampling.top_k == -1) request.sampling.top_k = 0;  // vLLM's spelling of "all"
  // Greedy means the likeliest token: the model's own penalty would change it.
  if (request.sampling.temperature == 0 && fields.find("repetition_penalty") == nullptr) {
    request.sampling.repetition_penalty = 1.0F;
  }
  if (fields.find("seed") != nullptr) {
    int64_t seed = 0;
    fields.read("seed", seed);
    request.sampling.seed = static_cast<uint64_t>(seed);
  } else {
    request.sampling.seed = std::random_device{}();
  }
  if (const json::value* format = fields.find("response_format")) {
    const json::value* type = format->is_object() ? format->get_object().if_contains("type") : nullptr;
    if (type == nullptr || *type != "text")
      fields.wrong_type("response_format", "{\"type\": \"text\"}; no other is supported");
  }
  fields.require_off("n", 1);
  fields.require_off("best_of", 1);
  fields.require_off("frequency_penalty", 0);
  fields.require_off("presence_penalty", 0);
  for (const char* key : {"logprobs", "top_logprobs", "echo", "tools", "functions", "logit_bias", "suffix"})
    fields.require_off(key, 0);
}

// OpenAI's two names for chats, and /generate's own.
void read_max_tokens(Endpoint endpoint, Fields& fields, const ServedModel& model,
                     GenerationRequest& request) {
  const auto left = std::max<int64_t>(1, model.max_model_len - static_cast<int64_t>(request.prompt.size()));
  request.max_new_tokens =
      std::min(left, endpoint == Endpoint::kChat ? kDefaultChatTokens : kDefaultCompletionTokens);
  fields.read("max_tokens", request.max_new_tokens);
  if (endpoint == Endpoint::kChat) fields.read("max_completion_tokens", request.max_new_tokens);
  if (endpoint == Endpoint::kGenerate) fields.read("max_new_tokens", request.max_new_tokens);
}

std::string random_hex() {
  static std::atomic<uint64_t> counter = 0;
  static const uint64_t start = (uint64_t{std::random_device{}()} << 32) | std::random_device{}();
  return fmt::format("{:016x}{:08x}", start, ++counter);
}

}  // namespace

std::string HttpError::body() const {
  json::object error{{"message", message}, {"type", type}};
  error["param"] = param.empty() ? json::value(nullptr) : json::value(param);
  error["code"] = code.empty() ? json::value(nullptr) : json::value(code);
  return json::serialize(json::object{{"error", error}});
}

HttpError to_http_error(const Error& error, int64_t retry_after) {
  HttpError http;
  http.message = error.message;
  if (error.kind == ErrorKind::kInvalidArgument) return http;
  if (error.kind == ErrorKind::kUnavailable) {
    const bool full = error.message.starts_with("the queue is full");
    http.status = full ? 429 : 503;
    http.type = full ? "rate_limit_error" : "server_error";
    http.code = full ? "queue_full" : "shutting_down";
    http.retry_after = retry_after;
    return http;
  }
  http.status = 500;
  http.type = "server_error";
  return http;
}

std::expected<ParsedRequest, HttpError> parse_request(Endpoint endpoint, std::string_view body,
                                                      const ServedModel& model) {
  json::error_code code;
  const json::value root = json::parse(body, code);
  if (code) return bad("", "the body is not valid JSON: {}", code.message());
  if (!root.is_object()) return bad("", "the body must be a JSON object");
  Fields fields(root.get_object());

  std::string name = model.name;
  fields.read("model", name);
  if (!fields.error() && name != model.name) {
    HttpError error =
        bad("model", "the model '{}' does not exist; this server has '{}'", name, model.name).error();
    error.status = 404;
    error.code = "model_not_found";
    return std::unexpected(std::move(error));
  }
  ParsedRequest request;
  request.endpoint = endpoint;
  request.generation.sampling = model.sampling_defaults;
  fields.read("stream", request.stream);
  if (const json::value* options = fields.find("stream_options")) {
    if (options->is_object()) {
      Fields inner(options->get_object());
      inner.read("include_usage", request.include_usage);
      if (inner.error()) return std::unexpected(*inner.error());
    } else {
      fields.wrong_type("stream_options", "an object");
    }
  }
  read_sampling(fields, request.generation);
  if (fields.error()) return std::unexpected(*fields.error());
  auto stops = parse_stop(fields.find("stop"));
  if (!stops) return std::unexpected(std::move(stops).error());
  request.generation.stop = std::move(*stops);
  auto prompt = parse_input(endpoint, fields, model);
  if (!prompt) return std::unexpected(std::move(prompt).error());
  request.generation.prompt = std::move(*prompt);
  read_max_tokens(endpoint, fields, model, request.generation);
  if (fields.error()) return std::unexpected(*fields.error());
  return request;
}

ResponseWriter::ResponseWriter(const ServedModel& model, const ParsedRequest& request)
    : endpoint_(request.endpoint),
      include_usage_(request.include_usage || request.endpoint == Endpoint::kGenerate),
      model_(model.name),
      id_((request.endpoint == Endpoint::kChat ? "chatcmpl-" : "cmpl-") + random_hex()),
      created_(std::time(nullptr)),
      prompt_tokens_(static_cast<int64_t>(request.generation.prompt.size())) {}

json::object ResponseWriter::envelope(bool chunk) const {
  const std::string_view object = endpoint_ != Endpoint::kChat ? "text_completion"
                                  : chunk                      ? "chat.completion.chunk"
                                                               : "chat.completion";
  return {{"id", id_}, {"object", object}, {"created", created_}, {"model", model_}};
}

json::object ResponseWriter::usage(const TokenEvent& last) const {
  return {{"prompt_tokens", prompt_tokens_},
          {"completion_tokens", last.completion_tokens},
          {"total_tokens", prompt_tokens_ + last.completion_tokens}};
}

namespace {

json::object timings(const TokenEvent& last) {
  return {{"queue_seconds", last.timings.queue},
          {"prefill_seconds", last.timings.prefill},
          {"decode_seconds", last.timings.decode}};
}

json::value finish_reason(const TokenEvent& event) {
  return event.finish ? json::value(finish_reason_name(*event.finish)) : json::value(nullptr);
}

}  // namespace

std::string ResponseWriter::stream_event(const TokenEvent& event) {
  if (endpoint_ == Endpoint::kGenerate) {
    return json::serialize(
        json::object{{"text", event.text}, {"token", event.token}, {"finish_reason", finish_reason(event)}});
  }
  json::object choice{{"index", 0}};
  if (endpoint_ == Endpoint::kChat) {
    json::object delta;
    if (first_) delta["role"] = "assistant";
    delta["content"] = event.text;
    choice["delta"] = std::move(delta);
  } else {
    choice["text"] = event.text;
  }
  first_ = false;
  choice["logprobs"] = nullptr;
  choice["finish_reason"] = finish_reason(event);
  json::object root = envelope(true);
  root["choices"] = json::array{std::move(choice)};
  if (include_usage_) root["usage"] = nullptr;
  return json::serialize(root);
}

std::string ResponseWriter::usage_event(const TokenEvent& last) const {
  if (!include_usage_) return {};
  json::object root = endpoint_ == Endpoint::kGenerate ? json::object() : envelope(true);
  if (endpoint_ != Endpoint::kGenerate) root["choices"] = json::array();
  root["usage"] = usage(last);
  root["timings"] = timings(last);
  return json::serialize(root);
}

std::string ResponseWriter::response(const std::string& text, const TokenEvent& last) const {
  if (endpoint_ == Endpoint::kGenerate) {
    json::object root{{"text", text},
                      {"finish_reason", finish_reason(last)},
                      {"prompt_tokens", prompt_tokens_},
                      {"completion_tokens", last.completion_tokens}};
    for (const auto& [key, value] : timings(last)) root[key] = value;
    return json::serialize(root);
  }
  json::object choice{{"index", 0}};
  if (endpoint_ == Endpoint::kChat) {
    choice["message"] = json::object{{"role", "assistant"}, {"content", text}, {"refusal", nullptr}};
  } else {
    choice["text"] = text;
  }
  choice["logprobs"] = nullptr;
  choice["finish_reason"] = finish_reason(last);
  json::object root = envelope(false);
  root["choices"] = json::array{std::move(choice)};
  root["usage"] = usage(last);
  root["timings"] = timings(last);
  return json::serialize(root);
}

}  // namespace qwen2
