#include "loadgen/server_kind.h"

#include <array>
#include <utility>

namespace qwen2 {
namespace {

namespace json = boost::json;

constexpr std::array<std::pair<ServerKind, std::string_view>, 6> kNames{{{ServerKind::kQwen2, "qwen2"},
                                                                         {ServerKind::kOpenAi, "openai"},
                                                                         {ServerKind::kLlamaCpp, "llamacpp"},
                                                                         {ServerKind::kVllm, "vllm"},
                                                                         {ServerKind::kTgi, "tgi"},
                                                                         {ServerKind::kOllama, "ollama"}}};

json::array one_message(const std::string& prompt) {
  return {json::object{{"role", "user"}, {"content", prompt}}};
}

// Temperature 0 is refused by TGI; without sampling it is greedy.
json::object tgi_body(const Question& q) {
  json::object parameters{{"max_new_tokens", q.max_new_tokens}, {"details", true}};
  parameters["do_sample"] = q.temperature > 0;
  if (q.temperature > 0) parameters["temperature"] = q.temperature;
  return {{"inputs", q.prompt}, {"parameters", std::move(parameters)}};
}

// Ollama cuts a prompt that is longer than num_ctx without a word, and loads the model again when num_ctx
// changes.
json::object ollama_body(const Dialect& dialect, const Question& q) {
  json::object body{{"model", q.model}, {"stream", dialect.stream}};
  if (dialect.flavour == ApiFlavour::kChat) {
    body["messages"] = one_message(q.prompt);
  } else {
    body["prompt"] = q.prompt;
    body["raw"] = true;
  }
  body["options"] =
      json::object{{"num_predict", q.max_new_tokens}, {"temperature", q.temperature}, {"num_ctx", q.context}};
  return body;
}

}  // namespace

std::string_view name_of(ServerKind kind) {
  return kNames[static_cast<size_t>(kind)].second;
}

std::optional<ServerKind> server_kind_of(std::string_view name) {
  for (const auto& [kind, text] : kNames) {
    if (text == name) return kind;
  }
  return std::nullopt;
}

std::string_view name_of(ApiFlavour flavour) {
  return flavour == ApiFlavour::kChat       ? "chat"
         : flavour == ApiFlavour::kGenerate ? "generate"
                                            : "completions";
}

std::string_view Dialect::path() const {
  if (kind == ServerKind::kOllama) return flavour == ApiFlavour::kChat ? "/api/chat" : "/api/generate";
  if (flavour == ApiFlavour::kChat) return "/v1/chat/completions";
  if (kind == ServerKind::kTgi) return stream ? "/generate_stream" : "/generate";
  return flavour == ApiFlavour::kGenerate ? "/generate" : "/v1/completions";
}

std::string_view Dialect::endpoint_type() const {
  if (kind == ServerKind::kOllama) return flavour == ApiFlavour::kChat ? "ollama-chat" : "ollama";
  if (flavour == ApiFlavour::kChat) return "openai-chat";
  if (kind == ServerKind::kTgi) return "tgi";
  return flavour == ApiFlavour::kGenerate ? "qwen2-generate" : "openai";
}

Status check(const Dialect& dialect, bool ignore_eos) {
  const bool own_generate = dialect.kind == ServerKind::kQwen2 || dialect.kind == ServerKind::kOpenAi ||
                            dialect.kind == ServerKind::kTgi;
  if (dialect.flavour == ApiFlavour::kGenerate && !own_generate) {
    return fail(ErrorKind::kInvalidArgument,
                "--endpoint generate: {} has no /generate; use completions or chat", name_of(dialect.kind));
  }
  if (ignore_eos && (dialect.kind == ServerKind::kTgi || dialect.kind == ServerKind::kOllama)) {
    return fail(ErrorKind::kUnsupported,
                "--ignore-eos: {} has no such setting; without it, answers may end before --max-new-tokens",
                name_of(dialect.kind));
  }
  return {};
}

json::object body_of(const Dialect& dialect, const Question& q) {
  if (dialect.kind == ServerKind::kOllama) return ollama_body(dialect, q);
  if (dialect.native()) return tgi_body(q);
  json::object body{{"model", q.model}};
  if (dialect.flavour == ApiFlavour::kChat) {
    body["messages"] = one_message(q.prompt);
  } else {
    body["prompt"] = q.prompt;
  }
  body[dialect.flavour == ApiFlavour::kGenerate ? "max_new_tokens" : "max_tokens"] = q.max_new_tokens;
  if (dialect.kind != ServerKind::kTgi || q.temperature > 0) body["temperature"] = q.temperature;
  body["stream"] = dialect.stream;
  if (dialect.stream && dialect.flavour != ApiFlavour::kGenerate)
    body["stream_options"] = json::object{{"include_usage", true}};
  if (q.ignore_eos) body["ignore_eos"] = true;
  return body;
}

}  // namespace qwen2
