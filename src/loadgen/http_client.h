// One completion request to an OpenAI-compatible server, timed.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"

namespace qwen2 {

struct Url {
  std::string host;
  std::string port;
  std::string prefix;  // path before "/v1/...", usually empty
};

// "http://host:port" with an optional path; a trailing "/v1" is dropped.
Result<Url> parse_url(std::string_view text);

enum class ApiFlavour { kCompletions, kChat, kGenerate };

// What happened to one request. Times are seconds on the monotonic clock; zero where nothing happened.
struct RequestRecord {
  int64_t index = 0;
  double scheduled = 0;
  double sent = 0;
  double first_content = 0;
  double last_content = 0;
  double end = 0;
  std::vector<double> content_times;  // of every event that carries a token, with text or without
  int status = 0;
  std::string failure;  // empty, or a kind: connect, timeout, http_4xx, http_429, http_5xx, cut_stream,
                        // wrong_length, bad_response, server_error
  std::string detail;   // the failure in words
  int64_t prompt_tokens = -1;      // as the server counts
  int64_t completion_tokens = -1;  // as the server counts
  double queue_seconds = -1;       // as the server saw it, where it says so
  std::string text;
};

struct HttpCall {
  Url url;
  ApiFlavour flavour = ApiFlavour::kCompletions;
  std::string body;
  bool stream = true;
  double timeout_seconds = 600;
};

// Fills everything but `index` and `scheduled`. Coroutine arguments by value: they must outlive the caller's
// frame.
boost::asio::awaitable<void> send_request(HttpCall call, RequestRecord& record);

// GET of a small JSON document, blocking.
Result<std::string> http_get(const Url& url, const std::string& path, double timeout_seconds);

}  // namespace qwen2
