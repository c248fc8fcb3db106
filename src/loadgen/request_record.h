// What happened to one request.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qwen2 {

// Times are seconds on one clock; zero where nothing happened. While a test runs that is the monotonic clock,
// in its result they count from the test's start.
struct RequestRecord {
  int64_t index = 0;
  double scheduled = 0;
  double sent = 0;  // the client began to connect
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

// The first failure stays.
inline void set_failure(RequestRecord& record, std::string_view kind, std::string detail) {
  if (!record.failure.empty()) return;
  record.failure = kind;
  record.detail = std::move(detail);
}

}  // namespace qwen2
