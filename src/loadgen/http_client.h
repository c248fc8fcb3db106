// One request for an answer, timed.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <cstdint>
#include <string>

#include "base/error.h"
#include "loadgen/request_record.h"
#include "loadgen/server_kind.h"

namespace qwen2 {

struct Url {
  std::string host;
  std::string port;
  std::string prefix;  // path before "/v1/...", usually empty
};

// "http://host:port" with an optional path; a trailing "/v1" is dropped.
Result<Url> parse_url(std::string_view text);

struct HttpCall {
  Url url;
  Dialect dialect;
  std::string body;
  double timeout_seconds = 600;
};

// Fills everything but `index` and `scheduled`. Coroutine arguments by value: they must outlive the caller's
// frame.
boost::asio::awaitable<void> send_request(HttpCall call, RequestRecord& record);

// GET of a small document, blocking.
Result<std::string> http_get(const Url& url, const std::string& path, double timeout_seconds);

}  // namespace qwen2
