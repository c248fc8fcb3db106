// The JSON of the HTTP interface: OpenAI's chat and text completions, and the plain /generate.
// Source: https://platform.openai.com/docs/api-reference
#pragma once

#include <boost/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "engine/request.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace qwen2 {

enum class Endpoint { kChat, kCompletions, kGenerate };

// What the server knows when it reads a request.
struct ServedModel {
  std::string name;
  const Tokenizer* tokenizer = nullptr;
  ChatTemplate chat;
  std::vector<TokenId> chat_end_tokens;  // that end an answer in a chat, beside the model's own
  SamplingParams sampling_defaults;
  int64_t max_model_len = 0;
};

struct ParsedRequest {
  Endpoint endpoint = Endpoint::kChat;
  GenerationRequest generation;
  bool stream = false;
  bool include_usage = false;
};

// An error as HTTP: status and body.
struct HttpError {
  int status = 400;
  std::string message;
  std::string type = "invalid_request_error";
  std::string param;
  std::string code;
  int64_t retry_after = 0;  // seconds; 0: no header

  [[nodiscard]] std::string body() const;
};

// Tokens of an answer when a request does not say: the rest of the context would reserve all of its pages.
constexpr int64_t kDefaultChatTokens = 512;
constexpr int64_t kDefaultCompletionTokens = 16;  // OpenAI's default

// Checks types and ranges of every field that is used, and tokenises the prompt.
std::expected<ParsedRequest, HttpError> parse_request(Endpoint endpoint, std::string_view body,
                                                      const ServedModel& model);

HttpError to_http_error(const Error& error, int64_t retry_after);

// Builds the responses of one request.
class ResponseWriter {
 public:
  ResponseWriter(const ServedModel& model, const ParsedRequest& request);

  // The JSON of one streamed event (without "data: ").
  [[nodiscard]] std::string stream_event(const TokenEvent& event);
  // The last event before [DONE]: usage and timings; empty when it was not asked for.
  [[nodiscard]] std::string usage_event(const TokenEvent& last) const;
  // The whole answer at once.
  [[nodiscard]] std::string response(const std::string& text, const TokenEvent& last) const;

 private:
  [[nodiscard]] boost::json::object envelope(bool chunk) const;
  [[nodiscard]] boost::json::object usage(const TokenEvent& last) const;

  Endpoint endpoint_;
  bool include_usage_;
  std::string model_;
  std::string id_;
  int64_t created_;
  int64_t prompt_tokens_;
  bool first_ = true;
};

}  // namespace qwen2
