#include "server/openai_schema.h"

#include <algorithm>
#include <atomic>
#include <ctime>
#include <random>

#include "base/json_fields.h"

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

// Reads an optional field; its error names the field as "param" too.
template <class T>
Parsed<void> read(const JsonFields& fields, std::string_view name, T& target) {
  if (const Status status = fields.optional(name, target); !status)
    return bad(name, "{}", status.error().message);
  return {};
}

// A feature that is not there: only the value that means "off" passes.
Parsed<void> require_off(const JsonFields& fields, std::string_view name, double off) {
  const json::value* value = fields.value(name);
  if (value == nullptr) return {};
  json::error_code code;
  const bool is_off = (value->is_bool() && !value->get_bool()) ||
                      (value->is_array() && value->get_array().empty()) ||
                      (value->is_object() && value->get_object().empty()) ||
                      (value->is_string() && value->get_string().empty()) ||
                      (value->is_number() && value->to_number<double>(code) == off);
  if (!is_off) return bad(name, "'{}' is not supported", name);
  return {};
}

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

// Without any fields where the value is no object.
JsonFields fields_of(const json::value& value) {
  return value.is_object() ? JsonFields(value.get_object(), "") : JsonFields();
}

// A string, or an array of {"type": "text", "text": ...} parts.
Parsed<std::string> parse_content(const json::value* value, size_t index) {
  const std::string param = fmt::format("messages[{}].content", index);
  if (value != nullptr && value->is_string()) return std::string(value->get_string());
  if (value == nullptr || !value->is_array())
    return bad(param, "'{}' must be a string or an array of text parts", param);
  std::string text;
  for (const json::value& part : value->get_array()) {
    const JsonFields fields = fields_of(part);
    const auto content = fields.find<std::string_view>("text");
    if (fields.find<std::string_view>("type") != "text" || !content)
      return bad(param, "'{}': only parts of type \"text\" are supported", param);
    text += *content;
  }
  return text;
}

Parsed<std::vector<ChatMessage>> parse_messages(const json::value* value) {
  if (value == nullptr || !value->is_array() || value->get_array().empty()) {
    return bad("messages", "'messages' must be an array of at least one message");
  }
  std::vector<ChatMessage> messages;
  for (const json::value& item : value->get_array()) {
    const JsonFields fields = fields_of(item);
    auto role = fields.find<std::string>("role");
    const std::string param = fmt::format("messages[{}]", messages.size());
    if (!role) return bad(param, "'{}' must be an object with a 'role'", param);
    if (role == "developer") role = "system";
    if (role != "system" && role != "user" && role != "assistant")
      return bad(param + ".role", "'{}.role' must be system, user or assistant", param);
    QWEN2_TRY(std::string content, parse_content(fields.value("content"), messages.size()));
    messages.push_back({*std::move(role), std::move(content)});
  }
  return messages;
}

// `text` is a prompt as it is, or a rendered chat with its marks.
template <class Text>
Parsed<std::vector<TokenId>> encode(const ServedModel& model, const Text& text, std::string_view param) {
  if (model.tokenizer == nullptr)
    return bad(param, "the model has no tokeniser: send token ids to /v1/completions");
  auto tokens = model.tokenizer->encode(text);
  if (!tokens) return bad(param, "the prompt could not be tokenised: {}", tokens.error().message);
  return std::move(*tokens);
}

// A string, an array of token ids, or an array of exactly one of either.
Parsed<std::vector<TokenId>> parse_prompt(const ServedModel& model, const json::value* value) {
  if (value == nullptr) return bad("prompt", "'prompt' is missing");
  if (value->is_string()) return encode(model, std::string_view(value->get_string()), "prompt");
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

Parsed<std::vector<TokenId>> parse_input(Endpoint endpoint, const JsonFields& fields,
                                         const ServedModel& model) {
  if (endpoint != Endpoint::kChat) return parse_prompt(model, fields.value("prompt"));
  QWEN2_TRY(const auto messages, parse_messages(fields.value("messages")));
  const auto prompt = model.chat.render(messages, true);
  if (!prompt) return bad("messages", "{}", prompt.error().message);
  return encode(model, *prompt, "messages");
}

Parsed<void> read_sampling(const JsonFields& fields, GenerationRequest& request) {
  QWEN2_CHECK(read(fields, "temperature", request.sampling.temperature));
  QWEN2_CHECK(read(fields, "top_p", request.sampling.top_p));
  QWEN2_CHECK(read(fields, "top_k", request.sampling.top_k));
  QWEN2_CHECK(read(fields, "repetition_penalty", request.sampling.repetition_penalty));
  QWEN2_CHECK(read(fields, "ignore_eos", request.ignore_eos));
  if (request.sampling.top_k == -1) request.sampling.top_k = 0;  // vLLM's spelling of "all"
  // Greedy means the likeliest token: the model's own penalty would change it.
  if (request.sampling.temperature == 0 && fields.value("repetition_penalty") == nullptr) {
    request.sampling.repetition_penalty = 1.0F;
  }
  std::optional<int64_t> seed;
  QWEN2_CHECK(read(fields, "seed", seed));
  request.sampling.seed = seed ? static_cast<uint64_t>(*seed) : std::random_device{}();
  if (const json::value* format = fields.value("response_format");
      format != nullptr && fields_of(*format).find<std::string_view>("type") != "text") {
    return bad("response_format", "'response_format' must be {{\"type\": \"text\"}}; no other is supported");
  }
  QWEN2_CHECK(require_off(fields, "n", 1));
  QWEN2_CHECK(require_off(fields, "best_of", 1));
  for (const char* name : {"frequency_penalty", "presence_penalty", "logprobs", "top_logprobs", "echo",
                           "tools", "functions", "logit_bias", "suffix"})
    QWEN2_CHECK(require_off(fields, name, 0));
  return {};
}

// OpenAI's two names for chats, and /generate's own.
Parsed<void> read_max_tokens(Endpoint endpoint, const JsonFields& fields, const ServedModel& model,
                             GenerationRequest& request) {
  const auto left = std::max<int64_t>(1, model.max_model_len - static_cast<int64_t>(request.prompt.size()));
  request.max_new_tokens =
      std::min(left, endpoint == Endpoint::kChat ? kDefaultChatTokens : kDefaultCompletionTokens);
  QWEN2_CHECK(read(fields, "max_tokens", request.max_new_tokens));
  if (endpoint == Endpoint::kChat) QWEN2_CHECK(read(fields, "max_completion_tokens", request.max_new_tokens));
  if (endpoint == Endpoint::kGenerate) QWEN2_CHECK(read(fields, "max_new_tokens", request.max_new_tokens));
  return {};
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
  const auto document = JsonFields::parse(body, "the body");
  if (!document) return bad("", "{}", document.error().message);
  const JsonFields fields(document->object(), "");  // errors begin with the field

  std::string name = model.name;
  QWEN2_CHECK(read(fields, "model", name));
  if (name != model.name) {
    HttpError error =
        bad("model", "the model '{}' does not exist; this server has '{}'", name, model.name).error();
    error.status = 404;
    error.code = "model_not_found";
    return std::unexpected(std::move(error));
  }
  ParsedRequest request;
  request.endpoint = endpoint;
  request.generation.sampling = model.sampling_defaults;
  QWEN2_CHECK(read(fields, "stream", request.stream));
  JsonFields options;
  QWEN2_CHECK(read(fields, "stream_options", options));
  QWEN2_CHECK(read(JsonFields(options.object(), ""), "include_usage", request.include_usage));
  QWEN2_CHECK(read_sampling(fields, request.generation));
  QWEN2_TRY(request.generation.stop, parse_stop(fields.value("stop")));
  QWEN2_TRY(request.generation.prompt, parse_input(endpoint, fields, model));
  if (endpoint == Endpoint::kChat) request.generation.end_tokens = model.chat_end_tokens;
  QWEN2_CHECK(read_max_tokens(endpoint, fields, model, request.generation));
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
